import dataclasses

import numpy as np
import pytest

from raybrain.config import InputError
from raybrain.evaluation import (
    PROTOCOLS,
    SYSTEM,
    compare_tables,
    comparison_frame,
    comparison_text,
    load_table,
)
from tests.evaluation.made import made_table


def shifted(table, *, metric, by):
    cells = dict(table.cells)
    cells[SYSTEM, metric] = cells[SYSTEM, metric] + by
    return dataclasses.replace(table, cells=cells)


def by_metric(comparisons):
    return {c.metric: c for c in comparisons}


def test_a_constant_gain_has_no_width_because_the_images_are_paired():
    base = made_table(images=40)
    found = by_metric(
        compare_tables({"a": base, "b": shifted(base, metric="two_way", by=0.04)}, resamples=300)
    )
    gain = found["two_way"]
    assert (gain.better, gain.than, gain.n) == ("b", "a", 40)
    np.testing.assert_allclose([gain.value, gain.low, gain.high], 0.04)
    assert found["two_way_low"].value == 0.0
    assert not found["two_way_low"].real


def test_a_larger_distance_is_a_loss():
    base = made_table(images=10)
    found = compare_tables({"a": base, "b": shifted(base, metric="distance", by=0.2)}, resamples=50)
    assert by_metric(found)["distance"].value == pytest.approx(-0.2)


def test_differences_below_reseeding_noise_are_no_differences():
    base = made_table(images=30)
    cells = {cell: np.repeat(values[:1], 2, axis=0) for cell, values in base.cells.items()}
    calm = dataclasses.replace(base, cells=cells)  # samples agree: only the published noise counts
    for by, real in ((0.005, False), (0.007, True)):
        found = compare_tables(
            {"a": calm, "b": shifted(calm, metric="two_way", by=by)}, resamples=50
        )
        assert by_metric(found)["two_way"].noise == 0.006
        assert by_metric(found)["two_way"].real is real


def test_samples_that_disagree_raise_the_noise():
    base = made_table(images=30)
    cells = dict(base.cells)
    cells[SYSTEM, "two_way"] = np.stack([np.full(30, 0.7), np.full(30, 0.8)])
    loud = dataclasses.replace(base, cells=cells)
    found = by_metric(compare_tables({"a": loud, "b": loud}, resamples=50))
    # Two samples .1 apart: sd .0707, error of the mean of two .05, of a difference .0707.
    assert found["two_way"].noise == pytest.approx(1.96 * 0.0707, rel=1e-3)


def test_images_are_paired_by_name_not_position():
    base = made_table(images=20)
    order = np.random.default_rng(0).permutation(20)
    other = dataclasses.replace(
        base,
        image_ids=tuple(base.image_ids[k] for k in order),
        cells={cell: values[:, order] for cell, values in base.cells.items()},
    )
    for comparison in compare_tables({"a": base, "b": other}, resamples=50):
        assert comparison.value == pytest.approx(0.0) or np.isnan(comparison.value)


def test_runs_that_cannot_be_compared_say_why():
    base = made_table(images=10)
    with pytest.raises(InputError, match="at least two runs"):
        compare_tables({"a": base})
    with pytest.raises(InputError, match="10 and 12, 2 of them in one only, such as im0010"):
        compare_tables({"a": base, "b": made_table(images=12)})
    other = dataclasses.replace(base, protocol=PROTOCOLS["mindeye2-v1"])
    with pytest.raises(InputError, match="a has lite0-v1, b has mindeye2-v1"):
        compare_tables({"a": base, "b": other})


def test_text_and_frame_hold_every_comparison():
    base = made_table(images=10)
    found = compare_tables({"a": base, "b": base, "c": base}, resamples=50)
    assert len(comparison_frame(found)) == len(found) == 2 * len(base.protocol.metrics)
    text = comparison_text(found, table=base)
    assert "10 images" in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_a_saved_table_comes_back_whole(tmp_path):
    table = made_table(images=7, samples=3)
    table.save(tmp_path / "scores.npz")
    found = load_table(tmp_path / "scores.npz")
    assert found.protocol is table.protocol
    assert (found.image_ids, found.rows, found.about) == (table.image_ids, table.rows, table.about)
    assert list(found.cells) == list(table.cells)
    for cell, values in table.cells.items():
        np.testing.assert_array_equal(found.cells[cell], values)
    assert found.to_text() == table.to_text()


def test_missing_scores_say_what_to_run(tmp_path):
    with pytest.raises(InputError, match="run evaluate first"):
        load_table(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0001, ".000"), (-0.25, "-.250"), (0.5, ".500"), (1.0, "1.000"), (10.25, "10.250")],
)
def test_fractions_are_written_as_the_field_writes_them(value, text):
    assert PROTOCOLS["lite0-v1"].metric("pixcorr").text(value) == text
