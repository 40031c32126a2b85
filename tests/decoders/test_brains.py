"""Every decoder on brains whose answer is known, and on data that is hardly there."""

import warnings

import numpy as np
import pytest

from raybrain import config
from raybrain.decoders import gradient_task, prepare, train_ridge
from raybrain.training import fit, resident

pytestmark = pytest.mark.filterwarnings("ignore:of .* targets:UserWarning")

ROIS = {"V1": (0, 16), "V2": (16, 28), "V3": (28, 34), "hV4": (34, 40)}
NETWORKS = [
    config.ResidualMLP(width=64, depth=1, dropout=0.1),
    config.CnnText(),
    config.CnnImage(order="hilbert"),
    config.Vae(),
    config.Gcn(threshold=0.0),
    config.RoiGraph(width=64, depth=1, dropout=0.1),
    config.MeshGcn(width=64, depth=1, dropout=0.1),
]
RATES = {"cnn_text": 3e-4, "cnn_image": 5e-4, "vae": 5e-4, "gcn": 1e-3}


def linear_brain(*, images=700, voxels=40, noise=2.0, shuffled=False, seed=0):
    """Return betas, targets and the R² of the posterior mean, which no decoder can exceed."""
    draw = np.random.default_rng(seed)
    targets = draw.standard_normal((images, 4))
    encode = np.random.default_rng(99).standard_normal((4, voxels))
    betas = targets @ encode + noise * draw.standard_normal((images, voxels))
    ceiling = 1 - np.diag(np.linalg.inv(np.eye(4) + encode @ encode.T / noise**2)).mean()
    if shuffled:
        targets = draw.permutation(targets)
    return betas.astype(np.float32), targets.astype(np.float32), ceiling


def labels(rows, *, sessions=3):
    return {"session": np.arange(len(rows)) % sessions, "image_id": np.asarray(rows)}


def ridge(betas, targets, *, rows, **options):
    examples = prepare(betas[rows], **labels(rows, **options))
    return train_ridge(examples, targets=targets[rows], section=config.Ridge())


def network(section, betas, targets, *, rows, validation, epochs=12, batch_size=32, **options):
    voxels = np.arange(betas.shape[1])
    train = prepare(
        betas[rows],
        **labels(rows, **options),
        rois={name: (voxels >= first) & (voxels < last) for name, (first, last) in ROIS.items()},
        xyz=np.stack([voxels // 8, voxels // 2 % 4, voxels % 2], axis=1),
        edges=np.stack([voxels[:-1], voxels[1:]], axis=1),
    )
    task = gradient_task(
        train,
        targets=targets[rows],
        validation=train.like(betas[validation], **labels(validation, **options)),
        validation_targets=targets[validation],
        section=section,
    )
    model = task.build(seed=0)
    settings = config.Training(
        epochs=epochs, patience=4, batch_size=batch_size, lr=RATES.get(section.kind, 3e-3)
    )
    for _ in fit(
        model,
        train=resident(task.betas, targets=task.targets, count=task.count),
        validation=resident(task.validation_betas, targets=task.validation_targets),
        settings=settings,
        seed=0,
    ):
        pass
    return task.finish(model)


def r2(decoder, betas, targets, *, rows, **options):
    predicted = decoder.predict(betas[rows], **labels(rows, **options))
    truth = targets[predicted.image_id]
    error = ((predicted.estimates - truth) ** 2).mean(axis=0)
    return (1 - error / truth.var(axis=0)).mean()


TRAIN, VALIDATION, TEST = np.arange(400), np.arange(400, 500), np.arange(500, 700)


def test_ridge_reaches_the_ceiling_of_a_linear_brain():
    betas, targets, ceiling = linear_brain()
    fitted = np.concatenate([TRAIN, VALIDATION])
    found = r2(ridge(betas, targets, rows=fitted), betas, targets, rows=TEST)
    assert 0.9 * ceiling <= found <= ceiling + 0.03


@pytest.mark.parametrize("section", NETWORKS, ids=lambda section: section.kind)
def test_every_network_beats_predicting_the_mean_within_the_ceiling(section):
    betas, targets, ceiling = linear_brain()
    steps = {"batch_size": 100, "epochs": 6} if section.kind == "vae" else {}  # 17 M parameters
    decoder = network(section, betas, targets, rows=TRAIN, validation=VALIDATION, **steps)
    found = r2(decoder, betas, targets, rows=TEST)
    assert 0.3 < found <= ceiling + 0.03
    assert decoder.held_out_r2.mean() == pytest.approx(found, abs=0.12)


@pytest.mark.parametrize("kind", ["ridge", "residual_mlp"])
def test_shuffled_trials_earn_nothing(kind):
    found = []
    for seed in range(3):
        betas, targets, _ = linear_brain(shuffled=True, seed=seed)
        decoder = (
            ridge(betas, targets, rows=TRAIN)
            if kind == "ridge"
            else network(NETWORKS[0], betas, targets, rows=TRAIN, validation=VALIDATION)
        )
        found.append(r2(decoder, betas, targets, rows=TEST))
    assert np.mean(found) <= 0


@pytest.mark.parametrize("kind", ["ridge", "residual_mlp"])
def test_one_voxel_is_decoded_as_well_as_it_can_be(kind):
    betas, targets, _ = linear_brain(voxels=1, noise=0.5)
    decoder = (
        ridge(betas, targets, rows=TRAIN)
        if kind == "ridge"
        else network(
            config.ResidualMLP(width=64, depth=1, dropout=0.1),
            betas,
            targets,
            rows=TRAIN,
            validation=VALIDATION,
        )
    )
    found = r2(decoder, betas, targets, rows=TEST)
    slope = [np.polyfit(betas[TRAIN, 0], targets[TRAIN, d], 1) for d in range(4)]
    by_hand = np.stack([np.polyval(line, betas[TEST, 0]) for line in slope], axis=1)
    truth = targets[TEST]
    expected = (1 - ((by_hand - truth) ** 2).mean(axis=0) / truth.var(axis=0)).mean()
    assert found == pytest.approx(expected, abs=0.02 if kind == "ridge" else 0.06)


def test_a_single_session_is_enough():
    betas, targets, ceiling = linear_brain()
    decoder = ridge(betas, targets, rows=TRAIN, sessions=1)
    assert r2(decoder, betas, targets, rows=TEST, sessions=1) > 0.9 * ceiling


@pytest.mark.parametrize("section", NETWORKS, ids=lambda section: section.kind)
def test_fewer_rows_than_the_batch_train_on_all_of_them(section):
    betas, targets, _ = linear_brain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = network(
            section,
            betas,
            targets,
            rows=np.arange(25),
            validation=np.arange(400, 405),
            epochs=2,
            batch_size=500,
        )
    predicted = decoder.predict(betas[TEST], **labels(TEST))
    assert np.isfinite(predicted.values).all()
