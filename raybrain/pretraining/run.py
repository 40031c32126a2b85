"""Pretraining carried by Ray Train and recorded in MLflow."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybrain import cluster
from raybrain.config import Tracking, Workers, flatten
from raybrain.pretraining.settings import Pretraining
from raybrain.tracking import open_tracker

FREE_TO_CHANGE = frozenset(
    {"name", "workers", "cpus", "gpus", "workspace", "export", "tracking", "report_every"}
)
"""Settings that do not change the weights, so training continues whatever they are."""


@dataclass(frozen=True)
class _Recorded:
    """What MLflow finds a pretraining by."""

    name: str
    subject: str
    dataset: str = "pretraining"


def run(settings: Pretraining) -> Path:
    """Train a pocket generator and return the folder it was written to.

    The same settings continue a run that was stopped, from its last report; a finished run is
    only exported again.

    Returns
    -------
    Path
        A diffusers folder, ``<workspace>/generators/<name>`` unless ``export`` says otherwise.

    Raises
    ------
    raybrain.config.InputError
        If there are no images, or captions are missing.
    """
    workspace = Path(settings.workspace).resolve()
    folder = Path(settings.export or workspace / "generators" / settings.name).resolve()
    handed = _absolute(settings, export=folder)
    total = sum(
        phase.optimisation.steps
        for phase in (settings.autoencoder, settings.text, settings.denoiser)
    )
    tracker = open_tracker(Tracking(uri=settings.tracking), workspace=str(workspace))
    parent = tracker.experiment_run(
        _Recorded(name=settings.name, subject=settings.images.folder or "openmoji")
    )
    with (
        tracker.stage(parent, "pretrain", settings=flatten(settings)) as tracked,
        cluster.Progress(total=total, description="pretrain", unit="steps") as bar,
    ):
        done = 0

        def record(metrics: dict[str, Any]) -> None:
            nonlocal done
            phase, values = metrics["phase"], metrics["values"]
            tracked.log_metrics(
                {f"{phase}/{key}": value for key, value in values.items()}, step=metrics["step"]
            )
            bar.advance(metrics["epoch"] - done, note=f"{phase} loss {values['loss']:.4f}")
            done = metrics["epoch"]

        cluster.train(
            train_worker,
            settings={"pretraining": handed.model_dump(mode="json")},
            name=f"{settings.name}-{digest(settings)[:12]}",
            storage=str(workspace / "pretraining"),
            workers=Workers(
                min=settings.workers, max=settings.workers, cpus=settings.cpus, gpus=settings.gpus
            ),
            on_report=record,
        )
        tracked.set_tags({"raybrain.generator": folder})
    tracker.close()
    return folder


def digest(settings: Pretraining) -> str:
    """Return a hash of the settings that determine the weights."""
    leaves = {
        address: value
        for address, value in flatten(settings).items()
        if address.split(".")[-1] not in FREE_TO_CHANGE
    }
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()


def train_worker(handed: dict[str, Any]) -> None:
    """Train on one Ray Train worker; on rank 0, export what came of it."""
    import torch
    from ray.train.torch import get_device, prepare_model

    from raybrain.pretraining.parts import export
    from raybrain.pretraining.phases import finished_parts, pretrain

    settings = Pretraining.model_validate(handed["pretraining"])
    with cluster.latest_checkpoint() as folder:
        state = (
            torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            if folder
            else None
        )
    last = state
    for report in pretrain(
        settings,
        state=state,
        parallel=prepare_model,
        device=get_device(),
        rank=cluster.rank(),
        world=cluster.world_size(),
    ):

        def save(folder: Path, state: Any = report.state) -> None:
            nonlocal last
            last = state()
            torch.save(last, folder / "state.pt")

        cluster.report(
            {
                "epoch": report.epoch,
                "phase": report.phase,
                "step": report.step,
                "values": report.metrics,
            },
            save,
        )
    if cluster.rank() == 0 and last is not None:
        export(finished_parts(settings, last), Path(settings.export or "generator"))


def _absolute(settings: Pretraining, *, export: Path) -> Pretraining:
    # Workers run in folders of their own.
    images = settings.images.model_copy(
        update={
            key: str(Path(value).resolve())
            for key in ("folder", "captions")
            if (value := getattr(settings.images, key)) is not None
        }
    )
    start = settings.start and str(Path(settings.start).resolve())
    return settings.model_copy(update={"images": images, "export": str(export), "start": start})
