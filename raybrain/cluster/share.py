"""Values that workers read from the object store instead of receiving a copy each."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from raybrain.cluster.session import beside_driver

Value = TypeVar("Value")


@dataclass(frozen=True)
class Shared(Generic[Value]):
    """A value in Ray's object store; arrays in it are mapped into every process of a node."""

    reference: Any

    def get(self) -> Value:
        """Return the value; its arrays are read-only."""
        import ray

        return ray.get(self.reference)


def share(value: Value) -> Shared[Value]:
    """Put ``value`` into the object store once, to be handed to any number of workers.

    The handle is valid while the connection is open.

    Raises
    ------
    RuntimeError
        If there is no connection to Ray.
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("sharing needs a connection; call this inside 'with cluster.connect()'")
    return Shared(ray.put(value))


@dataclass(frozen=True)
class Shelf:
    """Values that the first worker to need one makes, and all others find in the object store."""

    keeper: Any

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of ``key``, made by ``make()`` if nobody has made it yet.

        Two workers that ask at the same time may both make it. Arrays in it are read-only.
        """
        import ray

        found = ray.get(self.keeper.find.remote(key))
        if not found:
            found = ray.get(self.keeper.keep.remote(key, make()))
        value: Value = ray.get(found[0])
        return value


class _ShelfKeeper:
    def __init__(self) -> None:
        self._kept: dict[Hashable, list[Any]] = {}

    def find(self, key: Hashable) -> list[Any]:
        return self._kept.get(key, [])

    def keep(self, key: Hashable, value: Any) -> list[Any]:
        import ray

        # Put here it is this process's own, and outlives the worker that made it.
        return self._kept.setdefault(key, [ray.put(value)])


def shelf() -> Shelf:
    """Return an empty shelf, to be handed to any number of workers while the connection is open."""
    import ray

    return Shelf(ray.remote(_ShelfKeeper).options(**beside_driver()).remote())
