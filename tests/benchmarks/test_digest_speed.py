"""Digests of a dataset's files beside hashing them one after another, and beside doing nothing."""

import hashlib
import os
import time

import pytest

from raybrain import digests
from raybrain.digests import Ledger

pytestmark = pytest.mark.benchmark

PART = 1 << 20


def timed(function):
    started = time.perf_counter()
    found = function()
    return time.perf_counter() - started, found


def test_threads_read_faster_than_one_and_an_unchanged_file_costs_nothing(scale, tmp_path):
    files = [tmp_path / f"session{k}" for k in range(4)]
    size = scale(500) * PART
    for file in files:
        with file.open("wb") as content:
            for _ in range(size // PART):
                content.write(os.urandom(PART))
    time.sleep(digests.SETTLED_NS / 1e9 + 0.1)

    def one_by_one():
        for file in files:
            with file.open("rb") as content:
                hashlib.file_digest(content, "sha256")

    one_by_one()  # from here on the files are in memory
    serial, _ = timed(one_by_one)
    ledger = Ledger(str(tmp_path))
    first, found = timed(lambda: ledger.digests(files))
    again, kept = timed(lambda: Ledger(str(tmp_path)).digests(files))
    assert found == kept
    rate = 4 * size / first / 1e9
    print(f"\none thread {serial:.2f} s, all {first:.2f} s ({rate:.2f} GB/s), again {again:.4f} s")
    scale.claim(first < serial, f"{serial / first:.2f} times as fast as one thread")
    scale.claim(first < 3, f"{first:.2f} s for {4 * size / 1e9:.1f} GB (goal under 3)")
    scale.claim(again < first / 100, f"unchanged: {first / again:.0f} times as fast")
