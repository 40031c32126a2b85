"""Which axis counts the trials, and in which order the volume comes."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from raybrain.config import InputError
from tests.datasets import other_trees as trees
from tests.datasets.test_arrays import all_betas, read

GRID = trees.GRID


def volumes(tree: trees.Arrays) -> np.ndarray:
    """Return (trial, x, y, z)."""
    return tree.betas.reshape(-1, *GRID)


def write_h5(tree: trees.Arrays, array: np.ndarray, *, matlab: bool) -> None:
    (tree.root / "P1/betas.npy").unlink()
    with h5py.File(tree.root / "P1/betas.h5", "w") as file:
        file["betasmd"] = array
        if matlab:
            file["betasmd"].attrs["MATLAB_class"] = np.bytes_("single")


@pytest.mark.parametrize("matlab", [True, False])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 2, 1)])
def test_a_volume_with_trials_first_is_read_as_its_positions_tell(
    tmp_path: Path, axes: tuple[int, ...], matlab: bool
) -> None:
    tree = trees.write_arrays(tmp_path)
    array = volumes(tree).transpose(axes)
    if matlab and axes == (0, 1, 2, 3):
        pytest.skip("MATLAB reverses all axes")
    write_h5(tree, array, matlab=matlab)
    recording = read(tmp_path)
    np.testing.assert_array_equal(all_betas(recording), tree.betas[:, recording.voxels.index])


def test_two_dimensions_of_matlab_are_trial_and_voxel(tmp_path: Path) -> None:
    tree = trees.write_arrays(tmp_path)
    write_h5(tree, tree.betas, matlab=True)
    recording = read(tmp_path)
    np.testing.assert_array_equal(all_betas(recording), tree.betas[:, recording.voxels.index])


def cube(folder: Path) -> trees.Arrays:
    """Write a volume of 5 x 5 x 5 voxels, which looks alike from all sides."""
    tree = trees.write_arrays(folder)
    places = pd.DataFrame(np.argwhere(np.ones((5, 5, 5))), columns=["x", "y", "z"])
    places["V1"], places["ventral"] = 1, 0
    places.to_csv(folder / "P1/voxels.csv", index=False)
    return tree


@pytest.mark.parametrize(
    ("axes", "order"), [("trial x y z", (0, 1, 2, 3)), ("trial z y x", (0, 3, 2, 1))]
)
def test_a_cube_says_nothing_and_the_entry_has_to(
    tmp_path: Path, axes: str, order: tuple[int, ...]
) -> None:
    cube(tmp_path)
    values = np.random.default_rng(0).standard_normal((20, 5, 5, 5)).astype(np.float32)
    np.save(tmp_path / "P1/betas.npy", values.transpose(order))
    with pytest.raises(InputError, match=r"read as \(trial, x, y, z\) and as \(trial, z, y, x\);"):
        read(tmp_path)
    recording = read(tmp_path, layout={"axes": axes})
    np.testing.assert_array_equal(all_betas(recording), values.reshape(20, -1))
    with pytest.raises(InputError, match=r"is not \(x, y, z, trial\) of 20 trials"):
        read(tmp_path, layout={"axes": "x y z trial"})


def test_as_many_trials_as_voxels_is_refused(tmp_path: Path) -> None:
    trees.write_arrays(tmp_path)
    pd.DataFrame({"V1": [1] * 20, "ventral": [0] * 20}).to_csv(
        tmp_path / "P1/voxels.csv", index=False
    )
    square = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    np.save(tmp_path / "P1/betas.npy", square)
    with pytest.raises(InputError, match=r"read as \(trial, voxel\) and as \(voxel, trial\)"):
        read(tmp_path)
    first = all_betas(read(tmp_path, layout={"axes": "trial voxel"}))
    np.testing.assert_array_equal(first, square)
    second = all_betas(read(tmp_path, layout={"axes": "voxel trial"}))
    np.testing.assert_array_equal(second, square.T)
