"""What a file of settings may hold, as JSON Schema with the words of the docstrings."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from typing import Any

from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(section: type[BaseModel], *, filled_in: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a section, each setting with its docstring.

    What depends on several settings at once is left to `raybrain.config.load`, which says more.

    Parameters
    ----------
    section : type
        Root of the file, such as `raybrain.config.Experiment`.
    filled_in : tuple of str
        Settings of the root that the file need not give, because whoever reads it knows them.

    Examples
    --------
    >>> from raybrain.config import Workers
    >>> json_schema(Workers)["properties"]["cpus"]["description"]
    'CPUs of each.'
    """
    schema = section.model_json_schema()
    for model in sections_of(section):
        found = schema if model is section else schema["$defs"][model.__name__]
        for name, words in docstrings(model).items():
            found["properties"][name]["description"] = words
        found["description"] = inspect.cleandoc(model.__doc__ or "")
    _kinds_are_told_apart(schema)
    schema["required"] = [name for name in schema.get("required", ()) if name not in filled_in]
    return {"$schema": DIALECT, **schema}


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return setting -> its docstring, or that of its section, inherited ones included."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        written = next(
            (
                words[name]
                for base in model.__mro__
                if base is not BaseModel
                and issubclass(base, BaseModel)
                and name in (words := _written(base))
            ),
            "",
        )
        inner = members(field.annotation)
        if not written and len(inner) == 1:
            written = inspect.cleandoc(inner[0].__doc__ or "")
        if written:
            found[name] = written
    return found


def sections_of(section: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the section and every section that a setting of it can hold, each once."""
    found = [section]
    for model in found:  # grows while it is read
        for field in model.model_fields.values():
            found += [one for one in members(field.annotation) if one not in found]
    return found


def members(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a type names, those within unions and containers included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return list(dict.fromkeys(model for one in inner for model in members(one)))


@functools.cache
def _written(model: type[BaseModel]) -> dict[str, str]:
    # Python keeps no docstrings of attributes. pydantic can read them too, but then at every start.
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    except OSError:  # made where no source is
        return {}
    assert isinstance(tree, ast.ClassDef)
    return {
        one.target.id: inspect.cleandoc(words.value.value)
        for one, words in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(one, ast.AnnAssign)
        and isinstance(one.target, ast.Name)
        and isinstance(words, ast.Expr)
        and isinstance(words.value, ast.Constant)
        and isinstance(words.value.value, str)
    }


def _kinds_are_told_apart(schema: dict[str, Any]) -> None:
    """Let a union's section without its ``kind`` be that of the default alone, as it is read."""
    for part in (schema, *schema.get("$defs", {}).values()):
        for field in part.get("properties", {}).values():
            kinds = field.get("discriminator")
            if kinds is None:
                continue
            default = field.get("default", {}).get(kinds["propertyName"])
            for kind, reference in kinds["mapping"].items():
                model = schema["$defs"][reference.rsplit("/", 1)[-1]]
                if kind != default:
                    model["required"] = sorted({*model.get("required", ()), kinds["propertyName"]})
