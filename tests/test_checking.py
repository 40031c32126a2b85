"""What is known to fail is told before the first stage, with its neighbours let through."""

import contextlib
import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from raybrain import catalog, cli, config, diffusion
from raybrain.config import Experiment
from raybrain.diffusion.checkpoint import POCKET_DIFFUSION
from raybrain.stages import checking, extent, planning
from raybrain.stages.extent import Extent

Usage = namedtuple("Usage", "total used free")
SMALL = (
    "simulation.objects=16",
    "simulation.test_images=4",
    "simulation.trials_per_session=20",
)
NETWORK = "decode.latents.decoder={kind: residual_mlp}"


@pytest.fixture
def load(tmp_path):
    def made(*changes: str) -> Experiment:
        place = f"workspace={tmp_path}/workspace"
        return config.load(cli.DEMO, (place, *SMALL, *changes), schema=Experiment)

    return made


def told(experiment: Experiment, stage: str = "run") -> list[str]:
    found = [str(fault) for fault in checking.faults(experiment, stage=stage)]
    assert all("\n" not in sentence for sentence in found)
    return found


def test_the_demo_has_no_faults(load):
    assert told(load()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("reconstruct.steps=1", "leaves no step to draw; type reconstruct.steps=4"),
        ("reconstruct.steps=1001", "type reconstruct.steps=1000 or less"),
        ("evaluate.protocol=takagi-v1", "takagi-v1 needs weights that are not in"),
        ("features.tokens=9999", "'features.tokens' is 9999"),
        ("features.resolution=65", "'features.resolution' is 65"),
        ("generator.checkpoint=/nowhere", "there is no generator at '/nowhere'"),
        ("tracking.uri=runs.db", "tracking.uri is 'runs.db', which is no address"),
    ],
)
def test_a_run_tells_it_at_once_and_writes_nothing(load, change, sentence, tmp_path, capsys):
    (fault,) = told(load(change, "evaluate.weights=/nowhere"))
    assert sentence in fault
    assert sentence in planning.describe(load(change, "evaluate.weights=/nowhere"))
    place = f"workspace={tmp_path}/workspace"
    assert cli.main(["run", str(cli.DEMO), place, change, "evaluate.weights=/nowhere"]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("simulate", "reconstruct.steps=1"),
        ("ingest", "generator.checkpoint=/nowhere"),
        ("features", "reconstruct.steps=1"),
        ("reconstruct", "evaluate.protocol=takagi-v1"),
    ],
)
def test_a_stage_is_not_held_up_by_the_faults_of_another(load, stage, change):
    assert told(load(change, "evaluate.weights=/nowhere"), stage) == []


def test_all_faults_are_listed_by_the_plan(load):
    changes = ("reconstruct.steps=1", "evaluate.protocol=takagi-v1", "evaluate.weights=/nowhere")
    shown = planning.describe(load(*changes)).splitlines()
    assert [line.split()[0] for line in shown[-3:]] == ["refused", "refused", "next"]
    assert "raybrain simulate" in planning.describe(load()).splitlines()[-1]


@pytest.mark.parametrize("part", ["unet", "tokenizer"])
def test_a_part_that_a_generator_lacks_is_told(load, tmp_path, part):
    copy = tmp_path / "generator"
    shutil.copytree(POCKET_DIFFUSION, copy)
    assert told(load(f"generator.checkpoint={copy}")) == []
    shutil.rmtree(copy / part)
    (fault,) = told(load(f"generator.checkpoint={copy}"))
    assert f"lacks {part}/" in fault


# Places


@contextlib.contextmanager
def as_nobody():
    """Be a user without rights inside the block; root may write anywhere."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_file_where_the_workspace_should_be_is_told(load, tmp_path):
    (tmp_path / "workspace").write_text("mine")
    (fault,) = told(load())
    assert "is a file; choose another place" in fault
    (fault,) = told(load(f"workspace={tmp_path}/workspace/within"))
    assert f"{tmp_path}/workspace is a file" in fault
    assert (tmp_path / "workspace").read_text() == "mine"


def test_a_folder_where_the_database_should_be_is_told(load, tmp_path):
    (tmp_path / "workspace/mlflow.db").mkdir(parents=True)
    (fault,) = told(load())
    assert "the database of runs cannot be at" in fault


@pytest.mark.parametrize(
    ("links", "sentence"),
    [
        ({"workspace": "other", "other": "workspace"}, "go round in a circle"),
        ({"workspace": "gone"}, "a link to nowhere"),
    ],
)
def test_links_that_lead_nowhere_are_told(load, tmp_path, links, sentence):
    for name, target in links.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    (fault,) = told(load())
    assert sentence in fault


def test_a_link_to_a_folder_is_a_workspace(load, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "workspace").symlink_to(tmp_path / "disk")
    assert told(load()) == []


@pytest.mark.parametrize("locked", ["workspace", "workspace/runs/demo", "workspace/stores"])
def test_a_folder_that_cannot_be_written_is_told(load, locked):
    # Not below pytest's folders, which their owner alone may enter.
    with tempfile.TemporaryDirectory(prefix="rb") as top:
        folder = Path(top, locked)
        folder.mkdir(parents=True)
        for place in (top, *Path(top).rglob("*")):
            Path(place).chmod(0o777)
        experiment = load(f"workspace={top}/workspace", f"evaluate.weights={top}")
        folder.chmod(0o555)
        with as_nobody():
            found = told(experiment)
        assert found
        assert all(f"{folder} is read-only for you" in fault for fault in found)
        folder.chmod(0o777)
        with as_nobody():
            assert told(experiment) == []


@pytest.mark.parametrize("name", ["a%20b", "what?", "no#1", "a\nb", "a::b"])
def test_a_workspace_that_databases_misread_is_told(load, tmp_path, name):
    (fault,) = told(load().model_copy(update={"workspace": f"{tmp_path}/{name}"}))
    assert "choose a name without it" in fault


@pytest.mark.parametrize("name", ["two words", "é", "a+b", "a&b", "50$"])
def test_other_letters_are_taken(load, tmp_path, name):
    assert told(load().model_copy(update={"workspace": f"{tmp_path}/{name}"})) == []


# Sizes


def test_too_little_disk_is_told_before_anything_is_written(load, monkeypatch):
    experiment = load("reconstruct.samples=100")
    needed = sum(
        extent.planned_bytes(experiment, stage)
        for stage in ("simulate", "ingest", "features", "reconstruct")
    )
    pixels = diffusion.drawn_pixels(
        experiment.generator, features=experiment.features, reconstruct=experiment.reconstruct
    )
    # Half of what is drawn, the system's samples and the ceiling once, and more.
    assert needed > 4 * (100 + 1) * pixels**2 * 3 / 2
    for free, faults in ((needed, 0), (needed - 1, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free, 0, free))
        found = told(experiment)
        assert len(found) == faults
    assert "make room, or choose another workspace=" in found[0]


def counted(monkeypatch, experiment: Experiment, **counts) -> None:
    rois = {decode.rois: 10_000 for decode in (experiment.decode.latents,) if decode}
    whole = {
        "trials": 300,
        "images": 100,
        "training_images": 80,
        "test_images": 20,
        "validation_images": 8,
        "voxels": 10_000,
        "rois": rois,
    }
    monkeypatch.setattr(extent, "extent_of", lambda _: Extent(**whole | counts))


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"training_images": 2}, "has 2 images to train on, but a decoder needs 3"),
        ({"test_images": 1}, "has 1 test image, but scores tell an image from others"),
    ],
)
def test_too_few_images_are_told(load, monkeypatch, counts, sentence):
    experiment = load()
    counted(monkeypatch, experiment, **counts)
    (fault,) = told(experiment)
    assert sentence in fault
    enough = {name: count + 1 for name, count in counts.items()}
    counted(monkeypatch, experiment, **enough)
    assert told(experiment) == []


def test_a_network_without_validation_images_is_told(load, monkeypatch):
    with_network, with_ridge = load(NETWORK), load()
    counted(monkeypatch, with_network, validation_images=0)
    (fault,) = told(with_network)
    assert "'decode.latents.decoder' is chosen by validation images" in fault
    assert told(with_ridge) == []
    counted(monkeypatch, with_network, validation_images=1)
    assert told(with_network) == []


@pytest.mark.parametrize(("validation", "faults"), [(0.0, 1), (0.1, 0)])
def test_an_entry_without_validation_is_told_before_ingest(load, tmp_path, validation, faults):
    entry = yaml.safe_load((catalog.CATALOG / "simulated.yaml").read_text())
    entry["split"]["validation"] = validation
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(entry))
    assert len(told(load(NETWORK, f"dataset={tmp_path}/mine.yaml"))) == faults
    assert told(load(f"dataset={tmp_path}/mine.yaml")) == []


def test_subjects_that_do_not_fit_the_memory_together_are_told(load, monkeypatch):
    both = ("subjects=[subj01, subj02]", NETWORK, "decode.prompt_embeds=null", "reconstruct.mode=z")
    experiment = load(*both, "training.memory=0.01")
    counted(monkeypatch, experiment)  # 300 trials of 10,000 voxels are 12 MB
    (fault,) = told(experiment)
    assert "GB of 2 subjects exceed training.memory=0.01" in fault
    enough = load(*both, "training.memory=0.1")
    counted(monkeypatch, enough)
    assert told(enough) == []


def test_ridge_on_more_than_this_machine_holds_is_told(load, monkeypatch):
    experiment = load("decode.prompt_embeds=null", "reconstruct.mode=z")
    counted(monkeypatch, experiment, trials=1_000_000_000)
    assert any("ridge holds its data" in fault for fault in told(experiment))
    alone = ("decode.prompt_embeds=null", "decode.image_embeds=null", "reconstruct.mode=z")
    undrawn = (
        *("evaluate.rerank=[]", "reconstruct.references=[]", "reconstruct.gradient=null"),
        "decode.image_features=null",
    )
    streamed = load(*alone, *undrawn, NETWORK)
    counted(monkeypatch, streamed, trials=1_000_000_000)
    assert not any("ridge holds" in fault for fault in told(streamed))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # whose nodes may hold more
    assert not any("ridge holds" in fault for fault in told(experiment))


def test_a_home_is_written_as_one(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment = config.load(cli.DEMO, ("workspace=~/lab",), schema=Experiment)
    assert Path(experiment.workspace) == tmp_path / "lab"
