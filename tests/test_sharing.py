"""Decoders and reconstructions as others read them."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

import raybrain
from raybrain import cli, config, outputs, store
from raybrain.config import InputError
from raybrain.decoders import load_decoder, prepare, train_ridge, write_model
from raybrain.decoders.trained import TrainedDecoder
from raybrain.stages.exporting import _by_number, _write_tensor
from raybrain.stages.exporting_models import _Model, _name, card_of

pytestmark = pytest.mark.filterwarnings("ignore:of [0-9]+ targets:UserWarning")


@pytest.fixture(scope="module")
def ridge(tmp_path_factory) -> TrainedDecoder:
    """Return a ridge decoder of three blocks of weights, as ``train`` leaves it on disk."""
    from dataclasses import replace

    rng = np.random.default_rng(0)
    betas = rng.normal(size=(60, 9)).astype(np.float32)
    betas[:, 4] = 1.0  # a voxel that never varies
    targets = betas @ rng.normal(size=(9, 12)).astype(np.float32)
    targets += rng.normal(size=targets.shape).astype(np.float32)
    examples = prepare(betas, session=np.ones(60, int), image_id=np.arange(60))
    fitted = train_ridge(examples, targets=targets, section=config.Ridge())
    [weights] = fitted.blocks
    folder = tmp_path_factory.mktemp("ridge") / "decoder"
    replace(fitted, blocks=tuple(np.split(weights, 3, axis=1))).save(folder)
    return load_decoder(folder)


def predicted(decoder: TrainedDecoder) -> np.ndarray:
    betas = np.random.default_rng(1).normal(size=(5, 9)).astype(np.float32)
    told = {"session": np.ones(5, int), "image_id": np.arange(5)}
    return decoder.predict(betas, **told).values


@pytest.mark.parametrize(("largest", "files"), [(5_000_000_000, 1), (200, 4)])
def test_a_model_is_read_back_whole_or_in_parts(ridge, tmp_path, largest, files):
    folder = tmp_path / "model"
    index = np.arange(9) * 3
    write_model(
        ridge,
        folder,
        card="# card\n",
        about={"target": "latents"},
        arrays={"voxel_index": index},
        largest_file=largest,
    )
    found = sorted(folder.glob("*.safetensors"))
    assert len(found) == files
    names = [file.name for file in found]
    if files == 1:
        assert names == ["model.safetensors"]
    else:
        assert names[0] == "model-00001-of-00004.safetensors"
        where = json.loads((folder / "model.safetensors.index.json").read_text())
        held = {file.name: set(load_file(file)) for file in found}
        assert {name: set() for name in held}.keys() == set(where["weight_map"].values())
        for name, file in where["weight_map"].items():
            assert name in held[file]
        total = sum(a.nbytes for file in found for a in load_file(file).values())
        assert where["metadata"]["total_size"] == total
    arrays = {k: v for file in found for k, v in load_file(file).items()}
    np.testing.assert_array_equal(arrays["about.voxel_index"], index)
    described = json.loads((folder / "config.json").read_text())
    assert described["model_type"] == "raybrain-decoder"
    assert described["target"] == "latents"
    assert (folder / "README.md").read_text() == "# card\n"
    np.testing.assert_array_equal(predicted(load_decoder(folder)), predicted(ridge))
    again = raybrain.Decoder.from_pretrained(folder)
    assert again.predict(np.ones((2, 9), np.float32)).shape == (2, 12)
    # what was read from there can be saved as any other
    load_decoder(folder).save(tmp_path / "saved")
    np.testing.assert_array_equal(predicted(load_decoder(tmp_path / "saved")), predicted(ridge))


def test_a_model_that_lacks_a_part_is_told(ridge, tmp_path):
    write_model(ridge, tmp_path, card="", about={}, arrays={}, largest_file=200)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match="lacks a file"):
        load_decoder(tmp_path)


def test_an_index_leads_to_no_other_folder(ridge, tmp_path):
    write_model(ridge, tmp_path / "model", card="", about={}, arrays={}, largest_file=200)
    index = tmp_path / "model" / "model.safetensors.index.json"
    elsewhere = tmp_path / "elsewhere.safetensors"
    (tmp_path / "model" / "model-00002-of-00004.safetensors").rename(elsewhere)
    text = index.read_text().replace("model-00002-of-00004", "../elsewhere")
    index.write_text(text)
    with pytest.raises(InputError, match="lacks a file"):
        load_decoder(tmp_path / "model")


def test_a_card_says_data_protocol_scores_and_licence(ridge):
    model = _Model(
        target="latents",
        trained="unused",
        voxel_index=np.arange(9),
        about={
            "raybrain": "0.1.0",
            "experiment": "nsd",
            "shape": [3, 2, 2],
            "dataset": "nsd",
            "subject": "subj01",
            "rois": ["V1", "V2"],
            "generator": "org/sd",
            "generator_digest": "ab" * 32,
            "training_trials": 55,
            "validation_trials": 5,
            "training_images": 60,
        },
        scores={
            "latents": {
                "n": 10.0, "two_way": 0.9, "two_way_chance": 0.5, "mse": 0.5, "mse_of_mean": 1.0
            }
        },
        table="lite0-v1: 10 images, 4 samples each\nsystem   .643",
        licence={"name": "Terms: NSD", "url": "https://x.org", "redistributable": "no"},
        cite="doi:10/1",
        title="Natural Scenes Dataset",
    )  # fmt: skip
    card = card_of(model, ridge)
    _, head, body = card.split("---\n", 2)
    described = yaml.safe_load(head)
    assert described["license_name"] == "Terms: NSD"
    assert described["library_name"] == "raybrain"
    assert "8 of them are used" in body
    assert "| latents | 10 | nan | nan | 90.0% | 50% | 0.5000 | 1.0000 |" in body
    assert "lite0-v1: 10 images" in body
    assert "The dataset may not be passed on." in body
    assert "Natural Scenes Dataset (doi:10/1), subject subj01" in body


def test_a_card_does_not_tell_where_files_lie_here():
    assert _name("/home/me/secret-lab/generator") == "generator"
    assert _name("org/sd") == "org/sd"


def test_tensors_are_in_the_order_of_ids_and_hold_what_was_drawn(tmp_path):
    import torch

    path = str(tmp_path / "drawn.zarr")
    ids = ["00012", "00002", "01000"]
    drawn = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    store.create_rows(
        path, {"system": ((2, 4, 4, 3), "uint8")}, image_ids=ids, rows_per_block=3, attributes={}
    )
    store.write_block(path, "system", drawn, block=store.Block(0, 3))
    ordered = sorted(ids, key=_by_number)
    assert ordered == ["00002", "00012", "01000"]
    _write_tensor(("system", 1), drawn=path, image_ids=ordered, folder=str(tmp_path / "out"))
    found = torch.load(tmp_path / "out" / "system_1.pt", weights_only=True)
    assert found.dtype == torch.float32
    assert found.shape == (3, 3, 4, 4)
    pixels = np.rint(found.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    np.testing.assert_array_equal(pixels, drawn[[1, 0, 2], 1])


@pytest.mark.usefixtures("inline")
@pytest.mark.filterwarnings("default")
def test_a_run_is_exported_in_every_form(finished_here, file_here, capsys):
    for form in ("tensors", "models"):
        assert cli.main(["export", str(file_here), f"form={form}"]) == 0
    assert cli.main(["export", str(file_here), "form=gif"]) == 2
    assert "choose from pictures, tensors, models" in capsys.readouterr().err
    tensors = Path(outputs.tensors(finished_here).folder)
    assert (tensors / "image_ids.txt").read_text().split() == store.row_ids(
        outputs.reconstructions(finished_here).folder
    )
    assert len(list(tensors.glob("*.pt"))) == 3  # two samples of the system, one of the ceiling
    opened = store.open_store(outputs.subject_store(finished_here).folder, splits="test")
    for target, decode in outputs.targets(finished_here):
        folder = Path(outputs.models(finished_here).folder, target)
        assert "lite0-v1: 10 images" in (folder / "README.md").read_text()
        decoder = raybrain.Decoder.from_pretrained(folder)
        betas = opened.betas(voxels=opened.mask(decode.rois))
        session = opened.trials["session"].to_numpy()
        found = decoder.predict(betas, session=session)
        shape = store.row_shape(outputs.features(finished_here).folder, target)
        known = store.read_rows(f"{outputs.predictions(finished_here).folder}/trials", target)
        np.testing.assert_allclose(found.reshape(-1, *shape), known, rtol=1e-5, atol=1e-5)
