"""How batches come to the device that trains: from rows that lie there, ahead, or one by one."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from raybrain.decoders.gpu_memory import free_memory
from raybrain.training.feeds import Batch, Feed, Resident

logger = logging.getLogger(__name__)

Way = Literal["auto", "resident", "ahead", "host"]
"""``resident``: all rows lie on the device; ``ahead``: a thread reads and copies the next batches;
``host``: a batch is read when it is needed, and the device waits; ``auto``: on a GPU the first that
fits of the first two, elsewhere the last."""

SHARE_OF_FREE = 0.5
"""Of the memory that is left beside the network and its optimiser; the rest is for activations."""
COPIES_OF_WEIGHTS = 8
"""Two moments, a moving average, the best weights, a copy of them for a checkpoint, and gradients,
three times where steps of two batch sizes are replayed."""
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Delivery:
    """A feed, and how its batches come to ``device``.

    Attributes
    ----------
    feed : Feed
    device : torch.device
    ahead : bool
        Whether a thread reads and copies batches while those before them are used.
    """

    feed: Feed
    device: torch.device
    ahead: bool = False

    @property
    def on_device(self) -> bool:
        """Whether the rows lie on the device already."""
        return isinstance(self.feed, Resident) and self.feed.inputs.device.type == self.device.type

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield the batch of each tensor of row numbers, on the device."""
        if self.ahead:
            return read_ahead(self.feed, parts, device=self.device)
        return (moved(self.feed.read(rows), self.device) for rows in parts)


def delivery(feed: Feed, *, model: nn.Module, device: torch.device, way: Way) -> Delivery:
    """Return how the batches of ``feed`` come to ``device``.

    Parameters
    ----------
    feed : Feed
    model : nn.Module
        Already on the device; room is left for what training it takes.
    device : torch.device
    way : str
        See `Way`; a feed that is streamed from disk is never ``resident``.
    """
    if way == "auto":
        way = "host" if device.type == "cpu" else _best(feed, model=model, device=device)
    if way == "resident" and isinstance(feed, Resident):
        try:
            return Delivery(feed.to(device), device)
        except torch.OutOfMemoryError:  # another process took the memory that was free
            logger.warning("%d rows did not fit on %s; they are copied ahead", feed.rows, device)
    return Delivery(feed, device, ahead=way != "host")


def _best(feed: Feed, *, model: nn.Module, device: torch.device) -> Way:
    weights = sum(value.nbytes for value in model.state_dict().values())
    if isinstance(feed, Resident) and fits(feed.nbytes, weights=weights, free=free_memory(device)):
        return "resident"
    return "ahead"


def fits(rows: int, *, weights: int, free: int) -> bool:
    """Return whether rows leave enough memory to train beside them.

    Parameters
    ----------
    rows : int
        Bytes of inputs, targets and weights of all rows.
    weights : int
        Bytes of the network, which is on the device already.
    free : int
        Bytes that are free there.
    """
    return rows <= SHARE_OF_FREE * (free - COPIES_OF_WEIGHTS * weights)


def read_ahead(feed: Feed, parts: Sequence[Tensor], *, device: torch.device) -> Iterator[Batch]:
    """Yield the batch of each part in order, the next ones being read and copied in a thread.

    A copy to a GPU starts from pinned memory, on a stream of its own, so that neither the host nor
    the step before waits for it.

    Parameters
    ----------
    feed : Feed
        Read by the thread alone until the last batch was yielded.
    parts : sequence of Tensor
        Row numbers of each batch.
    device : torch.device
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(rows: Tensor) -> Sent:
        return send(feed.read(rows), device=device, stream=stream)

    waiting = iter(parts)
    coming: deque[Future[Sent]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as reader:
        try:
            for rows in itertools.islice(waiting, BATCHES_AHEAD):
                coming.append(reader.submit(read, rows))
            while coming:
                sent = coming.popleft().result()
                for rows in itertools.islice(waiting, 1):
                    coming.append(reader.submit(read, rows))
                yield receive(sent, device=device)
        finally:
            for future in coming:
                future.cancel()


Sent = tuple[Batch, "torch.cuda.Event | None"]
"""A batch on its way, and what says that it has arrived."""


def send(batch: Batch, *, device: torch.device, stream: torch.cuda.Stream | None) -> Sent:
    """Return a batch on its way to ``device``: by a stream, or at once where there is none."""
    if stream is None:
        return moved(batch, device), None
    with torch.cuda.stream(stream):
        pinned = Batch(*(tensor.pin_memory() for tensor in _tensors(batch)))
        return moved(pinned, device), stream.record_event()


def receive(sent: Sent, *, device: torch.device) -> Batch:
    """Return a batch that was sent; what is computed next on ``device`` waits for its arrival."""
    batch, arrival = sent
    if arrival is not None:
        current = torch.cuda.current_stream(device)
        current.wait_event(arrival)
        for tensor in _tensors(batch):
            tensor.record_stream(current)  # or the stream of copies would take its memory again
    return batch


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on ``device``, the same where it is there already."""
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in _tensors(batch)))


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.inputs, batch.targets, batch.weight
