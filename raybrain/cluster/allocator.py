"""What a worker process does with memory that was freed."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's ``mallopt`` (malloc.h)."""
LARGEST = 32 * 2**20
"""Bytes, the most that glibc takes as ``M_MMAP_THRESHOLD``."""


def keep_freed_memory() -> bool:
    """Keep what is freed within the process for its next use; return whether the system does so.

    By default glibc gives the end of the heap back whenever much of it is free. A worker that
    makes and drops the same activations at every step then maps, clears and unmaps them each time:
    a tenth of the CPU time of gradient guidance. A process that ends soon has no other use for it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # Either setting alone switches off the other's adaptation.
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
