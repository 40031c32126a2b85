"""Memory that was freed stays with a process that will use it again."""

from __future__ import annotations

import os
import resource
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

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


PAGES = 10 * 20 * 4 * 2**20 // resource.getpagesize()
"""Of all tensors of ten steps."""

EAGER = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc's own defaults, fixed: left to adapt they come to keep the memory now and then."""


def page_faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **EAGER},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_worker_asks_for_the_same_memory_once():
    if not keep_freed_memory():
        pytest.skip("the C library here is not glibc")
    assert page_faults("kept") < PAGES / 20
    assert page_faults("returned") > PAGES * 0.9
