"""Which pictures are shown when: the image set, the order of trials, and the button presses.

Everything here but the button presses is shared by the subjects, as in NSD, and so depends on the
settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from raybrain.config import InputError, Simulation
from raybrain.stimuli import HELD_OUT_COUNT, Emoji, emoji_shown, held_out_families

SUBJECTS = tuple(f"subj{number:02d}" for number in range(1, 9))
RUNS_PER_SESSION = 12  # NSD, Allen et al. 2022
NEAR_SHARE = 0.5
"""Share of repeats that come soon after the anchor of their image; the others come anywhere."""
NEAR_SPREAD = 0.02
"""Standard deviation of the near repeats, as a fraction of the experiment."""
TRIAL_SECONDS = 4.0  # NSD, Allen et al. 2022
RESPONSE_RATE, HIT_RATE = 0.98, 0.85

_IMAGES, _ORDER, _IDS, _BUTTONS = range(4)  # independent random streams


@dataclass(frozen=True)
class ImageSet:
    """The pictures of the experiment; the position of each is its 0-based nsdId."""

    emoji: tuple[Emoji, ...]
    shared: np.ndarray
    """(image,) bool: the test pictures."""
    coco_id: np.ndarray
    """(image,) int64: made up, unique, unordered, so that joins by position fail."""
    coco_split: np.ndarray
    """(image,) of ``train2017`` or ``val2017``."""


@dataclass(frozen=True)
class Design:
    """The order of trials in NSD's own terms; all three are 1-based."""

    masterordering: np.ndarray
    """(trial,): position of the trial's image in each subject's own list."""
    subjectim: np.ndarray
    """(subject, image): the image at each position; the shared ones come first."""
    sharedix: np.ndarray
    """(shared image,) ascending."""
    trials_per_session: int
    repeats: int

    @property
    def sessions(self) -> int:
        """Number of scan sessions; the last may be cut short."""
        return -(-len(self.masterordering) // self.trials_per_session)

    @property
    def session(self) -> np.ndarray:
        """(trial,) scan session, from 0."""
        return np.arange(len(self.masterordering)) // self.trials_per_session

    def images_of(self, subject: str) -> np.ndarray:
        """Return the 0-based image of every trial, (trial,)."""
        return self.subjectim[SUBJECTS.index(subject), self.masterordering - 1] - 1

    def repeat(self) -> np.ndarray:
        """Return how often the image of each trial was shown before, (trial,)."""
        return pd.Series(self.masterordering).groupby(self.masterordering).cumcount().to_numpy()

    def run_starts(self) -> np.ndarray:
        """Return the first trial of every run of a whole session, (run,)."""
        # For NSD's 750 trials the runs alternate between 63 and 62.
        run = np.arange(RUNS_PER_SESSION)
        return -(-run * self.trials_per_session // RUNS_PER_SESSION)


def choose_images(settings: Simulation) -> ImageSet:
    """Return the pictures to show, of which the test ones have no relative among the others.

    Raises
    ------
    InputError
        If more pictures or test pictures are asked for than there are, or none is left to train on.
    """
    held_out = held_out_families()
    everything = emoji_shown()
    training = [emoji for emoji in everything if emoji.family not in held_out]
    total = settings.objects or len(everything)
    tests = settings.test_images
    if tests is None:
        tests = max(2, round(HELD_OUT_COUNT * total / len(everything)))
    if tests > HELD_OUT_COUNT:
        raise InputError(
            f"simulation.test_images={tests} is more than the {HELD_OUT_COUNT} pictures the "
            f"generator has not seen; ask for at most {HELD_OUT_COUNT}"
        )
    most = len(training) + tests
    if settings.objects is None:
        total = most
    if not tests < total <= most:
        raise InputError(
            f"simulation.objects={total} does not fit {tests} test images; "
            f"ask for {tests + 1} to {most}"
        )
    rng = np.random.default_rng([settings.seed, _IMAGES])
    kept = {training[i].code for i in rng.permutation(len(training))[: total - tests]}
    # Smaller counts are subsets of the default ones, so the generator has seen none of them.
    tested = held_out_families(count=tests)
    emoji = tuple(e for e in everything if e.code in kept or e.family in tested)
    rng = np.random.default_rng([settings.seed, _IDS])
    return ImageSet(
        emoji=emoji,
        shared=np.array([e.family in tested for e in emoji]),
        coco_id=rng.choice(np.arange(100, 600_000), size=total, replace=False),
        coco_split=np.where(np.arange(total) < max(1, total // 15), "val2017", "train2017"),
    )


def design_experiment(settings: Simulation, *, shared: np.ndarray) -> Design:
    """Return an order in which every image comes ``repeats`` times, near and far.

    Positions are drawn on a circle, as in NSD: a uniform anchor for each image, around which half
    of its repeats fall closely while the others fall anywhere.

    Parameters
    ----------
    settings : Simulation
        Repeats, trials per session and seed.
    shared : ndarray
        (image,) bool.
    """
    rng = np.random.default_rng([settings.seed, _ORDER])
    images, tests = len(shared), int(shared.sum())
    anchor = rng.uniform(size=(images, 1))
    near = anchor + rng.normal(scale=NEAR_SPREAD, size=(images, settings.repeats))
    far = rng.uniform(size=near.shape)
    position = np.where(rng.uniform(size=near.shape) < NEAR_SHARE, near, far) % 1.0
    position[:, :1] = anchor
    order = np.argsort(position.ravel(), kind="stable") // settings.repeats

    own = np.flatnonzero(~shared)
    lists = [
        np.concatenate([rng.permutation(np.flatnonzero(shared)), rng.permutation(own)])
        for _ in SUBJECTS
    ]
    # The shared images take the same positions for everyone, so that everyone sees one at once.
    table = np.stack(lists)
    table[:, :tests] = table[0, :tests]
    return Design(
        masterordering=order + 1,
        subjectim=table + 1,
        sharedix=np.flatnonzero(shared) + 1,
        trials_per_session=settings.trials_per_session,
        repeats=settings.repeats,
    )


def press_buttons(settings: Simulation, *, design: Design, subject: str) -> pd.DataFrame:
    """Return ``responses.tsv``: one row per trial of the continuous recognition task.

    Returns
    -------
    DataFrame
        The 19 columns of NSD; SESSION, RUN, TRIAL, 73KID and 10KID from 1, NaN where no button
        was pressed.
    """
    number = SUBJECTS.index(subject) + 1
    rng = np.random.default_rng([settings.seed, _BUTTONS, number])
    count = len(design.masterordering)
    trial = np.arange(count)
    within = trial % design.trials_per_session
    starts = design.run_starts()
    run = np.searchsorted(starts, within, side="right") - 1
    same = pd.Series(trial).groupby(design.masterordering)
    previous, first = same.shift(1).to_numpy(), same.transform("min").to_numpy()
    old = ~np.isnan(previous)
    old_today = old & (previous // design.trials_per_session == design.session)
    answered = rng.uniform(size=count) < RESPONSE_RATE
    correct = np.where(rng.uniform(size=count) < HIT_RATE, 1.0, 0.0)
    says_old = old == (correct == 1)
    blank = np.where(answered, 0.0, np.nan)
    return pd.DataFrame(
        {
            "SUBJECT": number,
            "SESSION": design.session + 1,
            "RUN": run + 1,
            "TRIAL": within - starts[run] + 1,
            "73KID": design.images_of(subject) + 1,
            "10KID": design.masterordering,
            "TIME": 736_000 + 7 * design.session + 0.4 + within * TRIAL_SECONDS / 86_400,
            "ISOLD": old.astype(int),
            "ISCORRECT": correct + blank,
            "RT": rng.lognormal(np.log(750), 0.3, size=count).round(3) + blank,
            "CHANGEMIND": (rng.uniform(size=count) < 0.02) + blank,
            "MEMORYRECENT": np.where(old, trial - previous - 1, np.nan),
            "MEMORYFIRST": np.where(old, trial - first - 1, np.nan),
            "ISOLDCURRENT": old_today.astype(int),
            "ISCORRECTCURRENT": (says_old == old_today) + blank,
            "TOTAL1": (answered & ~says_old).astype(int),
            "TOTAL2": (answered & says_old).astype(int),
            "BUTTON": np.where(says_old, 2.0, 1.0) + blank,
            "MISSINGDATA": 0,
        }
    )
