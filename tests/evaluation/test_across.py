"""Runs side by side: against independent computations, and with answers known beforehand."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from raybrain.config import InputError
from raybrain.evaluation import EVERYONE, PROTOCOLS, SYSTEM, Scored, across_runs
from raybrain.evaluation.grids import beside_grid, gain_grid, markdown_text, score_grid
from raybrain.evaluation.statistics import holm, mean_of_few, sign_flip_p
from raybrain.evaluation.table import latex_text
from tests.evaluation.made import made_table

IMAGES = 12


def with_scores(table, metric, values):
    cells = {**table.cells, (SYSTEM, metric): np.asarray(values, dtype=float)[None]}
    scores = tuple(
        dataclasses.replace(score, value=float(np.mean(values)))
        if (score.row, score.metric) == (SYSTEM, metric)
        else score
        for score in table.scores
    )
    return dataclasses.replace(table, cells=cells, scores=scores)


def scored(key, subject, values, *, metric="two_way", dataset="nsd", **changes):
    table = with_scores(made_table(images=IMAGES), metric, values)
    return Scored(
        "-".join((*key, subject)), key, dataset, subject, dataclasses.replace(table, **changes)
    )


@pytest.fixture
def runs():
    rng = np.random.default_rng(3)
    base = {subject: rng.random(IMAGES) for subject in ("s1", "s2", "s3")}
    gain = {"s1": 0.1, "s2": 0.2, "s3": 0.4}
    return [
        *(scored(("ridge",), subject, values) for subject, values in base.items()),
        *(scored(("gcn",), subject, values + gain[subject]) for subject, values in base.items()),
    ]


def across_of(runs, **options):
    return across_runs(
        runs, baselines={"nsd": ("ridge",)}, resamples=500, beside=("mean image", "ceiling"),
        **options,
    )  # fmt: skip


def found(parts, **where):
    (one,) = [
        part for part in parts if all(getattr(part, name) == value for name, value in where.items())
    ]
    return one


def test_a_subject_has_the_interval_of_its_images_and_everyone_that_of_the_subjects(runs):
    across = across_of(runs)
    own = found(across.cells, key=("gcn",), subject="s2", metric="two_way")
    score = runs[4].table.score(row=SYSTEM, metric="two_way")
    assert (own.value, own.low, own.high, own.n) == (score.value, score.low, score.high, IMAGES)
    values = [one.table.score(row=SYSTEM, metric="two_way").value for one in runs[3:]]
    mean = found(across.cells, key=("gcn",), subject=EVERYONE, metric="two_way")
    assert mean.value == pytest.approx(np.mean(values))
    wanted = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (mean.low, mean.high) == pytest.approx(wanted)
    assert mean.n == 3


def test_gains_are_paired_and_over_subjects_tested_by_t(runs):
    across = across_of(runs)
    gain = found(across.gains, subject="s1", metric="two_way")
    # Every image gains the same, so resampling images changes nothing.
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.1, 0.1, 0.1))
    everyone = found(across.gains, subject=EVERYONE, metric="two_way")
    wanted = stats.ttest_1samp([0.1, 0.2, 0.4], 0.0)
    assert everyone.value == pytest.approx(0.7 / 3)
    assert everyone.p == pytest.approx(wanted.pvalue)
    assert (everyone.low, everyone.high) == pytest.approx(tuple(wanted.confidence_interval()))


def test_less_is_a_gain_where_lower_is_better():
    runs = [scored((k,), "s1", np.full(IMAGES, v), metric="distance") for k, v in
            (("ridge", 0.5), ("gcn", 0.4))]  # fmt: skip
    gain = found(across_of(runs).gains, metric="distance")
    assert gain.value == pytest.approx(0.1)


def test_images_are_paired_by_their_names():
    base = scored(("ridge",), "s1", np.arange(IMAGES))
    order = np.random.default_rng(0).permutation(IMAGES)
    ids = tuple(np.array(base.table.image_ids)[order])
    mixed = scored(("gcn",), "s1", np.arange(IMAGES)[order] + 1.0, image_ids=ids)
    gain = found(across_of([base, mixed]).gains, metric="two_way")
    assert (gain.value, gain.low, gain.high) == (1.0, 1.0, 1.0)


def test_runs_on_other_images_are_named_and_not_compared():
    base = scored(("ridge",), "s1", np.arange(IMAGES))
    ids = tuple(f"x{k}" for k in range(IMAGES))
    across = across_of([base, scored(("gcn",), "s1", np.arange(IMAGES), image_ids=ids)])
    assert across.unpaired == ("gcn-s1",)
    assert across.gains == ()


def test_protocols_metrics_and_rows_that_do_not_fit_are_refused(runs):
    other = dataclasses.replace(
        runs[0], table=dataclasses.replace(runs[0].table, protocol=PROTOCOLS["mindeye2-v1"])
    )
    with pytest.raises(InputError, match="different protocols"):
        across_of([*runs, other])
    with pytest.raises(InputError, match=r"compare\.metrics names 'clip'"):
        across_of(runs, metrics=("clip",))
    with pytest.raises(InputError, match=r"compare\.row is 'oracle'"):
        across_of(runs, row="oracle")


def test_sign_flips_agree_with_all_of_them_counted():
    differences = np.random.default_rng(1).normal(0.4, 1.0, size=(10, 2))
    means = np.array([
        np.abs(np.array(signs) @ differences) for signs in itertools.product((-1, 1), repeat=10)
    ])  # fmt: skip
    exact = (means >= np.abs(differences.sum(axis=0)) - 1e-9).mean(axis=0)
    drawn = sign_flip_p(differences, flips=40_000, seed=0)
    np.testing.assert_allclose(drawn, exact, atol=0.01)
    assert sign_flip_p(np.zeros((5, 1)), flips=100, seed=0) == 1.0


def test_holm_is_the_step_down_of_its_paper():
    # By hand: sorted .005 x 4, .011 x 3, .02 x 2, .04 x 1, never less than the one before.
    np.testing.assert_allclose(
        holm(np.array([0.011, 0.02, 0.005, 0.04])), [0.033, 0.04, 0.02, 0.04]
    )
    assert holm(np.array([0.9, 0.8])).max() == 1.0
    assert holm(np.array([])).size == 0


def test_one_subject_has_no_interval_over_subjects():
    mean = mean_of_few(np.array([2.0]))
    assert mean.value == 2.0
    assert np.isnan([mean.low, mean.high, mean.p]).all()


def test_tables_hold_every_run_and_choose_rows_and_columns_by_axes(runs):
    across = across_of(runs)
    grid = score_grid(across, axes=("decoder",), rows=(), columns=("metric",))
    assert grid.heads == ("decoder", "subject")  # one dataset takes no column
    assert [labels for labels, _ in grid.rows] == [
        (kind, who) for kind in ("ridge", "gcn") for who in ("s1", "s2", "s3", "mean of 3")
    ]
    turned = score_grid(across, axes=("decoder",), rows=("metric", "subject"), columns=("decoder",))
    assert turned.columns == ("ridge", "gcn")
    one = next(cells for labels, cells in grid.rows if labels == ("gcn", "s2"))
    place = grid.columns.index("two-way pooled ↑")
    cell = next(cells[1] for labels, cells in turned.rows if labels == ("two-way pooled ↑", "s2"))
    assert one[place] == cell
    with pytest.raises(InputError, match="leave out 'decoder'"):
        score_grid(across, axes=("decoder",), rows=("subject",), columns=("metric",))
    with pytest.raises(InputError, match="has 'decodr'"):
        score_grid(across, axes=("decoder",), rows=("decodr",), columns=("metric",))


def test_every_form_of_a_table_has_every_cell(runs):
    across = across_of(runs)
    for grid in (
        score_grid(across, axes=("decoder",), rows=(), columns=("metric",)),
        gain_grid(across, axes=("decoder",), rows=(), columns=("metric",), correction="Holm"),
        beside_grid(across),
    ):
        text, markdown, latex = grid.to_text(), grid.to_markdown(), grid.to_latex()
        assert latex.count(r"\\") == len(grid.rows) + 1
        assert sum(line.startswith("|") for line in markdown.splitlines()) == len(grid.rows) + 2
        for _, cells in grid.rows:
            for cell in filter(None, cells):
                assert cell in text
                assert markdown_text(cell) in markdown


def test_floors_and_ceiling_tell_how_far_the_runs_differ(runs):
    high = with_scores(made_table(images=IMAGES), "two_way", np.ones(IMAGES))
    ceiling = high.score(row="ceiling", metric="two_way").value
    rows = {one.row: one for one in across_of(runs).beside if one.metric == "two_way"}
    assert set(rows) == {"mean image", "ceiling"}
    assert rows["ceiling"].least == rows["ceiling"].most == pytest.approx(ceiling)
    assert rows["ceiling"].runs == 6


def test_names_cannot_end_a_table():
    assert latex_text(r"a_b & 5 % \x {y} #1 $z$ ~ ^") == (
        r"a\_b \& 5 \% \textbackslash{}x \{y\} \#1 \$z\$ \textasciitilde{} \textasciicircum{}"
    )
    assert markdown_text("a|b\n<i>*c*") == r"a\|b \<i\>\*c\*"
