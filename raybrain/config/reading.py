"""Files, assignments and trees of settings; what is wrong with them in one sentence."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from raybrain import spelling
from raybrain.config.base import LONGEST_SHOWN, SECRET, InputError
from raybrain.config.decoding import KINDS

Tree = TypeVar("Tree", bound=BaseModel)


def load(path: str | Path, assignments: tuple[str, ...] = (), *, schema: type[Tree]) -> Tree:
    """Return the validated tree of an experiment file with assignments applied.

    Parameters
    ----------
    path : str or Path
        YAML file.
    assignments : tuple of str
        ``address=value`` each, the value in YAML: ``training.lr=1e-4``.
    schema : type
        The section class at the root, usually `Experiment`.

    Raises
    ------
    InputError
        If the file is missing or is not YAML, or if an address or value does not fit the schema.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"there is no experiment file at {file}; see jobs/experiments/ for examples"
        )
    tree, spelled = read_mapping(file, example="name: demo")
    for assignment in assignments:
        _assign(tree, spelled, assignment)
    return validate(spelling.as_written(tree, spelled, schema), schema=schema, source=str(file))


def read_mapping(file: Path, *, example: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the mapping of a YAML file twice: with types, and as it was spelled.

    Raises
    ------
    InputError
        If it cannot be read, is not YAML, gives a key twice, or holds no mapping.
    """
    try:
        tree, spelled = spelling.read(file.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{file}{line} is not valid YAML: {problem}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 ({error.reason}); save it as such") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} holds no settings; it should be a mapping such as '{example}'")
    return tree, spelled


def validate(tree: dict[str, Any], *, schema: type[Tree], source: str) -> Tree:
    """Return ``tree`` as a frozen `schema`.

    Parameters
    ----------
    tree : dict
        Settings by name, as a file holds them.
    schema : type
        The section that they should make.
    source : str
        Where they were written, for the message.

    Raises
    ------
    InputError
        If a setting does not fit; one sentence names the first fault.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise InputError(_sentence(error, schema=schema, source=source)) from None


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return every leaf of ``section`` by dotted address, as plain YAML values.

    Examples
    --------
    >>> from raybrain.config import Resources, Workers
    >>> flatten(Resources(tune=Workers(max=3)))["tune.max"]
    3
    """
    leaves: dict[str, Any] = {}
    for name in (*type(section).model_fields, *(section.model_extra or {})):
        value = getattr(section, name)
        address = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            leaves |= flatten(value, f"{address}.")
        else:
            leaves[address] = list(value) if isinstance(value, tuple) else value
    return leaves


def as_text(value: Any) -> str:
    """Return a setting as it is typed on the command line: ``null``, ``[V1, V2]``, ``0.001``."""
    plain = _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _assign(tree: dict[str, Any], spelled: dict[str, Any], assignment: str) -> None:
    address, value, written = read_assignment(assignment)
    *parents, leaf = address.split(".")
    for top, placed in ((tree, value), (spelled, written)):
        node = top
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = placed


def read_assignment(assignment: str) -> tuple[str, Any, Any]:
    """Return address, value and the value as it was spelled of ``address=value``.

    Raises
    ------
    InputError
        If it is none, or its value is not YAML.
    """
    address, equals, text = assignment.partition("=")
    if not equals or not address:
        raise InputError(
            f"'{assignment}' is not an assignment; write address=value, as in training.lr=1e-4"
        )
    try:
        value, written = spelling.read(text)
    except yaml.YAMLError:
        raise InputError(f"the value of '{assignment}' is not valid YAML; quote it") from None
    return address, _number(value), written


def place(tree: dict[str, Any], address: str, value: Any, *, source: str) -> None:
    """Put a value at an address of a whole tree, where a new ``kind`` clears what is beside it."""
    *parents, leaf = address.split(".")
    node: Any = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise InputError(f"{source}: '{address}' is not a setting; '{parent}' is one")
    if leaf == "kind" and node.get("kind") != value:
        node.clear()
    node[leaf] = value


def _numbers_within(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_within(one) for key, one in value.items()}
    return _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 (no dot) as a string; everyone who types it means the number.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if isinstance(value, list):
        return [_number(item) for item in value]
    return value


def _sentence(error: ValidationError, *, schema: type[BaseModel], source: str) -> str:
    fault = error.errors()[0]
    # pydantic puts the discriminator's value into the address
    location = [str(part) for part in fault["loc"] if str(part) not in KINDS]
    address = "".join(one if one.isprintable() else repr(one)[1:-1] for one in ".".join(location))
    if fault["type"] == "extra_forbidden":
        section = _section_at(schema, location[:-1])
        known = list(section.model_fields) if section else []
        hint = spelling.hint(location[-1], known, otherwise=f"known here: {', '.join(known)}")
        return f"{source}: '{address}' is not a setting; {hint}"
    if fault["type"] == "missing":
        return f"{source}: '{address}' is missing; add it"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault.get("input")
    hidden = isinstance(found, dict | BaseModel) or fault["type"] == SECRET
    shown = "" if hidden else f" (found {_shortened(found)})"
    subject = f"'{address}': " if address else ""
    return f"{source}: {subject}{message[:1].lower()}{message[1:]}{shown}"


def _shortened(value: Any) -> str:
    # At most about a line: what was found may be a whole file.
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _section_at(schema: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """Return the section class at ``location``, or None inside a union of kinds."""
    section: type[BaseModel] | None = schema
    for name in location:
        field = section.model_fields.get(name) if section else None
        wanted = field.annotation if field else getattr(section, "other_settings", None)
        candidates = [wanted, *getattr(wanted, "__args__", ())]
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        section = sections[0] if len(sections) == 1 else None
    return section
