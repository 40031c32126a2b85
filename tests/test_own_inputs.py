"""An experiment on own arrays: what makes its sealed store count as changed."""

from pathlib import Path

import pytest
import yaml

from raybrain import config, digests, outputs, seal
from raybrain.config import Experiment
from raybrain.stages import planning
from tests.datasets.other_trees import write_arrays


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    write_arrays(tmp_path / "data")
    entry = {
        "title": "What we measured",
        "reader": "arrays",
        "root": str(tmp_path / "data"),
        "subjects": ["P1"],
        "rois": {"V1": {"columns": ["V1"]}},
        "split": {"test": "given", "validation": 0.2},
        "licence": {"name": "ours", "url": "none", "redistributable": False},
        "cite": "in preparation",
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(entry))
    tree = {
        "name": "mine",
        "dataset": str(tmp_path / "mine.yaml"),
        "subject": "P1",
        "workspace": str(tmp_path / "workspace"),
        "decode": {"latents": {"rois": ["V1"]}},
        "reconstruct": {"mode": "z"},
    }
    (tmp_path / "mine_experiment.yaml").write_text(yaml.safe_dump(tree))
    return config.load(tmp_path / "mine_experiment.yaml", schema=Experiment)


def sealed(experiment: Experiment) -> Path:
    """Seal an empty store, as if it had been ingested; return the folder of the dataset."""
    output = outputs.subject_store(experiment)
    seal.begin(output.folder, wanted=output.seal, on_change="refuse")
    seal.finish(output.folder, seal=output.seal)
    return Path(outputs.dataset_root(experiment))


def state_of(experiment: Experiment) -> seal.Status:
    output = outputs.subject_store(experiment)
    return seal.status(output.folder, wanted=output.seal)


@pytest.mark.parametrize(
    "name", ["betas.npy", "trials.csv", "voxels.csv", "captions.csv", "images/scene 4.png"]
)
def test_other_bytes_of_the_same_size_are_a_changed_input(experiment, name):
    root = sealed(experiment)
    assert state_of(experiment).state == "sealed"
    file = root / "P1" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert state_of(experiment).differences == ("its input the files of the dataset has changed",)
    assert "all is done" not in planning.describe(experiment)
    file.write_bytes(content)
    assert state_of(experiment).state == "sealed"


def test_litter_leaves_a_store_sealed(experiment):
    root = sealed(experiment)
    for name in (".DS_Store", "images/Thumbs.db", "trials.csv~", "images/.scene 4.png.swp"):
        (root / "P1" / name).write_bytes(b"litter")
    assert state_of(experiment).state == "sealed"


def test_hints_are_kept_in_the_workspace(experiment):
    sealed(experiment)
    outputs.subject_store(experiment)
    assert Path(experiment.workspace, digests.FILE).is_file()
