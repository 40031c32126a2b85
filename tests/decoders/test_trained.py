import numpy as np
import pytest
import torch

from raybrain import config
from raybrain.config import InputError
from raybrain.decoders import gradient_task, load_decoder, prepare, train_ridge
from raybrain.training import fit, resident

FEW_ALPHAS = config.Ridge(alphas=tuple(np.logspace(-5, 3, 9)))


class Brain:
    """Betas are a linear function of the targets plus noise, three repeats, four sessions."""

    def __init__(self, *, images=300, voxels=40, dimensions=8, noise=1.0, seed=0):
        draw = np.random.default_rng(seed)
        self.targets = (3 + draw.standard_normal((images, dimensions))).astype(np.float32)
        self.targets[:, 2] = 28.0
        clean = (self.targets - 3) @ draw.standard_normal((dimensions, voxels))
        self.image_id = draw.permutation(np.repeat(np.arange(images), 3))
        self.session = np.sort(draw.integers(0, 4, len(self.image_id)))
        self.betas = clean[self.image_id] + noise * draw.standard_normal((images * 3, voxels))
        self.betas = (self.betas * (1 + self.session[:, None])).astype(np.float32)

    def of(self, first, last):
        rows = (self.image_id >= first) & (self.image_id < last)
        return {
            "betas": self.betas[rows],
            "session": self.session[rows],
            "image_id": self.image_id[rows],
        }


def split(trials):
    return trials["betas"], {k: v for k, v in trials.items() if k != "betas"}


def ridge_decoder(brain, section=FEW_ALPHAS, **settings):
    betas, labels = split(brain.of(0, 240))
    examples = prepare(betas, **labels, **settings)
    return train_ridge(examples, targets=brain.targets[examples.image_id], section=section)


def network_decoder(brain, section, *, epochs=30):
    betas, labels = split(brain.of(0, 200))
    train = prepare(betas, **labels)
    betas, labels = split(brain.of(200, 240))
    validation = train.like(betas, **labels)
    task = gradient_task(
        train,
        targets=brain.targets[train.image_id],
        validation=validation,
        validation_targets=brain.targets[validation.image_id],
        section=section,
    )
    network = task.build(seed=1)
    for _ in fit(
        network,
        train=resident(task.betas, targets=task.targets, count=task.count),
        validation=resident(task.validation_betas, targets=task.validation_targets),
        settings=config.Training(epochs=epochs, batch_size=32, lr=2e-3),
        seed=1,
    ):
        pass
    return task.finish(network)


def r2(decoder, brain):
    betas, labels = split(brain.of(240, 300))
    predicted = decoder.predict(betas, **labels)
    truth = brain.targets[predicted.image_id]
    error = ((predicted.estimates - truth) ** 2).mean(axis=0)
    varying = truth.std(axis=0) > 0
    return (1 - error[varying] / truth.var(axis=0)[varying]).mean()


def test_ridge_decodes_unseen_images_in_every_session():
    brain = Brain()
    decoder = ridge_decoder(brain)
    assert r2(decoder, brain) > 0.9
    assert decoder.held_out_r2[[0, 1, 3]].min() > 0.85


def test_network_decodes_unseen_images():
    brain = Brain()
    decoder = network_decoder(brain, config.ResidualMLP(width=64, depth=1, dropout=0.1))
    assert r2(decoder, brain) > 0.6


@pytest.mark.parametrize("kind", ["ridge", "network"])
def test_constants_stay_constant_and_earn_nothing(kind):
    brain = Brain()
    if kind == "ridge":
        decoder = ridge_decoder(brain)
    else:
        decoder = network_decoder(brain, config.ResidualMLP(width=16, depth=1), epochs=2)
    betas, labels = split(brain.of(240, 300))
    predicted = decoder.predict(betas, **labels)
    np.testing.assert_allclose(predicted.values[:, 2], 28.0, rtol=1e-6)
    np.testing.assert_allclose(predicted.estimates[:, 2], 28.0, rtol=1e-6)
    assert decoder.held_out_r2[2] == 0
    assert np.isfinite(predicted.values).all()


@pytest.mark.parametrize("kind", ["ridge", "network"])
def test_a_saved_decoder_predicts_the_same(kind, tmp_path):
    brain = Brain(images=300)
    if kind == "ridge":
        decoder = ridge_decoder(brain, min_noise_ceiling=0.5)
    else:
        decoder = network_decoder(brain, config.ResidualMLP(width=16, depth=2), epochs=2)
    folder = decoder.save(tmp_path / "latents")
    decoder.save(tmp_path / "latents")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents"]
    files = ["config.json", "decoder.safetensors"] + ["weights_0000.safetensors"] * (
        kind == "ridge"
    )
    assert sorted(path.name for path in folder.iterdir()) == files
    again = load_decoder(folder)
    assert again.section == decoder.section
    betas, labels = split(brain.of(240, 300))
    for average in (True, False):
        first = decoder.predict(betas, **labels, average=average)
        second = again.predict(betas, **labels, average=average)
        np.testing.assert_array_equal(first.values, second.values)
        np.testing.assert_array_equal(first.image_id, second.image_id)
        assert len(first.values) == (60 if average else 180)


def test_rescaled_values_have_the_spread_of_training_targets():
    brain = Brain(noise=6.0, images=300)
    decoder = ridge_decoder(brain)
    betas, labels = split(brain.of(240, 300))
    predicted = decoder.predict(betas, **labels)
    varying = decoder.targets.varying
    spread = brain.targets[:240].std(axis=0)[varying]
    assert np.all(predicted.estimates.std(axis=0)[varying] < 0.9 * spread)
    np.testing.assert_allclose(predicted.values.std(axis=0)[varying], spread, rtol=0.35)
    plain = ridge_decoder(brain, FEW_ALPHAS.model_copy(update={"rescale": False}))
    predicted = plain.predict(betas, **labels)
    np.testing.assert_array_equal(predicted.values, predicted.estimates)


def test_ridge_on_trials_leaves_all_repeats_of_an_image_out_together():
    brain = Brain(noise=6.0)
    averaged = ridge_decoder(brain)
    on_trials = ridge_decoder(brain, repeats="trial")
    np.testing.assert_allclose(on_trials.held_out_r2, averaged.held_out_r2, atol=1e-4)


def test_a_shared_image_or_no_validation_is_refused():
    brain = Brain()
    betas, labels = split(brain.of(0, 200))
    train = prepare(betas, **labels)
    arguments = {
        "targets": brain.targets[train.image_id],
        "section": config.ResidualMLP(),
    }
    with pytest.raises(ValueError, match="200 images are in both"):
        gradient_task(
            train,
            validation=train.like(betas, **labels),
            validation_targets=brain.targets[train.image_id],
            **arguments,
        )
    none = np.zeros(0, int)
    with pytest.raises(InputError, match="stops early on validation images, found none"):
        gradient_task(
            train,
            validation=train.like(betas[:0], session=none, image_id=none),
            validation_targets=brain.targets[:0],
            **arguments,
        )


def test_wrong_voxels_and_missing_folders_are_named(tmp_path):
    brain = Brain()
    decoder = ridge_decoder(brain)
    betas, labels = split(brain.of(240, 300))
    with pytest.raises(ValueError, match=r"should be \(trial, 40\)"):
        decoder.predict(betas[:, :-1], **labels)
    with pytest.raises(InputError, match="there is no decoder"):
        load_decoder(tmp_path)
    with pytest.raises(ValueError, match="not a network"):
        decoder.network()


def test_building_leaves_the_global_random_state_alone():
    brain = Brain(images=300)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    network_decoder(brain, config.ResidualMLP(width=8, depth=1), epochs=1)
    assert torch.equal(torch.rand(3), expected)
