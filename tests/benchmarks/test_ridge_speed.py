"""Ridge at the size of a subject beside himalaya, each in a process of its own, same threads."""

from pathlib import Path

import pytest

from tests.processes import result_of

pytestmark = pytest.mark.benchmark
CONTESTANT = Path(__file__).with_name("ridge_contestant.py")


def measured(contestant, sizes):
    result = result_of(CONTESTANT, contestant, *sizes)
    print(
        f"\n{contestant:>14}: {result['seconds']:7.1f} s   R² {result['r2']:.4f}   "
        f"peak {result['gigabytes']:.2f} GB"
    )
    return result


def test_ridge_is_faster_than_himalaya_at_equal_r2_and_memory(scale):
    sizes = (scale(4000), scale(8000), scale(6400))
    ours = measured("raybrain", sizes)
    for other, factor in (("RidgeCV", 8), ("KernelRidgeCV", 5)):
        theirs = measured(other, sizes)
        ratio = theirs["seconds"] / ours["seconds"]
        scale.claim(ratio >= factor, f"{ratio:.1f} times as fast as {other} (goal {factor})")
        scale.claim(ours["r2"] >= theirs["r2"] - 1e-4, f"R² no lower than {other}")
        scale.claim(ours["gigabytes"] <= theirs["gigabytes"], f"peak memory no higher than {other}")
