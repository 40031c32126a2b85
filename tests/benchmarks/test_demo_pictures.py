"""The demo's pictures beside the nearest training image, for simulated brains that share no voxel.

Four minutes a brain on two cores.
"""

from pathlib import Path

import pytest

from raybrain import cli, outputs
from raybrain.config import Experiment
from raybrain.evaluation import NEAREST_TRAINING, SYSTEM, load_table
from raybrain.shipped import DEMO
from raybrain.stages import scoring

pytestmark = [pytest.mark.ray, pytest.mark.benchmark, pytest.mark.filterwarnings("default")]

ASKED = ("two_way", "fifty_way", "distance")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_system_draws_more_than_the_nearest_training_image_shows(seed, tmp_path, scale):
    place = (f"workspace={tmp_path}", f"simulation.seed={seed}")
    assert cli.main(["run", str(DEMO), *place]) == 0
    report = Path(outputs.report(Experiment.load(DEMO, *place)).folder)
    print((report / scoring.TABLE).read_text())
    table = load_table(report / scoring.SCORES)
    gains = {
        metric: table.difference(metric=metric, better=SYSTEM, than=NEAREST_TRAINING)
        for metric in ASKED
    }
    for metric, gain in gains.items():
        print(f"seed {seed}, {metric}: {gain.value:+.3f}, {gain.low:+.3f} to {gain.high:+.3f}")
    failed = [metric for metric, gain in gains.items() if gain.low <= 0]
    scale.claim(not failed, f"brain {seed}: better than the nearest training image on all of it")
