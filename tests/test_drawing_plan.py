"""What ``reconstruct`` plans before any worker starts: units, and whether networks are compiled."""

from __future__ import annotations

import types

import pytest

from raybrain import cluster, store
from raybrain.config import Experiment
from raybrain.stages import drawing

IDS = [f"image{number}" for number in range(10)]


class Recorded(Exception):
    """Ends a plan where workers would start, with what they were to be given."""


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """Return a function: experiment's own words -> units and the workers' experiment."""
    monkeypatch.setattr(drawing.diffusion, "drawn_pixels", lambda *_, **__: 4)
    monkeypatch.setattr(drawing, "_lineage", lambda _: {})
    monkeypatch.setattr(drawing.Sources, "of", classmethod(lambda cls, _: None))

    def record(_make, units, *, worker_arguments, **_others):
        raise Recorded(units, worker_arguments["experiment"])

    monkeypatch.setattr(cluster, "draw_units", record)

    def plan(**words):
        decode = {"latents": {"rois": ["early"]}, "prompt_embeds": {"rois": ["ventral"]}}
        own = {"name": "planned", "dataset": "simulated", "subject": "subj01", "decode": decode}
        experiment = Experiment.model_validate({**own, **words})
        output = types.SimpleNamespace(folder=str(tmp_path / "drawn.zarr"))
        rows = drawing.drawn_rows(experiment)
        with pytest.raises(Recorded) as recorded:
            drawing._draw(experiment, output, None, rows=rows, image_ids=IDS, lineage={})
        return recorded.value.args

    return plan


def sizes(units):
    return [(unit.row, unit.block.stop - unit.block.start) for unit in units]


def test_on_cpus_every_row_has_units_of_as_many_images(planned):
    units, experiment = planned(reconstruct={"samples": 2})
    assert sizes(units) == [(row, n) for row in ("system", "ceiling") for n in (4, 4, 2)]
    assert experiment.generator.compile is False


def test_on_a_gpu_the_batches_of_every_row_are_about_as_large(planned):
    units, _ = planned(reconstruct={"samples": 2}, resources={"generate": {"gpus": 0.5}})
    of_system, of_ceiling = [("system", n) for n in (4, 4, 2)], [("ceiling", n) for n in (8, 2)]
    assert sizes(units) == of_system + of_ceiling


def test_what_was_begun_with_compiled_networks_goes_on_with_them(planned, tmp_path, capsys):
    _, experiment = planned(generator={"compile": True})
    assert experiment.generator.compile is True
    assert "compiles the generator" in capsys.readouterr().out
    _, experiment = planned(generator={"compile": False})
    assert experiment.generator.compile is True
    assert store.attributes_of(str(tmp_path / "drawn.zarr"))[drawing.COMPILED] is True


def test_a_store_that_is_not_there_has_no_attributes(tmp_path):
    assert store.attributes_of(str(tmp_path / "nothing.zarr")) == {}
