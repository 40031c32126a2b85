"""Packages add decoders, readers, targets, generators and metrics by entry points alone."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import raybrain
from raybrain import catalog, config, datasets, diffusion, outputs, plugins, store
from raybrain.config import Experiment, Ingest, InputError
from raybrain.decoders.build import build_network
from raybrain.evaluation import protocol_named
from raybrain.stages import encoding, scoring

EXAMPLE = Path(__file__).parent / "plugins" / "raybrain_example"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the example as a user would, but into a folder of its own."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, place / "source")  # setuptools builds beside what it packs
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--disable-pip-version-check"),
            *("--target", str(place / "site"), str(place / "source")),
        ],
        check=True,
    )
    return place / "site"


@pytest.fixture
def example(installed, monkeypatch) -> Path:
    """Make the example importable, metadata included, in this process."""
    monkeypatch.syspath_prepend(str(installed))
    importlib.invalidate_caches()
    plugins._found.cache_clear()
    yield installed
    plugins._found.cache_clear()
    for name in [name for name in sys.modules if name.startswith("raybrain_example")]:
        monkeypatch.delitem(sys.modules, name)


def tree_of(decoder: dict, **evaluate) -> dict:
    return {
        "name": "plugin",
        "dataset": "simulated",
        "subject": "subj01",
        "decode": {"latents": {"rois": ["early"], "decoder": decoder}},
        "reconstruct": {"mode": "z"},
        "evaluate": evaluate,
    }


def validated(decoder: dict, **evaluate) -> Experiment:
    return config.validate(tree_of(decoder, **evaluate), schema=Experiment, source="plugin.yaml")


def test_an_experiment_knows_the_decoder_its_settings_and_their_faults(example):
    found = validated({"kind": "low_rank", "rank": 3})
    assert found.decode.latents.decoder.rank == 3
    leaves = config.flatten(found)
    assert leaves["decode.latents.decoder.kind"] == "low_rank"
    assert leaves["decode.latents.decoder.rank"] == 3
    assert found.with_("decode.latents.decoder.rank=5").decode.latents.decoder.rank == 5
    again = found.with_("decode.latents.decoder.kind=ridge")
    assert isinstance(again.decode.latents.decoder, config.Ridge)
    for decoder, sentence in (
        ({"kind": "low_rank", "rank": 0}, "'decode.latents.decoder.rank': input should be greater"),
        ({"kind": "low_rank", "depth": 1}, "'decode.latents.decoder.depth' is not a setting"),
        ({"kind": "lowrank"}, "there is no decoder 'lowrank'; choose from ridge, kernel_ridge"),
        ({"kind": "lowrank"}, "mesh_gcn, low_rank"),
    ):
        with pytest.raises(InputError, match=sentence):
            validated(decoder)
    schema = json.dumps(Experiment.model_json_schema())
    assert '"const": "low_rank"' in schema
    assert '"const": "residual_mlp"' in schema


def test_the_decoder_is_sealed_with_the_version_of_its_package(example, tmp_path):
    found = validated({"kind": "low_rank"}).with_(
        {"simulation": {"objects": 48}, "workspace": str(tmp_path)}
    )
    made = outputs.decoder(found, "latents").seal
    assert made.inputs["the package of the decoder"] == "raybrain-example 0.1"
    assert made.settings["training.lr"] == found.training.lr


def test_the_decoder_works_in_a_notebook_and_is_read_back(example, tmp_path):
    rng = np.random.default_rng(0)
    betas = rng.normal(size=(300, 12)).astype(np.float32)
    targets = betas @ rng.normal(size=(12, 2)) @ rng.normal(size=(2, 20))
    decoder = raybrain.Decoder(
        "low_rank",
        settings={"rank": 2},
        training={"lr": 0.02, "batch_size": 16, "weight_decay": 0.0},
    ).fit(betas, targets)
    assert decoder.score(betas, targets) > 0.95
    network = decoder.trained_.network()
    assert [tuple(p.shape) for p in network.parameters()] == [(2, 12), (20, 2), (20,)]
    decoder.save(tmp_path / "saved")
    again = raybrain.Decoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(again.predict(betas), decoder.predict(betas))


def test_a_target_is_a_setting_like_the_others(example):
    tree = tree_of({"kind": "ridge"})
    tree["decode"]["mean_colour"] = {"rois": ["01", "ventral"]}
    found = config.validate(tree, schema=Experiment, source="plugin.yaml")
    assert [name for name, _ in outputs.targets(found)] == ["latents", "mean_colour"]
    leaves = config.flatten(found)
    assert leaves["decode.mean_colour.rois"] == ["01", "ventral"]
    assert leaves["decode.mean_colour.decoder.kind"] == "ridge"
    changed = found.with_("decode.mean_colour.decoder={kind: low_rank, rank: 2}")
    assert changed.decode.mean_colour.decoder.rank == 2
    # Words keep their spelling, as in every section.
    assert found.with_("decode.mean_colour.rois=[01, 1e5]").decode.mean_colour.rois == ("01", "1e5")
    assert "mean_colour" not in dict(outputs.targets(found.with_("decode.mean_colour=null")))
    for change, sentence in (
        ("decode.mean_color={rois: [V1]}", "no target 'mean_color'; did you mean 'mean_colour'"),
        ("decode.mean_colour.roi=[V1]", "'decode.mean_colour.roi' is not a setting"),
        ("decode.mean_colour.prior={}", "mean_colour cannot have a prior"),
    ):
        with pytest.raises(InputError, match=sentence):
            found.with_(change)
    schema = Experiment.model_json_schema()["$defs"]["Decodes"]
    assert "mean_colour" in schema["properties"]
    assert schema["additionalProperties"] is False


def test_the_features_are_sealed_with_the_package_of_the_target(example, tmp_path):
    plain = validated({"kind": "ridge"}).with_(
        {"simulation": {"objects": 48}, "workspace": str(tmp_path)}
    )
    more = plain.with_("decode.mean_colour.rois=[early]")
    assert outputs.features(more).seal.settings["features.mean_colour"] == "raybrain-example 0.1"
    assert "features.mean_colour" not in outputs.features(plain).seal.settings


def test_a_target_of_another_shape_than_it_says_is_refused(example, monkeypatch):
    target = encoding.other_target("mean_colour")
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    found = encoding._encoded("mean_colour", pixels=pixels, captions=[("a",), ("b",)])
    assert found.shape == (2, 3)
    for wrong in (np.zeros((2, 4)), np.full((2, 3), np.nan)):
        monkeypatch.setattr(target, "encode", lambda images, captions, wrong=wrong: wrong)
        with pytest.raises(InputError, match=r"gives an array of shape .* \(2, 3\) are expected"):
            encoding._encoded("mean_colour", pixels=pixels, captions=[("a",), ("b",)])
    monkeypatch.setattr(target, "SHAPE", (3, 0))
    with pytest.raises(InputError, match=r"'mean_colour' of raybrain-example 0\.1 has no SHAPE"):
        encoding.other_target("mean_colour")


def test_a_generator_is_drawn_with_by_its_name(example):
    settings = config.Generator(checkpoint="pale", device="cpu")
    found = diffusion.find_checkpoint(settings)
    plain = diffusion.find_checkpoint(config.Generator())
    assert found.settings("unet") == plain.settings("unet")
    assert found.settings("scheduler")["beta_end"] < plain.settings("scheduler")["beta_end"]
    digests = [diffusion.generator_digest(one) for one in (settings, config.Generator())]
    assert digests[0] != digests[1]
    generator = diffusion.load_generator(settings)
    assert generator.scheduler_config["beta_end"] == found.settings("scheduler")["beta_end"]


def test_a_generator_that_is_no_folder_is_told(example, monkeypatch):
    module = importlib.import_module("raybrain_example.generator")
    monkeypatch.setattr(module, "folder", lambda: "/nowhere")
    sentence = "'pale' of raybrain-example 0.1 gives '/nowhere', where the folder of a diffusers"
    with pytest.raises(InputError, match=sentence):
        diffusion.find_checkpoint(config.Generator(checkpoint="pale"))
    with pytest.raises(InputError, match=r"no generator at 'dark': .* no installed package offers"):
        diffusion.find_checkpoint(config.Generator(checkpoint="dark"))


def test_a_metric_stands_beside_those_of_the_protocol(example, tmp_path):
    protocol = protocol_named("lite0-v1+brightness")
    assert [m.name for m in protocol.metrics[:-1]] == [
        m.name for m in protocol_named("lite0-v1").metrics
    ]
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    drawn = (seen // 2).astype(np.uint8)
    table = raybrain.evaluate(seen, drawn, "lite0-v1+brightness", bootstrap=50)
    expected = (
        1 - abs(seen.mean(axis=(1, 2, 3)) - drawn.mean(axis=(1, 2, 3), dtype=np.float64)) / 255
    )
    found = table.per_image(row="system", metric="brightness")
    np.testing.assert_allclose(found, expected, atol=2e-3)  # after enlargement
    assert np.isfinite(table.score(row="shuffled brain", metric="brightness").value)
    table.save(tmp_path / "scores.npz")
    again = raybrain.load_table(tmp_path / "scores.npz")
    np.testing.assert_array_equal(
        again.per_image(row="system", metric="brightness"),
        table.per_image(row="system", metric="brightness"),
    )
    assert again.protocol.name == "lite0-v1+brightness"
    assert "bright" in table.to_text()
    assert validated({"kind": "ridge"}, metrics=["brightness"]).evaluate.metrics == ("brightness",)
    with pytest.raises(InputError, match="there is no metric 'gloss'; choose from brightness"):
        validated({"kind": "ridge"}, metrics=["gloss"])


def test_without_the_package_its_names_are_refused_with_what_there_is():
    with pytest.raises(InputError, match="there is no decoder 'low_rank'; choose from ridge"):
        validated({"kind": "low_rank"})
    with pytest.raises(InputError, match="there is no metric 'brightness'; no package adds any"):
        validated({"kind": "ridge"}, metrics=["brightness"])
    with pytest.raises(InputError, match="there is no target 'mean_colour'; choose from latents"):
        validated({"kind": "ridge"}).with_("decode.mean_colour.rois=[V1]")
    with pytest.raises(InputError, match="there is no metric 'brightness'; no package adds any"):
        protocol_named("lite0-v1+brightness")


def test_a_package_that_is_broken_is_one_sentence(tmp_path, monkeypatch):
    written = tmp_path / "broken-2.0.dist-info"
    written.mkdir()
    (written / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (written / "entry_points.txt").write_text(
        "[raybrain.decoders]\nabsent = broken_absent:Decoder\nodd = pathlib:Path\n"
        "[raybrain.metrics]\nodd = pathlib:Path\n[raybrain.datasets]\nodd = pathlib\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._found.cache_clear()
    with pytest.raises(InputError, match=r"'absent' of broken 2\.0 cannot be imported"):
        validated({"kind": "absent"})
    with pytest.raises(InputError, match=r"'odd' of broken 2\.0 is no OtherNetwork"):
        validated({"kind": "odd"})
    with pytest.raises(InputError, match=r"'odd' of broken 2\.0 is no Metric"):
        protocol_named("lite0-v1+odd")
    with pytest.raises(InputError, match=r"the reader 'odd' of broken 2\.0 has no open_recording"):
        datasets.reader_of(catalog.load_entry("nsd").model_copy(update={"reader": "odd"}))
    plugins._found.cache_clear()


def test_a_decoder_that_builds_no_network_is_told(example, monkeypatch):
    section = validated({"kind": "low_rank"}).decode.latents.decoder
    monkeypatch.setattr(type(section), "build", lambda self, **_: "a network")
    with pytest.raises(InputError, match="of the decoder 'low_rank' returned str"):
        build_network(section, voxels=2, outputs=2, wiring={}, seed=0)


def write_subject(folder: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    names = np.array([f"picture{number:02d}" for number in range(12)])
    shown = np.tile(np.arange(12), 3)
    held = {
        "betas": rng.normal(size=(36, 7)).astype(np.float32),
        "image_id": names[shown],
        "session": np.repeat([1, 2], 18),
        "test": shown < 3,
        "names": names,
        "pixels": rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8),
        "captions": np.array([f"a picture of {number}" for number in range(12)]),
    }
    folder.mkdir()
    np.savez(folder / "subj01.npz", **held)
    return held


def write_entry(folder: Path) -> Path:
    entry = {
        "title": "One file",
        "reader": "one_file",
        "root": str(folder),
        "subjects": ["subj01"],
        "rois": {"all": {"columns": ["all"]}},
        "split": {"test": "given", "validation": 0.2},
        "licence": {"name": "none", "url": "none", "redistributable": True},
        "cite": "none",
    }
    file = folder / "one_file.yaml"
    file.write_text(yaml.safe_dump(entry))
    return file


def test_a_reader_is_one_word_of_a_catalog_entry(example, tmp_path):
    held = write_subject(tmp_path / "data")
    entry = catalog.load_entry(str(write_entry(tmp_path / "data")))
    found = datasets.open_recording(
        entry, root=str(tmp_path / "data"), subject="subj01", settings=Ingest()
    )
    assert found.trials["split"].eq("test").sum() == 9
    np.testing.assert_array_equal(found.read_session(2), held["betas"][18:])
    np.testing.assert_array_equal(found.read_images(["picture04"])[0], held["pixels"][4])


def test_an_entry_with_an_unknown_reader_says_which_there_are(tmp_path):
    (tmp_path / "data").mkdir()
    file = write_entry(tmp_path / "data")
    with pytest.raises(InputError, match="there is no reader 'one_file'; choose from nsd, things"):
        catalog.load_entry(str(file))


SCRIPT = """
import sys
import raybrain
from raybrain import cluster

with cluster.connect():
    experiment = raybrain.Experiment.load(sys.argv[1], *sys.argv[3:])
    stages = ["simulate", "ingest", "features", "train", "predict", "reconstruct", "evaluate"]
    print(raybrain.run(experiment, stages).report)
    raybrain.run(raybrain.Experiment.load(sys.argv[2]), "ingest")
"""


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_on_ray_the_decoder_trains_the_metric_scores_and_the_reader_ingests(
    experiment_file, installed, tmp_path
):
    workspace = tmp_path / "workspace"
    held = write_subject(tmp_path / "data")
    write_entry(tmp_path / "data")
    other = tmp_path / "other.yaml"
    tree = tree_of({"kind": "ridge"}) | {"dataset": "data/one_file.yaml"}
    tree["decode"]["latents"]["rois"] = ["all"]
    other.write_text(yaml.safe_dump(tree | {"workspace": str(workspace)}))
    words = [
        "name=plugin",
        f"workspace={workspace}",
        "decode.latents.decoder={kind: low_rank, rank: 4}",
        "decode.prompt_embeds=null",
        "decode.mean_colour.rois=[early, ventral]",
        "folders=by_seal",
        "reconstruct.mode=z",
        "evaluate.metrics=[brightness]",
    ]
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(experiment_file), str(other), *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "latents: low_rank from" in done.stdout
    (report,) = (workspace / "runs/plugin").glob("report*")
    text = (report / scoring.TABLE).read_text()
    assert "lite0-v1+brightness" in text
    assert "bright" in text
    decoders = json.loads((report / "decoders.json").read_text())
    assert set(decoders) == {
        *("latents", "latents single trials", "mean_colour", "mean_colour single trials")
    }
    (features,) = (workspace / "features/simulated").glob("*.zarr/mean_colour")
    (subject,) = (workspace / "stores/simulated").glob("*.zarr")
    stimuli = store.open_store(str(subject), splits="all")
    ids = store.row_ids(str(features.parent))
    colours = stimuli.pixels(ids).mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(
        store.read_rows(str(features.parent), "mean_colour"), colours, atol=1e-6
    )
    ingested = store.open_store(str(workspace / "stores/one_file/subj01.zarr"), splits="all")
    np.testing.assert_allclose(ingested.betas(voxels=np.ones(7, bool)), held["betas"])
