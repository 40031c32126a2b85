"""Vertices of the cortex from their files to predictions, by graph convolutions over the mesh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raybrain import cli, config, outputs, store
from raybrain.config import Experiment, InputError
from raybrain.datasets import Recording, Surface, Voxels, open_recording
from raybrain.decoders import MESH, load_decoder
from raybrain.stages import fitting_data, ingesting, predicting, streaming
from tests.datasets import nod_tree
from tests.datasets.entries import nod_entry
from tests.datasets.surface_tree import nibabel_edges
from tests.small_run import SIMULATED, load_experiment

GCN = {"kind": "mesh_gcn", "width": 16, "channels": 4}


def experiment_of(**words: object) -> Experiment:
    tree = {
        **SIMULATED,
        "name": "surface",
        "decode": {"latents": {"rois": ["early"], "decoder": GCN}},
        "reconstruct": {"mode": "z"},
        **words,
    }
    return config.validate(tree, schema=Experiment, source="surface.yaml")


def test_a_volume_and_a_surface_without_its_mesh_are_refused_before_anything_is_written() -> None:
    volume = SimpleNamespace(surface=None, subject="subj01", dataset="nsd")
    sentence = r"'decode\.latents\.decoder' is mesh_gcn, but the voxels of subj01 lie in a volume"
    with pytest.raises(InputError, match=sentence):
        ingesting._check_mesh(experiment_of(), volume)
    flat = SimpleNamespace(surface=Surface(np.zeros(3, np.int8)), subject="s", dataset="nod")
    with pytest.raises(InputError, match="get the surface files that 'raybrain plan' names"):
        ingesting._check_mesh(experiment_of(), flat)
    ridge = {"latents": {"rois": ["early"]}}
    ingesting._check_mesh(experiment_of(decode=ridge), volume)


def test_a_decoder_of_other_neighbours_is_refused() -> None:
    edges = np.array([[0, 1], [1, 2], [3, 4]])
    roi, used = np.array([1, 1, 1, 0, 1], bool), np.array([1, 1, 1, 0], bool)
    decoding = SimpleNamespace(target="latents", rois=("early",))

    def opened(edges: np.ndarray | None) -> SimpleNamespace:
        group = SimpleNamespace(store_path="s.zarr")
        return SimpleNamespace(edges=edges, mask=lambda rois: roi, group=group)

    trained = SimpleNamespace(wiring={MESH: np.array([[0, 1], [1, 2]])}, voxels=used)
    predicting._check_mesh(trained, decoding, opened=opened(edges))
    order = np.array([1, 0, 2, 3, 4])
    for other in (np.sort(order[edges], axis=1), None):
        with pytest.raises(InputError, match=r"other neighbours than the store at s\.zarr"):
            predicting._check_mesh(trained, decoding, opened=opened(other))
    predicting._check_mesh(SimpleNamespace(wiring={}), decoding, opened=opened(None))


def test_what_a_store_was_sealed_with_before_the_mesh_came(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NOD_ROOT", str(tmp_path / "nod"))
    nod_tree.write_nod(tmp_path / "nod", mesh=False)
    words = {"dataset": "nod", "subject": "sub-01", "simulation": None}
    chosen = experiment_of(**words, workspace=str(tmp_path))
    before = outputs.subject_store(chosen).seal
    other = nod_tree.write_nod(tmp_path / "other")
    for path, to in zip(
        nod_tree.surfaces(other.root), nod_tree.surfaces(tmp_path / "nod"), strict=True
    ):
        to.parent.mkdir(exist_ok=True)
        path.rename(to)
    after = outputs.subject_store(chosen).seal
    assert before.settings == after.settings  # the setting of the layout is no part of it
    assert before.inputs != after.inputs


def test_rows_on_disk_have_the_same_neighbours(tmp_path) -> None:
    draw = np.random.default_rng(0)
    betas = draw.standard_normal((8, 7)).astype(np.float32)
    betas[:, 3] = 1.0  # a vertex that never varies is left out, and its edges with it
    edges = np.array([[0, 1], [1, 2], [2, 3], [2, 4], [5, 6]], np.int32)
    recording = Recording(
        dataset="d",
        subject="s",
        trials=pd.DataFrame(
            {
                "image_id": list("abcdefgh"),
                "session": 1,
                "run": 0,
                "repeat": 0,
                "split": ["train"] * 6 + ["validation"] * 2,
            }
        ),
        voxels=Voxels(np.arange(7), np.zeros((7, 3), np.int32), np.ones(7, np.float32)),
        rois={"V1": np.array([1, 1, 1, 1, 1, 0, 1], bool)},
        images=pd.DataFrame({"image_id": list("abcdefgh"), "captions": [("c",)] * 8, "group": "g"}),
        read_session=None,
        read_images=None,
        surface=Surface(np.zeros(7, np.int8), edges),
    )
    path = str(tmp_path / "s.zarr")
    store.create_store(path, recording, side=2)
    store.write_block(path, "betas", betas, block=store.Block(0, 8))
    store.write_block(
        path, "image/pixels", np.zeros((8, 2, 2, 3), np.uint8), block=store.Block(0, 8)
    )
    opened = store.open_store(path, splits="training")
    examples, _ = streaming.prepare_on_disk(
        opened,
        image_id=np.arange(8),
        train=np.arange(8) < 6,
        decode=config.Decode(rois=("V1",), decoder=config.MeshGcn()),
        mask=opened.mask(["V1"]),
        dimensions=2,
        folder=str(tmp_path / "rows.zarr"),
        memory=4e-7,  # two or three voxels at a time
    )
    # Of voxels 0, 1, 2, 4 and 6.
    assert examples.edges.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert examples.betas.shape == (6, 5)
    assert len(examples.betas.names) > 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_vertices_are_decoded_by_their_neighbours(experiment_file, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NOD_ROOT", str(tmp_path / "nod"))
    tree = nod_tree.write_nod(tmp_path / "nod")
    words = (
        "name=surface",
        f"workspace={tmp_path}",
        "dataset=nod",
        "subject=sub-01",
        "simulation=null",
        "decode.latents={rois: [visual], decoder: {kind: mesh_gcn, width: 16}}",
        "decode.prompt_embeds=null",
        "reconstruct.mode=z",
    )
    for stage in ("ingest", "features", "train", "predict"):
        assert cli.main([stage, str(experiment_file), *words]) == 0
    chosen = load_experiment(experiment_file, *words)
    opened = store.open_store(outputs.subject_store(chosen).folder, splits="training")
    recording = open_recording(
        nod_entry(), root=str(tree.root), subject="sub-01", settings=chosen.ingest
    )
    np.testing.assert_array_equal(opened.edges, recording.surface.edges)
    np.testing.assert_array_equal(opened.hemisphere, recording.surface.hemisphere)
    folder = Path(outputs.decoder(chosen, "latents").folder) / fitting_data.DECODER
    decoder = load_decoder(folder)
    rows = np.flatnonzero(opened.mask(["visual"]))[decoder.voxels]
    xyz = opened.voxels[["x", "y", "z"]].to_numpy()[rows]
    wanted = nibabel_edges(nod_tree.surfaces(tree.root), xyz)
    assert {tuple(edge) for edge in decoder.wiring[MESH].tolist()} == wanted
    # A store whose voxels lie in another order is refused.
    other = replace(opened, edges=opened.edges[:, ::-1].max() - opened.edges[:, ::-1])
    decoding = SimpleNamespace(target="latents", rois=("visual",))
    with pytest.raises(InputError, match="train it again"):
        predicting._check_mesh(decoder, decoding, opened=other)
