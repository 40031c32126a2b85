"""What tells contributors and citing authors about the project agrees with the project."""

import re
import tomllib
from pathlib import Path

import yaml

import raybrain

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_hooks_run_the_commands_of_make_lint():
    (local,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"  # nothing of another version than constraints.txt
    hooks = {hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]}
    recipe = read("Makefile").split("\nlint:")[1].split("\n\n")[0]
    commands = re.findall(r"^\t\$\(BIN\)/(.+)$", recipe, re.MULTILINE)
    # A hook is given the files of the commit where `make lint` says "all of them".
    assert hooks == {command.removesuffix(" .") for command in commands}


def test_the_version_is_written_in_one_place_and_cited_as_it_is():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    # The citation is data of another format and cannot read it; this keeps it in step.
    assert yaml.load(read("CITATION.cff"), yaml.BaseLoader)["version"] == raybrain.__version__
    assert f"## {raybrain.__version__} " in read("CHANGELOG.md")


def test_issue_forms_ask_each_thing_once_and_require_something():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) >= 4
    for file in forms:
        form = yaml.safe_load(file.read_text())
        if file.name == "config.yml":
            continue
        assert form["name"]
        assert form["description"]
        names = [part["id"] for part in form["body"]]
        assert len(set(names)) == len(names)
        assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_every_file_and_command_that_the_guide_names_exists():
    guide = read("CONTRIBUTING.md")
    for path in re.findall(r"`((?:raybrain|tests|data_catalog|docs)/[\w/.-]+)`", guide):
        if Path(path).stem == "mine":  # what the reader is about to write
            continue
        assert (ROOT / path).exists(), path
    for target in re.findall(r"make (\w+)", guide):
        assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), target
    for path in re.findall(r"\]\((?!http)([^)#]+)", guide):
        assert (ROOT / path).exists(), path
