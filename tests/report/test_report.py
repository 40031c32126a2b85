import base64
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from raybrain.evaluation.published import Published
from raybrain.evaluation.scoring import SYSTEM
from raybrain.evaluation.strata import scores_by
from raybrain.report import image_grid, ranking, write_gallery
from raybrain.report.charts import chart, ticks
from raybrain.report.pictures import Thumbnails
from tests.evaluation.made import made_table


def made_pictures(*, images, samples=2, edge=24, seed=1):
    rng = np.random.default_rng(seed)
    shape = (edge, edge, 3)
    seen = rng.integers(0, 256, size=(images, *shape), dtype=np.uint8)
    rows = {
        "nearest training": rng.integers(0, 256, size=(images, 1, *shape), dtype=np.uint8),
        SYSTEM: rng.integers(0, 256, size=(images, samples, *shape), dtype=np.uint8),
        "ceiling": rng.integers(0, 256, size=(images, 1, *shape), dtype=np.uint8),
    }
    return SimpleNamespace(seen=seen, rows=rows)


@pytest.fixture
def gallery(tmp_path):
    pictures = made_pictures(images=12)
    path = write_gallery(
        tmp_path / "out" / "gallery.html",
        title="a <trial> & error",
        table=made_table(images=12),
        seen=pictures.seen,
        rows=pictures.rows,
        captions=[f"thing {k} </script>" for k in range(12)],
        groups=["food" if k % 3 else "birds" for k in range(12)],
        latents={"latents": {"r2_mean": 0.123456, "mse": 1.0, "mse_of_mean": 2.0}},
        curves={"loss": {"training": [(1, 0.5), (2, 0.25)], "none": [(1, float("nan"))]}},
        provenance={"experiment": {"decode.latents.rois": ["V1", "V2"], "seed": None}},
    )
    return SimpleNamespace(html=path.read_text(), pictures=pictures)


def data_of(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))


def test_the_gallery_asks_nothing_of_any_network(gallery):
    assert "default-src 'none'" in gallery.html
    assert not re.search(r"https?://|//cdn|@import|url\(", gallery.html)


def test_every_picture_is_in_the_file_pixel_for_pixel(gallery):
    data = data_of(gallery.html)
    sets = [gallery.pictures.seen[:, None], *gallery.pictures.rows.values()]
    for k, image in enumerate(data["images"]):
        wanted = [picture for images in sets for picture in images[k]]
        assert len(image["tiles"]) == len(wanted) == 5
        for position, picture in zip(image["tiles"], wanted, strict=True):
            file = io.BytesIO(base64.b64decode(data["pictures"][position]))
            np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")), picture)


def test_text_is_escaped_where_it_could_end_an_element(gallery):
    assert "a &lt;trial&gt; &amp; error" in gallery.html
    assert gallery.html.count("</script>") == 2
    assert data_of(gallery.html)["images"][3]["caption"] == "thing 3 </script>"


def test_scores_stand_with_chance_interval_n_and_protocol(gallery):
    assert "Protocol lite0-v1" in gallery.html
    assert "n = 12 images" in gallery.html
    table = made_table(images=12)
    score = table.score(row=SYSTEM, metric="two_way")
    assert f"{100 * score.value:.1f}" in gallery.html
    assert f"{100 * score.low:.1f} to {100 * score.high:.1f}" in gallery.html
    assert gallery.html.count('<tr class="chance">') == 1
    words = re.sub(r'id="data">.*?</script>|src="data:[^"]*"', "", gallery.html, flags=re.S)
    assert not re.search(r"\bnan\b", words, re.I)


def test_best_and_worst_are_those_of_the_ranking(gallery):
    table = made_table(images=12)
    rank = ranking(table, row=SYSTEM)
    scores = table.per_image(row=SYSTEM, metric="two_way")
    assert rank[scores.argmax()] == 1
    assert rank[scores.argmin()] == 12
    best = gallery.html.split("<h3>Best")[1].split("<h3>Median")[0]
    shown = [int(k) for k in re.findall(r'alt="Seen: thing (\d+)', best)]
    assert shown == list(np.argsort(-scores)[:3])


def test_ties_are_broken_by_the_next_metric():
    table = made_table(images=6)
    table.cells[SYSTEM, "two_way"][:] = 1.0
    distance = table.per_image(row=SYSTEM, metric="distance")
    np.testing.assert_array_equal(np.argsort(ranking(table, row=SYSTEM)), np.argsort(distance))


def test_only_the_system_shows_all_its_samples(tmp_path):
    pictures = made_pictures(images=9, samples=3)
    rows = pictures.rows | {"ceiling": pictures.rows[SYSTEM][::-1]}
    path = write_gallery(
        tmp_path / "g.html", title="t", table=made_table(images=9), seen=pictures.seen, rows=rows
    )
    columns = data_of(path.read_text())["columns"]
    assert [(c["label"], c["samples"]) for c in columns] == [
        ("seen", 1), ("nearest training", 1), ("sample", 3), ("ceiling", 1),
    ]  # fmt: skip


def test_strata_are_drawn_with_their_counts(tmp_path):
    pictures, table = made_pictures(images=12), made_table(images=12)
    strata = scores_by(
        table, labels=["near", "far"] * 6, row=SYSTEM, metric="two_way", resamples=50
    )
    html = write_gallery(
        tmp_path / "g.html", title="t", table=table, seen=pictures.seen, rows=pictures.rows,
        strata={"Likeness to training": strata},
    ).read_text()  # fmt: skip
    assert html.count("n = 6<") == 2
    assert f"{100 * strata[0].value:.1f}" in html


def test_withheld_stimuli_are_nowhere_in_the_file(tmp_path):
    pictures = made_pictures(images=9)
    path = write_gallery(
        tmp_path / "gallery.html", title="t", table=made_table(images=9), seen=pictures.seen,
        rows=pictures.rows, withheld="the licence forbids it.",
    )  # fmt: skip
    data = data_of(path.read_text())
    assert len(data["pictures"]) == 18  # two samples of nine images, nothing else
    for image in data["images"]:
        assert [position >= 0 for position in image["tiles"]] == [False, False, True, True, False]
    assert "the licence forbids it" in path.read_text()


def test_provenance_and_targets_are_written(gallery):
    assert "decode.latents.rois" in gallery.html
    assert "V1, V2" in gallery.html
    assert "0123abcd" * 8 in gallery.html
    assert ".1235" in gallery.html


def test_captions_that_do_not_fit_are_refused(tmp_path):
    pictures = made_pictures(images=5)
    with pytest.raises(ValueError, match="one entry per image"):
        write_gallery(
            tmp_path / "g.html", title="t", table=made_table(images=5), seen=pictures.seen,
            rows=pictures.rows, captions=["one"],
        )  # fmt: skip
    assert not (tmp_path / "g.html").exists()


def test_a_thousand_images_fit_in_a_file_a_browser_opens(tmp_path):
    images = Thumbnails(expected=8000, edge=512)
    smooth = np.linspace(0, 255, 512, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(smooth, smooth[:, None], 128), axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, picture.shape)
    images.add(np.clip(picture + noise, 0, 255).astype(np.uint8))
    assert images.edge == 70
    assert len(images.encoded[0]) * 8000 < 40e6


def test_equal_pictures_are_stored_once():
    images = Thumbnails(expected=3, edge=8)
    a = np.zeros((8, 8, 3), dtype=np.uint8)
    assert [images.add(a), images.add(a + 1), images.add(a)] == [0, 1, 0]
    assert len(images.encoded) == 2


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (1e-5, 4e-4), (5.0, 5.0), (0.0, 0.0), (12, 130)]
)
def test_ticks_are_round_and_span_the_values(low, high):
    found = ticks(low, high, count=4)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert all(len(f"{abs(t):.6g}".replace(".", "").strip("0").split("e")[0]) <= 3 for t in found)


def test_a_chart_leaves_out_what_is_not_finite_and_keeps_the_order():
    drawn = chart("loss", lines={"a": [(2, 1.0), (1, 3.0), (3, float("inf"))]})
    assert drawn["lines"][0]["points"].split()[0].startswith("46.0,")
    assert drawn["lines"][0]["last"] == "1"
    y = [float(p.split(",")[1]) for p in drawn["lines"][0]["points"].split()]
    assert y[0] < y[1]  # larger is higher up
    assert chart("nothing", lines={"a": []})["lines"] == []


def test_the_grid_shows_the_pictures_in_their_places(tmp_path):
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, size=(7, 32, 32, 3), dtype=np.uint8)
    found = image_grid(
        {"seen": seen, "reconstructed": seen[::-1]}, per_line=5, tile=32,
        captions=["a caption far too long for its place"] * 7, path=tmp_path / "grid.png",
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), found)
    for picture in seen:
        corner = np.all(found == picture[0, 0], axis=-1)
        at = [
            (y, x)
            for y, x in np.argwhere(corner)
            if np.array_equal(found[y : y + 32, x : x + 32], picture)
        ]
        assert len(at) == 2  # once seen, once reconstructed


def test_a_grid_of_unequal_lines_is_refused():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="as many images"):
        image_grid({"seen": images, "reconstructed": images[:1]})


def test_published_scores_stand_in_a_table_of_their_own(tmp_path):
    pictures = made_pictures(images=5)
    one = Published("Someone", "Someone 2031", {"two_way": 0.871, "ssim": 0.25})
    html = write_gallery(
        tmp_path / "g.html", title="t", table=made_table(images=5), seen=pictures.seen,
        rows=pictures.rows, published=[one],
    ).read_text()  # fmt: skip
    section = html.split('id="field-title"')[1].split("</section>")[0]
    assert "<td>87.1</td>" in section
    assert "<td>.250</td>" in section
    assert "Someone 2031" in section
