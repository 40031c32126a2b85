"""Pages made from the code: every setting, the commands, the protocols and the public names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from raybrain import cli, schema
from raybrain.catalog import CatalogEntry
from raybrain.config import Experiment
from raybrain.evaluation import PROTOCOLS
from raybrain.evaluation.declarations import SOURCES

PUBLIC = {
    "raybrain.api.running": "The library: an experiment run from Python, and what came of it",
    "raybrain.api.decoder": "The library: a decoder in scikit-learn's manner",
    "raybrain.api.generator": "The library: Stable Diffusion both ways, without an experiment",
    "raybrain.api.labelled": "The library: stores as xarray Datasets",
    "raybrain.config": "Experiments: settings, files, assignments",
    "raybrain.catalog": "Datasets as entries of a catalog",
    "raybrain.store": "The Zarr contract",
    "raybrain.datasets": "Datasets on disk as trials of betas",
    "raybrain.simulation": "Brains whose ceilings are known",
    "raybrain.decoders": "From voxels to a target",
    "raybrain.training": "Fitting by gradient descent",
    "raybrain.diffusion": "Stable Diffusion both ways",
    "raybrain.evaluation": "Scores beside chance, floors and ceilings",
    "raybrain.report": "What a person looks at",
    "raybrain.cluster": "What runs on Ray",
    "raybrain.tracking": "What is written to MLflow",
    "raybrain.outputs": "Where outputs lie and what they depend on",
    "raybrain.seal": "Seals",
    "raybrain.schema": "Schemas of files",
    "raybrain.pipeline": "One function per stage",
}
ANY_TARGET = "<target>"
ROUTING = "set_fit_request, set_predict_request, set_score_request"
"""Methods that scikit-learn adds to an estimator; its own words lead to pages of its own."""


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx looks for pages."""
    app.connect("config-inited", lambda app, _: write(Path(app.srcdir, "reference", "generated")))
    return {"parallel_read_safe": True}


def write(folder: Path) -> None:
    """Write every page; one whose text is the same stays untouched, so that nothing is redone.

    Pages of names that are no longer there are removed.
    """
    pages = {
        "settings": settings_page(),
        "catalog": catalog_page(),
        "commands": commands_page(),
        "protocols": protocols_page(),
    }
    names = [name for name in PUBLIC if importlib.util.find_spec(name)]
    pages |= {f"api/{name.removeprefix('raybrain.')}": api_page(name) for name in names}
    pages["api"] = (
        "# Public names\n\nWhat is listed here is meant to be used; anything else may change at "
        "any time.\n\n```{toctree}\n"
        + "\n".join(f"api/{name.removeprefix('raybrain.')}" for name in names)
        + "\n```\n"
    )
    for file in folder.rglob("*.md"):
        if file.relative_to(folder).with_suffix("").as_posix() not in pages:
            file.unlink()
    for name, text in pages.items():
        file = folder / f"{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)


def api_page(module: str) -> str:
    """Return a page of the public names of a module."""
    imported = "\n:imported-members:" if hasattr(importlib.import_module(module), "__all__") else ""
    return (
        f"# {module}\n\n{PUBLIC[module]}.\n\n"
        f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n"
        + f"   :exclude-members: {ROUTING}\n"
        + ("   :imported-members:\n" if imported else "")
        + "```\n"
    )


def commands_page() -> str:
    """Return a page of the command line's own help."""
    rows = "\n".join(f"| `{stage}` | {what} |" for stage, what in cli.STAGES.items())
    return (
        "# Commands\n\n```text\n"
        + cli.usage()
        + "\n```\n\n| stage | what it does |\n|---|---|\n"
        + rows
        + "\n\nExit codes: 0 done, 2 something that you wrote or pointed at is wrong (one sentence "
        f"says what), {cli.INTERRUPTED} stopped by Ctrl-C, {cli.TERMINATED} by SIGTERM; a stopped "
        "command continues when it is typed again.\n"
    )


def protocols_page() -> str:
    """Return the metrics and networks of every protocol, from their declarations."""
    text = ["# Protocols, in full", "", "Made from the declarations that are computed with.", ""]
    for protocol in PROTOCOLS.values():
        text += [
            f"## {protocol.name}",
            "",
            f"{protocol.about}. Images are first brought to {protocol.canvas} x {protocol.canvas} "
            f"pixels; PixCorr and SSIM are measured at {protocol.pixels}.",
            "",
            "| column | what | better | chance | layer | samples |",
            "|---|---|---|---|---|---|",
        ]
        for metric in protocol.metrics:
            chance = "none" if metric.chance is None else f"{metric.chance:.0%}"
            text.append(
                f"| `{metric.name}` | {metric.description} | "
                f"{'larger' if metric.higher_is_better else 'smaller'} | {chance} | "
                f"{metric.layer or 'pixels'} | "
                f"{'each by itself' if metric.samples == 'each' else 'mean correlation'} |"
            )
        text += ["", "| network | source | given | layers | weights |", "|---|---|---|---|---|"]
        for network in protocol.networks:
            layers = ", ".join(f"`{one.module or 'output'}`" for one in network.layers)
            files = ", ".join(f"`{file.name}`" for file in network.weights)
            text.append(
                f"| {network.architecture} | {SOURCES[network.architecture]} | {network.size} px | "
                f"{layers or 'none'} | {files} |"
            )
        text.append("")
    return "\n".join(text)


def catalog_page() -> str:
    """Return a page of what a catalog entry holds."""
    return "\n".join(
        [
            "# Catalog entries",
            "",
            "A dataset is an entry file; `raybrain schema catalog` prints its schema.",
            "",
            *_tables(CatalogEntry, address="", root=schema.json_schema(CatalogEntry)),
        ]
    )


def settings_page() -> str:
    """Return a page of every setting of an experiment."""
    return "\n".join(
        [
            "# Every setting",
            "",
            "An experiment file holds these; `address=value` on the command line sets any of them, "
            "the value in YAML. Units and sources stand with the meaning; numbers without a unit "
            "are counts or pure numbers. `raybrain schema` prints the same for editors.",
            "",
            f"`{ANY_TARGET}` is `latents`, `prompt_embeds`, `image_embeds` or `image_features`.",
            "",
            *_tables(Experiment, address="", root=schema.json_schema(Experiment)),
        ]
    )


def _tables(
    model: type[BaseModel],
    *,
    address: str,
    root: dict[str, Any],
    title: str = "",
    defaults: dict[str, Any] | None = None,
) -> Iterator[str]:
    """Yield the heading and the table of a section, then those of the sections it holds.

    ``defaults`` are those that the section has at this address, where they are not its own.
    """
    words = schema.docstrings(model)
    described = root["$defs"].get(model.__name__, root)
    yield from (f"## {title or model.__name__}", "")
    yield from (plain(described.get("description", "")), "")
    yield from ("| setting | type | default | meaning |", "|---|---|---|---|")
    inner: dict[str, tuple[list[type[BaseModel]], Any]] = {}
    for name in model.model_fields:
        part = described["properties"][name]
        if defaults is not None and name in defaults:
            part = {**part, "default": defaults[name]}
        default = "required" if name in described.get("required", ()) else _default(part)
        sections = schema.members(model.model_fields[name].annotation)
        here = f"{address}{name}"
        kind = "section" if sections else _type(part, root=root)
        yield f"| `{here}` | {kind} | {default} | {plain(words.get(name, ''))} |"
        if sections and (sections, None) not in inner.values():  # alike and without values: once
            inner[here] = sections, part.get("default")
    yield ""
    for here, (sections, value) in inner.items():
        place = here.replace("decode.latents", f"decode.{ANY_TARGET}")
        place += ".<address>" if here == "tuning.space" else ""
        for section in sections:
            several = len(sections) > 1
            kind = f", kind: {section.model_fields['kind'].default}" if several else ""
            yield from _tables(
                section,
                address=f"{place}.",
                root=root,
                title=f"`{place}`{kind}",
                defaults=value if isinstance(value, dict) and not several else None,
            )


def _default(part: dict[str, Any]) -> str:
    if "default" not in part:
        return "none"
    value = part["default"]
    if isinstance(value, dict):
        return f"`kind: {value['kind']}`" if "kind" in value else "see below"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "see below"
    return f"`{json.dumps(value)}`"


def _type(part: dict[str, Any], *, root: dict[str, Any]) -> str:
    """Return a JSON Schema type in words."""
    if "$ref" in part:
        return _type(root["$defs"][part["$ref"].rsplit("/", 1)[-1]], root=root)
    for several in ("anyOf", "oneOf"):
        if several in part:
            return " or ".join(dict.fromkeys(_type(one, root=root) for one in part[several]))
    if "const" in part:
        return f"`{part['const']}`"
    if "enum" in part:
        return ", ".join(f"`{one}`" for one in part["enum"])
    kind = part.get("type")
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _bounds(part)
    if kind == "array":
        if "prefixItems" in part:
            return f"{len(part['prefixItems'])} of: {_type(part['prefixItems'][0], root=root)}"
        return f"list of {_type(part.get('items', {}), root=root)}"
    if kind == "object":
        return "mapping"
    return {"string": "text", "boolean": "true or false", "null": "null"}.get(
        str(kind), "any value"
    )


def _bounds(part: dict[str, Any]) -> str:
    low = part.get("minimum"), part.get("exclusiveMinimum")
    high = part.get("maximum"), part.get("exclusiveMaximum")
    words = [
        f"{sign} {number:g}"
        for sign, number in zip("≥>≤<", (*low, *high), strict=True)
        if number is not None
    ]
    return f" {', '.join(words)}" if words else ""


def plain(text: str) -> str:
    """Return a docstring as one line of a table: its literals as Markdown has them."""
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")
