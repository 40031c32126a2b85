"""``compare``: sealed reports side by side, image by image; no cluster, nothing but reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raybrain import outputs, places, seal
from raybrain.config import Experiment, InputError
from raybrain.evaluation import (
    Table,
    compare_tables,
    comparison_frame,
    comparison_text,
    load_table,
)
from raybrain.stages.scoring import SCORES

REPORT = "report"
OUT = "out="
FILE = "comparison.csv"


def compare(words: Sequence[str]) -> str:
    """Return what every later run gains on the first, on every metric, for a console.

    Parameters
    ----------
    words : sequence of str
        Runs: folders that ``evaluate`` wrote or their parents, or experiment files. ``out=FOLDER``
        also writes the differences there as a table.

    Raises
    ------
    raybrain.config.InputError
        If there are fewer than two runs, one has no sealed report, or their protocols or images
        differ.
    """
    named = [word for word in words if not word.startswith(OUT)]
    if len(named) < 2:
        raise InputError(
            "comparing takes at least two runs; type raybrain compare workspace/runs/one "
            "workspace/runs/other"
        )
    reports = {word: report_of(word) for word in named}
    if len(reports) < len(named) or len(set(reports.values())) < len(reports):
        raise InputError("a run is named twice; name each run once")
    tables = {name: _table(report) for name, report in _names(reports).items()}
    found = compare_tables(tables)
    for word in words:
        if word.startswith(OUT):
            table = comparison_frame(found).to_csv(index=False)
            places.write_text(f"{word.removeprefix(OUT).rstrip('/')}/{FILE}", table)
    return comparison_text(found, table=next(iter(tables.values())))


def report_of(word: str) -> str:
    """Return the folder of the report that a run's folder or an experiment file stands for."""
    if word.endswith((".yaml", ".yml")):
        word = outputs.report(Experiment.load(word)).folder
    folder = word.rstrip("/") if places.is_remote(word) else str(Path(word).absolute())
    return folder if folder.endswith(f"/{REPORT}") else f"{folder}/{REPORT}"


def _table(report: str) -> Table:
    found = seal.read_seal(report)
    if found is None or found.stage != "evaluate":
        raise InputError(
            f"{report} holds no finished report; type 'raybrain evaluate' with its experiment"
        )
    with places.reading(report) as folder:
        return load_table(folder / SCORES)


def _names(reports: dict[str, str]) -> dict[str, str]:
    """Return the reports by the names of their runs, by their folders where these are alike."""
    folders = [report.rpartition("/")[0] for report in reports.values()]
    runs = [folder.rpartition("/")[2] for folder in folders]
    if len(set(runs)) == len(runs):
        return dict(zip(runs, reports.values(), strict=True))
    return dict(zip(folders, reports.values(), strict=True))
