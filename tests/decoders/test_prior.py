import numpy as np
import pytest
import torch

from raybrain.config import InputError, Prior, Training
from raybrain.decoders.prior import load_prior, prior_task
from raybrain.training import fit, resident

DIMENSIONS = 4
SECTION = Prior(
    width=32, depth=2, heads=2, training=Training(lr=2e-3, epochs=25, patience=25, batch_size=64)
)


def on_two_lines(count, *, seed):
    """Embeddings at one of two places, with little spread: a mean of them is no embedding."""
    rng = np.random.default_rng(seed)
    side = rng.choice([-1.0, 1.0], size=(count, 1))
    values = side * np.array([1.0, 2.0, -1.0, 0.5]) + 0.05 * rng.standard_normal((count, 4))
    return (3.0 + values).astype(np.float32), side[:, 0]


def fitted(section=SECTION, *, r2=0.3):
    train, _ = on_two_lines(600, seed=0)
    validation, _ = on_two_lines(100, seed=1)
    task = prior_task(
        section, train=train, validation=validation, held_out_r2=np.full(DIMENSIONS, r2)
    )
    network = task.build(seed=0)
    for _ in fit(
        network,
        train=resident(task.betas, targets=task.targets, count=task.count),
        validation=resident(task.validation_betas, targets=task.validation_targets),
        settings=section.training,
        seed=0,
    ):
        pass
    return task.finish(network)


@pytest.fixture(scope="module")
def prior():
    return fitted()


def estimates_of(values, *, r2, seed=2):
    """What least squares makes of embeddings decoded with this R²."""
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    standard = (values - mean) / deviation
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    return mean + deviation * (r2 * standard + np.sqrt(r2 * (1 - r2)) * noise)


def test_a_shrunken_estimate_becomes_an_embedding_that_exists(prior):
    true, side = on_two_lines(200, seed=3)
    estimates = estimates_of(true, r2=0.3)
    drawn = prior.draw(estimates, seeds=range(200))
    direction = np.array([1.0, 2.0, -1.0, 0.5])

    def along(values):
        return (values - 3.0) @ direction / (direction @ direction)

    # Truth lies at -1 and 1; least squares in between, the prior where truth lies.
    assert np.mean(np.abs(np.abs(along(estimates)) - 1) < 0.2) < 0.4
    assert np.mean(np.abs(np.abs(along(drawn)) - 1) < 0.2) > 0.9
    # Drawn as often as it is likely: the posterior of the right side is .86 on average.
    assert np.mean(np.sign(along(drawn)) == side) == pytest.approx(0.86, abs=0.07)
    assert drawn.std() == pytest.approx(true.std(), rel=0.1)


def test_what_is_drawn_depends_on_the_seed_of_its_row_alone(prior):
    true, _ = on_two_lines(6, seed=4)
    together = prior.draw(true, seeds=range(6))
    alone = np.concatenate([prior.draw(true[[k]], seeds=[k]) for k in range(6)])
    np.testing.assert_allclose(alone, together, atol=1e-4)
    assert not np.allclose(prior.draw(true, seeds=range(10, 16)), together)


def test_a_saved_prior_draws_the_same(prior, tmp_path):
    true, _ = on_two_lines(5, seed=5)
    prior.save(tmp_path / "prior")
    again = load_prior(tmp_path / "prior").draw(true, seeds=range(5))
    np.testing.assert_array_equal(again, prior.draw(true, seeds=range(5)))


def test_the_condition_has_the_variance_and_the_r2_of_a_least_squares_prediction():
    embeds = torch.randn(20_000, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    task = prior_task(
        SECTION, train=embeds.numpy(), validation=embeds.numpy(), held_out_r2=np.full(4, 0.4)
    )
    network = task.build(seed=0)
    seen = {}
    network.condition.register_forward_pre_hook(lambda _, args: seen.update(told=args[0]))
    network.train()
    network(embeds)
    told = seen["told"][:, 0]
    assert torch.allclose(told.var(0), torch.full((4,), 0.4), atol=0.02)
    r2 = 1 - (embeds - told).square().mean(0) / embeds.var(0)
    assert torch.allclose(r2, torch.full((4,), 0.4), atol=0.02)


def test_hidden_states_of_several_tokens_keep_their_shape():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 5, 6)).astype(np.float32)
    task = prior_task(SECTION, train=values, validation=values[:8], held_out_r2=np.full(30, 0.5))
    drawn = task.finish(task.build(seed=0)).draw(values.reshape(30, -1), seeds=range(30))
    assert drawn.shape == (30, 30)
    assert np.isfinite(drawn).all()


def test_a_prior_needs_validation_images():
    values = np.zeros((10, 4), np.float32)
    with pytest.raises(InputError, match="validation share above 0"):
        prior_task(SECTION, train=values, validation=values[:0], held_out_r2=np.zeros(4))
