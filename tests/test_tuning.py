import functools
import math
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml

from raybrain import cluster, config
from raybrain.cluster import space, study
from raybrain.cluster.candidates import TaskSeat
from raybrain.config import Experiment, InputError, Tuning, Workers
from raybrain.stages import searching

# Optuna keeps its pool of connections until the process ends; from Python 3.13 on that is told of.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed database in:ResourceWarning")


MLP = {"kind": "residual_mlp", "width": 64, "depth": 1}


def make_experiment(tuning, **sections):
    tree = {
        "name": "study",
        "dataset": "simulated",
        "subject": "subj01",
        "decode": {
            "latents": {"rois": ["V1"], "decoder": MLP},
            "prompt_embeds": {"rois": ["V1"]},
        },
        "tuning": tuning,
        **sections,
    }
    return config.validate(tree, schema=Experiment, source="experiment.yaml")


# The space


@pytest.mark.parametrize(
    ("address", "span", "message"),
    [
        ("training.lrr", {"low": 0, "high": 1}, "'training.lrr' is not a setting; did you mean"),
        ("training.lr.x", {"low": 0, "high": 1}, "'training.lr.x' is not a setting"),
        ("training.lr", {"low": 1, "high": 0.1}, "low=1 is above high=0.1"),
        ("training.lr", {"low": 0, "high": 1}, "'training.lr'"),
        ("training.lr", {"low": 0, "high": 1, "log": True}, "low=0 has no logarithm"),
        ("training.lr", {"low": 0.1}, "choices or both low and high"),
        ("training.lr", {"choices": [0.1], "low": 0.1}, "either choices"),
        ("training.schedule", {"choices": ["cosine", "linear"]}, "'training.schedule'"),
        ("decode.latents.rois", {"choices": [["V1"], []]}, "'decode.latents.rois'"),
        ("resources.tune.max", {"low": 1, "high": 2}, "cannot be searched"),
    ],
)
def test_a_space_the_experiment_would_refuse_is_refused_in_one_sentence(address, span, message):
    with pytest.raises(InputError) as caught:
        cluster.check_space(make_experiment({"space": {address: span}}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_that_fits_is_accepted_with_its_conditions():
    experiment = make_experiment(
        {
            "space": {
                "decode.latents.decoder.width": {
                    "choices": [32, 64],
                    "when": {"decode.latents.decoder.kind": "residual_mlp"},
                },
                "decode.latents.decoder.kind": {"choices": ["ridge", "residual_mlp"]},
                "decode.latents.rois": {"choices": [["V1"], ["V1", "V2"]]},
                "training.lr": {"low": "1e-5", "high": "1e-2", "log": True},
            }
        }
    )
    cluster.check_space(experiment)
    assert cluster.default_settings(experiment) == {
        "decode.latents.decoder.width": 64,
        "decode.latents.decoder.kind": "residual_mlp",
        "decode.latents.rois": ["V1"],
        "training.lr": 3e-4,
    }


def test_conditions_on_each_other_are_refused():
    spans = {
        "training.lr": {"low": 0.1, "high": 1, "when": {"training.ema": 0.5}},
        "training.ema": {"choices": [0.5], "when": {"training.lr": 0.1}},
    }
    with pytest.raises(InputError, match="each other"):
        cluster.check_space(make_experiment({"space": spans}))


def test_a_condition_on_an_address_outside_the_space_is_refused():
    spans = {"training.lr": {"low": 0.1, "high": 1, "when": {"training.ema": 0.5}}}
    with pytest.raises(InputError, match=r"'training\.ema' is not in the space"):
        make_experiment({"space": spans})


@pytest.mark.parametrize(
    ("space", "rois", "by_ceiling"),
    [
        ({"training.lr": [1e-3]}, set(), False),
        ({"decode.latents.decoder.weights.V3": [0.5, 2.0]}, {"V3"}, False),
        ({"decode.latents.decoder.weights": [{"V3": 0.5}, {"hV4": 2.0}]}, {"V3", "hV4"}, False),
        (
            {
                "decode.latents.decoder": [
                    {"kind": "ridge"},
                    {"kind": "kernel_ridge", "ceiling_power": 1.0, "weights": {"V3": 0.5}},
                ]
            },
            {"V3"},
            True,
        ),
        ({"decode.latents.decoder.ceiling_power": [0.0, 1.0]}, set(), True),
    ],
)
def test_all_that_any_candidate_weighs_by_is_known_beforehand(space, rois, by_ceiling):
    decode = {"latents": {"rois": ["V1", "V2"], "decoder": {"kind": "kernel_ridge"}}}
    tuning = {"space": {address: {"choices": choices} for address, choices in space.items()}}
    experiment = make_experiment(tuning, decode=decode, reconstruct={"mode": "z"})
    found = searching._weighing(experiment, "latents", experiment.decode.latents)
    assert found == ({"V1", "V2", *rois}, by_ceiling)


def test_a_new_kind_leaves_the_settings_of_the_old_one():
    experiment = make_experiment({"space": {"training.lr": {"low": 0.1, "high": 1}}})
    changed = experiment.with_(
        {"decode.latents.decoder.rescale": False, "decode.latents.decoder.kind": "ridge"},
    )
    assert changed.decode.latents.decoder == config.Ridge(rescale=False)
    assert changed.training == experiment.training


def test_assignments_typed_on_the_command_line_give_the_candidate(tmp_path):
    settings = {
        "training.lr": 1.5e-4,
        "decode.latents.rois": ["V1", "hV4"],
        "training.schedule": "plateau",
        "training.gradient_clip": None,
    }
    file = tmp_path / "experiment.yaml"
    experiment = make_experiment({"space": {"training.lr": {"low": 0.1, "high": 1}}})
    file.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    typed = shlex.split(cluster.assignments(settings))
    loaded = config.load(file, tuple(typed), schema=Experiment)
    assert loaded == experiment.with_(settings)


def test_a_grid_has_each_combination_once_conditions_respected():
    tuning = Tuning(
        sampler="grid",
        space={
            "kind": {"choices": ["ridge", "mlp"]},
            "width": {"low": 1, "high": 3, "when": {"kind": "mlp"}},
            "rate": {"low": 0.0, "high": 0.5, "step": 0.25},
        },
    )
    found = list(space.grid(tuning))
    assert len(found) == 3 + 3 * 3
    assert sum("width" in settings for settings in found) == 9
    assert {settings["rate"] for settings in found} == {0.0, 0.25, 0.5}


# The keeper


def open_keeper(tmp_path, *, seed=0, default=None, storage=None, **settings):
    settings.setdefault("space", {"x": {"low": -1.0, "high": 1.0}})
    tuning = Tuning(**settings)
    address = study.storage_of(tuning, workspace=str(tmp_path)) if storage is None else storage
    keeper = study.Keeper(tuning, name="study", storage=address, seed=seed)
    keeper.open(default or {})
    return keeper


def loss(value, epoch=1):
    return {"epoch": epoch, "validation_loss": value}


def test_the_experiment_as_it_stands_is_the_first_candidate(tmp_path):
    keeper = open_keeper(tmp_path, default={"x": 0.25})
    assert keeper.ask("a").settings == {"x": 0.25}
    assert keeper.ask("b").settings != {"x": 0.25}


def test_settings_outside_the_space_are_no_candidate(tmp_path):
    assert open_keeper(tmp_path, default={"x": 2.5}).ask("a").settings["x"] <= 1.0


def test_a_slot_gets_the_same_candidate_until_it_is_finished(tmp_path):
    keeper = open_keeper(tmp_path)
    candidate = keeper.ask("a")
    assert keeper.ask("a") == candidate
    assert keeper.ask("b").number != candidate.number
    keeper.complete(candidate.number, loss(0.5))
    assert keeper.ask("a") is None


@pytest.mark.parametrize("storage", [None, "journal.log"])
def test_a_study_goes_on_where_it_stopped(tmp_path, storage):
    storage = storage and str(tmp_path / storage)
    first = open_keeper(tmp_path, storage=storage)
    finished, left_open = first.ask("a"), first.ask("b")
    first.report(finished.number, loss(0.7, epoch=1))
    first.complete(finished.number, loss(0.5))
    first.report(left_open.number, loss(0.9, epoch=1))

    second = open_keeper(tmp_path, storage=storage)
    (outcome,) = second.outcomes()
    assert outcome.candidate == finished
    assert (outcome.state, outcome.values, outcome.epochs) == ("complete", (0.5,), 1)
    assert second.ask("a") == left_open
    second.report(left_open.number, loss(0.9, epoch=1))  # done again, not counted twice
    second.report(left_open.number, loss(0.8, epoch=2))
    second.complete(left_open.number, loss(0.8))
    assert [outcome.epochs for outcome in second.outcomes()] == [1, 2]
    drawn = [first_or_later.candidate.settings["x"] for first_or_later in second.outcomes()]
    assert second.ask("c").settings["x"] not in drawn  # the seed alone would repeat its draws


def test_a_study_with_another_space_is_not_mixed_in(tmp_path):
    open_keeper(tmp_path)
    with pytest.raises(InputError, match="another space"):
        open_keeper(tmp_path, space={"x": {"low": -1.0, "high": 2.0}})
    open_keeper(tmp_path, candidates=50)


def test_lists_and_conditions_come_back_as_they_were_given(tmp_path):
    spans = {
        "rois": {"choices": [["V1"], ["V1", "V2"]]},
        "width": {"low": 1, "high": 4, "when": {"rois": [["V1", "V2"]]}},
    }
    keeper = open_keeper(tmp_path, space=spans, sampler="random", candidates=20)
    for slot in range(20):
        candidate = keeper.ask(str(slot))
        keeper.complete(candidate.number, loss(float(slot)))
    settings = [outcome.candidate.settings for outcome in keeper.outcomes()]
    assert {tuple(one["rois"]) for one in settings} == {("V1",), ("V1", "V2")}
    assert all(("width" in one) == (one["rois"] == ["V1", "V2"]) for one in settings)


def test_candidates_without_prospects_stop_after_their_patience(tmp_path):
    keeper = open_keeper(tmp_path, patience=3)
    for slot in range(6):
        candidate = keeper.ask(str(slot))
        for epoch in range(1, 7):
            assert not keeper.report(candidate.number, loss(1 / epoch, epoch))
        keeper.complete(candidate.number, loss(1 / 6))
    bad = keeper.ask("bad")
    stops = [keeper.report(bad.number, loss(2.0, epoch)) for epoch in range(1, 7)]
    assert stops == [False, False, True, True, True, True]
    keeper.prune(bad.number)
    outcome = keeper.outcomes()[-1]
    assert (outcome.state, outcome.values) == ("pruned", (2.0,))


def test_an_objective_that_is_no_number_fails_the_candidate(tmp_path):
    keeper = open_keeper(tmp_path)
    keeper.complete(keeper.ask("a").number, loss(math.nan))
    (outcome,) = keeper.outcomes()
    assert outcome.state == "failed"
    assert "not a number" in outcome.error


def test_an_objective_that_nobody_reports_is_named(tmp_path):
    keeper = open_keeper(tmp_path, objectives=[{"metric": "r2", "direction": "maximize"}])
    with pytest.raises(InputError, match="names 'r2', but candidates report epoch, validation"):
        keeper.complete(keeper.ask("a").number, loss(0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": [{"metric": "a"}, {"metric": "b"}]}, "write pruner: none"),
        ({"objectives": [{"metric": "a"}, {"metric": "b"}], "pruner": "none"}, "sampler: nsga2"),
        ({"sampler": "grid"}, "a grid needs choices or a step for 'x'"),
    ],
)
def test_combinations_that_cannot_work_are_refused(settings, message):
    tree = {"space": {"x": {"low": 0.0, "high": 1.0}}, **settings}
    with pytest.raises(InputError, match=message):
        config.validate(tree, schema=Tuning, source="tuning")


def test_two_objectives_rank_by_fronts(tmp_path):
    objectives = [{"metric": "r2", "direction": "maximize"}, {"metric": "parameters"}]
    keeper = open_keeper(tmp_path, objectives=objectives, pruner="none", sampler="nsga2")
    for slot, (r2, parameters) in enumerate([(0.5, 10), (0.4, 20), (0.3, 5), (0.5, 9)]):
        number = keeper.ask(str(slot)).number
        keeper.complete(number, {"r2": r2, "parameters": parameters})
    best = cluster.ranked(keeper.outcomes(), tuning=keeper._tuning)
    assert [outcome.values for outcome in best] == [(0.5, 9), (0.3, 5), (0.5, 10), (0.4, 20)]


def test_the_pictures_of_a_study_are_drawn_without_a_network(tmp_path):
    keeper = open_keeper(tmp_path, space={"x": {"low": 0.0, "high": 1.0}, "k": {"choices": [1, 2]}})
    for slot in range(4):
        number = keeper.ask(str(slot)).number
        keeper.complete(number, loss(float(slot)))
    address = study.storage_of(keeper._tuning, workspace=str(tmp_path))
    files = cluster.plot_study(name="study", storage=address, folder=str(tmp_path))
    names = {file.name for file in files}
    plots = ("optimization_history", "parallel_coordinate", "param_importances")
    assert names == {f"{plot}.{kind}" for plot in plots for kind in ("html", "png")}
    assert all(file.stat().st_size > 5_000 for file in files)
    assert "https://cdn" not in (tmp_path / "param_importances.html").read_text()[:20_000]


def test_without_plotly_a_study_is_drawn_as_pictures_and_says_how_to_get_pages(
    tmp_path, monkeypatch
):
    keeper = open_keeper(tmp_path, space={"x": {"low": 0.0, "high": 1.0}})
    for slot in range(2):
        keeper.complete(keeper.ask(str(slot)).number, loss(float(slot)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    address = study.storage_of(keeper._tuning, workspace=str(tmp_path))
    with pytest.warns(UserWarning, match=r"pip install 'raybrain\[plots\]'"):
        files = cluster.plot_study(name="study", storage=address, folder=str(tmp_path))
    assert files
    assert {file.suffix for file in files} == {".png"}


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_candidate_keeps_only_its_last_checkpoint(tmp_path, monkeypatch, place):
    folder = str(tmp_path) if place == "folder" else f"memory://{tmp_path.name}"
    monkeypatch.setattr("raybrain.cluster.candidates.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr("raybrain.cluster.candidates.told", lambda reference: False)
    keeper = _Silent()
    seat = TaskSeat(keeper, study.Candidate(3, {}, 0), folder)
    with seat.latest_checkpoint() as found:
        assert found is None
    for epoch in (1, 2):
        seat.report({"epoch": epoch}, lambda at: (at / "x").write_text(f"state {epoch}"))  # noqa: B023
    another = TaskSeat(keeper, study.Candidate(3, {}, 0), folder)
    with another.latest_checkpoint() as found:
        assert (found / "x").read_text() == "state 2"
    files, root = fsspec.core.url_to_fs(folder)
    kept = {name.removeprefix(f"{root}/candidate_00003/") for name in files.find(root)}
    assert kept == {"epoch_00002/x", "latest"}
    seat.clear()
    assert files.find(root) == []


def test_a_checkpoint_that_was_not_finished_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("raybrain.cluster.candidates.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    monkeypatch.setattr("raybrain.cluster.candidates.told", lambda reference: False)
    seat = TaskSeat(_Silent(), study.Candidate(3, {}, 0), str(tmp_path))
    seat.report({"epoch": 1}, lambda folder: (folder / "x").write_text("state"))

    def killed(folder):
        (folder / "x").write_text("half")
        raise SystemExit

    with pytest.raises(SystemExit):
        seat.report({"epoch": 2}, killed)
    with seat.latest_checkpoint() as found:
        assert (found / "x").read_text() == "state"


class _Silent:
    def __getattr__(self, name):
        return self

    def remote(self, *arguments):
        return None


# The search


@pytest.fixture(scope="module")
def _ray():
    with cluster.connect():
        yield


def bowl(candidate, *, folder="", epochs=3, dies=-1, fails=()):
    """Loss (x - 0.3)^2 + 1/epoch, so that the best x is 0.3 and the loss falls."""
    if candidate.number in fails:
        raise ValueError(f"candidate {candidate.number} fails")
    value = math.inf
    for epoch in range(1, epochs + 1):
        value = (candidate.settings["x"] - 0.3) ** 2 + 1 / epoch
        cluster.report(loss(value, epoch))
        if candidate.number == dies and not Path(folder, "died").exists():
            Path(folder, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return {"validation_loss": value}


def run_search(tmp_path, loop, *, workers=None, group=1, on_events=None, seed=0, **settings):
    settings.setdefault("space", {"x": {"low": -1.0, "high": 1.0}})
    settings.setdefault("candidates", 8)
    tuning = Tuning(workers=group, **settings)
    return cluster.search(
        loop,
        tuning=tuning,
        default={"x": 0.9},
        name="study",
        storage=study.storage_of(tuning, workspace=str(tmp_path)),
        folder=str(tmp_path / "candidates"),
        seed=seed,
        workers=workers or Workers(max=2, cpus=0.5),
        on_events=on_events,
    )


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_search_tells_everything_and_finds_better_than_it_was_given(tmp_path):
    events = []
    found = run_search(tmp_path, bowl, on_events=events.extend, candidates=12, pruner="none")
    assert len(found) == 12
    best = found[0]
    assert best.values[0] < (0.9 - 0.3) ** 2 + 1 / 3
    assert best.values[0] == pytest.approx((best.candidate.settings["x"] - 0.3) ** 2 + 1 / 3)
    assert [one.values for one in found] == sorted(one.values for one in found)
    starts = [e.candidate.number for e in events if e.metrics is None and e.outcome is None]
    assert sorted(starts) == list(range(12))
    assert sum(event.metrics is not None for event in events) == 12 * 3
    assert {e.outcome.candidate.number for e in events if e.outcome} == set(range(12))
    assert not (tmp_path / "candidates").exists() or not list((tmp_path / "candidates").iterdir())
    again = run_search(tmp_path, refuse_to_run, candidates=12, pruner="none")
    assert again == found


def refuse_to_run(candidate):
    raise AssertionError("a finished candidate was run again")


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_candidate_that_fails_or_whose_worker_dies_does_not_end_the_study(tmp_path):
    loop = functools.partial(bowl, folder=str(tmp_path), dies=4, fails=(2,))
    found = run_search(tmp_path, loop, candidates=6, pruner="none")
    states = {outcome.candidate.number: outcome.state for outcome in found}
    assert states == {0: "complete", 1: "complete", 2: "failed"} | dict.fromkeys(
        (3, 4, 5), "complete"
    )
    assert found[-1].error.strip().endswith("ValueError: candidate 2 fails")
    assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_search_in_which_everything_fails_ends_soon(tmp_path):
    with pytest.raises(RuntimeError, match="the first 3 candidates failed: ValueError: candidate"):
        run_search(tmp_path, functools.partial(bowl, fails=range(100)), candidates=100)


@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_what_one_worker_made_all_others_find(tmp_path):
    with cluster.connect():
        shelf = cluster.shelf()
        found = cluster.map_tasks(
            functools.partial(from_shelf, shelf=shelf, folder=tmp_path),
            [(key, number) for number in range(3) for key in ("a", "b")],
            workers=Workers(),
            description="shelf",
        )
    assert found == [("a", 100.0), ("b", 100.0)] * 3
    assert len(list(tmp_path.iterdir())) == 2  # one after the other, each was made once


def from_shelf(item, *, shelf, folder):
    key, number = item

    def make():
        (folder / f"{key}-{number}").touch()
        return np.ones(100)

    return key, float(shelf.get(key, make).sum())


def test_the_best_are_fitted_again_with_other_seeds(tmp_path):
    tuning = Tuning(space={"x": {"low": -1.0, "high": 1.0}}, top=2, seeds=3)
    outcomes = [
        cluster.Outcome(study.Candidate(number, {"x": x}, 7), "complete", (x,), 3, 1.0)
        for number, x in enumerate((0.1, 0.2, 0.3))
    ]
    found = cluster.refit(
        with_seed, outcomes, tuning=tuning, folder=str(tmp_path), workers=Workers(max=2)
    )
    assert [one.candidate.number for one in found] == [0, 1]
    assert found[1].seeds == (8, 9, 10)
    assert [one["validation_loss"] for one in found[1].metrics] == [8.2, 9.2, 10.2]


def with_seed(candidate):
    cluster.report(loss(1.0))
    return {"validation_loss": candidate.seed + candidate.settings["x"]}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_candidates_of_several_workers_stop_together(tmp_path):
    found = run_search(
        tmp_path,
        group_bowl,
        workers=Workers(max=1, cpus=0.5),
        candidates=6,
        group=2,
    )
    assert len(found) == 6


def group_bowl(candidate):
    assert cluster.world_size() == 2
    return bowl(candidate)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_killed_driver_costs_only_the_running_epochs(tmp_path):
    code = f"""
        import functools
        from pathlib import Path
        from tests.test_tuning import run_search, slow_bowl
        run_search(
            Path({str(tmp_path)!r}),
            slow_bowl,
            pruner="none",
            on_events=lambda events: [
                print(event.outcome.candidate.number, flush=True)
                for event in events
                if event.outcome
            ],
        )
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    finished_before = {int(process.stdout.readline()) for _ in range(3)}
    process.kill()
    process.wait()
    process.stdout.close()
    runs = []
    found = run_search(tmp_path, slow_bowl, on_events=runs.extend, pruner="none")
    numbers = [outcome.candidate.number for outcome in found]
    assert sorted(numbers) == list(range(8))
    assert {outcome.state for outcome in found} == {"complete"}
    run_again = {event.candidate.number for event in runs}
    assert not run_again & finished_before


def slow_bowl(candidate):
    import time

    time.sleep(0.5)
    return bowl(candidate)
