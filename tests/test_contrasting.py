"""What is told of decoders and of the paper's claims, from runs whose answers are known."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import yaml

from raybrain.config import Experiment, InputError
from raybrain.evaluation import SYSTEM, Scored, across_runs
from raybrain.stages import claims, contrasting
from raybrain.stages.contrasting import Finished
from raybrain.stages.decoded import decoded_grid, decoded_lines
from raybrain.sweeps import SweepRun, load_sweep
from tests.evaluation.made import made_table
from tests.small_run import SIMULATED

IMAGES = 40


def finished(kind, subject, *, gain, than_mean=0.2, text="cnn_text", noise=0.01):
    """Return a run whose decoders err so much less than ridge, on every image about equally."""
    rng = np.random.default_rng([len(kind), int(subject[-1])])
    ridge = 0.5 + 0.1 * rng.random(IMAGES)
    targets = {"latents": kind, "prompt_embeds": text}
    experiment = Experiment.model_validate(
        {
            **SIMULATED,
            "name": f"{kind}-{subject}",
            "subject": subject,
            "decode": {
                target: {"rois": ["V1"], "decoder": {"kind": one}}
                for target, one in targets.items()
            },
            "evaluate": {"bootstrap": 400},
            "folders": "by_seal",
        }
    )
    errors, numbers = {}, {}
    for target, one in targets.items():
        error = ridge - (0 if one == "ridge" else gain) + noise * rng.standard_normal(IMAGES)
        errors[f"{target}/error"] = error
        errors[f"{target}/error_of_mean"] = error + than_mean
        if one != "ridge":
            errors[f"{target}/error_of_ridge"] = ridge
        numbers[target] = {
            "mse": error.mean(), "mse_low": error.mean() - 0.02, "mse_high": error.mean() + 0.02,
            "mse_of_mean": error.mean() + than_mean, "two_way": 0.75,
        }  # fmt: skip
    table = made_table(images=IMAGES)
    for metric in ("pixcorr", "ssim", "two_way"):
        values = 0.3 + (gain if kind == "gcn" else 0) + noise * rng.standard_normal((1, IMAGES))
        table = dataclasses.replace(table, cells={**table.cells, (SYSTEM, metric): values})
    return Finished(
        SweepRun({"decoder": kind}, experiment),
        Scored(experiment.name, (kind,), "simulated", subject, table),
        numbers,
        errors,
    )


def verdicts(runs):
    lines = decoded_lines(runs)
    across = across_runs(
        [one.scored for one in runs], baselines={"simulated": ("ridge",)}, resamples=400
    )
    return {claim.text: claim for claim in claims.claims(runs, across=across, lines=lines)}


def all_runs(gain):
    return [
        run
        for subject in ("subj01", "subj02")
        for run in (
            finished("ridge", subject, gain=0, text="ridge"),
            finished("gcn", subject, gain=gain(subject)),
        )
    ]


@pytest.mark.parametrize(
    ("gain", "word"),
    [
        (lambda _: 0.1, "confirmed"),
        (lambda _: -0.1, "contradicted"),
        (lambda subject: 0.1 if subject == "subj01" else -0.1, "mixed"),
        (lambda subject: 0.1 if subject == "subj01" else 0.0, "not decided"),
    ],
)
def test_a_claim_is_confirmed_only_where_every_brain_confirms_it(gain, word):
    found = verdicts(all_runs(gain))
    for text in (
        "The CNN decodes text embeddings with less error than linear regression",
        "The graph network decodes image latents with less error than linear regression",
    ):
        assert found[text].word == word
        assert {one.brain for one in found[text].verdicts} == {
            "simulated subj01", "simulated subj02",
        }  # fmt: skip
    (images,) = [claim for text, claim in found.items() if "correlate more" in text]
    assert images.word == word


def test_what_no_run_shows_is_not_measured():
    found = verdicts(all_runs(lambda _: 0.1))
    text = "The VAE decodes image latents with less error than linear regression"
    assert found[text].word == "not measured"
    linear = finished("ridge", "subj01", gain=0, text="ridge")
    worse = [finished("gcn", "subj01", gain=0.1, than_mean=-0.2)]
    text = "Its networks decode more than the training mean of the image latents"
    assert verdicts([linear, *worse])[text].word == "contradicted"


def test_a_decoder_that_runs_share_has_one_line_and_subjects_have_their_mean():
    runs = all_runs(lambda _: 0.1)
    lines = decoded_lines([*runs, runs[1]])
    gcn = [line for line in lines if line.decoder == "gcn"]
    assert [line.subject for line in gcn] == ["subj01", "subj02", "mean of 2"]
    assert gcn[2].mse == pytest.approx((gcn[0].mse + gcn[1].mse) / 2)
    assert gcn[0].gain_on_ridge == pytest.approx(0.1, abs=0.01)
    assert gcn[0].gain_on_ridge_low < gcn[0].gain_on_ridge < gcn[0].gain_on_ridge_high
    assert gcn[0].p_on_ridge < 0.01
    ridge = next(line for line in lines if line.decoder == "ridge" and line.target == "latents")
    assert np.isnan(ridge.mse_of_ridge)
    text = decoded_grid(lines).to_text()
    assert text.count("mean of 2") == 4


def test_published_figures_stand_beside_those_of_the_same_dataset_only():
    runs = all_runs(lambda _: 0.1)
    across = across_runs(
        [one.scored for one in runs], baselines={"simulated": ("ridge",)}, resamples=400
    )
    simulated = claims.section(runs, across=across, lines=decoded_lines(runs))
    assert "a simulated brain" in simulated
    assert ".7283" in simulated
    assert "here" not in next(
        line for line in simulated.splitlines() if line.startswith("| target | decoder | NSD")
    )
    real = [
        dataclasses.replace(run, scored=dataclasses.replace(run.scored, dataset="nsd"))
        for run in runs
    ]
    section = claims.section(real, across=across, lines=decoded_lines(real))
    assert "a simulated brain" not in section
    head = next(line for line in section.splitlines() if line.startswith("| target | decoder |"))
    assert "NSD, here" in head
    assert "THINGS, here" not in head


def test_labels_stand_at_their_numbers_and_the_rest_behind():
    found = contrasting._positions(["1", "4 sessions", "all", "10"])
    assert found == {"1": 1.0, "4 sessions": 4.0, "10": 10.0, "all": 11.0}


def test_a_curve_of_a_score_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"compare\.curves names 'latents.mee'"):
        contrasting._value("latents.mee", finished("gcn", "subj01", gain=0))
    assert contrasting._value("latents.two_way", finished("gcn", "subj01", gain=0)) == 0.75


def test_every_file_of_a_comparison_is_written_and_says_the_same(tmp_path, monkeypatch):
    base = {**SIMULATED, "name": "base", "decode": {"latents": {"rois": ["V1"]}}}
    base |= {"reconstruct": {"mode": "z"}, "workspace": str(tmp_path / "workspace")}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    compare = {
        "published": "hou2023",
        "metrics": ["pixcorr", "two_way"],
        "curves": [{"x": "decoder", "metric": "latents.two_way"}],
    }
    tree = {
        "name": "trial",
        "experiment": "base.yaml",
        "axes": {"subject": ["subj01", "subj02"], "decoder": {"ridge": {}, "gcn": {}}},
        "compare": compare,
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    runs = load_sweep(str(tmp_path / "sweep.yaml"))
    monkeypatch.setattr(contrasting, "_pictures", lambda finished, count: [])
    contrasting._write(runs, all_runs(lambda _: 0.1), folder=tmp_path)
    gains = list(csv.DictReader((tmp_path / "differences.csv").read_text().splitlines()))
    assert {row["decoder"] for row in gains} == {"gcn"}
    assert {row["than"] for row in gains} == {"ridge"}
    assert {row["subject"] for row in gains} == {"subj01", "subj02", "mean of 2"}
    one = next(row for row in gains if row["metric"] == "two_way" and row["subject"] == "subj02")
    shown = f"{100 * float(one['value']):+.1f}"
    for name in ("comparison.txt", "comparison.md", "comparison.tex"):
        assert shown in (tmp_path / name).read_text()
    text = (tmp_path / "comparison.txt").read_text()
    for title in ("Scores under lite0-v1", "Gains on ridge", "Floors and ceiling", "Decoded tar"):
        assert title in text
    assert "SSIM ↑" not in text  # two metrics were asked for
    document = (tmp_path / "comparison.md").read_text()
    assert "## What the paper reports" in document
    assert "| The CNN decodes text embeddings with less error than linear regression |" in document
    page = (tmp_path / "comparison.html").read_text()
    content = json.loads(page.split('id="data">')[1].split("</script>")[0])
    labels = {metric["label"] for metric in content["metrics"]}
    lines = content["scores"] + content["gains"]
    assert len(lines) == 6 + 3
    assert all(set(line["values"]) == labels for line in lines)
    assert all(len(line["labels"]) == len(content["heads"]) for line in lines)
    assert (tmp_path / "curve_latents_two_way.png").stat().st_size > 1000
    assert "latents.two_way by decoder, mean of 2 subjects" in page
    # The same runs give the same bytes.
    again = tmp_path / "again"
    again.mkdir()
    contrasting._write(runs, all_runs(lambda _: 0.1), folder=again)
    for file in again.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name
