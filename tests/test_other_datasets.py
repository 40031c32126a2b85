"""Subjects of several datasets in one network."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raybrain import cli, config, outputs, tracking
from raybrain.config import Experiment, InputError
from raybrain.stages import describing, fitting_networks, planning
from tests.small_run import SIMULATED, load_experiment

MLP = {"kind": "residual_mlp", "width": 16, "depth": 1}


def experiment_of(**words) -> Experiment:
    tree = {
        **SIMULATED,
        "name": "several",
        "decode": {"latents": {"rois": ["early"], "decoder": MLP}},
        "reconstruct": {"mode": "z"},
        **words,
    }
    return config.validate(tree, schema=Experiment, source="several.yaml")


def test_a_subject_of_another_dataset_is_named_with_it():
    chosen = experiment_of(subjects=["subj02", "simulated-things:sub-01", "simulated:subj03"])
    each = outputs.each_subject(chosen)
    assert [(one.dataset, one.subject) for one in each] == [
        ("simulated", "subj01"),
        ("simulated", "subj02"),
        ("simulated-things", "sub-01"),
        ("simulated", "subj03"),
    ]
    assert [one.simulation.layout for one in each] == ["nsd", "nsd", "things", "nsd"]
    decode = chosen.decode.latents
    names = ["subj01", "subj02", "simulated-things:sub-01", "subj03"]
    assert outputs.subjects_of(chosen, decode) == names
    assert outputs.dataset_entry(chosen).name == "simulated"


def test_every_dataset_is_asked_for_its_own_subjects_and_rois():
    with pytest.raises(InputError, match="sub-99"):
        outputs.dataset_entry(experiment_of(subjects=["simulated-things:sub-99"]))
    both = {"latents": {"rois": ["nsdgeneral"], "decoder": MLP}}
    with pytest.raises(InputError, match="'nsdgeneral' is not in the catalog entry simulated-thin"):
        outputs.dataset_entry(experiment_of(decode=both, subjects=["simulated-things:sub-01"]))
    alone = {"latents": {"rois": ["nsdgeneral"], "decoder": {"kind": "ridge"}}}
    outputs.dataset_entry(experiment_of(decode=alone, subjects=["simulated-things:sub-01"]))


@pytest.mark.parametrize("name", ["god:Subject1", "nsd:subj01"])
def test_a_simulated_brain_trains_with_no_measured_one(name):
    with pytest.raises(InputError, match=f"'subjects' has {name}, but subj01 is simulated"):
        outputs.each_subject(experiment_of(subjects=[name]))


def test_nothing_is_simulated_among_the_files_of_a_measured_dataset(monkeypatch, tmp_path):
    monkeypatch.setenv("NSD_ROOT", str(tmp_path))
    with pytest.raises(InputError, match=r"among the files of nsd at .*; choose dataset=simulated"):
        outputs.simulated(experiment_of(dataset="nsd"))


def test_a_measured_subject_may_train_with_one_of_another_dataset():
    measured = {"simulation": None, "dataset": "god", "subject": "Subject1"}
    each = outputs.each_subject(experiment_of(**measured, subjects=["deeprecon:sub-01"]))
    assert [(one.dataset, one.subject) for one in each] == [
        ("god", "Subject1"),
        ("deeprecon", "sub-01"),
    ]
    assert each[1].subjects == ()


def test_the_entry_of_ones_own_is_found_beside_the_file(tmp_path):
    (tmp_path / "other.yaml").write_text("title: another\n")
    chosen = experiment_of(subjects=["subj02", "other.yaml:S1"]).with_whole_paths(beside=tmp_path)
    assert chosen.subjects == ("subj02", f"{tmp_path / 'other.yaml'}:S1")


def data_of(images: dict[str, int], *, trained: list[str], dataset="one"):
    """Return data whose pictures are of one grey each."""
    opened = SimpleNamespace(
        trials=pd.DataFrame({"image_id": trained}),
        images=pd.DataFrame(index=list(images)),
        shown=trained,
        pixels=lambda ids: np.stack([np.full((4, 4, 3), images[one], np.uint8) for one in ids]),
    )
    return SimpleNamespace(
        opened=opened, experiment=SimpleNamespace(dataset=dataset, subject="subj01")
    )


def test_who_trains_on_a_test_picture_of_the_subject_is_refused():
    own = data_of({"a": 1, "b": 2, "c": 3}, trained=["a", "b"])
    other = data_of({"x": 2, "y": 3, "z": 4}, trained=["x", "z"], dataset="other")
    fitting_networks._refuse_test_pictures({"other:S1": other}, own=own)
    worse = data_of({"x": 2, "y": 3}, trained=["x", "y"], dataset="other")
    sentence = "has other:S2, who trains on y, the same picture as c, which is not among"
    with pytest.raises(InputError, match=sentence):
        fitting_networks._refuse_test_pictures({"other:S1": other, "other:S2": worse}, own=own)


def test_what_is_decoded_of_ones_own_alone_asks_nothing_of_others():
    decode = {
        "latents": {"rois": ["nsdgeneral"]},
        "prompt_embeds": {"rois": ["early"], "decoder": MLP},
    }
    chosen = experiment_of(decode=decode, subjects=["simulated-things:sub-01", "subj02"])
    own, things, second = outputs.each_subject(chosen)
    assert outputs.dataset_entry(things).name == "simulated-things"
    assert things.decode.latents.rois == ("early",)
    assert own.decode == second.decode == chosen.decode
    # What the features of the other subject are made with does not change.
    assert list(things.decode.each) == list(chosen.decode.each)


def test_the_plan_names_the_data_of_all_subjects(monkeypatch, tmp_path):
    monkeypatch.setenv("GOD_ROOT", str(tmp_path / "god"))
    monkeypatch.delenv("DEEPRECON_ROOT", raising=False)
    measured = {"simulation": None, "dataset": "god", "subject": "Subject1"}
    plan = planning.describe(experiment_of(**measured, subjects=["deeprecon:sub-01", "Subject2"]))
    assert "Subject1.h5" in plan
    assert "deeprecon:sub-01, in 'subjects': '${DEEPRECON_ROOT}' needs the environment" in plan
    assert "Subject2.h5" in plan
    monkeypatch.setenv("DEEPRECON_ROOT", str(tmp_path / "deeprecon"))
    plan = planning.describe(experiment_of(**measured, subjects=["deeprecon:sub-01"]))
    assert f"sub-01, at {tmp_path / 'deeprecon'}" in plan


def test_the_data_of_all_who_train_are_inputs(monkeypatch):
    monkeypatch.setattr(
        describing, "parts_of_data", lambda one, *, test: [f"{one.dataset}/{one.subject}", test]
    )
    decode = {"latents": {"rois": ["early"]}, "prompt_embeds": {"rois": ["early"], "decoder": MLP}}
    chosen = experiment_of(decode=decode, subjects=["simulated-things:sub-01", "subj02"])
    others = describing.parts_of_others(chosen, "prompt_embeds")
    assert others == ["simulated-things/sub-01", False, "simulated/subj02", False]
    assert describing.parts_of_others(chosen, "latents") == []


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_two_layouts_train_one_network(experiment_file, tmp_path):
    words = (
        "name=several",
        f"workspace={tmp_path}",
        "subjects=[simulated-things:sub-01]",
        "decode.prompt_embeds.decoder.kind=residual_mlp",
    )
    for stage in ("simulate", "ingest", "features", "train"):
        assert cli.main([stage, str(experiment_file), *words]) == 0
    chosen = load_experiment(experiment_file, *words)
    made = Path(outputs.decoder(chosen, "prompt_embeds").folder)
    assert (made / "others" / "simulated-things" / "sub-01").is_dir()
    assert (made / "decoder").is_dir()
    alone = chosen.with_("subjects=[]")
    seals = [outputs.decoder(one, "prompt_embeds").seal for one in (chosen, alone)]
    assert "the store of simulated-things:sub-01" in seals[0].inputs
    assert "the store of simulated-things:sub-01" not in seals[1].inputs
    tracker = tracking.open_tracker(chosen.tracking, workspace=chosen.workspace)
    (found,) = tracker.client.search_experiments(filter_string="name = 'simulated'")
    runs = tracker.client.search_runs([found.experiment_id])
    named = {
        run.info.run_name: {one.dataset.name for one in run.inputs.dataset_inputs} for run in runs
    }
    parts = ("train", "validation")
    others = {f"simulated-things/sub-01/{part}" for part in parts}
    assert others < named["train prompt_embeds"]
    assert others < named["several"]
    assert named["train latents"] == {f"simulated/subj01/{part}" for part in parts}
