import subprocess
import sys

import pytest

from raybrain import cli


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
