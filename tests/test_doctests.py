"""The examples in docstrings of public names give what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in sorted((ROOT / "raybrain").rglob("*.py"))
    if "    >>> " in file.read_text(encoding="utf-8")
]


def test_there_are_examples_of_what_scores_and_of_settings():
    assert {
        "raybrain.api.decoder",
        "raybrain.api.generator",
        "raybrain.api.running",
        "raybrain.config.reading",
        "raybrain.evaluation.evaluating",
        "raybrain.evaluation.identification",
    } <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:of [0-9]+ targets:UserWarning")
def test_examples_give_what_they_say(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert result.failed == 0
