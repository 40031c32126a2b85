"""A small experiment, run once from end to end: what tests of stages and of faults start from."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from raybrain import cli, config, outputs, store
from raybrain.config import Experiment

SIMULATED = {
    "dataset": "simulated",
    "subject": "subj01",
    "on_change": "replace",
    "simulation": {
        "grid": [12, 12, 10],
        "early_voxels": 120,
        "ventral_voxels": 80,
        "objects": 48,
        "test_images": 10,
        "trials_per_session": 40,
        "image_size": 32,
    },
}
"""A subject of 48 images, ten of them test, in an experiment's own words."""


@pytest.fixture(scope="session")
def experiment_file(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="session")
def file_here(tmp_path_factory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("here"))


def write_experiment(folder: Path) -> Path:
    from tests.diffusion.generators import write_tiny_generator  # torch, which few tests need

    write_tiny_generator(folder / "generator")
    tree = {
        **SIMULATED,
        "name": "small",
        "workspace": str(folder / "workspace"),
        "generator": {"checkpoint": str(folder / "generator")},
        "decode": {
            "latents": {"rois": ["early"]},
            "prompt_embeds": {
                "rois": ["ventral"],
                "decoder": {"kind": "residual_mlp", "width": 16, "depth": 1},
            },
        },
        "training": {"epochs": 3, "batch_size": 16},
        "reconstruct": {"steps": 4, "samples": 2, "strength": 0.5, "guidance": 2.0},
        "evaluate": {"bootstrap": 200},
        "resources": {"tasks": {"max": 2}, "generate": {"max": 2}},
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def load_experiment(file: Path, *assignments: str) -> Experiment:
    return config.load(file, assignments, schema=Experiment)


def outputs_of(experiment: Experiment) -> dict[str, outputs.Output]:
    found = [
        outputs.simulated(experiment),
        outputs.subject_store(experiment),
        outputs.features(experiment),
        *(outputs.decoder(experiment, target) for target, _ in outputs.targets(experiment)),
        outputs.predictions(experiment),
        outputs.reconstructions(experiment),
        outputs.report(experiment),
    ]
    return {output.folder: output for output in found}


@pytest.fixture(scope="session")
def finished(experiment_file) -> Experiment:
    assert cli.main(["run", str(experiment_file)]) == 0
    return load_experiment(experiment_file)


@pytest.fixture(scope="session")
def finished_here(file_here) -> Experiment:
    """Return the same without Ray, for tests of what is made of a run and not of how it runs."""
    from tests.inline import in_this_process

    with in_this_process():
        assert cli.main(["run", str(file_here)]) == 0
    return load_experiment(file_here)


def same_results(one: Experiment, other: Experiment) -> None:
    """Assert that two runs decoded and drew the same, byte for byte."""
    for name in ("latents", "prompt_embeds"):
        np.testing.assert_array_equal(
            store.read_rows(outputs.predictions(one).folder, name),
            store.read_rows(outputs.predictions(other).folder, name),
        )
    for row in ("system", "ceiling"):
        np.testing.assert_array_equal(
            store.read_rows(outputs.reconstructions(one).folder, row),
            store.read_rows(outputs.reconstructions(other).folder, row),
        )


def contents_of(experiment: Experiment) -> dict[str, np.ndarray]:
    predictions = outputs.predictions(experiment).folder
    drawn = outputs.reconstructions(experiment).folder
    opened = store.open_store(outputs.subject_store(experiment).folder, splits="training")
    everything = np.ones(len(opened.voxels), bool)
    return {
        "betas": opened.betas(voxels=everything),
        "latents": store.read_rows(outputs.features(experiment).folder, "latents"),
        "predicted latents": store.read_rows(predictions, "latents"),
        "predicted embeddings": store.read_rows(predictions, "prompt_embeds"),
        "system": store.read_rows(drawn, "system"),
        "ceiling": store.read_rows(drawn, "ceiling"),
    }
