"""What a cluster can give, from the nodes it has."""

import pytest

from raybrain import cli, config
from raybrain.cluster import Need, capacity
from raybrain.config import Experiment, InputError, Workers
from raybrain.stages.needs import needs_of

HEAD = {"memory": 1.0}
SMALL = {"CPU": 2.0}
LARGE = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def nodes(monkeypatch):
    def held(*resources, grows=False):
        monkeypatch.setattr(capacity, "_nodes", lambda: list(resources))
        monkeypatch.setattr(capacity, "_grows", lambda: grows)

    return held


@pytest.mark.parametrize(
    ("held", "cpus", "gpus", "given"),
    [
        ([SMALL], 4, 0, 2.0),
        ([SMALL], 2, 0, 2),
        ([SMALL], 0.5, 0, 0.5),
        ([HEAD, SMALL, LARGE], 4, 0, 4),
        ([HEAD, SMALL, LARGE], 64, 0, 8.0),
        ([SMALL, LARGE], 64, 1, 8.0),
        ([LARGE, {"CPU": 32.0}], 64, 1, 8.0),  # the larger one has no GPU
    ],
)
def test_the_cpus_of_a_plain_task_shrink_to_the_largest_node(nodes, held, cpus, gpus, given):
    nodes(*held)
    assert capacity.cpus_of(Workers(cpus=cpus, gpus=gpus)) == given


def test_they_do_not_shrink_where_larger_nodes_may_come(nodes):
    nodes(HEAD, SMALL, grows=True)
    assert capacity.cpus_of(Workers(cpus=4)) == 4


@pytest.mark.parametrize(
    ("held", "need"),
    [
        ([SMALL], Need("resources.tasks", Workers(cpus=4), shrinks=True)),
        ([HEAD, SMALL], Need("resources.train", Workers(max=2, min=2), together=2)),
        ([LARGE], Need("resources.generate", Workers(gpus=0.5, cpus=2), together=2)),
        ([LARGE, LARGE], Need("resources.generate", Workers(gpus=1), together=2)),
    ],
)
def test_what_the_nodes_hold_is_granted(nodes, held, need):
    nodes(*held)
    capacity.check([need], own=False)


@pytest.mark.parametrize(
    ("held", "need", "sentence"),
    [
        ([SMALL], Need("resources.tasks", Workers(gpus=1), shrinks=True), "1 CPU and 1 GPU"),
        ([HEAD], Need("resources.tasks", Workers(), shrinks=True), "0 CPUs and 0 GPUs"),
        ([SMALL, LARGE], Need("resources.generate", Workers(gpus=2)), "and 2 GPUs"),
        ([SMALL, LARGE], Need("resources.generate", Workers(gpus=1), together=2), "at least 2"),
        ([SMALL], Need("resources.train", Workers(cpus=4)), "4 CPUs"),
        ([SMALL, SMALL], Need("resources.tune", Workers(cpus=2), together=3), r"resources\.tune"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_what_no_node_can_give_is_refused(nodes, held, need, sentence, own):
    nodes(*held)
    with pytest.raises(InputError, match=sentence):
        capacity.check([need], own=own)


def test_a_node_that_can_be_added_is_waited_for_and_named(nodes, monkeypatch, capsys):
    nodes(HEAD, grows=True)
    asked = []
    monkeypatch.setattr(capacity, "_is_infeasible", lambda need: bool(asked.append(need)))
    need = Need("resources.generate", Workers(cpus=2, gpus=1), together=3)
    capacity.check([need], own=False, ahead=True)
    assert asked == []  # nothing is started for what comes later
    assert capsys.readouterr().err == ""
    capacity.check([need], own=False)
    assert asked == [need]
    assert capsys.readouterr().err == "resources.generate: waits for 3 x 2 CPUs and 1 GPU\n"


def test_a_node_that_no_type_of_the_cluster_has_is_refused(nodes, monkeypatch):
    nodes(HEAD, grows=True)
    monkeypatch.setattr(capacity, "_is_infeasible", lambda need: True)
    with pytest.raises(InputError, match="whatever it adds, never has"):
        capacity.check([Need("resources.train", Workers(gpus=4))], own=False)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("simulate", {"resources.tasks"}),
        ("ingest", {"resources.tasks"}),
        ("features", {"resources.generate"}),
        ("train", {"resources.tasks"}),
        ("predict", {"resources.tasks"}),
        ("reconstruct", {"resources.generate"}),
        ("evaluate", {"resources.tasks", "resources.generate"}),  # the demo reranks
        ("export", {"resources.tasks"}),
    ],
)
def test_a_stage_asks_for_what_it_uses_alone(stage, settings):
    experiment = config.load(cli.DEMO, schema=Experiment)
    assert {need.setting for need in needs_of(experiment, stage)} == settings


def test_networks_reranking_and_searches_ask_for_more():
    changes = (
        "decode.latents.decoder={kind: residual_mlp}",
        "evaluate.rerank=true",
        "resources.train={min: 2, max: 3}",
        "tuning={workers: 2, space: {training.lr: {low: 1e-4, high: 1e-2}}}",
    )
    experiment = config.load(cli.DEMO, changes, schema=Experiment)
    found = {
        stage: {need.setting: need.together for need in needs_of(experiment, stage)}
        for stage in ("train", "evaluate", "tune")
    }
    assert found == {
        "train": {"resources.tasks": 1, "resources.train": 2},
        "evaluate": {"resources.tasks": 1, "resources.generate": 1},
        "tune": {"resources.tasks": 1, "resources.tune": 2},
    }
