"""Text stays as it was written, and YAML that cannot be meant is one sentence."""

import os

import pytest
import yaml

from raybrain import catalog, config
from raybrain.config import Experiment, InputError

EXPERIMENT = """
name: t
dataset: simulated
subject: {subject}
decode: {{latents: {{rois: [{roi}]}}, prompt_embeds: {{rois: [ventral]}}}}
"""
ENTRY = """
title: What we measured
reader: arrays
root: /data
subjects: [01, 1e5, yes, "02", 2001-01-01]
rois: {1: {columns: [1, V1]}, off: {columns: ["*"]}}
split: {test: given, validation: 0.1}
licence: {name: 2.0, url: https://example.org, redistributable: no}
cite: 12
"""


@pytest.fixture
def load(tmp_path):
    def loaded(*assignments, subject="P1", roi="V1"):
        file = tmp_path / "experiment.yaml"
        file.write_text(EXPERIMENT.format(subject=subject, roi=roi))
        return config.load(file, assignments, schema=Experiment)

    return loaded


NAMES = ["01", "1", "1.50", "1e5", "0x1F", "yes", "NO", "2001-01-01", "1_000", "null", "P1", "é"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_keeps_its_spelling_in_a_file_and_on_the_command_line(load, name):
    assert load(subject=name).subject == name
    assert load(f"subject={name}").subject == name
    assert load(f"subjects=[{name}, other]").subjects == (name, "other")
    assert load(roi=name).decode.latents.rois == (name,)
    assert load(f"decode.latents={{rois: [{name}]}}").decode.latents.rois == (name,)


def test_a_quoted_name_is_what_is_within_the_quotes(load):
    assert load("subject='01'").subject == "01"
    assert load('subject="1e5"').subject == "1e5"


def test_numbers_truths_and_absent_values_are_still_those(load):
    loaded = load(
        "training.lr=1e-4", "seed=07", "evaluate.rerank=yes", "evaluate.weights=null",
        "training.ema=0", "decode.latents.decoder={kind: gcn, nodes: [[1], [V1, 02]]}",
        "tuning={space: {training.lr: {low: 1e-5, high: 1e-2, log: on}}, pruner: none}",
    )  # fmt: skip
    assert loaded.training.lr == 1e-4
    assert (loaded.seed, loaded.evaluate.rerank, loaded.evaluate.weights) == (
        7,
        ("encoding",),
        None,
    )
    assert loaded.decode.latents.decoder.nodes == (("1",), ("V1", "02"))
    assert loaded.tuning.space["training.lr"].low == 1e-5
    assert loaded.tuning.pruner == "none"


@pytest.mark.parametrize("value", ["[1]", "{a: 1}", ""])
def test_what_is_no_text_is_refused(load, value):
    with pytest.raises(InputError, match="'subject'"):
        load(f"subject={value}")


def test_a_catalog_entry_is_read_once_for_each_version_of_its_file(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(ENTRY)
    first = catalog.load_entry(str(file))
    with monkeypatch.context() as changed:
        changed.setattr(catalog, "read_mapping", lambda *_, **__: pytest.fail("read again"))
        assert catalog.load_entry(str(file)) is first
    written = file.stat()
    file.write_text(ENTRY.replace("1e5", "1e6"))
    os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert catalog.load_entry(str(file)).subjects == ("01", "1e6", "yes", "02", "2001-01-01")


def test_a_catalog_entry_keeps_its_spelling(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(ENTRY)
    entry = catalog.load_entry(str(file))
    assert entry.subjects == ("01", "1e5", "yes", "02", "2001-01-01")
    assert list(entry.rois) == ["1", "off"]
    assert entry.rois["1"].columns == ("1", "V1")
    assert (entry.licence.name, entry.licence.redistributable, entry.cite) == ("2.0", False, "12")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", "is not valid YAML"),
        ("name: a\nname: b\n", "line 2 is not valid YAML: 'name' is given twice"),
        ("rois: {V1: {columns: [a]}, V1: {columns: [b]}}", "'V1' is given twice"),
        ("name: !!python/object/apply:os.system [id]", "is not valid YAML"),
        ("name: !custom x", "is not valid YAML"),
        ("when: 2001-02-31", "is not valid YAML"),
        ("a: " + "[" * 5000, "is not valid YAML"),
        ("- a\n- b\n", "it should be a mapping"),
        ("just words", "it should be a mapping"),
        ("", "it should be a mapping"),
        ("a: &a [*a]", ""),
    ],
)
def test_yaml_that_cannot_be_meant_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    for read in (
        lambda: config.load(file, schema=Experiment),
        lambda: catalog.load_entry(str(file)),
    ):
        with pytest.raises(InputError) as caught:
            read()
        assert sentence in str(caught.value)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_file_in_another_encoding_is_one_sentence(tmp_path, encoding):
    file = tmp_path / "entry.yaml"
    file.write_text("title: Hôpital\n", encoding=encoding)
    with pytest.raises(InputError, match=r"is not (text in UTF-8|valid YAML)"):
        config.load(file, schema=Experiment)


def test_a_mark_of_byte_order_is_not_content(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT.format(subject="01", roi="V1"), encoding="utf-8-sig")
    assert config.load(file, schema=Experiment).subject == "01"


def test_an_anchor_may_be_used_again_and_merged(tmp_path):
    tree = "one: &one {rois: [V1]}\nlatents: {<<: *one, repeats: trial}\nprompt_embeds: *one\n"
    file = tmp_path / "experiment.yaml"
    decode = "".join(f"  {line}\n" for line in tree.splitlines()[1:])
    file.write_text(
        "name: t\ndataset: simulated\nsubject: 01\n"
        "decode:\n" + decode.replace("*one, ", "&one {rois: [V1]}, ", 1)
    )
    loaded = config.load(file, schema=Experiment)
    assert loaded.subject == "01"
    assert loaded.decode.latents.rois == loaded.decode.prompt_embeds.rois == ("V1",)


# A fractional step


@pytest.mark.parametrize(
    ("span", "whole"),
    [
        ({"low": 1, "high": 9, "step": 2}, True),
        ({"low": 1, "high": 9, "step": 2.0}, True),
        ({"low": 1.0, "high": 9, "step": 0.5}, False),
        ({"low": 0, "high": 0.5, "step": 0.1}, False),
    ],
)
def test_a_step_that_fits_its_bounds_is_taken(span, whole):
    assert config.Range(**span).whole is whole


@pytest.mark.parametrize("step", [0.5, 1.5, 2.25])
def test_a_fraction_between_whole_bounds_is_refused(load, step):
    space = {"training.patience": {"low": 1, "high": 9, "step": step}}
    with pytest.raises(InputError, match=f"step={step} is a fraction, but low=1 and high=9") as one:
        load(f"tuning={yaml.safe_dump({'space': space}, default_flow_style=True).strip()}")
    assert "write low: 1.0, or a whole step" in str(one.value)
