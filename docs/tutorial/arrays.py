"""Write a subject's betas as any lab has them: an array, two tables and a folder of pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from raybrain import store

subject = "workspace/stores/simulated/subj01.zarr"
opened = [store.open_store(subject, splits=part) for part in ("training", "test")]
everything = np.ones(len(opened[0].voxels), bool)

place = Path("mine")
(place / "images").mkdir(parents=True)

trials = pd.concat([one.trials for one in opened]).sort_index()
betas = np.empty((len(trials), len(everything)), np.float32)
for one in opened:
    betas[one.trials.index] = one.betas(voxels=everything)
np.save(place / "betas.npy", betas)
trials["split"] = trials["split"].replace("validation", "train")  # what is set aside is chosen anew
trials[["image_id", "session", "repeat", "split"]].to_csv(place / "trials.csv", index=False)

voxels = (
    opened[0]
    .voxels[["x", "y", "z", "noise_ceiling"]]
    .assign(**{name: mask.astype(int) for name, mask in opened[0].rois.items()})
)
voxels.to_csv(place / "voxels.csv", index=False)

shown = opened[0].images.index
for image_id, pixels in zip(shown, opened[0].pixels(list(shown)), strict=True):
    Image.fromarray(pixels).save(place / "images" / f"{image_id}.png")

print(f"{betas.shape[0]} trials of {betas.shape[1]} voxels, {len(shown)} pictures")
