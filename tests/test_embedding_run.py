"""Image embeddings through every stage, with a network, a prior and a search over drawing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

from raybrain import cli, outputs, store
from raybrain.evaluation import (
    E_ONLY,
    EMBEDDING_RERANKED,
    RERANKED,
    SYSTEM,
    Z_ONLY,
    load_table,
)
from raybrain.stages import drawing, scoring
from tests.small_run import SIMULATED, load_experiment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("default")]
PRIOR = {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "sampling_steps": 4,
    "training": {"epochs": 2, "batch_size": 16},
}


@pytest.fixture(scope="module")
def embedding_file(tmp_path_factory) -> Path:
    from diffusers import UNet2DConditionModel

    from tests.diffusion.generators import (
        write_adapter,
        write_image_encoder,
        write_tiny_generator,
    )

    folder = tmp_path_factory.mktemp("embedding")
    write_tiny_generator(folder / "generator")
    write_image_encoder(folder / "image_encoder")
    unet = UNet2DConditionModel.from_pretrained(folder / "generator" / "unet")
    write_adapter(folder / "adapter.safetensors", unet=unet, plus=False)
    tree = {
        **SIMULATED,
        "name": "embedding",
        "workspace": str(folder / "workspace"),
        "generator": {
            "checkpoint": str(folder / "generator"),
            "image_adapter": str(folder / "adapter.safetensors"),
        },
        "decode": {
            "latents": {"rois": ["early"]},
            "image_embeds": {
                "rois": ["early", "ventral"],
                "decoder": {"kind": "mindeye2", "width": 16, "depth": 1, "projection": 8},
                "prior": PRIOR,
            },
            "image_features": {"rois": ["early", "ventral"]},
        },
        "features": {"layers": [0, 1], "grid": 2},
        "training": {"epochs": 3, "batch_size": 16},
        "reconstruct": {
            "mode": "z+e",
            "steps": 4,
            "samples": 2,
            "strength": 0.5,
            "guidance": 2.0,
            "gradient": {"repeats": 1, "last": 1},
            "references": ["ceiling", "z", "e"],
        },
        "evaluate": {"bootstrap": 200, "rerank": ["encoding", "embedding"]},
    }
    file = folder / "embedding.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.fixture(scope="module")
def done(embedding_file):
    assert cli.main(["run", str(embedding_file)]) == 0
    return load_experiment(embedding_file)


def test_every_row_is_drawn_and_scored(done):
    report = Path(outputs.report(done).folder)
    table = load_table(report / scoring.SCORES)
    assert {Z_ONLY, E_ONLY, SYSTEM, RERANKED, EMBEDDING_RERANKED} <= set(table.rows)
    for row in (RERANKED, EMBEDDING_RERANKED):
        chosen, every = table.cells[row, "pixcorr"], table.cells[SYSTEM, "pixcorr"]
        assert np.isclose(chosen, every, atol=1e-6).any(axis=0).all()
    assert (report / scoring.RETRIEVED).stat().st_size > 1000
    assert "retrieval by image_embeds among 10" in (report / scoring.TABLE).read_text()
    assert "image_embeds" in json.loads((report / "decoders.json").read_text())
    assert any("the prior of image_embeds" in title for title in scoring._curves(done))


def test_rows_of_their_own_mode_are_drawn_from_it(done):
    """What z only draws does not change with the embedding, nor e only with the latents."""
    from raybrain import diffusion

    folder = outputs.reconstructions(done).folder
    predictions = outputs.predictions(done).folder
    ids = store.row_ids(folder)
    generator = diffusion.load_generator(done.generator)
    for row, target in ((drawing.Z_ONLY, "latents"), (drawing.E_ONLY, "image_embeds")):
        given = {"latents": None, "prompt_embeds": None, "image_embeds": None}
        given[target] = store.read_rows(predictions, target, image_ids=ids[:1])
        wanted = diffusion.draw(
            generator,
            **given,
            image_ids=ids[:1],
            samples=[0],
            seed=done.seed,
            settings=done.reconstruct.model_copy(update={"mode": row}),
        )
        found = store.read_rows(folder, row, image_ids=ids[:1])[0, 0]
        assert np.abs(found.astype(int) - wanted[0]).max() <= 1


def test_decoded_layers_guide_the_system_and_true_ones_the_ceiling(done):
    from raybrain import diffusion

    folder = outputs.reconstructions(done).folder
    features = outputs.features(done).folder
    ids = store.row_ids(folder)
    generator = diffusion.load_generator(done.generator)
    training = drawing.training_images(outputs.subject_store(done).folder)
    true = store.read_rows(features, "image_features", image_ids=training)
    spread = diffusion.Spread(true.mean(axis=0), np.where(true.std(0) > 0, true.std(0), np.inf))
    for row, source in (
        (drawing.SYSTEM, outputs.predictions(done).folder),
        (drawing.CEILING, features),
    ):
        given = {
            target: store.read_rows(source, target, image_ids=ids[:1])
            for target in ("latents", "image_embeds")
        }
        layers = diffusion.LayerTargets(
            store.read_rows(source, "image_features", image_ids=ids[:1]),
            spread=spread,
            features=done.features,
        )
        wanted, without = (
            diffusion.draw(
                generator,
                **given,
                prompt_embeds=None,
                image_features=guided_by,
                image_ids=ids[:1],
                samples=[0],
                seed=done.seed,
                settings=done.reconstruct,
            )[0].astype(int)
            for guided_by in (layers, None)
        )
        found = store.read_rows(folder, row, image_ids=ids[:1])[0, 0]
        assert np.abs(found - wanted).max() <= 1
        assert np.abs(without - wanted).max() > 1
    decoded = json.loads((Path(outputs.report(done).folder) / "decoders.json").read_text())
    assert "image_features" in decoded


def test_the_prior_changes_what_is_drawn_from_and_not_what_is_scored(done, embedding_file):
    without = ("decode.image_embeds.prior=null", "name=priorless")
    assert cli.main(["predict", str(embedding_file), *without]) == 2  # not trained yet
    for stage in ("train", "predict"):
        assert cli.main([stage, str(embedding_file), *without]) == 0
    plain = outputs.predictions(load_experiment(embedding_file, *without)).folder
    drawn = outputs.predictions(done).folder
    for name, same in (("estimates/image_embeds", True), ("image_embeds", False)):
        one, other = store.read_rows(plain, name), store.read_rows(drawn, name)
        assert np.array_equal(one, other) == same


def test_test_trials_of_noise_leave_the_decoder_and_the_prior_as_they_are(
    done, embedding_file, tmp_path
):
    """Poison: what training could see of a test trial would show in its weights."""
    own = outputs.decoder(done, "image_embeds").folder
    kept = {f.relative_to(own): f.read_bytes() for f in sorted(Path(own).rglob("*.safetensors"))}
    assert {path.parts[0] for path in kept} == {"decoder", "prior", "reference"}
    group = zarr.open_group(outputs.subject_store(done).folder, mode="r+")
    test = np.flatnonzero(group["trial/split"][:] == "test")
    betas = group["betas"]
    assert isinstance(betas, zarr.Array)
    before = betas[:]
    noise = np.random.default_rng(0).integers(-3000, 3000, (len(test), before.shape[1]))
    poisoned = before.copy()
    poisoned[test] = noise.astype(before.dtype)
    betas[:] = poisoned
    try:
        assert cli.main(["train", str(embedding_file), "name=poisoned"]) == 0
    finally:
        betas[:] = before
    other = outputs.decoder(load_experiment(embedding_file, "name=poisoned"), "image_embeds").folder
    for path, content in kept.items():
        assert (Path(other) / path).read_bytes() == content, path


def test_drawing_is_searched_on_validation_images(done, embedding_file, capsys):
    search = (
        "tuning.candidates=3",
        "tuning.sampler=random",
        "tuning.pruner=none",
        "tuning.images=4",
        "tuning.top=1",
        "tuning.seeds=1",
        "tuning.space={reconstruct.strength: {low: 0.3, high: 0.9}, "
        "decode.image_embeds.prior.sampling_steps: {choices: [2, 4]}}",
        "tuning.objectives=[{metric: drawn/pixcorr, direction: maximize}]",
    )
    assert cli.main(["tune", str(embedding_file), *search]) == 0
    printed = capsys.readouterr().out
    assert "drawn/pixcorr" in printed
    best = yaml.safe_load((Path(outputs.run_folder(done)) / "best.yaml").read_text())
    assert 0.3 <= best["reconstruct"]["strength"] <= 0.9
    assert best["decode"]["image_embeds"]["prior"]["sampling_steps"] in (2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["tuning.space={reconstruct.strength: {low: 0.3, high: 0.9}}"], "pictures are scored by"),
        (
            [
                "tuning.space={reconstruct.strength: {low: 0.3, high: 0.9}, "
                "training.lr: {low: 0.1, high: 0.2}}"
            ],
            "search the decoders first",
        ),
        (
            [
                "tuning.space={reconstruct.strength: {low: 0.3, high: 0.9}}",
                "tuning.objectives=[{metric: drawn/pixcorr, direction: maximize}]",
            ],
            "tuning.pruner: none",
        ),
        (
            [
                "tuning.space={training.lr: {low: 0.1, high: 0.2}}",
                "tuning.objectives=[{metric: drawn/pixcorr, direction: maximize}]",
            ],
            "nothing in the space changes what is drawn",
        ),
        (["generator.image_adapter=null"], "features.layers needs an image encoder"),
        (
            [
                "generator.image_adapter=null",
                "decode.image_features=null",
                "features.layers=[]",
            ],
            "decode.image_embeds needs an image encoder",
        ),
        (["decode.image_embeds=null"], "reconstruct.mode=z+e needs decode.image_embeds"),
        (["decode.latents.prior={}"], "latents cannot have a prior"),
        (["decode.image_features.prior={}"], "image_features cannot have a prior"),
        (["features.layers=[]"], "set features.layers"),
        (
            ["reconstruct.gradient.embedding=0", "reconstruct.gradient.layers=0"],
            "are both 0, so nothing would guide",
        ),
        (["features.layers=[7]"], "features.layers has 7, but the image encoder"),
        (["features.grid=9"], "features.grid is 9, but layer 0"),
        (
            [
                *("decode.image_embeds=null", "reconstruct.mode=z", "reconstruct.references=[]"),
                "reconstruct.gradient=null",
            ],
            "evaluate.rerank has 'embedding'",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(embedding_file, changes, message, capsys):
    stage = "tune" if any("tuning" in change for change in changes) else "train"
    assert cli.main([stage, str(embedding_file), *changes]) == 2
    assert message in capsys.readouterr().err
