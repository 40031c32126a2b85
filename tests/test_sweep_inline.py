"""A sweep from end to end in one process: what it makes, tells and leaves when a run fails.

What runs on Ray elsewhere is called here one after another; `test_sweep_run` has it on Ray.
"""

import csv
import json
from pathlib import Path

import pytest
import yaml

from raybrain import cli, outputs, pipeline, sweeps
from raybrain.config import InputError
from raybrain.stages import fitting, sweeping
from tests.test_sweep_run import (
    UNITS,
    check_recorded,
    comparison,
    counted,
    faulty_drawing,
    made,
    write_sweep,
)

pytestmark = pytest.mark.filterwarnings("default")


def test_a_sweep_in_which_a_run_fails_and_is_made_good(
    experiment_file, tmp_path, capsys, monkeypatch, inline
):
    file = write_sweep(tmp_path, experiment_file)
    faulty = faulty_drawing()
    with monkeypatch.context() as broken:
        broken.setitem(pipeline.WORK, "reconstruct", lambda: faulty)
        assert cli.main(["sweep", file]) == 2
    printed = capsys.readouterr()
    assert "trial-subj02-0.8: reconstruct: OSError: the disk is on fire" in printed.out
    assert "1 of 4 runs of 'trial' failed" in printed.err
    assert "Scores under lite0-v1" in printed.out
    assert cli.main(["plan", file]) == 0
    plan = capsys.readouterr().out
    assert "\nfailed" in plan
    assert "the disk is on fire" in plan
    assert plan.count("\ndone") == 3
    assert counted(made(tmp_path)) == {**UNITS, "reconstruct": 3, "evaluate": 3}

    assert cli.main(["sweep", file]) == 0
    # What was there is not made again, and what was missing is made once.
    lines = made(tmp_path)
    assert counted(lines) == UNITS
    assert len({line["output"] for line in lines}) == len(lines)
    capsys.readouterr()
    assert cli.main(["plan", file]) == 0
    assert "all is done" in capsys.readouterr().out
    _check_tables(tmp_path)
    # Three were recorded when one had failed, and are not recorded again.
    check_recorded(file)
    _check_sessions(file)

    before, tables = made(tmp_path), comparison(tmp_path)
    assert cli.main(["sweep", file]) == 0
    assert made(tmp_path) == before
    assert comparison(tmp_path) == tables


def _check_tables(folder: Path) -> None:
    place = folder / "workspace/sweeps/trial/comparison"
    with (place / "scores.csv").open() as rows:
        found = list(csv.DictReader(rows))
    assert {row["subject"] for row in found} == {"subj01", "subj02", "mean of 2"}
    assert {row["reconstruct.strength"] for row in found} == {"0.5", "0.8"}
    with (place / "differences.csv").open() as rows:
        gains = list(csv.DictReader(rows))
    assert {row["reconstruct.strength"] for row in gains} == {"0.8"}
    assert {row["than"] for row in gains} == {"0.5"}
    assert all(float(row["adjusted"]) >= float(row["p"]) for row in gains)
    # Runs that decode alike have the decoder on one line.
    decoded = list(csv.DictReader((place / "decoded.csv").read_text().splitlines()))
    assert len(decoded) == 2 * 3
    page = (place / "comparison.html").read_text()
    content = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [brain["name"] for brain in content["brains"]] == [
        "simulated subj01",
        "simulated subj02",
    ]
    assert content["brains"][0]["columns"] == ["seen", "0.5", "0.8"]
    assert len(content["brains"][0]["images"]) == 4


def _check_sessions(file: str) -> None:
    few = sweeps.load_sweep(file, ("decode.latents.sessions=2",)).runs[0].experiment
    whole = sweeps.load_sweep(file).runs[0].experiment
    of = {
        name: fitting.Data.of(one, "latents", one.decode.latents).opened.trials
        for name, one in (("few", few), ("whole", whole))
    }
    assert sorted(of["few"]["session"].unique()) == sorted(of["whole"]["session"].unique())[:2]
    assert 0 < len(of["few"]) < len(of["whole"])
    # What is tested does not change with how much trains.
    assert outputs.subject_store(few).folder == outputs.subject_store(whole).folder


def test_another_setting_is_refused_by_name_unless_it_may_replace(
    experiment_file, tmp_path, inline
):
    from raybrain import seal

    file = write_sweep(tmp_path, experiment_file)
    experiment = sweeps.load_sweep(file).runs[0].experiment
    report = outputs.report(experiment)
    seal.begin(report.folder, wanted=report.seal, on_change="refuse")
    seal.finish(report.folder, seal=report.seal)
    changed = ("evaluate.bootstrap=300", "on_change=refuse")
    runs = [run.experiment for run in sweeps.load_sweep(file, changed).runs]
    with pytest.raises(InputError, match=r"evaluate\.bootstrap was 200, now 300"):
        sweeping.check(runs, units=sweeping.units_of(runs))
    assert yaml.safe_load((tmp_path / "base.yaml").read_text())["on_change"] == "replace"
    assert cli.main(["plan", file, *changed]) == 0
