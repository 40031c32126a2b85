"""``reader: one_file``: a subject is one ``.npz`` file of betas, labels and pictures.

``SUBJECT.npz`` holds ``betas`` (trial, voxel) in percent signal change, ``image_id`` (trial,),
``session`` (trial,), ``test`` (trial,) bool, ``names`` (image,), ``pixels`` (image, y, x, rgb)
uint8 and ``captions`` (image,). There is one ROI, ``all``.
"""

import io
from functools import partial

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets import Recording, Voxels
from raybrain.datasets.files import Root
from raybrain.datasets.splits import assign

ARRAYS = ("betas", "image_id", "session", "test", "names", "pixels", "captions")


def required_files(entry, *, root, subject, settings):
    """Return the files that ingest reads, present or not."""
    return [_place(entry, root).required(f"{subject}.npz")]


def open_recording(entry, *, root, subject, settings):
    """Return what the file holds; betas and pictures are read when they are asked for."""
    place, path = _place(entry, root), f"{subject}.npz"
    held = _held(place, path)
    sessions = sorted(set(held["session"].tolist()))[: settings.sessions]
    kept = np.isin(held["session"], sessions)
    order = np.flatnonzero(kept)[np.argsort(held["session"][kept], kind="stable")]
    trials = pd.DataFrame(
        {
            "image_id": held["image_id"][order].astype(str).astype(object),
            "session": held["session"][order].astype(int),
        }
    )
    trials["run"] = 0
    trials["repeat"] = trials.groupby("image_id").cumcount()
    trials["split"] = assign(
        is_test=held["test"][order].astype(bool),
        group=trials["image_id"],
        validation=entry.split.validation,
    )
    shown = sorted(set(trials["image_id"]))
    captions = dict(zip(held["names"].astype(str), held["captions"].astype(str), strict=True))
    voxels = held["betas"].shape[1]
    index = np.arange(voxels)
    return Recording(
        dataset=entry.name,
        subject=subject,
        trials=trials,
        voxels=Voxels(
            index=index,
            xyz=np.stack([index, 0 * index, 0 * index], axis=1).astype(np.int32),
            noise_ceiling=np.full(voxels, np.nan, np.float32),
        ),
        rois={"all": np.ones(voxels, bool)},
        images=pd.DataFrame(
            {
                "image_id": shown,
                "captions": [(captions[name],) for name in shown],
                "group": shown,
            }
        ),
        read_session=partial(_betas, place, path),
        read_images=partial(_pictures, place, path),
        sources={path: place.fingerprint(path)},
        findings=(f"{len(trials)} trials of {len(shown)} images in {len(sessions)} sessions",),
    )


def _place(entry, root):
    return Root(root, get=entry.get, storage=entry.storage)


def _held(place, path):
    try:
        with np.load(io.BytesIO(place.read(path)), allow_pickle=False) as file:
            return {name: file[name] for name in ARRAYS}
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{place.at(path)} is not a subject ({error}); write it again") from None


def _betas(place, path, session):
    held = _held(place, path)
    return held["betas"][held["session"] == session].astype(np.float32)


def _pictures(place, path, image_ids):
    held = _held(place, path)
    rows = {name: row for row, name in enumerate(held["names"].astype(str))}
    return [held["pixels"][rows[name]] for name in image_ids]
