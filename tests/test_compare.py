"""The command that sets finished runs side by side."""

import dataclasses

import pandas as pd
import pytest

from raybrain import cli, seal
from raybrain.evaluation import PROTOCOLS, SYSTEM
from raybrain.seal import Seal
from tests.evaluation.made import made_table


def write_report(run, table, *, sealed=True):
    folder = run / "report"
    made = Seal("evaluate", {"run": run.name})
    seal.begin(str(folder), wanted=made, on_change="refuse")
    table.save(folder / "scores.npz")
    if sealed:
        seal.finish(str(folder), seal=made)
    return str(run)


def gaining(table, by):
    cells = {**table.cells, (SYSTEM, "two_way"): table.cells[SYSTEM, "two_way"] + by}
    return dataclasses.replace(table, cells=cells)


def test_a_gain_on_every_image_is_told_with_its_size(tmp_path, capsys):
    base = made_table(images=30)
    first = write_report(tmp_path / "all", base)
    second = write_report(tmp_path / "no_V1", gaining(base, -0.25))
    assert cli.main(["compare", first, f"{second}/report", f"out={tmp_path}/out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "30 images, paired; positive means better than all" in lines[0]
    (line,) = [line for line in lines if line.split()[:2] == ["no_V1", "two_way"]]
    assert line.split()[2:6] == ["-25.00", "-25.00", "to", "-25.00"]
    frame = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("metric")
    assert frame.loc["two_way", "difference"] == pytest.approx(-0.25)
    assert frame.loc["pixcorr", "difference"] == 0


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    base = made_table(images=8)
    runs = [write_report(tmp_path / place / "demo", base) for place in ("one", "other")]
    assert cli.main(["compare", *runs]) == 0
    assert f"better than {tmp_path}/one/demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("alone", "at least two runs"),
        ("twice", "named twice"),
        ("absent", "holds no finished report; type 'raybrain evaluate'"),
        ("unfinished", "holds no finished report"),
        ("other images", "were not scored on the same images"),
        ("other protocol", "different protocols"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_exit_2(tmp_path, capsys, case, message):
    base = made_table(images=8)
    first = write_report(tmp_path / "a", base)
    others = {
        "alone": [],
        "twice": [first],
        "absent": [str(tmp_path / "none")],
        "unfinished": [write_report(tmp_path / "b", base, sealed=False)],
        "other images": [write_report(tmp_path / "c", made_table(images=9))],
        "other protocol": [
            write_report(
                tmp_path / "d", dataclasses.replace(base, protocol=PROTOCOLS["mindeye2-v1"])
            )
        ],
    }[case]
    assert cli.main(["compare", first, *others, f"out={tmp_path}/out"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()
