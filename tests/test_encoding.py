"""The worker of ``features``: the same targets however many blocks it has in hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raybrain import store
from raybrain.config import Features, Generator
from raybrain.datasets import Recording, Voxels
from raybrain.stages.encoding import Encoder

IMAGES = 140
"""Two whole blocks and a part of one."""
SIDE = 20


@pytest.fixture
def stimuli(tmp_path: Path) -> str:
    """Return the store of a subject who saw every image once."""
    ids = [f"{number:03d}" for number in range(IMAGES)]
    trials = pd.DataFrame(
        {"image_id": ids, "session": 1, "run": 0, "repeat": 0, "split": ["train"] * IMAGES}
    )
    captions = [("a dog",) if number % 3 else ("a dog", "b") for number in range(IMAGES)]
    recording = Recording(
        dataset="small",
        subject="s1",
        trials=trials,
        voxels=Voxels(
            index=np.arange(1),
            xyz=np.zeros((1, 3), np.int32),
            noise_ceiling=np.ones(1, np.float32),
        ),
        rois={"V1": np.ones(1, bool)},
        images=pd.DataFrame({"image_id": ids, "captions": captions, "group": "g"}),
        read_session=lambda _: np.zeros((IMAGES, 1), np.int16),
        read_images=lambda _: [],
        scale=1.0,
        dtype="int16",
    )
    path = str(tmp_path / "subject.zarr")
    store.create_store(path, recording, side=SIDE)
    (whole,) = store.beta_blocks(path)
    store.write_block(path, "betas", np.zeros((IMAGES, 1), np.int16), block=whole)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8)
    for block in store.missing_blocks(path, "image/pixels"):
        rows = pixels[block.start : block.stop]
        store.write_block(path, "image/pixels", rows, block=block)
    return path


def test_blocks_side_by_side_are_as_one_after_another(stimuli, tmp_path):
    from raybrain import diffusion

    generator = Generator(device="cpu")
    features = Features(batch_size=16, layers=(3,), grid=2)
    shapes = diffusion.target_shapes(generator, features=features)
    names = ("latents", "prompt_embeds", "image_embeds", "image_features")
    experiment = SimpleNamespace(
        generator=generator, features=features, decode=SimpleNamespace(others={})
    )
    found = []
    for at_once in (1, 3):
        folder = str(tmp_path / f"features-{at_once}.zarr")
        store.create_rows(
            folder,
            {name: (getattr(shapes, name), "float32") for name in names},
            image_ids=[str(number) for number in range(IMAGES)],
            rows_per_block=store.IMAGES_PER_CHUNK,
            attributes={},
        )
        encoder = Encoder(experiment=experiment, stimuli=stimuli, folder=folder)
        with ThreadPoolExecutor(at_once) as threads:
            done = list(threads.map(encoder, store.missing_blocks(folder, "latents")))
        assert done == [64, 64, 12]
        found.append({name: store.read_rows(folder, name) for name in names})
    for name in names:
        assert np.ptp(found[0][name], axis=0).max() > 0
        np.testing.assert_array_equal(found[1][name], found[0][name])
