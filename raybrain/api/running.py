"""Run stages of an experiment and look at what they made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain import outputs, pipeline, places
from raybrain.config import Experiment, InputError
from raybrain.evaluation import Table, load_table
from raybrain.stages import BROWSING, OPTIONS, checking, scoring

if TYPE_CHECKING:
    import xarray

STORES = {
    "store": outputs.subject_store,
    "features": outputs.features,
    "predictions": outputs.predictions,
    "reconstructions": outputs.reconstructions,
}
"""What `Results.open` opens."""


@dataclass(frozen=True)
class Results:
    """What an experiment has made so far; nothing is read before it is asked for.

    Attributes
    ----------
    experiment : Experiment
    scored : str, optional
        Folder of a report on other pictures than the experiment's own.
    """

    experiment: Experiment
    scored: str | None = None

    @property
    def report(self) -> str:
        """Folder of the table and the gallery.

        Raises
        ------
        InputError
            If the files of the dataset are not there.
        """
        return self.scored or outputs.report(self.experiment).folder

    @property
    def folder(self) -> str:
        """Folder of everything that belongs to this experiment alone."""
        return outputs.run_folder(self.experiment)

    @property
    def table(self) -> Table:
        """The scores.

        Raises
        ------
        InputError
            If the experiment has not been evaluated.
        """
        with places.reading(self.report) as folder:
            return load_table(folder / scoring.SCORES)

    @property
    def gallery(self) -> str:
        """Page of what was seen beside what was reconstructed, for a browser."""
        return f"{self.report}/{scoring.GALLERY}"

    def open(self, name: str) -> xarray.Dataset:
        """Return a store with labels and units.

        Parameters
        ----------
        name : str
            ``store`` (betas, trials, voxels, images), ``features``, ``predictions`` or
            ``reconstructions``.

        Returns
        -------
        xarray.Dataset
            Its dimensions have names, such as ``betas`` (trial, voxel) and reconstructions (image,
            sample, y, x, rgb); see `raybrain.open_store`.

        Raises
        ------
        InputError
            If there is no such store, or it has not been made.
        """
        from raybrain.api.labelled import open_store

        if name not in STORES:
            raise InputError(f"'{name}' is no store; choose from {', '.join(STORES)}")
        return open_store(STORES[name](self.experiment).folder)


def run(experiment: Experiment, stages: str | Sequence[str] = "run", **options: Any) -> Results:
    """Run stages in the order given and return what there is then; what is sealed is skipped.

    Parameters
    ----------
    experiment : Experiment
        From `Experiment.load`.
    stages : str or sequence of str
        As on the command line, such as ``["ingest", "features", "train"]``; all of them when not
        given.
    **options
        Of a single stage: ``images`` of ``evaluate``, a folder of anyone's reconstructions to
        score; ``form`` of ``export``: ``pictures``, ``tensors`` or ``models``.

    Raises
    ------
    InputError
        If a stage or an option does not exist, or what a stage needs is not there.

    Examples
    --------
    >>> import raybrain
    >>> demo = raybrain.Experiment.load(raybrain.DEMO)
    >>> raybrain.run(demo, "drawing")
    Traceback (most recent call last):
    raybrain.config.base.InputError: 'drawing' is not a stage; choose from plan, simulate, ...
    """
    wanted = [stages] if isinstance(stages, str) else list(stages)
    for stage in wanted:
        if stage not in pipeline.RUN:
            known = ", ".join(pipeline.RUN)
            raise InputError(f"'{stage}' is not a stage; choose from {known}")
        for name in options:
            if name not in OPTIONS.get(stage, ()):
                taking = [one for one, names in OPTIONS.items() if name in names]
                hint = f"it is one of {', '.join(taking)}" if taking else "leave it out"
                raise InputError(f"'{name}' is no option of {stage}; {hint}")
    report = None
    if "images" in options:
        if not str(options["images"]):
            raise InputError("images= names no folder; write images=FOLDER")
        options["images"] = _absolute(str(options["images"]))
    for stage in wanted:
        if stage not in BROWSING:
            checking.check(experiment, stage=stage, pictures="images" in options)
        made = pipeline.RUN[stage](experiment, **options)
        if stage == "evaluate":
            report = made
    return Results(experiment, report)


def _absolute(folder: str) -> str:
    return folder if places.is_remote(folder) else str(Path(folder).expanduser().absolute())
