"""YAML as it was written: where a setting is text, ``01`` stays ``01`` and ``yes`` is no truth."""

from __future__ import annotations

import difflib
import types
from collections.abc import Hashable, Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

NUMBERS = (int, float, bool)


class UniqueKeys:
    """A mixin of YAML loaders that refuses a key given twice, which YAML's own drops silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping, after looking at its keys."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"'{key.value}' is given twice; keep one of them",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class Typed(UniqueKeys, yaml.SafeLoader):
    """Numbers, truths and dates as what they look like."""


class Spelled(UniqueKeys, yaml.BaseLoader):
    """Every scalar as the text it was written as."""


def read(text: str) -> tuple[Any, Any]:
    """Return the content of a YAML text twice: with types, and as it was spelled.

    Raises
    ------
    yaml.YAMLError
        If it is not YAML, gives a key twice, or nests too deep to be read.
    """
    try:
        return yaml.load(text, Typed), yaml.load(text, Spelled)
    except RecursionError:
        raise yaml.YAMLError("it nests too deep") from None
    except ValueError as error:  # such as the 31st of February
        raise yaml.YAMLError(str(error)) from None


def hint(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """Return the end of a sentence about a name that is not there: the one that may be meant.

    Parameters
    ----------
    name
        What was asked for.
    known
        What there is.
    otherwise
        Said where nothing is alike.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise


def as_written(typed: Any, spelled: Any, wanted: Any) -> Any:
    """Return ``typed``, with the spelling wherever ``wanted`` asks for text.

    Parameters
    ----------
    typed, spelled : object
        From `read`.
    wanted : type
        What a schema wants here, such as ``tuple[str, ...]`` or a pydantic model.
    """
    kinds = _kinds(wanted)
    if isinstance(typed, dict) and isinstance(spelled, dict):
        return _mapping(typed, spelled, kinds)
    if isinstance(typed, list) and isinstance(spelled, list) and len(typed) == len(spelled):
        items = next((get_args(kind) for kind in kinds if get_origin(kind) in (tuple, list)), ())
        inner = [one for one in items if one is not Ellipsis]
        if not inner:
            return typed
        each = inner if len(inner) == len(typed) else inner[:1] * len(typed)
        return [as_written(*three) for three in zip(typed, spelled, each, strict=True)]
    text = str in kinds and not any(one in kinds for one in NUMBERS)
    if text and isinstance(spelled, str) and not isinstance(typed, str | list | dict):
        absent = typed is None and (type(None) in kinds or not spelled)
        return None if absent else spelled
    return typed


def _mapping(typed: dict, spelled: dict, kinds: list[Any]) -> dict:
    models = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
    named = [one for one in models if _kind_of(one) == typed.get("kind", _kind_of(one))]
    fields = named[0].model_fields if named else {}
    pairs = [get_args(kind) for kind in kinds if get_origin(kind) is dict and get_args(kind)]
    if not named and not pairs:
        return typed
    found = {}
    # Keys were told apart by their spelling, so both mappings have them in the same order.
    for (key, value), (name, text) in zip(typed.items(), spelled.items(), strict=False):
        if named:
            field = fields.get(str(key))
            # Kept with its metadata out of the way: only the types count here.
            wanted = field.annotation if field else getattr(named[0], "other_settings", None)
            found[key] = value if wanted is None else as_written(value, text, wanted)
        else:
            found[as_written(key, name, pairs[0][0])] = as_written(value, text, pairs[0][1])
    return found if len(typed) == len(spelled) else typed


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return None if field is None else field.default


def _kinds(wanted: Any) -> list[Any]:
    """Return the types among which a union chooses, without their annotations."""
    origin = get_origin(wanted)
    if origin is Annotated:
        return _kinds(get_args(wanted)[0])
    if origin in (Union, types.UnionType):
        return [kind for one in get_args(wanted) for kind in _kinds(one)]
    if origin is Literal:
        return [type(one) for one in get_args(wanted)]
    return [wanted]
