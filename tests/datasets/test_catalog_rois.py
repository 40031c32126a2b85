"""The same names of regions in every dataset, each with the atlas that drew it."""

from __future__ import annotations

import pytest

from raybrain.catalog import load_entry

STANDARD = {"V1", "V2", "V3", "hV4", "early", "LOC", "FFA", "PPA", "ventral", "higher", "visual"}
ABSENT = {"nsd": {"LOC"}, "bold5000": {"V1", "V2", "V3", "hV4", "FFA"}}
"""What a dataset does not publish."""


@pytest.mark.parametrize("name", ["nsd", "things", "god", "deeprecon", "bold5000", "nod", "laion"])
def test_standard_names(name: str) -> None:
    rois = load_entry(name).rois
    assert STANDARD - set(rois) == ABSENT.get(name, set())
    areas = {"V1", "V2", "V3", "hV4", "LOC", "FFA", "PPA"} & set(rois)
    assert all(rois[area].source for area in areas), [a for a in areas if not rois[a].source]
    for roi in rois.values():
        assert set(roi.union) <= set(rois)


def test_a_source_changes_no_store() -> None:
    from raybrain import outputs
    from raybrain.config import Experiment

    entry = load_entry("god")
    renamed = entry.model_copy(
        update={"rois": {k: v.model_copy(update={"source": "?"}) for k, v in entry.rois.items()}}
    )
    seals = []
    for one in (entry, renamed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(outputs, "dataset_entry", lambda _, one=one: one)
            patch.setattr(outputs, "_digest_of_files", lambda *_, **__: "none")
            experiment = Experiment.model_validate(
                {
                    "name": "x",
                    "dataset": "god",
                    "subject": "Subject1",
                    "workspace": "w",
                    "decode": {"latents": {"rois": ["V1"], "decoder": {"kind": "ridge"}}},
                    "reconstruct": {"mode": "z"},
                }
            )
            seals.append(outputs.subject_store(experiment).seal.digest)
    assert seals[0] == seals[1]
