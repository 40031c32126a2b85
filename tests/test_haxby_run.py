"""Real brain, from the files to scores: the slice of Haxby et al. 2001 that PyMVPA ships."""

from pathlib import Path

import numpy as np
import pytest

from raybrain import cli, config, outputs
from raybrain.config import Experiment
from raybrain.stages.drawing import Sources
from raybrain.stages.scoring_targets import category_scores

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "haxby2001"
FILE = ROOT / "jobs" / "experiments" / "haxby.yaml"

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.data,
    # Targets without noise of their own are fitted best with next to no penalty, which ridge tells.
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs Haxby's slice in {DATA}"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("haxby")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAXBY_ROOT", str(DATA))
        patch.setenv("RAYBRAIN_WORKSPACE", str(folder))
        yield folder


def accuracies(*changes):
    experiment = config.load(FILE, changes, schema=Experiment)
    return category_scores(
        Sources.of(experiment), resamples=experiment.evaluate.bootstrap, seed=experiment.seed
    )


def test_categories_of_held_out_runs_are_decoded_and_shown(workspace):
    # 256 samples take 100 s on two cores; one of each image goes the same way.
    few = "reconstruct.samples=1"
    assert cli.main(["run", str(FILE), few]) == 0
    found = accuracies(few)
    for score in found.values():
        assert (score.n, score.categories) == (32, 8)
        assert score.value >= 0.65  # a linear SVM reaches 64.6 %, a plain ridge 72 %
        assert abs(score.permuted - 1 / 8) < 0.01
    report = Path(outputs.report(config.load(FILE, (few,), schema=Experiment)).folder)
    assert "category prototypes" in (report / "scores.txt").read_text()
    page = (report / "gallery.html").read_text()
    for category in ("face", "house", "cat", "shoe"):
        assert category in page


def test_targets_dealt_out_anew_are_decoded_at_chance(workspace):
    hits = []
    for seed in range(4):
        changes = (
            f"name=control-{seed}",
            f"seed={seed}",
            "decode.latents.shuffled=true",
            "decode.prompt_embeds.shuffled=true",
        )
        for stage in ("ingest", "features", "train", "predict"):
            assert cli.main([stage, str(FILE), *changes]) == 0
        hits += [score.value for score in accuracies(*changes).values()]
    # Eight accuracies over 32 blocks each; decoders of one seed share their shuffled categories.
    assert abs(np.mean(hits) - 1 / 8) < 3 * np.sqrt((1 / 8) * (7 / 8) / (4 * 32))
