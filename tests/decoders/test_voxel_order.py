import numpy as np
import pytest

from raybrain.decoders.voxel_order import hilbert_order, permuted_order


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_full_cube_is_walked_one_step_at_a_time(bits):
    side = 2**bits
    xyz = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) + 5
    order = hilbert_order(np.random.default_rng(0).permutation(xyz))
    assert sorted(order) == list(range(side**3))
    walked = np.random.default_rng(0).permutation(xyz)[order]
    assert np.all(np.abs(np.diff(walked, axis=0)).sum(axis=1) == 1)


def test_neighbours_along_the_curve_are_closer_than_in_the_stored_order():
    draw = np.random.default_rng(1)
    xyz = np.unique(draw.normal(20, 5, (3000, 3)).round().astype(int), axis=0)  # C order

    def distance(order):
        return np.linalg.norm(np.diff(xyz[order], axis=0), axis=1).mean()

    stored = distance(np.arange(len(xyz)))
    assert distance(hilbert_order(xyz)) < 0.8 * stored
    assert distance(permuted_order(len(xyz))) > 2 * stored


def test_the_permuted_control_is_fixed():
    np.testing.assert_array_equal(permuted_order(100), permuted_order(100))
    assert sorted(permuted_order(100)) == list(range(100))
