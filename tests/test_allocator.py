"""Memory that was freed stays with a process that will use it again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raybrain.cluster import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from raybrain.cluster import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def step():  # activations of a network: many at a time, none that outlives the step
    return sum(float(one[0]) for one in [torch.ones(2**20) for _ in range(20)])

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_worker_asks_for_the_same_memory_once():
    if not keep_freed_memory():
        pytest.skip("the C library here is not glibc")
    assert page_faults("kept") * 20 < page_faults("returned")
