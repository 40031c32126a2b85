"""Stages in this process: what Ray would send to workers is called here, one after another.

Functions, items and results are pickled on the way, as they are when they are sent, so that only
the starting of workers is saved.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from raybrain import cluster
from raybrain.cluster import Shared, graph, worker
from raybrain.cluster.candidates import TaskSeat
from raybrain.cluster.graph import Room


class Here(Shared):
    """What stayed where it was made, which is here."""

    def get(self):
        return self.reference


class Telling(TaskSeat):
    """A group of one that tells of its epochs."""

    def __init__(self, on_report) -> None:
        super().__init__(None, None, "")
        self._on_report = on_report

    def report(self, metrics, save) -> None:
        if save is not None:
            with tempfile.TemporaryDirectory() as folder:
                save(Path(folder))
        if self._on_report is not None:
            self._on_report(dict(metrics))


def sent(thing: Any) -> Any:
    return cloudpickle.loads(cloudpickle.dumps(thing))


def map_tasks(function, items, **_):
    return [sent(sent(function)(sent(item))) for item in items]


def draw_units(make_worker, units, *, worker_arguments, **_):
    made = sent(make_worker)(**sent(dict(worker_arguments)))
    return (sent(made(sent(unit))) for unit in units)


def on_worker(make, **_):
    return Here(sent(make)())


def train(loop, *, settings, on_report=None, **_):
    with worker.seated(Telling(on_report)):
        return sent(sent(loop)(sent(settings)))


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for stand_in in (map_tasks, draw_units, on_worker, train):
            patch.setattr(cluster, stand_in.__name__, stand_in)
        patch.setattr(cluster, "connect", lambda *_, **__: contextlib.nullcontext())
        patch.setattr(graph, "connect", contextlib.nullcontext)
        patch.setattr(graph, "_room", lambda **_: Room(1.0, 0.0))
        patch.setattr(graph, "starts_its_own", lambda: True)
        yield


@pytest.fixture
def inline() -> Iterator[None]:
    with in_this_process():
        yield
