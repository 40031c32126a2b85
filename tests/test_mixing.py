"""Mixed betas and their contrastive loss, and the network that is trained with them."""

import numpy as np
import pytest
import torch

from raybrain import config
from raybrain.decoders.build import build_network
from raybrain.decoders.residual_mlp import Heads, SharedMLP
from raybrain.training import Batch, Contrast, contrast_of, fit
from raybrain.training.mixing import Mixture, bimixco, draw_mixture, mixed
from tests.test_training import SETTINGS, assert_alike, feeds, run, several

SECTION = config.MindEye2(width=32, depth=1, dropout=0.1, projection=16, contrastive=0.2)


def network(section=SECTION):
    return build_network(section, voxels=20, outputs=6, wiring={}, seed=0)


def test_unmixed_rows_have_the_loss_of_clip():
    torch.manual_seed(0)
    one, other = torch.randn(7, 5), torch.randn(7, 5)
    unmixed = Mixture(share=torch.ones(7), partner=torch.arange(7).roll(1))
    similarity = torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=2) / 0.3
    label = torch.arange(7)
    clip = torch.nn.functional.cross_entropy(similarity, label)
    clip = (clip + torch.nn.functional.cross_entropy(similarity.T, label)) / 2
    assert torch.allclose(bimixco(one, other, unmixed, temperature=0.3), clip)


def test_a_mixed_row_should_find_both_of_its_targets():
    targets = torch.eye(4)
    mixture = Mixture(share=torch.tensor([0.7, 1.0, 1.0, 1.0]), partner=torch.tensor([2, 1, 0, 3]))
    both = targets.clone()
    both[0] = 0.7 * targets[0] + 0.3 * targets[2]
    right = bimixco(both, targets, mixture, temperature=0.5)
    assert right < bimixco(targets, targets, mixture, temperature=0.5)
    # By hand: the first row's cross-entropy across, written out.
    found = torch.nn.functional.normalize(both, dim=1) / 0.5
    wanted = torch.tensor([[0.7, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    across = -(wanted * torch.log_softmax(found, dim=1)).sum(1).mean()
    down = -(wanted.T * torch.log_softmax(found.T, dim=1)).sum(1).mean()
    assert torch.allclose(right, (across + down) / 2)


def test_betas_and_targets_are_mixed_alike_and_labels_are_not():
    batch = Batch(torch.arange(12.0).reshape(4, 3), torch.arange(8.0).reshape(4, 2), torch.ones(4))
    mixture = Mixture(share=torch.tensor([1.0, 0.25, 1.0, 1.0]), partner=torch.tensor([0, 3, 2, 1]))
    found = mixed(batch, mixture, fixed=1)
    assert found.inputs[1].tolist() == [3.0, 0.25 * 4 + 0.75 * 10, 0.25 * 5 + 0.75 * 11]
    assert found.targets[1].tolist() == [0.25 * 2 + 0.75 * 6, 0.25 * 3 + 0.75 * 7]
    np.testing.assert_array_equal(found.inputs[[0, 2, 3]], batch.inputs[[0, 2, 3]])


def test_partners_are_of_the_same_subject_and_half_of_the_rows_are_mixed():
    groups = torch.tensor([0, 1] * 500)
    mixture = draw_mixture(1000, seed=3, groups=groups)
    assert torch.equal(groups, groups[mixture.partner])
    assert sorted(mixture.partner.tolist()) == list(range(1000))
    assert (mixture.share < 1).float().mean() == pytest.approx(0.5, abs=0.05)
    again = draw_mixture(1000, seed=3, groups=groups)
    assert torch.equal(mixture.share, again.share)
    assert not torch.equal(mixture.share, draw_mixture(1000, seed=4).share)


def test_mixing_ends_after_its_share_of_the_epochs_and_then_the_temperature_follows_a_cosine():
    contrast = Contrast(weight=0.1, mixing=0.33, soft_temperature=(0.004, 0.0075))
    assert [contrast.mixes(e, epochs=12) for e in range(5)] == [True, True, True, False, False]
    temperatures = [contrast.temperature(e, epochs=12) for e in range(3, 12)]
    assert temperatures[0] == pytest.approx(0.004)
    assert temperatures[4] == pytest.approx((0.004 + 0.0075) / 2)
    assert temperatures[-1] == pytest.approx(0.0075)
    assert not Contrast(weight=0.0, mixing=1.0).mixes(0, epochs=3)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_mixed_batches_without_changing_the_result(workers):
    contrast = contrast_of(SECTION)
    _, alone = run(network(), contrast=contrast)
    assert_alike(alone, several(workers, model=network, contrast=contrast))


def test_the_projector_is_trained_and_used_in_training_alone():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = torch.randn(5, 20)
    assert isinstance(model.train()(rows), Heads)
    assert model.eval()(rows).shape == (5, 6)
    for _ in fit(model, **feeds(), settings=SETTINGS, seed=0, contrast=contrast_of(SECTION)):
        pass
    moved = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert any("project" in name for name in moved)
    assert any("regress" in name for name in moved)


def test_subjects_share_the_trunk_of_a_mindeye2():
    shared = SharedMLP(
        voxels=[4, 7], outputs=3, width=8, depth=1, dropout=0.0, projection=16
    ).eval()
    own = config.MindEye2(width=8, depth=1, dropout=0.0, projection=16)
    alone = build_network(own, voxels=4, outputs=3, wiring={}, seed=0)
    weights = shared.state_dict()
    trunk = {name: value for name, value in weights.items() if name.startswith("trunk.")}
    layer = {f"enter.{part}": weights[f"enter.0.{part}"] for part in ("weight", "bias")}
    alone.load_state_dict(layer | trunk)
    betas = torch.randn(5, 4)
    packed = torch.cat([torch.zeros(5, 1), betas, torch.zeros(5, 3)], dim=1)
    assert torch.allclose(shared(packed), alone.eval()(betas), atol=1e-6)
