"""A brain whose noise ceiling is known, written to disk as NSD or THINGS-fMRI ship one.

Early areas pool Gabor energy and colour opponency over receptive fields, ventral voxels read
features of an object-recognition network, and every trial adds independent noise of known size, so
the noise ceiling that the files state is exact. What the noise hides is kept beside the dataset's
folders, under ``simulation/``; with it, in NSD's layout, what a THINGS tree is written from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raybrain.config import InputError, Simulation
from raybrain.simulation import nsd_layout, things_layout
from raybrain.simulation.geometry import Anatomy, lay_out
from raybrain.simulation.schedule import (
    SUBJECTS,
    Design,
    choose_images,
    design_experiment,
    press_buttons,
)
from raybrain.simulation.truth import (
    PERCENT_MEAN,
    PERCENT_MEAN_SPREAD,
    PERCENT_MEDIAN,
    PERCENT_SPREAD,
    GroundTruth,
    draw_ncsnr,
    ground_truth_file,
    load_ground_truth,
    noisy_betas,
)

__all__ = ["GroundTruth", "SimulatedSubject", "load_ground_truth", "simulate"]

IMAGES_PER_TASK = 64
"""A fixed unit, so that the bytes do not depend on the number of workers."""
SHARED_SETTINGS = (
    *("objects", "test_images", "repeats", "trials_per_session", "image_size", "seed"),
)
"""Settings that the files shared by all subjects depend on."""

_ANATOMY, _FIELDS, _READ_OUT, _MIX, _NOISE, _GAIN = range(10, 16)  # random streams

RunTasks = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class SimulatedSubject:
    """What `simulate` wrote."""

    root: Path
    subject: str
    images: int
    """Images shown, test images included."""
    test_images: int
    """Images of the shared test set."""
    trials: int
    """Presentations of images, over all sessions."""
    sessions: int
    """Scan sessions."""
    early_voxels: int
    """Voxels of V1, V2, V3 and hV4 together."""
    ventral_voxels: int
    """Voxels of the ventral stream."""

    def __str__(self) -> str:
        """Return one line for the console."""
        return (
            f"{self.images} images ({self.test_images} test), {self.trials} trials in "
            f"{self.sessions} sessions, {self.early_voxels} early and {self.ventral_voxels} "
            f"ventral voxels"
        )


def run_in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return ``function(item)`` for every item, in this process."""
    return [function(item) for item in items]


def simulate(
    settings: Simulation, *, subject: str, root: Path, run_tasks: RunTasks = run_in_turn
) -> SimulatedSubject:
    """Write a simulated subject under ``root`` in the layout of NSD or of THINGS-fMRI.

    The same settings give the same betas whatever the number of workers. Stimuli and design are
    shared by the subjects of a root and written once.

    Parameters
    ----------
    settings : Simulation
        Sizes, noise and seed.
    subject : str
        ``subj01`` to ``subj08``, or ``sub-01`` to ``sub-08`` in the layout of THINGS; each has its
        own anatomy, tuning, noise and order of images.
    root : Path
        The dataset's folder; workers must reach it under the same path.
    run_tasks : callable
        ``(function, items) -> results in order``: one task per batch of images, then one per scan
        session.

    Raises
    ------
    InputError
        If the settings cannot be met, or if ``root`` holds other subjects of another experiment.
    """
    names = {"nsd": SUBJECTS, "things": things_layout.SUBJECTS}[settings.layout]
    if subject not in names:
        raise InputError(
            f"'{subject}' cannot be simulated; choose from {', '.join(names)} as 'subject'"
        )
    if settings.repeats > nsd_layout.REPEAT_COLUMNS:
        raise InputError(
            f"simulation.repeats={settings.repeats} does not fit NSD's tables; "
            f"ask for at most {nsd_layout.REPEAT_COLUMNS}"
        )
    person = SUBJECTS[names.index(subject)]
    images = choose_images(settings)
    design = design_experiment(settings, shared=images.shared)
    anatomy = lay_out(settings, rng=_stream(settings, _ANATOMY, subject=person))
    shared = root if settings.layout == "nsd" else root / "simulation" / "nsd"
    _write_shared(settings, subject=person, root=shared)
    truth = _make_truth(
        settings,
        subject=person,
        root=shared,
        anatomy=anatomy,
        design=design,
        images=len(images.emoji),
        run_tasks=run_tasks,
    )
    path = ground_truth_file(shared, subject=person)
    nsd_layout.write_whole(path, partial(_save_truth, truth=truth))
    if settings.layout == "things":
        pixels = nsd_layout.read_stimuli(shared, images=slice(None))
        things_layout.write_pictures(root, images=images, pixels=pixels)
        things_layout.write_trials(
            root, subject=subject, images=images, design=design, source=person
        )
        things_layout.write_voxels(
            root, subject=subject, anatomy=anatomy, truth=truth, repeats=settings.repeats
        )
        run_tasks(partial(write_table, settings=settings, root=root, shared=shared), [subject])
    else:
        nsd_layout.write_responses(
            root, subject=subject, responses=press_buttons(settings, design=design, subject=person)
        )
        nsd_layout.write_anatomy(root, subject=subject, anatomy=anatomy)
        nsd_layout.write_ncsnr(root, subject=subject, anatomy=anatomy, ncsnr=truth.ncsnr)
        _remove_betas(root, subject=subject, after=design.sessions)
        run_tasks(
            partial(write_session, settings=settings, subject=subject, root=root),
            range(1, design.sessions + 1),
        )
    return SimulatedSubject(
        root=root,
        subject=subject,
        images=len(images.emoji),
        test_images=int(images.shared.sum()),
        trials=len(design.masterordering),
        sessions=design.sessions,
        early_voxels=settings.early_voxels,
        ventral_voxels=settings.ventral_voxels,
    )


def _stream(settings: Simulation, kind: int, *keys: int, subject: str) -> np.random.Generator:
    return np.random.default_rng([settings.seed, kind, SUBJECTS.index(subject), *keys])


def _save_truth(path: Path, *, truth: GroundTruth) -> None:
    with path.open("wb") as file:
        np.savez(file, **asdict(truth))


def _remove_betas(root: Path, *, subject: str, after: int) -> None:
    # Left from a longer experiment, they would be taken for sessions of this one.
    for path in nsd_layout.betas_folder(root, subject=subject).glob("betas_session*.nii.gz"):
        if int(path.name.removeprefix("betas_session").split(".")[0]) > after:
            path.unlink()


def _write_shared(settings: Simulation, *, subject: str, root: Path) -> None:
    """Write stimuli, captions and design, unless those of these settings are there already."""
    from raybrain.stimuli import render_all

    path = root / "simulation" / "shared.json"
    wanted = settings.model_dump(mode="json", include=set(SHARED_SETTINGS))
    if path.is_file():
        found = json.loads(path.read_text())
        if found == wanted:
            return
        others = sorted(
            file.parent.name
            for file in root.glob("simulation/*/ground_truth.npz")
            if file.parent.name != subject
        )
        if others:
            changed = [name for name in SHARED_SETTINGS if found.get(name) != wanted[name]]
            raise InputError(
                f"{root} holds {', '.join(others)} simulated with another simulation."
                f"{changed[0]} ({found.get(changed[0])}, not {wanted[changed[0]]}), and subjects "
                f"share the stimuli; use another workspace or delete {root}"
            )
        path.unlink()
    images = choose_images(settings)
    pixels = render_all(images.emoji, size=settings.image_size)
    nsd_layout.write_stimuli(root, pixels=pixels)
    nsd_layout.write_annotations(root, images=images, pixels=pixels)
    nsd_layout.write_design(
        root, images=images, design=design_experiment(settings, shared=images.shared)
    )
    nsd_layout.write_whole(path, lambda part: part.write_text(json.dumps(wanted)))


def _make_truth(
    settings: Simulation,
    *,
    subject: str,
    root: Path,
    anatomy: Anatomy,
    design: Design,
    images: int,
    run_tasks: RunTasks,
) -> GroundTruth:
    from raybrain.simulation import early, ventral

    stream = partial(_stream, settings, subject=subject)
    fields = early.tune_voxels(anatomy, rng=stream(_FIELDS))
    batches = [
        slice(k, min(k + IMAGES_PER_TASK, images)) for k in range(0, images, IMAGES_PER_TASK)
    ]
    encoded = run_tasks(partial(encode_images, root=root, fields=fields), batches)
    energy, opponent = (
        standardise(np.concatenate([getattr(part.early, name) for part in encoded]))
        for name in ("energy", "opponent")
    )
    share = fields.opponent_share
    features = standardise(np.concatenate([part.features for part in encoded]))
    read_out = ventral.choose_features(
        settings.ventral_voxels, features=features.shape[1], rng=stream(_READ_OUT)
    )
    responses = np.empty((images, len(anatomy.index)), dtype=np.float32)
    responses[:, anatomy.early] = standardise(
        np.sqrt(1 - share) * energy + np.sqrt(share) * opponent
    )
    responses[:, ~anatomy.early] = standardise(ventral.read_features(features, read_out=read_out))

    rng = stream(_MIX)
    voxels = len(anatomy.index)
    ncsnr = draw_ncsnr(voxels, median=settings.ncsnr_median, rng=rng)
    total = PERCENT_MEDIAN * rng.lognormal(sigma=PERCENT_SPREAD, size=voxels)

    def of_early(values: np.ndarray) -> np.ndarray:
        everywhere = np.full(voxels, np.nan, dtype=np.float32)
        everywhere[anatomy.early] = values
        return everywhere

    return GroundTruth(
        responses=responses,
        ncsnr=ncsnr.astype(np.float32),
        percent=(total / np.sqrt(1 + 1 / ncsnr**2)).astype(np.float32),
        baseline=rng.normal(PERCENT_MEAN, PERCENT_MEAN_SPREAD, size=voxels).astype(np.float32),
        trial_image=design.images_of(subject),
        index=anatomy.index,
        area=anatomy.area,
        hemisphere=anatomy.hemisphere,
        eccentricity=of_early(fields.eccentricity),
        polar_angle=of_early(np.degrees(np.arctan2(fields.y, fields.x))),
        prf_size=of_early(fields.size),
    )


def standardise(responses: np.ndarray) -> np.ndarray:
    """Return float64 columns with zero mean and unit variance; a constant one becomes 0."""
    centred = responses - responses.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    return centred / np.where(spread > 1e-9, spread, np.inf)


@dataclass(frozen=True)
class Encoding:
    """Responses to a batch of images before they are standardised over all of them."""

    early: Any
    """`raybrain.simulation.early.EarlyResponse`."""
    features: np.ndarray
    """(image, feature) float32."""


def encode_images(images: slice, *, root: Path, fields: Any) -> Encoding:
    """Return receptive-field responses and network features of some stimuli under ``root``."""
    from raybrain.simulation import early, ventral

    pixels = nsd_layout.read_stimuli(root, images=images)
    with _one_thread():
        return Encoding(
            early=early.respond(pixels, fields=fields), features=ventral.network_features(pixels)
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    # Sums in another order round otherwise, so bytes would depend on the cores of a worker.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_session(session: int, *, settings: Simulation, subject: str, root: Path) -> None:
    """Write the betas of one scan session (from 1); its noise depends on nothing else."""
    truth = load_ground_truth(root, subject=subject)
    nsd_layout.write_betas(
        root,
        subject=subject,
        session=session,
        betas=session_betas(session, truth=truth, settings=settings, subject=subject),
        index=truth.index,
        grid=settings.grid,
    )


def write_table(subject: str, *, settings: Simulation, root: Path, shared: Path) -> None:
    """Write the betas of all sessions as THINGS' one table, a session at a time in memory."""
    person = SUBJECTS[things_layout.SUBJECTS.index(subject)]
    truth = load_ground_truth(shared, subject=person)
    trials = len(truth.trial_image)
    sessions = range(1, -(-trials // settings.trials_per_session) + 1)
    things_layout.write_responses(
        root,
        subject=subject,
        shape=(len(truth.index), trials),
        sessions=(
            session_betas(session, truth=truth, settings=settings, subject=person)
            for session in sessions
        ),
    )


def session_betas(
    session: int, *, truth: GroundTruth, settings: Simulation, subject: str
) -> np.ndarray:
    """Return (trial, voxel) percent signal change of one scan session (from 1)."""
    stop = min(session * settings.trials_per_session, len(truth.trial_image))
    return noisy_betas(
        truth,
        trials=slice((session - 1) * settings.trials_per_session, stop),
        gain=_stream(settings, _GAIN, session, subject=subject).lognormal(
            sigma=settings.gain_drift
        ),
        rng=_stream(settings, _NOISE, session, subject=subject),
    )
