import pytest

from raybrain.evaluation import PROTOCOLS, published_for
from raybrain.evaluation.published import METRICS


def test_published_scores_cover_the_protocol():
    assert set(METRICS) == {metric.name for metric in PROTOCOLS["mindeye2-v1"].metrics}
    for one in published_for(dataset="nsd", protocol="mindeye2-v1", images=1000):
        assert set(one.scores) == set(METRICS)
        assert all(0 < value < 1 for value in one.scores.values())


@pytest.mark.parametrize(
    ("dataset", "protocol", "images"),
    [
        ("nsd", "mindeye2-v1", 982),  # Trap: two test sets of NSD are in circulation
        ("simulated", "mindeye2-v1", 1000),
        ("nsd", "lite0-v1", 1000),
    ],
)
def test_nothing_published_stands_beside_scores_of_another_kind(dataset, protocol, images):
    assert published_for(dataset=dataset, protocol=protocol, images=images) == ()
