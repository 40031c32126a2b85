"""``compare``: sealed reports side by side, image by image; no cluster, nothing but reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raybrain import outputs, seal
from raybrain.config import Experiment, InputError, load
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
            folder = Path(word.removeprefix(OUT))
            folder.mkdir(parents=True, exist_ok=True)
            comparison_frame(found).to_csv(folder / FILE, index=False)
    return comparison_text(found, table=next(iter(tables.values())))


def report_of(word: str) -> Path:
    """Return the folder of the report that a run's folder or an experiment file stands for."""
    if word.endswith((".yaml", ".yml")):
        return Path(outputs.report(load(word, schema=Experiment)).folder).absolute()
    folder = Path(word).absolute()
    return folder if folder.name == REPORT else folder / REPORT


def _table(report: Path) -> Table:
    found = seal.read_seal(str(report))
    if found is None or found.stage != "evaluate":
        raise InputError(
            f"{report} holds no finished report; type 'raybrain evaluate' with its experiment"
        )
    return load_table(report / SCORES)


def _names(reports: dict[str, Path]) -> dict[str, Path]:
    """Return the reports by the names of their runs, by their folders where these are alike."""
    runs = [report.parent.name for report in reports.values()]
    if len(set(runs)) == len(runs):
        return dict(zip(runs, reports.values(), strict=True))
    return {str(report.parent): report for report in reports.values()}
