"""The schema for editors, judged by another library than the one it is made with."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from raybrain import cli, config, schema
from raybrain.catalog import CatalogEntry
from raybrain.config import Experiment, InputError

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted((ROOT / "jobs/experiments").glob("*.yaml"))
ENTRIES = sorted((ROOT / "data_catalog").glob("*.yaml"))
SMALL = {
    "name": "t",
    "dataset": "simulated",
    "subject": "s1",
    "decode": {"latents": {"rois": ["V1"]}},
}


class Yaml12(yaml.SafeLoader):
    """Numbers as editors read them: 1e-4 is one, which YAML 1.1 takes for text."""


Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def printed(capsys, *words):
    assert cli.main(["schema", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def kind_of(file):
    return "pretraining" if file.stem.startswith("pocket") else "experiment"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_shipped_experiment_fits_its_schema_and_no_other(capsys, file):
    tree = yaml.load(file.read_text(), Yaml12)
    kind = kind_of(file)
    printed(capsys, kind).validate(tree)
    assert not printed(capsys, "catalog").is_valid(tree)


@pytest.mark.parametrize("file", ENTRIES, ids=lambda file: file.stem)
def test_every_shipped_entry_fits_the_schema_of_entries(capsys, file):
    tree = yaml.load(file.read_text(), Yaml12)
    printed(capsys, "catalog").validate(tree)


@pytest.mark.parametrize(
    "change",
    [
        {"trainin": {}},
        {"training": {"lr": -1}},
        {"training": {"epochs": 2.5}},
        {"decode": {"latents": {"rois": []}}},
        {"decode": {"latents": {"rois": ["V1"], "decoder": {"kind": "rigde"}}}},
        {"decode": {"latents": {"rois": ["V1"], "decoder": {"width": 3}}}},
        {"reconstruct": {"mode": "z+x"}},
        {"evaluate": {"rerank": "nearest"}},
        {"name": "a/b"},
    ],
    ids=str,
)
def test_what_the_settings_refuse_is_refused(change):
    tree = {**SMALL, **change}
    with pytest.raises(InputError):
        config.validate(tree, schema=Experiment, source="t")
    assert not jsonschema.Draft202012Validator(schema.json_schema(Experiment)).is_valid(tree)


@pytest.mark.parametrize(
    "change",
    [
        {"decode": {"latents": {"rois": ["V1"], "decoder": {"rescale": False}}}},
        {"decode": {"latents": {"rois": ["V1"], "decoder": {"kind": "residual_mlp", "width": 3}}}},
        {
            "decode": {"latents": None, "image_embeds": {"rois": ["V1"], "prior": {}}},
            "reconstruct": {"mode": "e"},
        },
        {"reconstruct": {"mode": "z"}, "evaluate": {"rerank": True}},
        {"reconstruct": {"mode": "z"}, "evaluate": {"rerank": "encoding"}},
        {"reconstruct": {"mode": "z"}, "workspace": "${HOME}/w"},
    ],
    ids=str,
)
def test_what_the_settings_take_is_taken(change):
    tree = {**SMALL, "reconstruct": {"mode": "z"}, **change}
    config.validate(tree, schema=Experiment, source="t")
    jsonschema.Draft202012Validator(schema.json_schema(Experiment)).validate(tree)


@pytest.mark.parametrize("root", [Experiment, CatalogEntry])
def test_every_setting_says_what_it_is(root):
    silent = [
        f"{section.__name__}.{name}"
        for section in schema.sections_of(root)
        for name in section.model_fields
        if name != "kind" and name not in schema.docstrings(section)
    ]
    assert not silent


def test_an_unknown_kind_of_file_is_one_sentence(capsys):
    assert cli.main(["schema", "study"]) == 2
    assert "name one of experiment, catalog, pretraining" in capsys.readouterr().err
