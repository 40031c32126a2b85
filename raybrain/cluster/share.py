"""Values that workers read from the object store instead of receiving a copy each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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
    """
    import ray

    if not ray.is_initialized():
        raise RuntimeError("sharing needs a connection; call this inside 'with cluster.connect()'")
    return Shared(ray.put(value))
