"""``raybrain init FOLDER``: a study of one's own to start from."""

from __future__ import annotations

import re
from pathlib import Path

from raybrain.catalog import CATALOG
from raybrain.config import InputError

README = """# {name}

    raybrain plan {experiment}     # what is there, what would run
    raybrain run {experiment}      # a simulated subject, end to end; nothing is downloaded

`experiment.yaml` says what is decoded from where and how it is drawn. `my_dataset.yaml` says what
the dataset is: its folder, ROIs, split and licence. Point `root` and `reader` of the latter at your
data (reader arrays; the others read published datasets), take the `simulation` section out of the
former, and type the first line again: it names every file that is missing.
"""


def init(folder: str, *, example: Path) -> str:
    """Write the example experiment, its catalog entry and a README; return what to type next.

    Raises
    ------
    InputError
        If the folder holds anything already, or its name is none for an experiment.
    """
    place = Path(folder).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} exists already and is not an empty folder; choose another name")
    name = place.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"'{name}' is no name of an experiment; use letters, digits, '.', '_' and '-'"
        )
    experiment = example.read_text(encoding="utf-8")
    experiment = re.sub(r"(?m)^name: .*$", f"name: {name}", experiment)
    experiment = re.sub(
        r"(?m)^dataset: .*$", "dataset: my_dataset.yaml   # beside this file", experiment
    )
    entry = (CATALOG / "simulated.yaml").read_text(encoding="utf-8")
    place.mkdir(parents=True, exist_ok=True)
    file = place / "experiment.yaml"
    file.write_text(experiment, encoding="utf-8")
    (place / "my_dataset.yaml").write_text(entry, encoding="utf-8")
    (place / "README.md").write_text(README.format(name=name, experiment=file), encoding="utf-8")
    return f"{place} is ready; type 'raybrain run {file}'"
