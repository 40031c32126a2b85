import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybrain import store
from raybrain.config import InputError
from raybrain.datasets import Recording, Surface, Voxels


def _session(session: int, *, betas: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    return betas[sessions == session]


@pytest.fixture
def recording() -> Recording:
    rng = np.random.default_rng(0)
    sessions = np.array([1, 1, 1, 2, 2, 2, 3, 3])
    betas = rng.integers(-3000, 3000, (8, 5)).astype(np.int16)
    betas[3:6] = 0  # an empty chunk must still count as written
    trials = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "a", "b", "c", "a", "é"],
            "session": sessions,
            "run": 0,
            "repeat": [0, 0, 0, 1, 1, 1, 2, 0],
            "split": ["train", "validation", "test"] * 2 + ["train", "test"],
        }
    )
    return Recording(
        dataset="small",
        subject="s1",
        trials=trials,
        voxels=Voxels(
            index=np.arange(5),
            xyz=np.arange(15, dtype=np.int32).reshape(5, 3),
            noise_ceiling=np.linspace(0, 1, 5, dtype=np.float32),
        ),
        rois={"V1": np.array([1, 1, 0, 0, 0], bool), "V2": np.array([0, 0, 1, 0, 0], bool)},
        images=pd.DataFrame(
            {
                "image_id": ["a", "b", "c", "é"],
                "captions": [("one", "two"), (), ('c, quoted "x"',), ("é",)],
                "group": ["g", "g", "h", "h"],
            }
        ),
        read_session=functools.partial(_session, betas=betas, sessions=sessions),
        read_images=lambda ids: [np.zeros((4, 4, 3), np.uint8) for _ in ids],
        scale=1 / 300,
        dtype="int16",
    )


def _fill(path: str, recording: Recording) -> None:
    stored = np.concatenate([recording.read_session(s) for s in (1, 2, 3)])
    for block in store.missing_blocks(path, "betas"):
        store.write_block(path, "betas", stored[block.start : block.stop], block=block)
    for block in store.missing_blocks(path, "image/pixels"):
        images = recording.read_images(["?"] * (block.stop - block.start))
        store.write_block(path, "image/pixels", np.stack(images), block=block)


def test_betas_come_back_scaled_and_only_those_of_the_opened_splits(tmp_path, recording):
    path = str(tmp_path / "s.zarr")
    store.create_store(path, recording, side=4)
    _fill(path, recording)
    stored = np.concatenate([recording.read_session(s) for s in (1, 2, 3)]) / np.float32(300)
    voxels = np.array([True, False, True, True, False])
    for splits, rows in (("training", [0, 1, 3, 4, 6]), ("test", [2, 5, 7])):
        opened = store.open_store(path, splits=splits)
        assert opened.trials.index.tolist() == rows
        np.testing.assert_allclose(opened.betas(voxels=voxels), stored[rows][:, voxels], rtol=1e-6)
    assert opened.images.loc["a", "captions"] == ["one", "two"]
    assert opened.mask(["V1", "V2"]).tolist() == [True, True, True, False, False]


def _stored(path, recording):
    store.create_store(path, recording, side=4)
    _fill(path, recording)
    return store.open_store(path, splits="test")


def test_a_surface_comes_back(tmp_path, recording):
    path, edges = str(tmp_path / "s.zarr"), np.array([[0, 1], [3, 4]], np.int32)
    hemisphere = np.array([0, 0, 0, 1, 1], np.int8)
    opened = _stored(path, replace(recording, surface=Surface(hemisphere, edges)))
    np.testing.assert_array_equal(opened.hemisphere, hemisphere)
    np.testing.assert_array_equal(opened.edges, edges)
    # An unfinished ingest is taken up again when the files of the mesh are gone.
    opened = _stored(path, replace(recording, surface=Surface(hemisphere)))
    np.testing.assert_array_equal(opened.hemisphere, hemisphere)
    assert opened.edges is None


def test_a_volume_has_no_surface(tmp_path, recording):
    opened = _stored(str(tmp_path / "v.zarr"), recording)
    assert opened.hemisphere is None
    assert opened.edges is None
    assert not (tmp_path / "v.zarr/mesh").exists()
    assert not (tmp_path / "v.zarr/voxel/hemisphere").exists()


def test_pixels_come_in_the_order_that_is_asked_for(tmp_path, recording):
    path = str(tmp_path / "s.zarr")
    store.create_store(path, recording, side=4)
    _fill(path, recording)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 4, 4, 3), np.uint8)
    store.write_block(path, "image/pixels", pixels, block=store.Block(0, 4))
    opened = store.open_store(path, splits="training")
    for rows in ([0, 1, 2, 3], [1, 2], [3], [2, 0], [1, 3], [2, 1], []):
        ids = opened.images.index[rows].tolist()
        np.testing.assert_array_equal(opened.pixels(ids), pixels[rows])


def test_chunks_of_zeros_that_threads_write_count_as_written(tmp_path):
    path = str(tmp_path / "rows.zarr")
    ids = [str(number) for number in range(64)]
    store.create_rows(
        path, {"x": ((3,), "float32")}, image_ids=ids, rows_per_block=1, attributes={}
    )
    zeros = np.zeros((1, 3), np.float32)

    def write(block: store.Block) -> None:
        store.write_block(path, "x", zeros, block=block)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, store.missing_blocks(path, "x")))
    assert store.missing_blocks(path, "x") == []


def test_only_the_missing_chunks_are_left_after_an_interruption(tmp_path, recording):
    path = str(tmp_path / "s.zarr")
    store.create_store(path, recording, side=4)
    every = store.missing_blocks(path, "betas")
    assert [(b.start, b.stop) for b in every] == [(0, 3), (3, 6), (6, 8)]
    store.write_block(path, "betas", recording.read_session(2), block=every[1])
    store.create_store(path, recording, side=4)
    assert store.missing_blocks(path, "betas") == [every[0], every[2]]


def test_extreme_betas_tell_the_voxels_that_never_vary(tmp_path, recording):
    path = str(tmp_path / "s1.zarr")
    store.create_store(path, recording, side=4)
    stored = np.concatenate([recording.read_session(s) for s in (1, 2, 3)])
    stored[:, 4] = 7
    for block in store.missing_blocks(path, "betas"):
        store.write_block(path, "betas", stored[block.start : block.stop], block=block)
    found = [store.extreme_betas(path, block) for block in store.beta_blocks(path)]
    assert len(found) == 3
    lowest, highest = (np.stack(one) for one in zip(*found, strict=True))
    np.testing.assert_array_equal(lowest.min(0), stored.min(0))
    np.testing.assert_array_equal(highest.max(0), stored.max(0))
    assert (lowest.min(0) == highest.max(0)).tolist() == [False] * 4 + [True]


def test_rows_are_sharded_and_read_by_image(tmp_path):
    path = str(tmp_path / "r.zarr")
    ids = [f"i{n}" for n in range(5)]
    store.create_rows(
        path,
        {"pixels": ((2, 3), "uint8")},
        image_ids=ids,
        rows_per_block=2,
        rows_per_chunk=1,
        attributes={"seed": 1},
    )
    values = np.arange(30, dtype=np.uint8).reshape(5, 2, 3)
    blocks = store.missing_blocks(path, "pixels")
    assert [(b.start, b.stop) for b in blocks] == [(0, 2), (2, 4), (4, 5)]
    for block in blocks:
        store.write_block(path, "pixels", values[block.start : block.stop], block=block)
    assert store.missing_blocks(path, "pixels") == []
    np.testing.assert_array_equal(
        store.read_rows(path, "pixels", image_ids=["i4", "i0"]), values[[4, 0]]
    )
    assert store.row_ids(path) == ids


def test_a_missing_store_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no store at"):
        store.open_store(str(tmp_path / "none.zarr"), splits="training")


@pytest.fixture
def written(tmp_path, recording) -> str:
    path = str(tmp_path / "s.zarr")
    store.create_store(path, recording, side=4)
    _fill(path, recording)
    return path


@pytest.mark.parametrize(("name", "chunk"), [("betas", "1/0"), ("image/pixels", "0/0/0/0")])
def test_a_chunk_that_is_gone_is_not_read_as_zeros(written, name, chunk):
    assert len(store.open_store(written, splits="training").trials) == 5
    (Path(written) / name / "c" / chunk).unlink()
    with pytest.raises(InputError, match=rf"s\.zarr lacks 1 chunks of {name}.*delete that folder"):
        store.open_store(written, splits="training")


def test_a_chunk_cut_short_is_one_sentence(written):
    chunk = Path(written) / "betas/c/1/0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    opened = store.open_store(written, splits="training")
    with pytest.raises(InputError, match=r"s\.zarr.* has a damaged chunk .*; delete the folder"):
        opened.betas(voxels=np.ones(5, bool))


def test_rows_that_are_gone_or_damaged_are_one_sentence(tmp_path):
    path = str(tmp_path / "rows.zarr")
    ids = [f"i{k}" for k in range(6)]
    store.create_rows(
        path, {"latents": ((3,), "float32")}, image_ids=ids, rows_per_block=2, attributes={}
    )
    for block in store.missing_blocks(path, "latents"):
        store.write_block(path, "latents", np.ones((2, 3), np.float32), block=block)
    assert store.read_rows(path, "latents", image_ids=["i5", "i0"]).sum() == 6
    chunk = tmp_path / "rows.zarr/latents/c/2/0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:5])
    with pytest.raises(InputError, match="has a damaged chunk"):
        store.read_rows(path, "latents")
    chunk.unlink()
    with pytest.raises(InputError, match=r"lacks 1 chunks of latents .*rows 4 to 5"):
        store.read_rows(path, "latents", image_ids=["i0"])
