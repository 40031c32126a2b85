"""Steps that are recorded once and replayed: the host starts one graph in place of its kernels.

A graph reads and writes the same memory every time. So row numbers and learning rate have a tensor
of their own, which is filled before each step, and the rows must lie on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raybrain.config import InputError

Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Returns what does the same work again; it may do none itself."""

STEPS_BEFORE = 3
"""Ordinary steps of each batch size before one is recorded: libraries prepare themselves there, and
the optimiser makes its moments."""


@dataclass
class Replay:
    """Training steps at fixed places in memory.

    Attributes
    ----------
    step : callable
        Changes the weights on the rows of given numbers; returns the loss. It must not wait for the
        device, nor depend on anything else that changes between steps but ``rate``.
    rate : Tensor of float32, shape ()
        Learning rate, which the optimiser reads.
    optimiser : torch.optim.Optimizer
    record : callable
        From `recorder`.
    """

    step: Callable[[Tensor], Tensor]
    rate: Tensor
    optimiser: torch.optim.Optimizer
    record: Record
    _of_length: dict[int, _Recorded] = field(init=False, default_factory=dict)

    def __call__(self, rows: Tensor, *, lr: float) -> Tensor:
        """Return the loss of a step, a tensor that the next one overwrites.

        Raises
        ------
        InputError
            If the step cannot be recorded.
        """
        one = self._of_length.get(len(rows))
        if one is None:
            one = self._of_length[len(rows)] = _Recorded(torch.empty_like(rows))
        one.rows.copy_(rows)
        self.rate.fill_(lr)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate

        def work() -> None:
            one.loss = self.step(one.rows)

        if one.steps < STEPS_BEFORE:
            with _beside(rows.device):
                work()
        else:
            if one.again is None:
                one.again = self._recorded(work)
            one.again()
        one.steps += 1
        assert one.loss is not None
        return one.loss

    def _recorded(self, work: Work) -> Work:
        try:
            with _capturable(self.optimiser):
                return self.record(work)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"a training step of this network cannot be recorded ({error}); set "
                f"training.replay=false"
            ) from error


@dataclass
class _Recorded:
    rows: Tensor
    loss: Tensor | None = None
    steps: int = 0
    again: Work | None = None


def recorder(device: torch.device, *, generator: torch.Generator) -> Record | None:
    """Return what records a step on ``device``; None where every step is computed anew.

    Parameters
    ----------
    device : torch.device
    generator : torch.Generator
        On the device; what is replayed draws from it as it is seeded then.
    """
    if device.type != "cuda":
        return None

    def record(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
        return graph.replay

    return record


@contextlib.contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Work on another stream than the usual one, as a recording does."""
    if device.type != "cuda":
        yield
        return
    usual = torch.cuda.current_stream(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield
    usual.wait_stream(stream)


@contextlib.contextmanager
def _capturable(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    # torch warns of a step that is capturable and not captured, so it is for the recording alone.
    for group in optimiser.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in optimiser.param_groups:
            group["capturable"] = False
