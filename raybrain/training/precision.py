"""The type in which a network computes."""

from __future__ import annotations

import functools
import logging

import torch

logger = logging.getLogger(__name__)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which matrix products and convolutions have the precision wanted.

    ``auto`` is bfloat16 on a GPU whose units compute in it, and float32 on all others and on CPUs.

    A CPU whose instructions know no bfloat16 computes in float32: torch would fall back to kernels
    that were 22 times slower (a step of the pocket generator on AVX2, 23.2 s for 1.07 s).

    Parameters
    ----------
    device : torch.device
    precision : str
        ``auto``, ``float32`` or ``bfloat16``.
    """
    if precision == "auto":
        precision = "bfloat16" if device_computes_bfloat16(device) else "float32"
    reduced = precision == "bfloat16" and (device.type != "cpu" or _cpu_knows_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced)


def device_computes_bfloat16(device: torch.device) -> bool:
    """Return whether ``device`` is a GPU that has bfloat16 and does not emulate it."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def _cpu_knows_bfloat16() -> bool:
    # What torch itself asks before it chooses a kernel.
    found = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not found:
        logger.warning("this CPU has no bfloat16: precision bfloat16 computes in float32 here")
    return found
