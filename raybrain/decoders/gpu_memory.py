"""What of a GPU's memory this process could still take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def free_memory(device: torch.device | str) -> int:
    """Return the bytes of a GPU that this process could still take."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    # Of its own process' memory torch keeps what it has freed, and hands it out again.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept
