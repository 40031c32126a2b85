"""TPE with pruning beside the default, beside random search and beside TPE without pruning.

Fifteen studies of 30 candidates on a small simulated brain; an hour on two cores. Losses and epochs
are counted, so other load does not matter to them; the overhead is timed, so it does.
"""

import functools
import time

import numpy as np
import pytest
import yaml

from raybrain import cli, cluster, config, outputs
from raybrain.config import Experiment, Workers
from raybrain.stages import searching

pytestmark = [
    pytest.mark.ray,
    pytest.mark.benchmark,
    pytest.mark.filterwarnings("default"),
]

SEEDS = 5
TREE = {
    "name": "search",
    "dataset": "simulated",
    "subject": "subj01",
    "simulation": {"objects": 500, "early_voxels": 600, "ventral_voxels": 300},
    "decode": {
        "latents": {"rois": ["early"], "decoder": {"kind": "residual_mlp"}},
        "prompt_embeds": {"rois": ["ventral"]},
    },
    "training": {"epochs": 40},
    "tuning": {
        "space": {
            "training.lr": {"low": 1e-5, "high": 1e-2, "log": True},
            "training.weight_decay": {"low": 1e-3, "high": 1.0, "log": True},
            "training.batch_size": {"choices": [16, 32, 64, 128]},
            "decode.latents.decoder.width": {"low": 32, "high": 512, "log": True},
            "decode.latents.decoder.depth": {"low": 1, "high": 3},
            "decode.latents.decoder.dropout": {"low": 0.0, "high": 0.7},
            "decode.latents.rois": {"choices": [["early"], ["V1"], ["early", "ventral"]]},
            "decode.latents.min_noise_ceiling": {"low": 0.0, "high": 0.3},
        }
    },
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Experiment:
    """Return an experiment whose features are made."""
    folder = tmp_path_factory.mktemp("search")
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**TREE, "workspace": str(folder / "workspace")}))
    for stage in ("simulate", "ingest", "features"):
        assert cli.main([stage, str(file)]) == 0
    return config.load(file, schema=Experiment)


def searched(experiment: Experiment, *, data, folder, seed: int, candidates: int, **changes):
    tuning = experiment.tuning.model_copy(update={"candidates": candidates, **changes})
    experiment = experiment.model_copy(update={"tuning": tuning, "seed": seed})
    name = "-".join([*map(str, changes.values()), str(seed)])
    return cluster.search(
        functools.partial(
            searching.fit_candidate, experiment=experiment, data=data, shelf=cluster.shelf()
        ),
        tuning=tuning,
        default=cluster.default_settings(experiment),
        name=name,
        storage=f"sqlite:///{folder}/optuna.db",
        folder=str(folder / name),
        seed=seed,
        workers=Workers(max=2),
    )


def test_a_search_beats_the_default_and_random_search_and_pruning_saves(ready, tmp_path, scale):
    found = {"tpe": [], "random": [], "unpruned": []}
    default = []
    with cluster.connect():
        data = cluster.share(
            searching.shared_data(
                ready,
                stimuli=outputs.subject_store(ready).folder,
                features=outputs.features(ready).folder,
            )
        )
        for seed in range(scale(SEEDS, least=1)):
            run = functools.partial(
                searched, ready, data=data, folder=tmp_path, seed=seed, candidates=scale(30)
            )
            found["tpe"].append(run(sampler="tpe", pruner="median"))
            found["random"].append(run(sampler="random", pruner="none"))
            found["unpruned"].append(run(sampler="tpe", pruner="none"))
            # The first candidate of every study is the experiment as it stands.
            (first,) = [one for one in found["unpruned"][-1] if one.candidate.number == 0]
            default.append(first.values[0])
            best = {name: runs[-1][0].values[0] for name, runs in found.items()}
            spent = {name: sum(one.epochs for one in runs[-1]) for name, runs in found.items()}
            print(f"\nseed {seed}: default {default[-1]:.4f}, best {best}, epochs {spent}")
    best = {name: np.array([one[0].values[0] for one in runs]) for name, runs in found.items()}
    epochs = {
        name: sum(one.epochs for outcomes in runs for one in outcomes)
        for name, runs in found.items()
    }
    seeds = len(default)
    better = int((best["tpe"] < default).sum())
    scale.claim(better == seeds, f"better than the default in {better} of {seeds} seeds (all)")
    as_good = int((best["tpe"] <= best["random"]).sum())
    scale.claim(
        as_good >= seeds - 1, f"as good as random in {as_good} of {seeds} seeds (all but 1)"
    )
    saved = 1 - epochs["tpe"] / epochs["unpruned"]
    scale.claim(saved >= 0.4, f"pruning saves {saved:.0%} of the epochs (40 %)")
    loss = best["tpe"].mean() / best["unpruned"].mean()
    scale.claim(loss <= 1.01, f"at {loss:.4f} of the best loss without pruning (1.01 at most)")


def test_slots_are_busy_with_candidates_of_a_second(tmp_path, scale):
    seconds, candidates, epochs = 1.0, scale(30), 10
    tuning = config.Tuning(
        space={"training.lr": {"low": 1e-5, "high": 1e-2, "log": True}},
        candidates=candidates,
        pruner="none",
    )
    started = time.monotonic()
    with cluster.connect():
        connected = time.monotonic()
        outcomes = cluster.search(
            functools.partial(sleep_through, seconds=seconds, epochs=epochs),
            tuning=tuning,
            default={},
            name="busy",
            storage=f"sqlite:///{tmp_path}/optuna.db",
            folder=str(tmp_path / "candidates"),
            seed=0,
            workers=Workers(max=2),
        )
        finished = time.monotonic()
    assert [one.state for one in outcomes] == ["complete"] * candidates
    share = candidates * seconds / (2 * (finished - connected))
    scale.claim(
        share >= 0.7,
        f"{share:.1%} of the time of 2 slots is work, with {epochs} reports a candidate (70 %; "
        f"starting Ray took {connected - started:.1f} s)",
    )


def sleep_through(candidate, *, seconds, epochs):
    for epoch in range(1, epochs + 1):
        time.sleep(seconds / epochs)
        cluster.report({"epoch": epoch, "validation_loss": candidate.settings["training.lr"]})
    return {"validation_loss": candidate.settings["training.lr"]}
