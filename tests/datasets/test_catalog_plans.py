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


EXPECTING = ["bold5000", "deeprecon", "god", "laion", "nod", "nsd", "things"]


def test_every_entry_that_expects_counts_is_tried_below() -> None:
    shipped = sorted(Path(CATALOG).glob("*.yaml"))
    assert [file.stem for file in shipped if load_entry(file.stem).expect] == EXPECTING


@pytest.mark.parametrize("name", EXPECTING)
@pytest.mark.parametrize("shape", [[1, 2], {"x": 1}, {"x": {"y": [1]}}, 7, [], [[1]]], ids=str)
def test_a_count_of_another_shape_is_refused_by_its_name(name: str, shape, tmp_path) -> None:
    shipped = load_entry(name)
    reader = importlib.import_module(f"raybrain.datasets.{shipped.reader}")
    subject = shipped.subjects[0]
    for count in shipped.expect:
        changed = shipped.model_copy(update={"expect": shipped.expect | {count: shape}})
        told = None
        try:
            listed = reader.required_files(
                changed, root=str(tmp_path), subject=subject, settings=Ingest()
            )
        except InputError as refused:
            told = str(refused)
        if told is None:
            assert all(file.bytes is None or isinstance(file.bytes, int) for file in listed)
        else:
            assert f"'expect.{count}" in told
            assert told.endswith("mend the entry")


def test_a_count_by_name_and_one_for_all(tmp_path: Path) -> None:
    entry = load_entry("nsd")
    assert entry.expected("sessions", "subj03") == 32
    assert entry.expected("sessions", "subj09") is None
    assert entry.expected_list("grid", "func1pt8mm", "subj01", length=3) == (81, 104, 83)
    same = entry.model_copy(update={"expect": {"sessions": 40}})
    assert same.expected("sessions", "subj03") == 40
    with pytest.raises(InputError, match=r"'expect\.grid\.func1pt8mm\.subj01' .* list of 2 whole"):
        entry.expected_list("grid", "func1pt8mm", "subj01", length=2)
