"""A page as one file that asks nothing of any network: template, style, script and data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

STYLE = "gallery.css"


def write_page(
    path: Path,
    *,
    template: str,
    script: str,
    content: Mapping[str, Any],
    styles: Sequence[str] = (),
    **values: Any,
) -> Path:
    """Write a page and return its path; it appears whole under its name.

    Parameters
    ----------
    path
        Of the HTML file.
    template, script
        Names in ``assets/report``; the template places ``css``, ``js`` and ``data``.
    content
        For the script, as JSON.
    styles
        Further style sheets, after the one that all pages have.
    **values
        For the template, which escapes them.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    # Inside a script element only "<" could end it; JSON has another way to write it.
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = environment.from_string(_asset(template)).render(
        css=Markup("\n".join(_asset(name) for name in (STYLE, *styles))),
        js=Markup(_asset(script)),
        data=Markup(data),
        **values,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


def _asset(name: str) -> str:
    return (files("raybrain") / "assets" / "report" / name).read_text(encoding="utf-8")
