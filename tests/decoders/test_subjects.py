from dataclasses import replace

import numpy as np
import pytest
import torch

from raybrain import config
from raybrain.decoders import adapted_task, gradient_task, prepare, shared_task
from raybrain.decoders.residual_mlp import SharedMLP
from raybrain.training import fit, resident

SECTION = config.ResidualMLP(width=32, depth=1, dropout=0.1)
READ_OUT = np.random.default_rng(99).standard_normal((5, 5))


def brain(*, voxels, images, seed):
    """Return a task, test betas and test targets of a subject with its own encoding weights."""
    draw = np.random.default_rng(seed)
    hidden = draw.standard_normal((images + 150, 5))
    targets = np.tanh(2 * hidden @ READ_OUT).astype(np.float32)
    encode = draw.standard_normal((5, voxels))
    betas = (hidden @ encode + 0.5 * draw.standard_normal((len(hidden), voxels))).astype(np.float32)
    labels = {"session": np.ones(len(hidden), int), "image_id": np.arange(len(hidden))}

    def rows(first, last):
        return betas[first:last], {name: value[first:last] for name, value in labels.items()}

    train_betas, train_labels = rows(0, images)
    train = prepare(train_betas, **train_labels)
    held_out, held_out_labels = rows(images, images + 50)
    task = gradient_task(
        train,
        targets=targets[:images],
        validation=train.like(held_out, **held_out_labels),
        validation_targets=targets[images : images + 50],
        section=SECTION,
    )
    return task, rows(images + 50, images + 150), targets[images + 50 :]


def fitted(task, *, epochs=25):
    network = task.build(seed=0)
    settings = config.Training(epochs=epochs, batch_size=32, lr=3e-3, patience=epochs)
    for _ in fit(
        network,
        train=resident(task.betas, targets=task.targets, count=task.count),
        validation=resident(task.validation_betas, targets=task.validation_targets),
        settings=settings,
        seed=0,
    ):
        pass
    return task.finish(network)


def r2(decoder, test, truth):
    betas, labels = test
    error = ((decoder.predict(betas, **labels).estimates - truth) ** 2).mean(axis=0)
    return (1 - error / truth.var(axis=0)).mean()


def test_rows_go_through_the_layer_of_their_subject():
    torch.manual_seed(0)
    network = SharedMLP(voxels=[4, 7], outputs=3, width=8, depth=1, dropout=0.0).eval()
    rows = torch.zeros(3, 8)
    rows[:, 1:] = torch.randn(3, 7)
    rows[:, 0] = torch.tensor([1.0, 0.0, 1.0])
    expected = torch.stack(
        [
            network.trunk(network.enter[1](rows[0, 1:])),
            network.trunk(network.enter[0](rows[1, 1:5])),
            network.trunk(network.enter[1](rows[2, 1:])),
        ]
    )
    torch.testing.assert_close(network(rows), expected)
    network(rows[:1]).sum().backward()
    assert torch.all(network.enter[0].weight.grad == 0)


def test_each_subject_gets_an_ordinary_decoder_that_decodes():
    brains = {
        "subj01": brain(voxels=30, images=400, seed=1),
        "subj02": brain(voxels=45, images=300, seed=2),
    }
    task = shared_task({name: parts[0] for name, parts in brains.items()})
    assert task.betas.shape == (700, 46)
    assert np.mean(task.targets**2) == pytest.approx(1, rel=0.02)
    decoders = fitted(task)
    for name, (_, test, truth) in brains.items():
        assert decoders[name].section == SECTION
        assert r2(decoders[name], test, truth) > 0.6
    trunks = [
        {key: value for key, value in decoder.parameters.items() if key.startswith("trunk.")}
        for decoder in decoders.values()
    ]
    assert all(np.array_equal(trunks[0][key], trunks[1][key]) for key in trunks[0])


def test_with_little_data_a_trunk_of_another_subject_helps():
    many, _, _ = brain(voxels=30, images=1500, seed=3)
    few, test, truth = brain(voxels=40, images=60, seed=4)
    trunk = fitted(many)
    alone = r2(fitted(few), test, truth)
    adapted = r2(fitted(adapted_task(few, trunk=trunk)), test, truth)
    assert adapted > alone + 0.02


def test_different_sizes_are_refused():
    task, _, _ = brain(voxels=30, images=60, seed=5)
    other = config.ResidualMLP(width=64)
    with pytest.raises(
        ValueError, match="can share a 'residual_mlp' or 'mindeye2' of one size; b has"
    ):
        shared_task({"a": task, "b": replace(task, section=other)})
    with pytest.raises(ValueError, match="the trunk is"):
        adapted_task(replace(task, section=other), trunk=fitted(task, epochs=1))
