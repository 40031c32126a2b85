import copy
import io
import threading

import numpy as np
import pytest
import torch
from torch import nn

from raybrain.config import InputError, Training
from raybrain.decoders.published import Vae
from raybrain.decoders.residual_mlp import ResidualMLP
from raybrain.training import Batch, Contrast, fit, precision, resident, streamed
from raybrain.training.losses import row_loss, soft_clip
from raybrain.training.workers import Workers


def data(*, rows=200, voxels=20, outputs=6, seed=0):
    draw = np.random.default_rng(seed)
    weights = np.random.default_rng(9).standard_normal((voxels, outputs)) / np.sqrt(2 * voxels)
    inputs = draw.standard_normal((rows, voxels)).astype(np.float32)
    noise = np.sqrt(0.5) * draw.standard_normal((rows, outputs))
    return inputs, (inputs @ weights + noise).astype(np.float32)


def feeds():
    inputs, targets = data()
    held_out = data(rows=90, seed=1)
    count = np.random.default_rng(2).integers(1, 4, len(inputs))
    return {
        "train": resident(inputs, targets=targets, count=count),
        "validation": resident(held_out[0], targets=held_out[1]),
    }


def network(*, dropout=0.2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResidualMLP(voxels=20, outputs=6, width=32, depth=2, dropout=dropout)


SETTINGS = Training(epochs=6, batch_size=32, lr=3e-3, patience=6)


def run(model=None, **changes):
    arguments = {**feeds(), "settings": SETTINGS, "seed": 3, **changes}
    model = model or network()
    return model, list(fit(model, **arguments))


def same_weights(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_explains_what_can_be_explained():
    settings = Training(epochs=40, batch_size=32, lr=2e-3, patience=40, weight_decay=0.1)
    _, epochs = run(network(dropout=0.0), settings=settings)
    assert epochs[0].validation_loss > 0.7
    best = min(epoch.validation_loss for epoch in epochs)
    assert 0.5 * 0.9 < best < 0.75  # half the variance is noise
    assert epochs[-1].best_loss == best


def test_linear_regression_reaches_the_closed_form():
    inputs, targets = data(rows=400)
    expected = np.linalg.lstsq(
        np.c_[inputs, np.ones(len(inputs))].astype(float), targets, rcond=None
    )[0]
    feed = resident(inputs, targets=targets)
    model = nn.Linear(20, 6)
    settings = Training(
        epochs=300, batch_size=400, lr=0.03, weight_decay=0.0, patience=300, gradient_clip=None
    )
    for _ in fit(model, train=feed, validation=feed, settings=settings, seed=0):
        pass
    np.testing.assert_allclose(model.weight.detach().numpy().T, expected[:-1], atol=1e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, epochs = run()
    second, again = run()
    assert same_weights(first, second)
    assert [e.validation_loss for e in epochs] == [e.validation_loss for e in again]
    other, _ = run(seed=4)
    assert not same_weights(first, other)


def test_random_numbers_used_between_epochs_change_nothing():
    first, _ = run()
    model = network()
    for _ in fit(model, **feeds(), settings=SETTINGS, seed=3):
        torch.rand(17)
        np.random.default_rng().random()
    assert same_weights(first, model)


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resuming_from_any_epoch_gives_the_same_bytes(schedule, ema):
    settings = SETTINGS.model_copy(update={"schedule": schedule, "ema": ema, "patience": 2})
    whole, epochs = run(settings=settings)
    states = []
    for epoch in fit(network(), **feeds(), settings=settings, seed=3):
        buffer = io.BytesIO()
        torch.save(epoch.state(), buffer)
        states.append(buffer.getvalue())
    for number, saved in enumerate(states, start=1):
        state = torch.load(io.BytesIO(saved), weights_only=True)
        resumed, rest = run(network(seed=77), settings=settings, state=state)
        assert same_weights(whole, resumed)
        losses = [epoch.validation_loss for epoch in epochs[number:]]
        assert [epoch.validation_loss for epoch in rest] == losses


def test_a_state_is_not_changed_by_going_on_from_it():
    model = network()
    epochs = fit(model, **feeds(), settings=SETTINGS, seed=3)
    state = next(epochs).state()
    before = copy.deepcopy(state)
    run(network(), state=state)
    for a, b in zip(
        state["optimiser"]["state"].values(), before["optimiser"]["state"].values(), strict=True
    ):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_state_of_another_seed_is_refused():
    state = next(fit(network(), **feeds(), settings=SETTINGS, seed=3)).state()
    with pytest.raises(InputError, match="made with seed 3, not 4"):
        run(seed=4, state=state)


def several(workers, *, model=network, **changes):
    """Run ``workers`` threads that sum tensors as torch.distributed would; return their epochs."""
    barrier = threading.Barrier(workers)
    box = [None] * workers

    def summing(rank):
        def total(values):
            box[rank] = values.clone()
            barrier.wait()
            result = torch.stack(list(box)).sum(dim=0)
            barrier.wait()
            return values.copy_(result)

        return total

    found = [None] * workers

    def work(rank):
        found[rank] = run(
            models[rank], rank=rank, world_size=workers, all_reduce=summing(rank), **changes
        )

    models = [model() for _ in range(workers)]
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def assert_alike(alone, shared):
    """Assert that workers ended with the same weights, and went where one alone went."""
    for model, epochs in shared:
        assert same_weights(model, shared[0][0])
        for one, many in zip(alone, epochs, strict=True):
            assert many.validation_loss == pytest.approx(one.validation_loss, rel=1e-4)
            assert many.train_loss == pytest.approx(one.train_loss, rel=1e-4)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("contrastive", [0.0, 0.3])
def test_workers_share_a_batch_without_changing_the_result(workers, contrastive):
    contrast = Contrast(weight=contrastive)
    _, alone = run(contrast=contrast)
    assert_alike(alone, several(workers, contrast=contrast))


def test_a_network_that_samples_shares_its_samples_between_workers():
    # Without batch normalisation, whose statistics are those of a worker's own rows.
    def vae():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Vae(voxels=20, outputs=6, share_middle=True, width=32)
        for layer in network.decoder[:2]:
            layer[1] = nn.Identity()
        return network

    settings = SETTINGS.model_copy(update={"lr": 3e-4, "epochs": 3})
    _, alone = run(vae(), settings=settings)
    for _, epochs in several(2, model=vae, settings=settings):
        assert epochs[-1].validation_loss == pytest.approx(alone[-1].validation_loss, rel=1e-3)


def test_batch_statistics_are_a_workers_own_and_differ_a_little():
    def vae():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Vae(voxels=20, outputs=6, share_middle=True, width=32)

    settings = SETTINGS.model_copy(update={"lr": 3e-4, "epochs": 3})
    _, alone = run(vae(), settings=settings)
    for _, epochs in several(2, model=vae, settings=settings):
        assert epochs[-1].validation_loss == pytest.approx(alone[-1].validation_loss, rel=0.05)


def test_batch_statistics_of_one_row_are_refused():
    inputs, targets = data(rows=5)
    settings = SETTINGS.model_copy(update={"batch_size": 2})
    with pytest.raises(InputError, match="2 or more rows per worker; 5 rows in batches of 2"):
        run(
            Vae(voxels=20, outputs=6, share_middle=True, width=32),
            train=resident(inputs, targets=targets),
            settings=settings,
        )


def test_a_run_goes_on_with_another_number_of_workers():
    _, alone = run()
    for epoch in fit(network(), **feeds(), settings=SETTINGS, seed=3):
        state = epoch.state()
        if epoch.number == 3:
            break
    (_, epochs), _ = several(2, state=state)
    assert epochs[-1].validation_loss == pytest.approx(alone[-1].validation_loss, rel=1e-4)


def test_patience_stops_and_the_best_weights_remain():
    # Noise alone: after the first epochs every further one fits it more.
    inputs, _ = data()
    targets = np.random.default_rng(5).standard_normal((200, 6)).astype(np.float32)
    held_out = np.random.default_rng(6).standard_normal((90, 6)).astype(np.float32)
    validation = resident(data(rows=90, seed=1)[0], targets=held_out)
    settings = Training(epochs=50, batch_size=32, lr=1e-2, patience=4, schedule="constant")
    model, epochs = run(
        train=resident(inputs, targets=targets), validation=validation, settings=settings
    )
    assert len(epochs) < 50
    assert epochs[-1].last
    assert not any(epoch.last for epoch in epochs[:-1])
    best = min(epoch.validation_loss for epoch in epochs)
    assert epochs[-5].validation_loss == best
    with torch.no_grad():
        loss = ((model(validation.inputs) - validation.targets) ** 2).mean().item()
    assert loss == pytest.approx(best, rel=1e-5)


def test_learning_rates_follow_their_schedules():
    cosine = [epoch.lr for epoch in run()[1]]
    assert max(cosine) <= SETTINGS.lr
    assert cosine[-1] < 0.02 * SETTINGS.lr
    constant = SETTINGS.model_copy(update={"schedule": "constant"})
    assert {epoch.lr for epoch in run(settings=constant)[1]} == {SETTINGS.lr}
    plateau = Training(epochs=30, batch_size=32, lr=0.02, patience=20, schedule="plateau")
    rates = [epoch.lr for epoch in run(settings=plateau)[1]]
    assert rates[0] == 0.02
    assert rates[-1] < 0.02
    assert set(np.round(np.log2(0.02 / np.array(rates)), 6)) <= set(range(30))


@pytest.mark.parametrize("known", [True, False])
def test_bfloat16_stays_close_to_float32_and_is_float32_where_the_cpu_knows_none(
    known, monkeypatch
):
    monkeypatch.setattr(precision, "_cpu_knows_bfloat16", lambda: known)
    _, exact = run()
    _, rough = run(settings=SETTINGS.model_copy(update={"precision": "bfloat16"}))
    assert rough[-1].validation_loss == pytest.approx(exact[-1].validation_loss, rel=0.05)
    assert (rough[-1].validation_loss == exact[-1].validation_loss) is not known


def test_fewer_rows_than_the_batch_are_one_batch():
    inputs, targets = data(rows=5)
    small = resident(inputs, targets=targets)
    _, epochs = run(train=small, settings=SETTINGS.model_copy(update={"batch_size": 1000}))
    assert np.isfinite(epochs[-1].train_loss)


def test_a_cosine_loss_turns_predictions_towards_their_targets():
    def similarity(**losses):
        model, _ = run(network(dropout=0.0), **losses)
        validation = feeds()["validation"]
        with torch.no_grad():
            predictions = model(validation.inputs)
        return torch.cosine_similarity(predictions, validation.targets, dim=1).mean().item()

    inputs, targets = data(rows=40)
    batch = Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.ones(40))
    opposite = row_loss(-3 * batch.targets, batch, rows=40, cosine=1.0)
    plain = row_loss(-3 * batch.targets, batch, rows=40, cosine=0.0)
    assert (opposite - plain).item() == pytest.approx(2.0, rel=1e-5)
    assert similarity(cosine=1.0) > similarity() - 0.01


def test_the_contrastive_loss_is_least_for_the_targets_themselves():
    inputs, targets = data(rows=40)
    batch = Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.ones(40))
    setup = {"noise": None, "workers": Workers(rank=0, size=1, sum=lambda values: values)}
    right = soft_clip(batch.targets, batch, **setup)
    assert torch.allclose(right, soft_clip(7 * batch.targets, batch, **setup))
    for seed in range(5):
        shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(targets))
        assert soft_clip(shuffled, batch, **setup) > right + 1.0
    wanted = torch.softmax(
        nn.functional.normalize(batch.targets) @ nn.functional.normalize(batch.targets).T / 0.125,
        dim=1,
    )
    entropy = -(wanted * wanted.log()).sum(dim=1).mean()
    assert torch.allclose(right, entropy, rtol=1e-4)  # symmetric, so both halves are the entropy


def chunked(inputs, targets, *, sizes, log=None):
    starts = np.cumsum([0, *sizes])

    def read(chunk):
        rows = slice(starts[chunk], starts[chunk + 1])
        if log is not None:
            log.append(chunk)
        return Batch(
            torch.from_numpy(inputs[rows]),
            torch.from_numpy(targets[rows]),
            torch.ones(sizes[chunk]),
        )

    return read


SIZES = (40, 25, 60, 35, 40)


def test_streamed_rows_come_once_each_and_as_they_are():
    inputs, targets = data()
    log = []
    feed = streamed(
        chunked(inputs, targets, sizes=SIZES, log=log),
        sizes=SIZES,
        row_bytes=104,
        memory=2 * 60 * 104,
    )
    assert feed.together == 1
    for epoch in range(2):
        order = feed.order(torch.Generator().manual_seed(epoch))
        assert sorted(order.tolist()) == list(range(200))
        assert (torch.diff(order) == 1).float().mean() < 0.2
        log.clear()
        seen = [feed.read(rows) for rows in order.split(32)]
        assert sorted(log) == list(range(5))  # each chunk is read once
        np.testing.assert_array_equal(torch.cat([b.inputs for b in seen]), inputs[order])
        np.testing.assert_array_equal(torch.cat([b.targets for b in seen]), targets[order])
        assert len(feed._loaded) + len(feed._coming) <= 2
    anyhow = torch.randperm(200)[:50]
    np.testing.assert_array_equal(feed.read(anyhow).inputs, inputs[anyhow])


def test_streamed_training_resumes_and_explains_as_much():
    inputs, targets = data()

    def feed():
        return streamed(
            chunked(inputs, targets, sizes=SIZES), sizes=SIZES, row_bytes=104, memory=4 * 60 * 104
        )

    assert feed().together == 2
    whole, epochs = run(train=feed())
    state = next(fit(network(), **{**feeds(), "train": feed()}, settings=SETTINGS, seed=3)).state()
    resumed, _ = run(network(seed=5), train=feed(), state=state)
    assert same_weights(whole, resumed)
    _, in_memory = run(train=resident(inputs, targets=targets))
    assert epochs[-1].best_loss == pytest.approx(in_memory[-1].best_loss, rel=0.1)


def test_a_chunk_of_the_wrong_size_is_named():
    inputs, targets = data()
    feed = streamed(
        chunked(inputs, targets, sizes=SIZES), sizes=(41, *SIZES[1:]), row_bytes=104, memory=1
    )
    with pytest.raises(ValueError, match="chunk 0 should hold 41 rows, found 40"):
        feed.read(torch.arange(5))


def test_rows_weigh_by_their_count():
    inputs, targets = data(rows=60)
    count = np.tile([1, 3], 30)
    repeated = np.repeat(np.arange(60), count)
    one_batch = Training(epochs=20, batch_size=1000, lr=1e-2, patience=20)
    plain = network(dropout=0.0)
    run(plain, train=resident(inputs[repeated], targets=targets[repeated]), settings=one_batch)
    weighted = network(dropout=0.0)
    feed = resident(inputs, targets=targets, count=count)
    run(weighted, train=feed, settings=one_batch)
    for a, b in zip(plain.parameters(), weighted.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2)


def test_a_loss_that_is_not_finite_says_what_to_change():
    model = network()
    with torch.no_grad():
        model.trunk[-1].bias[0] = float("nan")
    with pytest.raises(InputError, match=r"loss of epoch 1 is not finite .* lower training.lr"):
        run(model)


def test_bad_data_is_named():
    inputs, targets = data(rows=5)
    with pytest.raises(ValueError, match="5 rows of betas and 4 of targets"):
        resident(inputs, targets=targets[:4])
    inputs[0, 0] = np.nan
    with pytest.raises(ValueError, match="betas hold NaN"):
        resident(inputs, targets=targets)
    with pytest.raises(ValueError, match="rank should be 0 to 1, found 2"):
        run(rank=2, world_size=2)


def test_read_only_memory_is_shared():
    inputs, targets = data()
    inputs.flags.writeable = False
    feed = resident(inputs, targets=targets)
    assert feed.inputs.data_ptr() == inputs.ctypes.data
