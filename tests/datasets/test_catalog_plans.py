"""What the shipped entries say is needed where nothing is there yet."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

from raybrain.catalog import CATALOG, load_entry
from raybrain.config import Ingest, InputError

PLANNED = {
    # Files that end in this, how many there are, and the bytes of each where they are known.
    "god": (".h5", 1, 250_000_000),
    "deeprecon": ("_original_VC.h5", 2, None),
    "bold5000": ("FITHRF-GLMDENOISE-RR_ses-", 15, None),
    "nod": ("_beta.dscalar.nii", 40, 26_000_000),
    "laion": ("SingletrialBetas_statmap.nii.gz", 30, 12_500_000_000),
}


@pytest.mark.parametrize("name", PLANNED)
def test_everything_is_named_before_anything_is_there(name: str, tmp_path: Path) -> None:
    entry = load_entry(name)
    reader = importlib.import_module(f"raybrain.datasets.{entry.reader}")
    listed = reader.required_files(
        entry, root=str(tmp_path), subject=entry.subjects[0], settings=Ingest()
    )
    word, count, size = PLANNED[name]
    responses = [file for file in listed if word in file.path]
    assert len(responses) == count
    assert not any(file.present for file in listed)
    if size is not None:
        assert {file.bytes for file in responses} == {size}
    few = reader.required_files(
        entry, root=str(tmp_path), subject=entry.subjects[0], settings=Ingest(sessions=1)
    )
    assert len([file for file in few if word in file.path]) == {"god": 1, "deeprecon": 2}.get(
        name, 10 if name == "nod" else 1
    )


@pytest.mark.parametrize("name", PLANNED)
def test_terms_and_citation(name: str) -> None:
    entry = load_entry(name)
    assert not entry.licence.redistributable
    assert entry.licence.url.startswith("https://")
    assert entry.cite.startswith(("doi:", "https://"))
    assert "https://" in entry.get


@pytest.mark.parametrize("value", ["many", float("inf"), True, -1, {"sub-01": [1, "x"]}])
def test_a_count_that_is_no_count_is_refused_with_the_entry(value, tmp_path) -> None:
    shipped = yaml.safe_load(Path(CATALOG, "laion.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(shipped | {"expect": {"sessions": value}}))
    with pytest.raises(InputError, match=r"mine\.yaml: 'expect': .* should be a whole number"):
        load_entry(str(file))
