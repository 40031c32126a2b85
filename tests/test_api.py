"""The Python API: what a notebook does, on known answers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import zarr
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import raybrain
from raybrain import config, outputs, seal, store
from raybrain.config import InputError
from raybrain.evaluation import MEAN_IMAGE, RANDOM_TRAINING, SHUFFLED, SYSTEM, score_rows
from raybrain.evaluation.evaluating import floor_rows
from raybrain.evaluation.protocols import LITE0_V1
from raybrain.seal import Seal

pytestmark = pytest.mark.filterwarnings("ignore:of [0-9]+ targets:UserWarning")


def test_importing_the_package_imports_nothing_else_and_every_name_is_there():
    code = (
        "import sys, raybrain; "
        "heavy = {'numpy', 'torch', 'ray', 'pydantic', 'xarray', 'sklearn', 'zarr'};"
        "loaded = heavy & set(sys.modules);"
        "assert not loaded, loaded;"
        "missing = [n for n in raybrain.__all__ if n not in dir(raybrain)];"
        "assert not missing, missing"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in raybrain.__all__:
        assert getattr(raybrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'reconstruct'"):
        raybrain.reconstruct  # noqa: B018 - the access is what is tested


def test_an_experiment_is_changed_by_addresses_as_on_the_command_line():
    demo = raybrain.Experiment.load(raybrain.DEMO)
    changed = demo.with_("training.lr=1e-4", {"seed": 3, "decode.latents.rois": ["V1"]})
    assert (changed.training.lr, changed.seed) == (1e-4, 3)
    assert changed.decode.latents.rois == ("V1",)
    assert demo.with_("decode.latents.decoder.kind=residual_mlp") == demo.with_(
        {"decode.latents.decoder.kind": "residual_mlp"}
    )
    assert demo.with_("subject=01").subject == "01"
    assert demo.with_() == demo
    for change, sentence in (
        ("trainin.lr=1", "with_: 'trainin' is not a setting; did you mean 'training'"),
        ({"training.lr": -1}, "with_: 'training.lr': input should be greater than 0"),
        ({"seed.low": 1}, "with_: 'seed.low' is not a setting; 'seed' is one"),
        ("training.lr", "is not an assignment"),
    ):
        with pytest.raises(InputError, match=sentence):
            demo.with_(change)


# ---------------------------------------------------------------------------------------- decoder


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize("kind", ["ridge", "kernel_ridge"])
def test_scikit_learn_accepts_the_decoder(kind):
    rounding = "float32 sums over another number of rows round otherwise, by 1e-7"
    checks = check_estimator(
        raybrain.Decoder(kind),
        on_fail=None,
        expected_failed_checks={"check_methods_subset_invariance": rounding},
    )
    assert len(checks) > 40
    assert not [one for one in checks if one["status"] == "failed"]
    betas, targets = linear(40, noise=1.0)
    decoder = raybrain.Decoder(kind).fit(betas, targets)
    single = np.concatenate([decoder.predict(betas[k : k + 1]) for k in range(40)])
    np.testing.assert_allclose(decoder.predict(betas), single, atol=1e-5)


def linear(trials: int, *, noise: float, seed: int = 0, voxels: int = 20, dimensions: int = 5):
    rng = np.random.default_rng(seed)
    betas = rng.normal(size=(trials, voxels))
    weights = rng.normal(size=(voxels, dimensions))
    return betas, betas @ weights + noise * rng.normal(size=(trials, dimensions))


def test_ridge_is_the_closed_form_at_its_penalty():
    betas, targets = linear(80, noise=1.0)
    decoder = raybrain.Decoder(settings={"alphas": [0.3]}).fit(betas, targets)
    standard = (betas - betas.mean(axis=0)) / betas.std(axis=0)
    eigenvalues = np.linalg.eigvalsh(standard @ standard.T)
    mean = eigenvalues.sum() / np.linalg.matrix_rank(standard)
    known = SklearnRidge(alpha=0.3 * mean).fit(standard, targets)
    np.testing.assert_allclose(decoder.predict(betas), known.predict(standard), atol=1e-3)


def test_pipelines_and_grouped_folds_take_it():
    betas, targets = linear(120, noise=0.3)
    images = np.repeat(np.arange(40), 3)
    targets = targets[images * 3]
    betas = betas[images * 3] + 0.1 * np.random.default_rng(1).normal(size=betas.shape)
    scores = cross_val_score(
        make_pipeline(StandardScaler(), raybrain.Decoder()),
        betas,
        targets,
        groups=images,
        cv=GroupKFold(4),
    )
    assert scores.min() > 0.5
    alone = cross_val_score(
        raybrain.Decoder(),
        betas,
        targets,
        groups=images,
        cv=GroupKFold(4),
        params={"image_id": images, "session": np.tile([1, 2], 60)},
    )
    assert alone.min() > 0.5


def test_sessions_are_z_scored_by_themselves_and_repeats_are_averaged():
    betas, targets = linear(200, noise=0.1)
    session = np.repeat([7, 9], 100)
    drifted = betas * np.where(session == 7, 1.0, 5.0)[:, None] + (session == 9)[:, None] * 40.0
    told = raybrain.Decoder().fit(drifted, targets, session=session)
    untold = raybrain.Decoder().fit(drifted, targets)
    assert told.trained_.scaler.session.tolist() == [7, 9]
    assert np.mean((told.predict(drifted, session=session) - targets) ** 2) < np.mean(
        (untold.predict(drifted) - targets) ** 2
    )
    images = np.repeat([f"image{k:03d}" for k in range(100)], 2)
    pairs = targets[::2].repeat(2, axis=0)
    averaged = raybrain.Decoder().fit(betas, pairs, image_id=images)
    assert averaged.trained_.parameters["centre"].shape == (20,)
    drawn_from = averaged.predict_to_draw(betas, image_id=images)
    assert drawn_from.shape == (100, 5)


def test_a_network_is_fitted_in_process_and_read_back(tmp_path):
    betas, targets = linear(300, noise=0.1)
    decoder = raybrain.Decoder(
        "residual_mlp",
        settings={"width": 32, "depth": 1, "dropout": 0.0},
        training={"lr": 3e-3, "epochs": 40, "batch_size": 32},
    ).fit(betas, targets)
    assert decoder.score(betas, targets) > 0.8
    decoder.save(tmp_path / "decoder")
    again = raybrain.Decoder.from_pretrained(tmp_path / "decoder")
    assert again.kind == "residual_mlp"
    assert again.get_params()["settings"]["width"] == 32
    np.testing.assert_array_equal(again.predict(betas), decoder.predict(betas))


@pytest.mark.parametrize(
    ("decoder", "sentence"),
    [
        (raybrain.Decoder("rigde"), "there is no decoder 'rigde'; choose from ridge"),
        (raybrain.Decoder(settings={"alpha": 1}), "'decoder.alpha' is not a setting"),
        (
            raybrain.Decoder("residual_mlp", training={"lr": 0}),
            "Decoder: training: 'lr': input should be greater than 0",
        ),
    ],
)
def test_settings_of_a_decoder_are_those_of_an_experiment(decoder, sentence):
    betas, targets = linear(30, noise=0.1)
    with pytest.raises(InputError, match=sentence):
        decoder.fit(betas, targets)


# ------------------------------------------------------------------------------------- evaluation


def pictures(images: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (images, 24, 24, 3), dtype=np.uint8)


def test_evaluate_is_the_protocol_with_floors_and_tells_what_stands_beside():
    seen, training = pictures(6, seed=0), pictures(9, seed=1)
    drawn = (seen // 2 + pictures(6, seed=2) // 2).astype(np.uint8)
    table = raybrain.evaluate(seen, drawn, training=training, bootstrap=100, seed=4)
    assert table.rows == (MEAN_IMAGE, RANDOM_TRAINING, SHUFFLED, SYSTEM)
    rows = floor_rows(training, images=6, seed=4) | {SYSTEM: drawn[:, None]}
    known = score_rows(seen, rows, protocol=LITE0_V1, bootstrap_resamples=100, seed=4)
    assert table.scores == known.scores or np.allclose(
        table.to_pandas()["value"], known.to_pandas()["value"], equal_nan=True
    )
    frame = table.to_pandas()
    assert set(frame["row"]) == set(table.rows)
    page = table._repr_html_()
    assert page.startswith("<table>")
    assert page.count("<tr>") == len(table.rows) + 2
    pixcorr = table.score(row=SYSTEM, metric="pixcorr").value
    assert f"{pixcorr:.3f}".removeprefix("0") in page


def test_without_training_images_the_mean_is_of_what_was_seen_and_says_so():
    seen = pictures(5, seed=0)
    table = raybrain.evaluate(seen, pictures(5, seed=1), bootstrap=50)
    assert table.rows == (MEAN_IMAGE, SHUFFLED, SYSTEM)
    assert "for want of training images" in table.about[MEAN_IMAGE]


@pytest.mark.parametrize(
    ("seen", "drawn", "sentence"),
    [
        (pictures(4, seed=0), pictures(3, seed=0), r"row 'system', should be .* of 4 images"),
        (pictures(4, seed=0) / 255.0, pictures(4, seed=0), r"seen should be uint8 .*float64"),
        (pictures(1, seed=0), pictures(1, seed=0), "2 are needed; seen has 1"),
    ],
)
def test_arrays_that_do_not_fit_are_one_sentence(seen, drawn, sentence):
    with pytest.raises(InputError, match=sentence):
        raybrain.evaluate(seen, drawn, bootstrap=10)


def test_the_page_of_a_table_escapes_what_others_named():
    seen = pictures(4, seed=0)
    table = raybrain.evaluate(seen, {SYSTEM: seen, "<script>": seen}, bootstrap=10)
    assert "<script>" not in table._repr_html_()


# ------------------------------------------------------------------------------------------ stores


def rows_store(path, *, names=("system", "ceiling")) -> str:
    samples = {"system": 3}
    shapes = {name: ((samples.get(name, 1), 8, 8, 3), "uint8") for name in names}
    ids = ["00004", "00009"]
    store.create_rows(str(path), shapes, image_ids=ids, rows_per_block=2, attributes={"seed": 1})
    for number, (name, (shape, _)) in enumerate(shapes.items()):
        values = np.full((2, *shape), number, np.uint8)
        store.write_block(str(path), name, values, block=store.Block(0, 2))
    return str(path)


def test_reconstructions_open_with_their_images_as_labels(tmp_path):
    path = rows_store(tmp_path / "r.zarr")
    with pytest.raises(InputError, match="is not finished"):
        raybrain.open_store(path)
    seal.begin(path, wanted=Seal("reconstruct", {}), on_change="refuse")
    seal.finish(path, seal=Seal("reconstruct", {}))
    found = raybrain.open_store(path)
    assert found["system"].dims == ("image", "sample", "y", "x", "rgb")
    assert found["ceiling"].dims == ("image", "ceiling_sample", "y", "x", "rgb")
    assert found.sel(image="00009")["ceiling"].to_numpy().max() == 1
    assert found.attrs["seed"] == 1
    with pytest.raises(InputError, match="there is no store at"):
        raybrain.open_store(tmp_path / "absent.zarr")


def test_rows_that_were_made_before_arrays_named_their_axes_still_open(tmp_path):
    path = rows_store(tmp_path / "old.zarr")
    for name in ("system", "ceiling"):
        file = tmp_path / "old.zarr" / name / "zarr.json"
        tree = json.loads(file.read_text())
        del tree["dimension_names"]
        file.write_text(json.dumps(tree))
    seal.begin(path, wanted=Seal("reconstruct", {}), on_change="refuse")
    seal.finish(path, seal=Seal("reconstruct", {}))
    assert raybrain.open_store(path)["system"].sel(image="00004").shape == (3, 8, 8, 3)


def recording(betas: np.ndarray):
    import pandas as pd

    from raybrain.datasets import Recording, Voxels

    trials, voxels = betas.shape
    names = [f"i{number}" for number in range(trials)]
    return Recording(
        dataset="made",
        subject="s1",
        trials=pd.DataFrame(
            {
                "image_id": names,
                "session": np.repeat([1, 2], trials // 2),
                "run": 0,
                "repeat": 0,
                "split": ["test", *["train"] * (trials - 1)],
            }
        ),
        voxels=Voxels(
            index=np.arange(voxels) * 2,
            xyz=np.arange(3 * voxels).reshape(voxels, 3).astype(np.int32),
            noise_ceiling=np.linspace(0, 1, voxels, dtype=np.float32),
        ),
        rois={"V1": np.arange(voxels) < 2, "all": np.ones(voxels, bool)},
        images=pd.DataFrame(
            {"image_id": names, "captions": [(f"a {n}",) for n in names], "group": names}
        ),
        read_session=lambda session: betas,
        read_images=lambda ids: [],
        scale=1 / 300,
        dtype="int16",
    )


@pytest.fixture
def subject(tmp_path):
    betas = np.arange(24, dtype=np.int16).reshape(6, 4) - 7
    path = str(tmp_path / "s1.zarr")
    store.create_store(path, recording(betas), side=8)
    for block in store.missing_blocks(path, "betas"):
        store.write_block(path, "betas", betas[block.start : block.stop], block=block)
    pixels = np.arange(6 * 8 * 8 * 3, dtype=np.int64).reshape(6, 8, 8, 3).astype(np.uint8)
    store.write_block(path, "image/pixels", pixels, block=store.Block(0, 6))
    seal.begin(path, wanted=Seal("ingest", {}), on_change="refuse")
    seal.finish(path, seal=Seal("ingest", {}))
    return path, betas, pixels


def test_a_subject_opens_with_labels_units_and_scaled_betas(subject):
    path, betas, pixels = subject
    found = raybrain.open_store(path)
    np.testing.assert_allclose(found["betas"], betas / 300, rtol=1e-6)
    assert found["betas"].dims == ("trial", "voxel")
    assert found["betas"].attrs["units"] == "percent"
    assert found["betas"].dtype == np.float32
    assert found["split"].to_numpy().tolist() == ["test", *["train"] * 5]
    chosen = found["betas"].isel(voxel=found["in_roi"].sel(roi="V1").to_numpy())
    assert chosen.shape == (6, 2)
    np.testing.assert_array_equal(found["pixels"].sel(image="i3"), pixels[3])
    assert found["caption"].sel(image="i3") == "a i3"
    assert found["voxel_x"].to_numpy().tolist() == [0, 3, 6, 9]
    assert found["voxel_index"].to_numpy().tolist() == [0, 2, 4, 6]


@pytest.mark.filterwarnings("ignore:.*consolidated:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*seal.json")
def test_plain_xarray_reads_scaled_betas_with_names_and_units(subject):
    import xarray

    path, betas, _ = subject
    found = xarray.open_zarr(path)["betas"]
    np.testing.assert_allclose(found, betas / 300, rtol=1e-6)
    assert found.dims == ("trial", "voxel")
    assert found.attrs["units"] == "percent"
    assert xarray.open_zarr(path, group="image")["pixels"].dims == ("image", "y", "x", "rgb")
    labels = xarray.open_zarr(path, group="trial")
    assert labels["image_id"].to_numpy().tolist() == [f"i{number}" for number in range(6)]


def test_stores_that_call_the_scale_by_its_old_name_still_read(subject):
    path, betas, _ = subject
    array = zarr.open_group(path, mode="r+")["betas"]
    array.attrs.put({"scale": 1 / 300})
    every = np.ones(4, bool)
    np.testing.assert_allclose(
        store.open_store(path, splits="all").betas(voxels=every), betas / 300, rtol=1e-6
    )
    np.testing.assert_allclose(raybrain.open_store(path)["betas"], betas / 300, rtol=1e-6)


# --------------------------------------------------------------------------------------- generator


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tests.diffusion.generators import write_tiny_generator

    folder = tmp_path_factory.mktemp("generator")
    write_tiny_generator(folder)
    return raybrain.Generator.from_pretrained(folder)


def test_a_generator_draws_as_the_pipeline_does_whatever_is_given(tiny):
    from raybrain import diffusion

    seen = pictures(3, seed=0)
    targets = tiny.encode(seen, captions=["a dog", "a tree", "a cup"])
    assert targets["latents"].shape[1:] == tiny.shapes.latents
    how = {"steps": 4, "strength": 0.5, "samples": 2, "images_per_unit": 2}
    drawn = tiny.reconstruct(latents=targets["latents"], image_ids=["a", "b", "c"], seed=3, **how)
    assert drawn.shape == (3, 2, tiny.shapes.pixels, tiny.shapes.pixels, 3)
    known = diffusion.draw(
        diffusion.load_generator(tiny.settings),
        latents=targets["latents"][[2, 2]],
        prompt_embeds=None,
        image_ids=["c", "c"],
        samples=[0, 1],
        seed=3,
        settings=config.Reconstruct(mode="z", **how),
    )
    np.testing.assert_array_equal(drawn[2], known)
    both = tiny.reconstruct(**{k: targets[k] for k in ("latents", "prompt_embeds")}, **how)
    assert not np.array_equal(both[:, 0], drawn[:, 0])


def test_a_generator_is_guided_by_the_layers_that_it_was_loaded_with():
    from raybrain import diffusion

    pocket = raybrain.Generator.from_pretrained(layers=(11, 15), grid=2)
    seen = pictures(5, seed=0)
    targets = pocket.encode(seen)
    assert targets["image_features"].shape == (5, 4 * (112 + 192))
    assert pocket.shapes.image_features == (4 * (112 + 192),)
    how = {"steps": 4, "strength": 0.3, "samples": 1, "gradient": {"repeats": 2}}
    given = {name: targets[name][:2] for name in ("latents", "image_embeds")}
    layers = {"image_features": targets["image_features"][3:]}
    training = targets["image_features"]
    drawn = pocket.reconstruct(**given, **layers, training_features=training, **how)
    known = diffusion.draw(
        diffusion.load_generator(pocket.settings),
        **given,
        prompt_embeds=None,
        image_features=diffusion.LayerTargets(
            training[3:], spread=diffusion.Spread.of([training]), features=pocket.features
        ),
        image_ids=["0", "1"],
        samples=[0, 0],
        seed=0,
        settings=config.Reconstruct.model_validate({"mode": "z+e", **how}),
    )
    np.testing.assert_array_equal(drawn[:, 0], known)
    assert not np.array_equal(pocket.reconstruct(**given, **how), drawn)
    with pytest.raises(InputError, match="the true ones of two or more as training_features"):
        pocket.reconstruct(**given, **layers, **how)
    with pytest.raises(InputError, match="both should be of the same layers"):
        pocket.reconstruct(**given, **layers, training_features=training[:, :5], **how)
    with pytest.raises(InputError, match="each image needs one of each"):
        pocket.reconstruct(**given, image_features=training, training_features=training, **how)


def test_what_a_generator_cannot_draw_from_is_one_sentence(tiny):
    latents = np.zeros((2, *tiny.shapes.latents), np.float32)
    for given, sentence in (
        ({}, "there is nothing to draw from"),
        ({"latents": latents, "image_ids": ["a"]}, "2 latents, 1 image_ids"),
        ({"latents": latents, "steps": 0}, "reconstruct: 'steps'"),
        ({"latents": latents[:, :2]}, "the latents have shape"),
    ):
        with pytest.raises(InputError, match=sentence):
            tiny.reconstruct(**given)
    with pytest.raises(InputError, match="layers that the generator was not loaded with"):
        tiny.reconstruct(latents=latents, image_features=np.zeros((2, 5)))
    with pytest.raises(InputError, match="Generator: 'dtyp' is not a setting; did you mean"):
        raybrain.Generator.from_pretrained("pocket-diffusion", dtyp="float32")


# ------------------------------------------------------------------------------------------- runs


def test_a_run_gives_its_table_and_stores(finished_here):
    results = raybrain.Results(finished_here, outputs.report(finished_here).folder)
    assert SYSTEM in results.table.rows
    assert results.open("predictions")["latents"].sizes["image"] == 10
    truth = results.open("store")
    assert truth.sizes["trial"] == 144
    with pytest.raises(InputError, match="'betas' is no store; choose from store, features"):
        results.open("betas")
