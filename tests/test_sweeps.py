"""A sweep's file: the runs it stands for, and what is refused before anything starts."""

from pathlib import Path

import pytest
import yaml

from raybrain import cli, outputs, sweeps
from raybrain.config import InputError
from raybrain.stages import sweeping
from tests.small_run import SIMULATED

BASE = {
    **SIMULATED,
    "name": "base",
    "decode": {"latents": {"rois": ["early"]}, "prompt_embeds": {"rois": ["ventral"]}},
    "reconstruct": {"steps": 4, "samples": 1, "references": []},
}
NETWORK = {"decode.latents.decoder.kind": "residual_mlp", "decode.latents.decoder.width": 16}


@pytest.fixture
def write(tmp_path):
    """Return what writes a sweep and the experiment it starts from, and returns its file."""
    base = {**BASE, "workspace": str(tmp_path / "workspace")}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**base, "training": {"lr": 0.5}}))

    def write(**tree):
        file = tmp_path / "sweep.yaml"
        tree = {"name": "trial", "experiment": "base.yaml", **tree}
        file.write_text(yaml.safe_dump(tree, sort_keys=False))
        return str(file)

    return write


def names(runs):
    return [run.experiment.name for run in runs.runs]


def test_axes_are_crossed_and_runs_are_named_after_their_labels(write):
    file = write(
        axes={
            "subject": ["subj01", "subj02"],
            "decoder": {"ridge": {}, "mlp": NETWORK},
            "reconstruct.strength": [0.5, "8e-1"],
        },
        without=[{"decoder": "mlp", "reconstruct.strength": "0.8"}],
    )
    runs = sweeps.load_sweep(file)
    assert names(runs) == [
        "trial-subj01-ridge-0.5", "trial-subj01-ridge-0.8", "trial-subj01-mlp-0.5",
        "trial-subj02-ridge-0.5", "trial-subj02-ridge-0.8", "trial-subj02-mlp-0.5",
    ]  # fmt: skip
    last = runs.runs[-1]
    assert last.labels == {"subject": "subj02", "decoder": "mlp", "reconstruct.strength": "0.5"}
    assert last.experiment.decode.latents.decoder.kind == "residual_mlp"
    assert last.experiment.decode.latents.decoder.width == 16
    assert last.experiment.reconstruct.strength == 0.5
    assert runs.of_subjects == ("subject",)


def test_runs_may_be_listed_and_start_from_other_files(write):
    file = write(
        settings={"reconstruct.guidance": 3, "evaluate.bootstrap": 70},
        axes={
            "system": {"one": {}, "two": {"experiment": "other.yaml"}},
            "decode.latents.rois": [["V1"], ["V1", "V2"]],
        },
        runs=[{"system": "two"}, {"system": "one", "decode.latents.rois": "V1+V2"}],
    )
    # What is typed goes before what the files say.
    runs = sweeps.load_sweep(file, ("reconstruct.samples=2", "name=again", "evaluate.bootstrap=9"))
    assert names(runs) == ["again-two-V1", "again-one-V1_V2"]
    two, one = (run.experiment for run in runs.runs)
    assert (two.training.lr, one.training.lr) == (0.5, 3e-4)
    assert one.decode.latents.rois == ("V1", "V2")
    assert {two.reconstruct.samples, one.reconstruct.samples} == {2}
    assert {two.reconstruct.guidance, one.reconstruct.guidance} == {3.0}
    assert {two.evaluate.bootstrap, one.evaluate.bootstrap} == {9}


def test_an_axis_may_replace_a_section_that_all_runs_were_given_more_of(write):
    file = write(
        settings={"decode.prompt_embeds.repeats": "trial", "simulation.repeats": 2},
        axes={
            "system": {
                "both": {"simulation.layout": "things"},
                "one": {"decode": {"latents": {"rois": ["V1"]}}, "reconstruct.mode": "z"},
            }
        },
    )
    both, one = (run.experiment for run in sweeps.load_sweep(file).runs)
    assert both.decode.prompt_embeds.repeats == "trial"
    assert (both.simulation.layout, both.simulation.repeats) == ("things", 2)
    assert one.decode.prompt_embeds is None
    # What one run changes within a section stays its own.
    assert one.simulation.layout == "nsd"


def test_runs_share_what_has_the_same_seal_and_nothing_else(write):
    file = write(
        axes={
            "subject": ["subj01", "subj02"],
            "decoder": {"ridge": {}, "mlp": NETWORK},
            "reconstruct.strength": [0.5, 0.8],
        }
    )
    units = sweeping.units_of([run.experiment for run in sweeps.load_sweep(file).runs])
    count = {
        stage: sum(unit.output.stage == stage for unit in units.values())
        for stage in outputs.RUN_STAGES
    }
    assert count == {
        "simulate": 2, "ingest": 2, "features": 2,
        # Latents by ridge and by a network, embeddings by ridge: of two subjects.
        "train": 2 * 3,
        "predict": 4, "reconstruct": 8, "evaluate": 8,
    }  # fmt: skip
    for folder, unit in units.items():
        assert unit.after <= set(units)
        assert folder not in unit.after
    reports = [unit for unit in units.values() if unit.output.stage == "evaluate"]
    assert all(len(unit.runs) == 1 for unit in reports)


def test_a_store_of_before_is_used_by_its_name_and_another_is_made_beside_it(write):
    from raybrain import seal

    file = write(axes={"ingest.image_size": [256, 128]})
    experiments = [run.experiment for run in sweeps.load_sweep(file).runs]
    plain = experiments[0].model_copy(update={"folders": "by_name"})
    before = outputs.subject_store(plain)
    seal.begin(before.folder, wanted=before.seal, on_change="refuse")
    seal.finish(before.folder, seal=before.seal)
    first, second = (outputs.subject_store(one).folder for one in experiments)
    assert first == before.folder
    assert second != before.folder


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"axes": {"trainin.lr": [1, 2]}}, "'trainin' is not a setting; did you mean 'training'?"),
        ({"axes": {"training.lr": [-1.0]}}, "'training.lr': input should be greater than 0"),
        ({"axes": {"training.lr.x": [1]}}, "'training.lr.x' is not a setting; 'lr' is one"),
        ({"axes": {"seed": [1, 2, 1]}}, "the axis 'seed' has 1 twice"),
        ({"axes": {"seed": [0.1, 0.1000000001]}}, "has 0.1 twice"),
        ({"axes": {"seed": 3}}, "'seed' needs a list of values"),
        ({"axes": {"seed": []}}, "the axis 'seed' has no values"),
        ({"axes": {}}, "'axes'"),
        ({"axes": {"workspace": ["/a", "/b"]}}, "changes 'workspace', which results do not depend"),
        ({"axes": {"resources.tasks.max": [1]}}, "changes 'resources.tasks.max'"),
        ({"axes": {"a": {"x": {"seed": 1}}, "seed": [2]}}, "'a' and 'seed' both change 'seed'"),
        ({"axes": {"a": {"x y": {}, "x_y": {}}}}, "two runs would both be called 'trial-x_y'"),
        ({"axes": {"seed": [1]}, "runs": [{"sed": "1"}]}, "did you mean 'seed'?"),
        ({"axes": {"seed": [1]}, "runs": [{"seed": "2"}]}, "'2' of the axis 'seed'"),
        ({"axes": {"seed": [1]}, "runs": [{"seed": "1"}] * 2}, "both be called 'trial-1'"),
        ({"axes": {"seed": [1]}, "without": [{"seed": "1"}]}, "leaves out every run"),
        ({"axes": {"seed": [1]}, "compare": {"baseline": {"a": "b"}}}, "'compare.baseline' names"),
        ({"axes": {"seed": [1]}, "compare": {"curves": [{"x": "s", "metric": "m"}]}}, "names the"),
        ({"axes": {"subject": ["subj01", "subj99"]}}, "has no subject 'subj99'"),
        ({"axes": {"decode.latents.rois": [["V9"]]}}, "ROI 'V9' is not in the catalog entry"),
        ({"axes": {"simulation.ncsnr_median": [0.3, 0.4]}}, "each with other settings"),
        ({"axes": {"seed": [1]}, "experiment": "absent.yaml"}, "there is no experiment file at"),
        ({"axes": {"decode.latents": [{"rois": ["V1"]}]}}, "write label: {address: value} instead"),
    ],
)
def test_a_fault_of_an_axis_is_one_sentence_and_nothing_is_started(
    write, tree, sentence, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    assert cli.main(["sweep", write(**tree)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "workspace").exists()


def test_a_sweep_and_an_experiment_are_not_taken_for_each_other(write, tmp_path, capsys):
    file = write(axes={"seed": [1, 2]})
    assert cli.main(["run", file]) == 2
    assert f"describes a sweep; type: raybrain sweep {file}" in capsys.readouterr().err
    assert cli.main(["sweep", str(tmp_path / "base.yaml")]) == 2
    assert "describes one experiment; type: raybrain run" in capsys.readouterr().err
    assert cli.main(["sweep", str(tmp_path / "absent.yaml")]) == 2
    assert "there is no experiment file at" in capsys.readouterr().err
    assert cli.main(["sweep"]) == 2
    assert "name a sweep's file" in capsys.readouterr().err


SHIPPED = sorted((Path(__file__).parents[1] / "jobs" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_sweeps_that_are_shipped_are_sound(file, monkeypatch, tmp_path):
    monkeypatch.setenv("RAYBRAIN_WORKSPACE", str(tmp_path))
    runs = sweeps.load_sweep(str(file))
    for run in runs.runs:
        outputs.dataset_entry(run.experiment)
    assert all(runs.sweep.compare.baseline.get(axis, "") in ("", *labels)
               for axis, labels in runs.axes.items())  # fmt: skip
    assert runs.of_subjects


def test_the_papers_sweep_has_its_four_decoders_and_learning_rates(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYBRAIN_WORKSPACE", str(tmp_path))
    found = {}
    for run in sweeps.load_sweep(str(SHIPPED[0].parent / "paper.yaml")).runs:
        decode = run.experiment.decode
        for target in (decode.latents, decode.prompt_embeds):
            if target is not None and target.training is not None:
                kind = (run.experiment.dataset, target.decoder.kind)
                found[kind] = (target.training.lr, target.training.batch_size)
    assert found == {
        ("nsd", "cnn_text"): (1e-4, 16), ("things", "cnn_text"): (1e-3, 16),
        ("nsd", "cnn_image"): (5e-4, 256), ("things", "cnn_image"): (5e-4, 256),
        ("nsd", "vae"): (5e-4, 256), ("things", "vae"): (5e-4, 256),
        ("nsd", "gcn"): (1e-3, 64), ("things", "gcn"): (1.5e-3, 64),
        ("nsd", "ridge"): found["nsd", "ridge"], ("things", "ridge"): found["things", "ridge"],
    }  # fmt: skip


def test_what_is_not_given_is_no_part_of_a_seal_and_what_a_decoder_does_not_use_neither(write):
    file = write(axes={"seed": [1]})

    def sealed(*assignments):
        experiment = sweeps.load_sweep(file, assignments).runs[0].experiment
        return outputs.decoder(experiment, "latents").seal

    plain = sealed()
    assert not [name for name in plain.settings if name.endswith(("training", "sessions"))]
    few, own = "decode.latents.sessions=2", "decode.latents.training={lr: 0.5}"
    assert sealed(few).settings["decode.latents.sessions"] == 2
    assert sealed(own).digest == plain.digest  # ridge is not fitted by gradient descent
    network = "decode.latents.decoder={kind: residual_mlp}"
    assert sealed(network).settings["training.lr"] == 3e-4
    settings = sealed(network, own, "training.lr=7").settings
    assert settings["decode.latents.training.lr"] == 0.5
    assert "training.lr" not in settings


def test_a_sweep_is_planned_without_writing_anything(write, tmp_path, capsys):
    file = write(axes={"decoder": {"ridge": {}, "mlp": NETWORK}, "subject": ["subj01", "subj02"]})
    assert cli.main(["plan", file]) == 0
    plan = capsys.readouterr().out
    assert "trial: 4 runs (2 decoder x 2 subject)" in plan
    assert "ingest 2 for 4" in plan
    assert "train 6 for 8" in plan
    assert plan.count("to-do") == 4
    assert not (tmp_path / "workspace").exists()


BRAINS = {
    "here": {},
    "unset": {"dataset": "god", "subject": "Subject1", "simulation": None},
    "missing": {"dataset": "haxby", "subject": "subj1", "simulation": None},
}


def brains_of(write, monkeypatch, tmp_path, brains, **tree):
    monkeypatch.delenv("GOD_ROOT", raising=False)
    monkeypatch.setenv("HAXBY_ROOT", str(tmp_path / "nowhere"))
    rois = {"decode.latents.rois": ["V1"]}
    haxby = {"decode.latents.rois": ["brain"], "decode.prompt_embeds.rois": ["vt"]}
    axes = {label: {**BRAINS[label], **(haxby if label == "missing" else rois)} for label in brains}
    return write(axes={"brain": axes}, **tree)


def test_datasets_that_are_not_here_are_skipped_with_a_line_each(
    write, monkeypatch, tmp_path, capsys
):
    file = brains_of(write, monkeypatch, tmp_path, BRAINS, absent="skip")
    assert cli.main(["plan", file]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("skipped")]
    assert len(lines) == 2
    assert "god: '${GOD_ROOT}' needs the environment variable GOD_ROOT" in lines[0]
    assert f"haxby: there is no folder {tmp_path / 'nowhere'}" in lines[1]
    assert "trial: 1 runs" in said
    assert said.count("to-do") == 1


def test_a_run_whose_other_subjects_are_not_here_is_skipped_with_its_line(
    write, monkeypatch, tmp_path, capsys
):
    monkeypatch.delenv("THINGS_ROOT", raising=False)
    monkeypatch.setenv("GOD_ROOT", str(tmp_path))
    god = {**BRAINS["unset"], "decode.latents.rois": ["V1"]}
    things = {**god, "decode.latents.decoder": {"kind": "residual_mlp"}}
    things |= {"subjects": ["things:sub-01"]}
    file = write(axes={"brain": {"here": {}, "god": god, "both": things}}, absent="skip")
    runs = sweeping.present(sweeps.load_sweep(file))
    assert [run.experiment.dataset for run in runs.runs] == ["simulated", "god"]
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("skipped"))
    assert "god with things:sub-01: '${THINGS_ROOT}' needs the environment variable" in line


def test_a_sweep_without_any_of_its_datasets_is_refused(write, monkeypatch, tmp_path, capsys):
    file = brains_of(write, monkeypatch, tmp_path, ["unset", "missing"], absent="skip")
    assert cli.main(["sweep", file]) == 2
    assert "none of the datasets of 'trial' is here" in capsys.readouterr().err
    assert not (tmp_path / "workspace").exists()


def test_nothing_is_skipped_that_was_not_allowed_to_be(write, monkeypatch, tmp_path, capsys):
    file = brains_of(write, monkeypatch, tmp_path, BRAINS)
    assert cli.main(["sweep", file]) == 2
    assert "needs the environment variable GOD_ROOT" in capsys.readouterr().err
    assert not (tmp_path / "workspace").exists()


def test_a_dataset_that_is_here_in_part_is_refused_as_ever(write, monkeypatch, tmp_path, capsys):
    file = brains_of(write, monkeypatch, tmp_path, BRAINS, absent="skip")
    (tmp_path / "nowhere").mkdir()
    assert cli.main(["sweep", file]) == 2
    assert "the dataset haxby has no files at" in capsys.readouterr().err
    assert not (tmp_path / "workspace").exists()


def test_two_sweeps_of_one_workspace_are_kept_apart(tmp_path):
    from raybrain.stages import standing

    workspace = str(tmp_path)
    with standing.alone(workspace, name="one"):
        assert standing.under_way(workspace, name="one")
        assert not standing.under_way(workspace, name="other")
        with (
            pytest.raises(InputError, match="the sweep 'one'"),
            standing.alone(workspace, name="other"),
        ):
            pass
    assert not standing.under_way(workspace, name="one")
