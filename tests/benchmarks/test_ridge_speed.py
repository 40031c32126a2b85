"""Ridge at the size of a subject beside himalaya, each in a process of its own, same threads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark
CONTESTANT = Path(__file__).with_name("ridge_contestant.py")


def measured(contestant, sizes):
    command = [sys.executable, str(CONTESTANT), contestant, *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
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
