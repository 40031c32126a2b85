import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from raybrain.evaluation import (
    CEILING,
    MEAN_IMAGE,
    NEAREST_TRAINING,
    PROTOCOLS,
    SHUFFLED,
    SYSTEM,
    extract_features,
    mean_image,
    score_rows,
    two_way,
)
from raybrain.evaluation.measuring import plan_parts
from raybrain.evaluation.networks import canvases, prepared
from raybrain.evaluation.weights import locate

LITE0 = PROTOCOLS["lite0-v1"]
IMAGES = 12


def pictures(*, images, seed):
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(images, 32, 32, 3)), (0, 3, 3, 0))
    smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(127 + 60 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def seen():
    return pictures(images=IMAGES, seed=0)


@pytest.fixture(scope="module")
def system(seen):
    rng = np.random.default_rng(1)
    noisy = seen[:, None] + 25 * rng.normal(size=(IMAGES, 2, *seen.shape[1:]))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def table(seen, system):
    rows = {
        SYSTEM: system,
        MEAN_IMAGE: mean_image(pictures(images=30, seed=9), images=IMAGES),
        CEILING: seen[:, None],
    }
    return score_rows(
        seen, rows, protocol=LITE0, bootstrap_resamples=500, permutations=500,
        image_ids=[f"im{k}" for k in range(IMAGES)],
    )  # fmt: skip


def test_features_are_the_networks_own_layers(seen):
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = LITE0.networks[0]
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    path = locate(network.weights[0], folder=Path("nowhere"))
    model.load_state_dict(torch.load(path, weights_only=True))
    x = torch.tensor(seen[:3]).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, size=224, mode="bilinear", antialias=True)
    with torch.inference_mode():
        x = model._swish(model._bn0(model._conv_stem((x.clamp(0, 255) - 127) / 128)))
        wanted = {}
        for position, block in enumerate(model._blocks):
            x = block(x)
            wanted[position] = x.flatten(1).numpy()
        pooled = model._swish(model._bn1(model._conv_head(x))).mean((2, 3)).numpy()
    found = extract_features(seen[:3], protocol=LITE0, batch_size=2)
    for name, values in {
        "lite0.low": wanted[2],
        "lite0.middle": wanted[7],
        "lite0.high": wanted[14],
        "lite0.pooled": pooled,
    }.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, atol=2e-4 * np.abs(values).max())


def test_features_do_not_depend_on_the_batch(seen):
    one = extract_features(seen[:3], protocol=LITE0, batch_size=1)
    three = extract_features(seen[:3], protocol=LITE0, batch_size=3)
    for name, values in one.items():
        np.testing.assert_allclose(values, three[name], atol=1e-4)


def test_pixels_are_normalised_from_their_true_range():
    # Trap: 0..255 images through a normalisation made for 0..1 gave a published score of .27
    # where .66 was right. Black and white must land at the ends of what the network was trained on.
    network = LITE0.networks[0]
    ends = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    ends[1] = 255
    given = prepared(next(canvases(ends, size=8)), network=network)
    np.testing.assert_allclose(given[0], -127 / 128, atol=1e-6)
    np.testing.assert_allclose(given[1], 1.0, atol=1e-6)


def test_a_perfect_reconstruction_scores_the_best_of_everything(table):
    for metric, best in {
        "pixcorr": 1,
        "ssim": 1,
        "two_way": 1,
        "two_way_low": 1,
        "distance": 0,
    }.items():
        assert table.score(row=CEILING, metric=metric).value == pytest.approx(best, abs=1e-5)


def test_a_constant_row_scores_exactly_chance_on_identification(table):
    for metric in ("two_way_low", "two_way_middle", "two_way_high", "two_way"):
        assert table.score(row=MEAN_IMAGE, metric=metric).value == pytest.approx(0.5, abs=1e-12)


def test_shuffled_brains_score_chance_within_their_interval(table):
    for metric in ("two_way_low", "two_way"):
        score = table.score(row=SHUFFLED, metric=metric)
        assert score.low < 0.55
        assert score.high > 0.45


def test_the_system_beats_shuffled_brains(table):
    gain = table.difference(metric="two_way_low", better=SYSTEM, than=SHUFFLED)
    assert gain.low > 0.2


def test_each_sample_is_scored_by_itself(table, seen, system):
    # Trap: averaging the features of several samples before scoring inflates identification.
    true = extract_features(seen, protocol=LITE0)["lite0.low"]
    for sample in range(2):
        drawn = extract_features(system[:, sample], protocol=LITE0)["lite0.low"]
        wanted = two_way(seen=true, reconstructed=drawn)
        np.testing.assert_allclose(table.cells[SYSTEM, "two_way_low"][sample], wanted, atol=1e-9)
    score = table.score(row=SYSTEM, metric="pixcorr")
    means = table.cells[SYSTEM, "pixcorr"].mean(axis=1)
    assert score.sd_samples == pytest.approx(means.std(ddof=1))
    assert score.samples == 2


def test_the_relation_is_significant_and_the_constant_is_not(table):
    assert table.score(row=SYSTEM, metric="two_way_low").p < 0.01
    assert table.score(row=MEAN_IMAGE, metric="two_way_low").p == 1.0


def test_scores_carry_n_chance_interval_and_protocol(table):
    frame = table.to_pandas()
    assert (frame.n == IMAGES).all()
    assert (frame.protocol == "lite0-v1").all()
    cell = frame[(frame.row == SYSTEM) & (frame.metric == "two_way")].iloc[0]
    assert cell.low <= cell.value <= cell.high
    assert cell.chance == 0.5
    assert frame[frame.metric == "fifty_way"].value.isna().all()  # 12 images cannot make 50


def test_rows_run_from_floor_to_ceiling(table):
    assert table.rows == (MEAN_IMAGE, SHUFFLED, SYSTEM, CEILING)


def test_paired_differences_are_positive_for_the_better_row(table):
    gain = table.difference(metric="distance", better=CEILING, than=SYSTEM)
    assert 0 < gain.low < gain.value < gain.high


def test_the_console_table_fits_and_holds_every_row(table):
    text = table.to_text()
    assert max(len(line) for line in text.splitlines()) <= 100
    for row in ("chance", *table.rows):
        assert any(line.startswith(row) for line in text.splitlines())
    assert f"{IMAGES} images, 2 samples each" in text


def test_the_console_says_what_the_system_gains_on_the_nearest_training_image(seen, system):
    shown = pictures(images=IMAGES, seed=4)[:, None]
    rows = {
        SYSTEM: system,
        NEAREST_TRAINING: shown,
        MEAN_IMAGE: mean_image(pictures(images=30, seed=9), images=IMAGES),
    }
    found = score_rows(seen, rows, protocol=LITE0, bootstrap_resamples=500, permutations=500)
    lines = found.to_text().splitlines()
    (line,) = [one for one in lines if one.startswith("  over nearest")]
    place = [metric.name for metric in LITE0.metrics].index("distance")
    cell = line.removeprefix("  over nearest").split()[place]
    gain = found.cells[NEAREST_TRAINING, "distance"].mean() - found.cells[SYSTEM, "distance"].mean()
    assert cell.startswith("+" if gain > 0 else "-")
    assert float(cell.split("±")[0]) == pytest.approx(gain, abs=6e-4)
    assert lines.index(line) > next(k for k, one in enumerate(lines) if one.startswith("system"))


def test_latex_and_csv_hold_every_cell(table, tmp_path):
    latex = table.to_latex()
    assert latex.count(r"\\") == len(table.rows) + 2
    table.to_csv(tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + len(table.rows) * len(LITE0.metrics)


def test_per_image_scores_name_the_images(table):
    frame = table.per_image_frame()
    mine = frame[(frame.row == SYSTEM) & (frame.metric == "ssim") & (frame.image_id == "im3")]
    np.testing.assert_allclose(sorted(mine.score), sorted(table.cells[SYSTEM, "ssim"][:, 3]))


def test_pixel_scores_do_not_stand_without_the_mean_image(seen, system):
    with pytest.raises(ValueError, match="mean image"):
        score_rows(seen, {SYSTEM: system}, protocol=LITE0)


def test_rows_that_do_not_fit_are_refused(seen, system):
    with pytest.raises(ValueError, match="as many as were seen"):
        score_rows(seen, {MEAN_IMAGE: system[:5]}, protocol=LITE0)
    with pytest.raises(ValueError, match="uint8"):
        score_rows(seen.astype(float), {MEAN_IMAGE: system}, protocol=LITE0)


def test_parts_measured_elsewhere_and_out_of_order_give_the_same_table(seen, system, table):
    def elsewhere(function, parts):
        results = {k: pickle.loads(pickle.dumps(function))(parts[k]) for k in (1, 0)}
        return [results[k] for k in range(len(parts))]

    rows = {
        SYSTEM: system,
        MEAN_IMAGE: mean_image(pictures(images=30, seed=9), images=IMAGES),
        CEILING: np.stack([[image[:, ::-1][:, ::-1]] for image in seen]),
        "smaller": seen[:, None, ::2, ::2],
    }
    found = score_rows(
        seen, rows, protocol=LITE0, bootstrap_resamples=500, permutations=500, mapper=elsewhere
    )
    for row in table.rows:
        for metric in LITE0.metrics:
            np.testing.assert_allclose(
                found.cells[row, metric.name], table.cells[row, metric.name], atol=1e-5
            )


def test_equal_reconstructions_are_measured_once(seen, system):
    constant = np.repeat(seen[:1, None], IMAGES, axis=0)
    rows = {"a": system, "b": system[:, ::-1], MEAN_IMAGE: constant}
    plan = plan_parts(rows, images=IMAGES, shuffled={"a": np.roll(np.arange(IMAGES), 1)[None]})
    assert sum(len(part.images) for part in plan.parts) == 2 * IMAGES + 1
    np.testing.assert_array_equal(plan.index["a"], plan.index["b"][:, ::-1])
    assert plan.parts[0].partners[0] == (0, 1)  # its own image, and the one shuffled onto it
    last = int(plan.index[MEAN_IMAGE][0, 0])
    assert plan.parts[-1].partners[last] == tuple(range(IMAGES))


def test_cells_of_a_console_table_never_run_together():
    from dataclasses import replace

    from tests.evaluation.made import made_table

    made = made_table(images=4)
    certain = {"value": 1.0, "low": 1.0, "high": 1.0}  # 1.000±.000, or 100.0±0.0
    wide = {"value": -1.0, "low": -1.5, "high": -0.5}  # -1.000±.500, or -100.0±50.0
    for values in (certain, wide):
        table = replace(made, scores=tuple(replace(one, **values) for one in made.scores))
        lines = table.to_text().splitlines()
        line = next(one for one in lines if one.startswith("ceiling"))
        assert len(line.split()) == 1 + len(table.protocol.metrics)
        assert all(cell.count("±") == 1 for cell in line.split()[1:])
    usual = made.to_text().splitlines()
    assert max(map(len, usual)) <= 100
