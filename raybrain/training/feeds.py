"""Where batches come from: rows in memory, or chunks read in a shuffled order.

Resident rows are the faster and should be used while they fit; float32 rows in an object store are
shared by all workers of a node and not copied. `raybrain.training.delivery` brings them to a GPU.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybrain.decoders.normalisation import Rows

CHUNKS_IN_MEMORY = 16
"""Rows are shuffled within half of them; the other half is being read."""
MOST_ROWS_PER_CHUNK = 256


@dataclass(frozen=True)
class Batch:
    """Rows of betas and targets with a weight each (mean 1 over the data)."""

    inputs: Tensor
    """(row, voxel), z-scored betas; of several subjects the subject's number comes first."""
    targets: Tensor
    """(row, dimension), standardised."""
    weight: Tensor
    """(row,), of each row's loss."""


class Feed(Protocol):
    """Where batches come from."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def order(self, generator: torch.Generator) -> Tensor:
        """Return all row numbers (row,) in the order of one epoch."""

    def read(self, rows: Tensor) -> Batch:
        """Return the given rows; within an epoch they are asked for in the order of `order`.

        Parameters
        ----------
        rows : Tensor of int64, shape (row,)
            Row numbers.
        """


@dataclass(frozen=True)
class Resident:
    """Rows held in memory, of the host or a GPU.

    Attributes
    ----------
    inputs : Tensor, shape (row, voxel)
    targets : Tensor, shape (row, dimension)
    weight : Tensor, shape (row,)
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        """Memory that the rows take."""
        return sum(tensor.nbytes for tensor in (self.inputs, self.targets, self.weight))

    def to(self, device: torch.device) -> Resident:
        """Return the same rows in the memory of ``device``."""
        return Resident(self.inputs.to(device), self.targets.to(device), self.weight.to(device))

    def order(self, generator: torch.Generator) -> Tensor:
        """Return a permutation (row,) of the rows, beside them: the same wherever they are."""
        return torch.randperm(self.rows, generator=generator).to(self.inputs.device)

    def read(self, rows: Tensor) -> Batch:
        """Return the given rows; nothing waits where their numbers lie beside them.

        Parameters
        ----------
        rows : Tensor of int64, shape (row,)
            Row numbers.
        """
        rows = rows.to(self.inputs.device, non_blocking=True)
        return Batch(self.inputs[rows], self.targets[rows], self.weight[rows])


def resident(inputs: NDArray, *, targets: NDArray, count: NDArray | None = None) -> Resident:
    """Return a feed over arrays, each row weighted by its number of repeats.

    The memory of read-only arrays, such as those of an object store, is shared and not copied.

    Parameters
    ----------
    inputs : ndarray of float32, shape (row, voxel)
    targets : ndarray of float32, shape (row, dimension)
    count : ndarray of int, shape (row,), optional

    Raises
    ------
    ValueError
        If there are no rows, their numbers differ, or a value is not finite.
    """
    if len(inputs) == 0 or len(inputs) != len(targets):
        raise ValueError(f"found {len(inputs)} rows of betas and {len(targets)} of targets")
    for name, array in (("betas", inputs), ("targets", targets)):
        if not math.isfinite(float(array.sum(dtype=np.float64))):
            raise ValueError(f"{name} hold NaN or infinity; remake them")
    weight = np.ones(len(inputs)) if count is None else count / np.mean(count)
    return Resident(_shared(inputs), _shared(targets), torch.from_numpy(weight.astype(np.float32)))


def feed_of(betas: Rows, *, targets: Rows, count: NDArray, memory: float) -> Resident | Streamed:
    """Return a feed over prepared rows: resident where they are arrays, else streamed from disk.

    Parameters
    ----------
    betas : shape (row, voxel)
    targets : shape (row, dimension)
    count : ndarray of int, shape (row,)
        Repeats in a row, its weight.
    memory : float
        Gigabytes that streamed rows may take.
    """
    if isinstance(betas, np.ndarray) and isinstance(targets, np.ndarray):
        return resident(betas, targets=targets, count=count)
    rows = betas.shape[0]
    row_bytes = 4 * (betas.shape[1] + targets.shape[1])
    available = int(memory * 1e9)
    size = chunk_rows(row_bytes, memory=available)
    weight = (count / np.mean(count)).astype(np.float32)

    def read(number: int) -> Batch:
        part = slice(number * size, min((number + 1) * size, rows))
        return Batch(
            torch.from_numpy(np.asarray(betas[part], np.float32)),
            torch.from_numpy(np.asarray(targets[part], np.float32)),
            torch.from_numpy(weight[part]),
        )

    sizes = [min(size, rows - start) for start in range(0, rows, size)]
    return streamed(read, sizes=sizes, row_bytes=row_bytes, memory=available)


def chunk_rows(row_bytes: int, *, memory: int) -> int:
    """Return how many rows to store and read together: several chunks should fit into memory.

    Parameters
    ----------
    row_bytes : int
        Bytes of one row.
    memory : int
        Bytes for all the chunks that are held at once.
    """
    return int(np.clip(memory // (CHUNKS_IN_MEMORY * row_bytes), 1, MOST_ROWS_PER_CHUNK))


def _shared(array: NDArray) -> Tensor:
    array = np.asarray(array, np.float32)
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        # torch warns that writing to read-only memory is undefined; these tensors are only read.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


@dataclass
class Streamed:
    """Rows read a few chunks at a time, for data larger than memory.

    The chunks are shuffled, taken in groups, and the rows of a group are shuffled together: every
    row comes once in an epoch, in an order that the epoch's generator determines. While one group
    is used, the next is read.

    Attributes
    ----------
    read_chunk : callable
        Returns a chunk's rows in order, as a `Batch`.
    sizes : tuple of int
        Rows of each chunk.
    together : int
        Chunks in a group; twice as many are in memory at most.
    """

    read_chunk: Callable[[int], Batch]
    sizes: tuple[int, ...]
    together: int
    _groups: list[list[int]] = field(init=False, default_factory=list)
    _loaded: dict[int, Batch] = field(init=False, default_factory=dict)
    _coming: dict[int, Future[Batch]] = field(init=False, default_factory=dict)
    _reader: ThreadPoolExecutor = field(init=False)
    _starts: Tensor = field(init=False)
    _place: Tensor = field(init=False)
    """Position of each row within its group."""
    _group_of: Tensor = field(init=False)
    """Group of each chunk."""

    def __post_init__(self) -> None:
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self._starts = torch.tensor([0, *np.cumsum(self.sizes)])
        self._arrange(list(range(len(self.sizes))))

    def __getstate__(self) -> dict[str, object]:
        """Leave the reading thread and what it holds behind when sent to a worker."""
        return {"read_chunk": self.read_chunk, "sizes": self.sizes, "together": self.together}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Start without any chunk."""
        self.__init__(**state)  # type: ignore[misc]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.sizes)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return all row numbers (row,) in the order of one epoch."""
        self._arrange(torch.randperm(len(self.sizes), generator=generator).tolist())
        parts = []
        for group in self._groups:
            rows = torch.cat([self._rows_of(chunk) for chunk in group])
            parts.append(rows[torch.randperm(len(rows), generator=generator)])
        return torch.cat(parts)

    def read(self, rows: Tensor) -> Batch:
        """Return the given rows; cheap in the order of the epoch, correct in any.

        Parameters
        ----------
        rows : Tensor of int64, shape (row,)
            Row numbers.
        """
        chunk = torch.searchsorted(self._starts, rows, right=True) - 1
        group = self._group_of[chunk]
        needed = torch.unique_consecutive(group).tolist()
        parts = []
        for number in dict.fromkeys(needed):
            held = self._take(number)
            inside = self._place[rows[group == number]]
            parts.append(Batch(held.inputs[inside], held.targets[inside], held.weight[inside]))
        self._prepare(after=needed[-1], keep=needed)
        if len(parts) == 1:
            return parts[0]
        # Back from order of groups to order of rows.
        order = torch.cat([torch.nonzero(group == n)[:, 0] for n in dict.fromkeys(needed)])
        back = torch.argsort(order)
        return Batch(
            torch.cat([part.inputs for part in parts])[back],
            torch.cat([part.targets for part in parts])[back],
            torch.cat([part.weight for part in parts])[back],
        )

    def _rows_of(self, chunk: int) -> Tensor:
        return torch.arange(int(self._starts[chunk]), int(self._starts[chunk + 1]))

    def _arrange(self, chunks: list[int]) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
        self._loaded.clear()
        step = self.together
        self._groups = [chunks[at : at + step] for at in range(0, len(chunks), step)]
        self._group_of = torch.empty(len(chunks), dtype=torch.long)
        self._place = torch.empty(self.rows, dtype=torch.long)
        for number, group in enumerate(self._groups):
            start = 0
            for chunk in group:
                self._group_of[chunk] = number
                self._place[self._rows_of(chunk)] = torch.arange(start, start + self.sizes[chunk])
                start += self.sizes[chunk]

    def _take(self, number: int) -> Batch:
        if number not in self._loaded:
            coming = self._coming.pop(number, None)
            held = coming.result() if coming else self._load(self._groups[number])
            self._loaded[number] = held
        return self._loaded[number]

    def _prepare(self, *, after: int, keep: list[int]) -> None:
        for number in [held for held in self._loaded if held not in keep[-1:]]:
            del self._loaded[number]
        following = after + 1
        if following < len(self._groups) and following not in self._coming:
            group = self._groups[following]
            self._coming[following] = self._reader.submit(self._load, group)

    def _load(self, group: list[int]) -> Batch:
        parts = [self.read_chunk(chunk) for chunk in group]
        for chunk, part in zip(group, parts, strict=True):
            if len(part.inputs) != self.sizes[chunk]:
                raise ValueError(
                    f"chunk {chunk} should hold {self.sizes[chunk]} rows, found {len(part.inputs)}"
                )
        return Batch(
            torch.cat([part.inputs for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat([part.weight for part in parts]),
        )


def streamed(
    read_chunk: Callable[[int], Batch], *, sizes: Sequence[int], row_bytes: int, memory: int
) -> Streamed:
    """Return a feed over chunks that holds at most ``memory`` bytes of rows, or two chunks.

    Parameters
    ----------
    read_chunk : callable
        Returns the rows of a chunk, by number, as a `Batch` of float32 tensors in memory.
    sizes : sequence of int
        Rows of each chunk.
    row_bytes : int
        Memory of one row of betas and targets.
    memory : int
        Bytes; the more chunks fit, the better rows are shuffled.
    """
    together = max(1, memory // (2 * max(sizes) * row_bytes))
    return Streamed(read_chunk=read_chunk, sizes=tuple(sizes), together=int(together))
