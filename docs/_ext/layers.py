"""Draws docs/architecture.svg and the table of docs/architecture.md from the imports of the code.

Type ``python docs/_ext/layers.py`` after a change of what imports what; a test says when.
"""

from __future__ import annotations

import ast
import tomllib
from html import escape
from pathlib import Path

import grimp
import networkx as nx

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "architecture.svg"
BEGIN, END = "<!-- from the code: begin -->", "<!-- from the code: end -->"
BOX, GAP, ROW = 104, 14, 78
HEIGHT = 30
MARGIN = 20


def part_of(module: str) -> str:
    """Return the module or package at the top level that a module belongs to."""
    return ".".join(module.split(".")[:2])


def imports() -> nx.DiGraph:
    """Return which part of the package imports which, imports within functions included."""
    graph = grimp.build_graph("raybrain", exclude_type_checking_imports=True, cache_dir=None)
    found = nx.DiGraph()
    for module in graph.modules - {"raybrain", "raybrain.__main__"}:
        found.add_node(part_of(module))
        for other in graph.find_modules_directly_imported_by(module) - {"raybrain"}:
            if part_of(other) != part_of(module):
                found.add_edge(part_of(module), part_of(other))
    return found


def rows(graph: nx.DiGraph) -> list[list[str]]:
    """Return the parts layer by layer, those of no layer right above what they use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["type"] == "layers"]
    placed = {
        part.strip(): row
        for row, layer in enumerate(layers)
        for part in layer.replace(":", "|").split("|")
    }
    for part in reversed(list(nx.topological_sort(graph))):
        if part not in placed:
            below = [placed[other] for other in graph.successors(part) if other in placed]
            placed[part] = max(0, min(below, default=len(layers)) - 1)
    return [sorted(part for part in graph if placed.get(part) == row) for row in range(len(layers))]


def picture(graph: nx.DiGraph, layers: list[list[str]]) -> str:
    """Return the layers as SVG; an arrow that follows from others is left out."""
    widest = max(map(len, layers))
    width = 2 * MARGIN + widest * (BOX + GAP)
    height = 2 * MARGIN + (len(layers) - 1) * ROW + HEIGHT
    place = {}
    for number, layer in enumerate(layers):
        left = (width - len(layer) * (BOX + GAP) + GAP) / 2
        for k, part in enumerate(layer):
            place[part] = (left + k * (BOX + GAP) + BOX / 2, MARGIN + number * ROW)
    arrows = sorted(nx.transitive_reduction(graph).edges)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        "<title>Which part of raybrain imports which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#5b6b7b"/></marker>'
        "</defs>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for one, other in arrows:
        (x, y), (u, v) = place[one], place[other]
        if y == v:  # neighbours in a layer
            side = 1 if u > x else -1
            start, end = (x + side * BOX / 2, y + HEIGHT / 2), (u - side * BOX / 2, v + HEIGHT / 2)
        else:
            start, end = (x, y + HEIGHT), (u, v)
        bend = (start[1] + end[1]) / 2
        lines.append(
            f'<path d="M{start[0]:.0f} {start[1]:.0f} C{start[0]:.0f} {bend:.0f} {end[0]:.0f} '
            f'{bend:.0f} {end[0]:.0f} {end[1]:.0f}" fill="none" stroke="#5b6b7b" '
            f'stroke-opacity=".55" marker-end="url(#tip)"/>'
        )
    for part, (x, y) in place.items():
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="4" '
            f'fill="#eef3f8" stroke="#33506b"/><text x="{x:.0f}" y="{y + 19:.0f}" '
            f'text-anchor="middle" fill="#12202e">{escape(part.removeprefix("raybrain."))}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def table(graph: nx.DiGraph, layers: list[list[str]]) -> str:
    """Return what each part is, in its own words, and what it imports."""
    lines = ["| layer | part | what it is | imports |", "|---|---|---|---|"]
    for number, layer in enumerate(layers, start=1):
        for part in layer:
            used = [one.removeprefix("raybrain.") for one in sorted(graph.successors(part))]
            name = part.removeprefix("raybrain.")
            lines.append(f"| {number} | `{name}` | {claim(part)} | {', '.join(used) or 'none'} |")
    return "\n".join(lines)


def claim(part: str) -> str:
    """Return the first line of a module's docstring."""
    path = ROOT / part.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = ast.get_docstring(ast.parse(file.read_text())) or ""
    return words.split("\n")[0].rstrip(".").replace("``", "`").replace("|", "\\|")


def drawn() -> dict[Path, str]:
    """Return what both files should hold."""
    graph = imports()
    layers = rows(graph)
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return {
        PICTURE: picture(graph, layers),
        PAGE: f"{before}{BEGIN}\n{table(graph, layers)}\n{END}{after}",
    }


if __name__ == "__main__":
    for file, text in drawn().items():
        file.write_text(text)
