"""Pages say what is so: names exist, the picture is that of the code, and examples are run."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from raybrain import plugins
from raybrain.tracking import tags

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if not {"generated", "_build"} & {*page.parts}]

sys.path.append(str(DOCS / "_ext"))


def named(words):
    """Return the object of a dotted name, a tag of a run or a group of entry points, or None."""
    groups = (
        plugins.DECODERS,
        plugins.DATASETS,
        plugins.TARGETS,
        plugins.GENERATORS,
        plugins.METRICS,
    )
    if words in (*groups, *vars(tags).values()):
        return words
    parts = words.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_of_the_package_on_a_page_exists(page):
    for words in re.findall(r"`(raybrain(?:\.\w+)+)`", page.read_text()):
        assert named(words) is not None, words


def test_the_architecture_is_drawn_from_the_code_of_today():
    import layers

    stale = [file.name for file, text in layers.drawn().items() if file.read_text() != text]
    assert not stale, f"type: python docs/_ext/layers.py ({', '.join(stale)})"


def test_the_layers_of_the_picture_are_those_of_the_contract():
    import layers

    graph = layers.imports()
    rows = layers.rows(graph)
    level = {part: number for number, row in enumerate(rows) for part in row}
    assert set(level) == set(graph.nodes)  # nothing is left out
    assert all(level[one] <= level[other] for one, other in graph.edges)
    assert rows[0] == ["raybrain.cli"]


def test_the_reference_tells_every_setting_at_its_own_address_with_its_own_default():
    import generated

    rows = [line.split(" | ") for line in generated.settings_page().split("\n")]
    told = {row[0].strip("| `"): row for row in rows if row[0].startswith("| `")}
    assert told["training.lr"][1:3] == ["number > 0", "`0.0003`"]
    assert told["decode.<target>.prior.training.lr"][2] == "`0.0005`"
    assert told["resources.train.max"][2] == "`1`"
    assert told["resources.generate.max"][2] == "`2`"
    assert told["reconstruct.strength"][1] == "number > 0, ≤ 1"
    assert all(row[-1].strip(" |") for name, row in told.items() if not name.endswith(".kind"))


def test_every_leaf_of_an_experiment_is_in_the_reference():
    import generated

    from raybrain import config

    page = generated.settings_page()
    for file in (ROOT / "jobs/experiments").glob("*.yaml"):
        if file.stem.startswith("pocket"):
            continue
        for address in config.flatten(config.load(file, schema=config.Experiment)):
            general = re.sub(
                r"^decode\.(latents|prompt_embeds|image_embeds|image_features)",
                "decode.<target>",
                address,
            )
            assert f"`{general}`" in page or f"`{address}`" in page, address


@pytest.mark.slow
@pytest.mark.ray
def test_the_site_is_built_and_its_examples_run(tmp_path):
    pytest.importorskip("sphinx", reason="needs the extra docs")
    import subprocess

    options = ["-W", "-n", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tutorial = (tmp_path / "html/tutorial/index.html").read_text()
    assert tutorial.count("ceiling") >= 2
    assert "https://" not in "".join(
        re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]+)"', tutorial)
    )
