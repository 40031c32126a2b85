"""The page of a sweep: what it holds, what it escapes, and how it is used in a browser."""

import json
import re

import numpy as np
import pytest

from raybrain.report import write_comparison
from tests.report import browser

EVIL = "</script><img src=x onerror=alert(1)> & 'quoted' \"too\""
METRICS = [
    {"name": "two_way", "label": "two-way ↑", "percent": True, "higher": True, "about": "of all"},
    {"name": "distance", "label": "distance ↓", "percent": False, "higher": False, "about": "far"},
]


def line(labels, values, *, mean=False):
    return {
        "labels": labels,
        "mean": mean,
        "n": 10,
        "values": {
            metric["label"]: [value, value - 0.01, value + 0.01, p]
            for metric, (value, p) in zip(METRICS, values, strict=True)
        },
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    kinds = ("ridge", EVIL, "gcn")
    scores = [
        line(["nsd", kind, subject], [(0.5 + 0.1 * k + 0.01 * s, None), (0.9 - 0.2 * k, None)],
             mean=subject.startswith("mean"))
        for k, kind in enumerate(kinds) for s, subject in enumerate(("s1", "s2", "mean of 2"))
    ]  # fmt: skip
    gains = [
        line(["nsd", kind, "s1"], [(0.1 * k, 0.01), (-0.1, 0.5)])
        for k, kind in enumerate(kinds[1:], start=1)
    ]
    brains = [
        {
            "name": f"nsd {subject}",
            "ids": [f"im{k}" for k in range(6)],
            "captions": [EVIL, *(f"thing {k}" for k in range(1, 6))],
            "seen": rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8),
            "runs": {kind: rng.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8) for kind in kinds},
        }
        for subject in ("s1", "s2")
    ]
    return write_comparison(
        tmp_path_factory.mktemp("page") / "comparison.html",
        title=EVIL,
        lead="Nine runs.",
        metrics=METRICS,
        heads=["dataset", "decoder", "subject"],
        scores=scores,
        gains=gains,
        grids=[
            {"title": "Floors", "heads": ["row"], "named": 1, "rows": [[EVIL]], "notes": "of all"},
        ],
        correction="Holm's step-down method (Holm 1979)",
        curves={"two_way by sessions": {"alone": [(1, 0.5), (2, 0.6)], "shared": [(1, 0.7)]}},
        brains=brains,
    )  # fmt: skip


def test_a_page_asks_nothing_of_any_network_and_escapes_what_it_shows(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert "<img src=x" not in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    content = json.loads(data)
    assert content["brains"][0]["images"][0]["caption"] == EVIL
    # Each picture once, the same images of every run side by side.
    assert len(content["pictures"]) == 2 * 6 * 4
    assert content["brains"][1]["columns"] == ["seen", "ridge", EVIL, "gcn"]
    assert {len(image["tiles"]) for image in content["brains"][1]["images"]} == {4}


@pytest.fixture(scope="module")
def chromium():
    if browser.missing():
        pytest.skip(browser.missing())
    with browser.opened() as opened:
        yield opened


@pytest.fixture
def opened(chromium, page):
    chromium.look(width=1280, height=900)
    chromium.open(page)
    assert chromium.wait("document.querySelector('.row img')")
    yield chromium
    assert chromium.complaints() == []


def column(opened, table, place):
    return opened.run(
        "return [...document.querySelectorAll(arguments[0])].map(row =>"
        " row.children[arguments[1]].firstChild.textContent)",
        f"#{table} tbody tr",
        place,
    )


def test_a_table_is_sorted_by_any_head_best_first_and_filtered_by_words(opened):
    assert len(column(opened, "scores", 0)) == 9
    opened.click("#scores thead [data-metric='two-way ↑']")
    values = [float(one) for one in column(opened, "scores", 3)]
    assert values == sorted(values, reverse=True)
    opened.click("#scores thead [data-metric='distance ↓']")
    values = [float(one) for one in column(opened, "scores", 4)]
    assert values == sorted(values)
    head = "document.querySelector('#scores thead th:nth-child(5)')"
    assert opened.run(f"return {head}.getAttribute('aria-sort')") == "ascending"
    opened.run(f"{head}.querySelector('button').focus()")
    opened.press("Enter")
    assert [float(one) for one in column(opened, "scores", 4)] == values[::-1]
    opened.run(
        "const field = document.querySelector('form[data-for=scores] .filter');"
        "field.value = 'gcn s2'; field.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert column(opened, "scores", 1) == ["gcn"]
    assert "1 of 9 lines" in opened.run("return document.querySelector('form output').textContent")


def test_means_over_subjects_can_be_shown_alone(opened):
    opened.run(
        "const field = document.querySelector('form[data-for=scores] .which');"
        "field.value = 'mean'; field.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    assert column(opened, "scores", 2) == ["mean of 2"] * 3


def test_gains_are_signed_and_bold_where_they_hold_after_correction(opened):
    assert column(opened, "gains", 3) == ["+10.0", "+20.0"]
    assert opened.run("return document.querySelectorAll('#gains td.clear').length") == 2


def test_pictures_are_walked_through_by_keys_and_chosen_by_brain_and_run(opened):
    caption = "return document.activeElement.getAttribute('aria-label')"
    opened.press("j")
    assert opened.run(caption) == EVIL
    opened.press("j")
    assert opened.run(caption) == "thing 1"
    opened.press("k")
    assert opened.run(caption) == EVIL
    opened.press("/")
    assert opened.run("return document.activeElement.id") == "search"
    for letter in "thing 4":
        opened.press(letter)
    shown = "return [...document.querySelectorAll('.row h3')].map(one => one.textContent)"
    assert opened.run(shown) == ["thing 4"]
    opened.press("Escape")
    assert len(opened.run(shown)) == 6
    alts = "return [...document.querySelector('.row').querySelectorAll('img')].map(one => one.alt)"
    assert len(opened.run(alts)) == 4
    opened.run(
        "for (const [id, value] of [['runs', 'gcn'], ['brain', '1']]) {"
        "const field = document.getElementById(id); field.value = value;"
        "field.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    assert opened.run(alts) == [f"Seen: {EVIL}", f"gcn, for {EVIL}"]
    assert opened.run("return document.getElementById('count').textContent") == "6 images, 1 runs"
