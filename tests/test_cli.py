import errno
import subprocess
import sys
from pathlib import Path

import pytest

from raybrain import catalog, cli, config


def test_every_stage_of_the_command_line_is_one_of_the_pipeline():
    from raybrain import pipeline

    assert set(cli.STAGES) == set(pipeline.RUN)


def test_help_names_every_stage_and_loads_nothing_heavy():
    code = (
        "import sys; from raybrain.cli import main; main(['--help']);"
        "heavy = {'torch', 'ray', 'mlflow', 'zarr', 'numpy', 'pydantic'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for stage in cli.STAGES:
        assert f"  {stage} " in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian", "x.yaml"], "'trian' is not a stage; choose from plan"),
        (["train"], "name an experiment file"),
        (["train", "training.lr=1"], "name an experiment file"),
        (["train", "absent.yaml"], "there is no experiment file at absent.yaml"),
        (["demo", "subject=subj99"], "has no subject 'subj99'; choose from subj01"),
        (["demo", "decode.latents.rois=[V9]"], "ROI 'V9' is not in the catalog entry simulated"),
        (["demo", "dataset=nds"], "dataset 'nds' is not in the catalog"),
        (["demo", "generator.checkpoint=/absent"], "/absent"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2_and_writes_nothing(
    words, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAYBRAIN_WORKSPACE", raising=False)
    assert cli.main(words) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/lab/runs"),
        OSError(errno.EROFS, "Read-only file system", "/lab/runs"),
        OSError(errno.ELOOP, "Too many levels of symbolic links", "/lab/runs"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "/lab/runs"),
    ],
)
def test_a_place_that_is_lost_midway_is_one_sentence(error, monkeypatch, capsys):
    def lose(words):
        raise error

    monkeypatch.setattr(cli, "_run", lose)
    assert cli.main(["plan", "x.yaml"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"raybrain: /lab/runs cannot be used ({error.strerror})")
    assert printed.count("\n") == 1


def test_a_fault_of_the_program_itself_keeps_its_traceback(monkeypatch):
    def fail(words):
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(BrokenPipeError):
        cli.main(["plan", "x.yaml"])


def test_a_study_of_ones_own_runs_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "my-study"]) == 0
    assert "raybrain run my-study/experiment.yaml" in capsys.readouterr().out
    assert "raybrain plan my-study/experiment.yaml" in Path("my-study/README.md").read_text()
    experiment = config.load("my-study/experiment.yaml", schema=config.Experiment)
    assert experiment.name == "my-study"
    place = catalog.locate(experiment.dataset, beside=Path("my-study"))
    assert catalog.load_entry(place).rois == catalog.load_entry("simulated").rois
    assert cli.main(["plan", "my-study/experiment.yaml"]) == 0
    monkeypatch.chdir(tmp_path / "my-study")
    assert cli.main(["plan", "experiment.yaml"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("words", [["init"], ["init", "a", "b"], ["init", "full"], ["init", "a b"]])
def test_init_overwrites_nothing_and_says_what_it_wants(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [str(p) for p in Path().rglob("*") if p.is_file()] == ["full/notes.txt"]


def test_entries_in_ones_own_catalog_go_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catalog.locate("nsd", beside=tmp_path) == "nsd"
    own = tmp_path / "data_catalog/nsd.yaml"
    own.parent.mkdir()
    text = (catalog.CATALOG / "nsd.yaml").read_text()
    own.write_text(text.replace("title: ", "title: Our copy of ", 1))
    assert catalog.locate("nsd", beside=tmp_path) == str(own)
    assert catalog.load_entry(str(own)).title.startswith("Our copy of")
    assert catalog.load_entry(str(own)).name == "nsd"


def test_the_plan_of_data_that_are_not_there_is_a_plan(tmp_path, capsys):
    entry = tmp_path / "mine.yaml"
    entry.write_text(
        "title: Mine\nreader: arrays\nroot: /nowhere\nsubjects: [P1]\n"
        "rois: {V1: {columns: [V1]}}\nsplit: {test: column}\n"
        "licence: {name: none, url: 'https://example.org', redistributable: false}\ncite: me\n"
    )
    experiment = tmp_path / "study.yaml"
    experiment.write_text(
        f"name: study\ndataset: {entry}\nsubject: P1\nworkspace: {tmp_path}/workspace\n"
        "generator: {checkpoint: pocket-diffusion}\nreconstruct: {mode: z}\n"
        "decode: {latents: {rois: [V1]}}\n"
    )
    assert cli.main(["plan", str(experiment)]) == 0
    assert "nothing can run yet" in capsys.readouterr().out
    assert not (tmp_path / "workspace").exists()
