"""The experiment itself, with what it simulates, ingests and evaluates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raybrain import plugins, shipped, spelling
from raybrain.config.base import Location, Positive, Section
from raybrain.config.decoding import Decodes, Training
from raybrain.config.drawing import TARGET_OF, Features, Generator, Reconstruct, letters
from raybrain.config.reading import load, place, read_assignment, validate
from raybrain.config.running import Resources, Tracking, Tuning


class Simulation(Section):
    """The simulated subject that ``simulate`` writes to disk as NSD or THINGS would ship it.

    Early voxels see images through population receptive fields (Kay et al. 2013); noise is set by
    each voxel's noise-ceiling signal-to-noise ratio as NSD defines it (Allen et al. 2022).
    """

    layout: Literal["nsd", "things"] = "nsd"
    """NSD's folders, or the tables of THINGS-fMRI (``betas_csv``)."""
    grid: tuple[Positive, Positive, Positive] = (30, 36, 28)
    """Voxels of the functional volume along x, y and z."""
    early_voxels: Positive = 1200
    """Voxels of V1, V2, V3 and hV4 together."""
    ventral_voxels: Positive = 900
    """Voxels of the ventral stream."""
    objects: Positive | None = None
    """How many stimuli to show, test images included; all when not given."""
    test_images: Positive | None = None
    """How many of them are in the shared test set, at most the 103 that the pocket generator has
    never seen; when not given, these 103 in proportion to the objects shown."""
    repeats: Positive = 3
    """Times every stimulus is shown (NSD: 3)."""
    trials_per_session: Positive = 750
    """Trials of a scan session (NSD: 750)."""
    image_size: Positive = 64
    """Pixels along one side of the square stimuli."""
    ncsnr_median: Annotated[float, Field(gt=0.0)] = 0.38
    """Median noise-ceiling signal-to-noise ratio over voxels (NSD subj01 nsdgeneral: .361)."""
    gain_drift: Annotated[float, Field(ge=0.0)] = 0.1
    """Standard deviation of the log gain of a scan session."""
    seed: int = 0
    """Of the voxels, the order of trials and the noise."""


class Ingest(Section):
    """What ``ingest`` keeps of a dataset."""

    image_size: Positive = 256
    """Stored stimuli are square with this many pixels along one side, or with as many as the
    largest picture has along its shorter side, if that is less."""
    square: Literal["crop", "pad", "stretch"] = "crop"
    """How a picture that is not square becomes one: its centre, as NSD was made from COCO; the
    whole of it on the background; or distorted."""
    background: Literal["white", "grey", "black"] = "white"
    """What transparent pixels and padding show; grey is half of white."""
    sessions: Positive | None = None
    """Use only the first so many scan sessions; all that are present when not given."""


Reranker = Literal["encoding", "embedding"]


class Evaluate(Section):
    """How reconstructions are scored."""

    protocol: Literal["lite0-v1", "mindeye2-v1", "takagi-v1", "cs292f-v1"] = "lite0-v1"
    """What is measured; all but ``lite0-v1`` need weights that have to be fetched first."""
    weights: Location | None = None
    """Folder of these weights; where torch keeps its downloads when not given."""
    rerank: tuple[Reranker, ...] = ()
    """Add rows of one sample per image, chosen by the brain alone. ``encoding``: the one whose
    predicted brain response fits the measured response best; the encoding model is fitted on
    training images. ``embedding``: the one whose image embedding is nearest the decoded one.
    ``true`` means ``encoding``."""
    metrics: tuple[str, ...] = ()
    """Columns that other installed packages add beside those of the protocol."""
    bootstrap: Positive = 10_000
    """Resamples of the images for every interval."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        offered = plugins.names(plugins.METRICS)
        for name in value:
            if name not in offered:
                known = f"choose from {', '.join(offered)}" if offered else "no package adds any"
                raise ValueError(f"there is no metric '{name}'; {known}")
        if len(set(value)) < len(value):
            raise ValueError("a metric is named twice; name each once")
        return value

    @field_validator(
        "rerank", mode="before", json_schema_input_type=bool | Reranker | tuple[Reranker, ...]
    )
    @classmethod
    def _rerankers(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return ("encoding",) if value else ()
        return (value,) if isinstance(value, str) else value


class Experiment(Section):
    """Everything that determines a result, from one YAML file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Folder of the run under ``workspace/runs`` and name of its MLflow run."""
    dataset: str
    """A name in ``data_catalog/`` or the path of an entry file of one's own."""
    subject: str
    """A subject of the catalog entry."""
    subjects: tuple[str, ...] = ()
    """Subjects whose data train one ``residual_mlp`` or ``mindeye2`` together: an input layer each
    and one trunk. One of another dataset is ``DATASET:SUBJECT``; ROIs have the same names there.
    What follows training is about ``subject``, which is one of them anyway."""
    workspace: Location = "workspace"
    """Folder or bucket for all that is written."""
    seed: int = 0
    """Of decoders, noise and resamples; the noise of a picture depends on it, the image and the
    sample alone."""
    on_change: Literal["refuse", "replace"] = "refuse"
    """What to do with a sealed output that was made with other settings."""
    folders: Literal["by_name", "by_seal"] = "by_name"
    """Where outputs lie that runs can share: stores under the subject's and decoders under the
    run's name, or all under their seals, as in a sweep, whose runs make each of them once."""
    simulation: Simulation | None = None
    ingest: Ingest = Ingest()
    generator: Generator = Generator()
    features: Features = Features()
    decode: Decodes
    training: Training = Training()
    tuning: Tuning | None = None
    reconstruct: Reconstruct = Reconstruct()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()

    @classmethod
    def load(cls, path: str | Path, *assignments: str) -> Experiment:
        """Return the experiment of a file, whose paths hold from anywhere.

        Parameters
        ----------
        path : str or Path
            YAML file. A dataset named by a relative path is looked for here, then beside it.
        *assignments : str
            As on the command line: ``"training.lr=1e-4"``, ``"decode.latents.rois=[V1, V2]"``.

        Raises
        ------
        InputError
            If the file is missing or is not YAML, or if an address or value does not fit.

        Examples
        --------
        >>> import raybrain
        >>> raybrain.Experiment.load(raybrain.DEMO, "seed=1").seed
        1
        """
        return load(path, assignments, schema=cls).with_whole_paths(beside=Path(path).parent)

    def with_whole_paths(self, *, beside: Path) -> Experiment:
        """Return the experiment with paths that hold from anywhere.

        Ray moves the working directory of its workers.

        Parameters
        ----------
        beside : Path
            Where a dataset that is named by a relative path is looked for if not here.
        """
        absolute: dict[str, Any] = {
            "dataset": shipped.locate(self.dataset, beside=beside),
            "subjects": tuple(_located(name, beside=beside) for name in self.subjects),
        }
        if "://" not in self.workspace:
            absolute["workspace"] = str(Path(self.workspace).absolute())
        return self.model_copy(update=absolute)

    def with_(self, *changes: str | Mapping[str, Any], source: str = "with_") -> Experiment:
        """Return the experiment with other values at some addresses.

        Where a ``kind`` changes, the settings beside it belong to the old kind and are left out.

        Parameters
        ----------
        *changes : str or mapping
            ``"training.lr=1e-4"`` as on the command line, or ``{"training.lr": 1e-4}``.
        source : str
            What a message of an error begins with.

        Raises
        ------
        InputError
            If an address does not exist or a value does not fit.

        Examples
        --------
        >>> import raybrain
        >>> demo = raybrain.Experiment.load(raybrain.DEMO)
        >>> demo.with_({"training.lr": 1e-4}, "decode.latents.rois=[V1, V2]").decode.latents.rois
        ('V1', 'V2')
        """
        given: dict[str, tuple[Any, Any]] = {}
        for change in changes:
            if isinstance(change, str):
                address, value, written = read_assignment(change)
                given[address] = (value, written)
            else:
                given |= {address: (value, value) for address, value in change.items()}
        typed = self.model_dump()
        spelled = copy.deepcopy(typed)

        def whole_first(address: str) -> tuple[int, bool]:
            return address.count("."), not address.endswith(".kind")

        for address in sorted(given, key=whole_first):
            for tree, value in zip((typed, spelled), given[address], strict=True):
                # Copied, for a deeper address may change what is in it.
                place(tree, address, copy.deepcopy(value), source=source)
        written = spelling.as_written(typed, spelled, type(self))
        return validate(written, schema=type(self), source=source)

    @model_validator(mode="after")
    def _mode_has_targets(self) -> Experiment:
        for letter in sorted(letters(self.reconstruct.mode)):
            if getattr(self.decode, TARGET_OF[letter]) is None:
                raise ValueError(
                    f"reconstruct.mode={self.reconstruct.mode} needs decode.{TARGET_OF[letter]}; "
                    f"add it or choose another mode"
                )
        if self.decode.image_features is not None and not self.features.layers:
            raise ValueError(
                "decode.image_features needs the layers that they are of; set features.layers"
            )
        modes = (self.reconstruct.mode, *self.reconstruct.references)
        gradient = self.reconstruct.gradient
        if gradient is not None and not any("e" in letters(mode) for mode in modes):
            raise ValueError(
                f"reconstruct.gradient guides towards the image embedding, which nothing draws "
                f"from in reconstruct.mode={self.reconstruct.mode}; choose a mode with e or leave "
                f"reconstruct.gradient out"
            )
        if gradient is not None and gradient.embedding == gradient.layers == 0:
            raise ValueError(
                "reconstruct.gradient.embedding and layers are both 0, so nothing would guide; "
                "raise one or leave reconstruct.gradient out"
            )
        if "embedding" in self.evaluate.rerank and self.decode.image_embeds is None:
            raise ValueError(
                "evaluate.rerank has 'embedding', which needs decode.image_embeds; add it or leave "
                "'embedding' out"
            )
        for row in self.reconstruct.references:
            if row in TARGET_OF and getattr(self.decode, TARGET_OF[row]) is None:
                raise ValueError(
                    f"reconstruct.references has '{row}', which needs decode.{TARGET_OF[row]}; "
                    f"add it or leave '{row}' out"
                )
        return self


def _located(name: str, *, beside: Path) -> str:
    """Return a subject's name with the path of its dataset's entry file, if it has one."""
    dataset, colon, subject = name.rpartition(":")
    return f"{shipped.locate(dataset, beside=beside)}{colon}{subject}" if dataset else name


NAMING = ("name", "workspace", "folders", "on_change", "tracking", "resources", "tuning")
"""Sections of an experiment that its results do not depend on."""
