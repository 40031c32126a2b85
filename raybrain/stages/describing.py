"""What MLflow's pages say in words: of an experiment's run, of its data, of a decoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raybrain import outputs, places, seal, store, tracking
from raybrain.config import InputError, as_text, flatten
from raybrain.tracking import Described

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.store import SubjectStore

HEADLINE = "headline.json"
"""Metric -> floor, system, ceiling and chance; written beside the scores."""
GRID = "grid.png"
GALLERY = "gallery.html"
CAUTION = (
    "What not to conclude: a picture drawn here is the generator's guess given what was decoded, "
    "not what the person saw or thought; scores are comparable under the same protocol and data "
    "alone; decoding one person says nothing about another."
)
SIMULATED = "This brain is simulated: its scores are never to be set beside those of measured ones."


def experiment_page(experiment: Experiment, *, status: str, run_id: str) -> str:
    """Return the description of an experiment's run, in Markdown.

    Parameters
    ----------
    experiment : Experiment
    status : str
        RUNNING, FINISHED, FAILED or KILLED.
    run_id : str
        Of the run itself, for the address of its picture.
    """
    entry = outputs.dataset_entry(experiment)
    decoded = "; ".join(
        f"{target} by {decode.decoder.kind} from {', '.join(decode.rois)}"
        for target, decode in outputs.targets(experiment)
    )
    drawing = experiment.reconstruct
    parts = [
        f"**{entry.title}, {experiment.subject}.** Decoded: {decoded}. Drawn by "
        f"{experiment.generator.checkpoint} from {drawing.mode}, {drawing.samples} samples of each "
        f"image, seed {experiment.seed}."
    ]
    scores = _headline(experiment)
    if scores and may_show(experiment):
        parts.append(f"![seen beside reconstructed](get-artifact?path={GRID}&run_uuid={run_id})")
    if scores:
        parts.append(_table(scores))
        parts.append(
            f"Floor: the best of the trivial rows. Ceiling: the true targets through the same "
            f"generator. Protocol {experiment.evaluate.protocol}, "
            f"{scores['images']} test images. Artifact `{GALLERY}` shows them all."
        )
    elif status == "RUNNING":
        parts.append("Scores follow when its images are evaluated.")
    parts.append(
        f"Data: {entry.cite}; licence {entry.licence.name}, {entry.licence.url}; split: test "
        f"{entry.split.test}, validation {entry.split.validation:g} by {entry.split.group}."
    )
    parts.append(CAUTION if experiment.simulation is None else f"{SIMULATED} {CAUTION}")
    return "\n\n".join(parts)


def may_show(experiment: Experiment) -> bool:
    """Return whether stimuli may leave this machine as artifacts of runs."""
    licence = outputs.dataset_entry(experiment).licence
    return licence.redistributable or experiment.tracking.private


def parts_of_data(experiment: Experiment, *, test: bool) -> list[Described]:
    """Return the training and validation trials, or the test trials, as MLflow shows datasets.

    Empty before they are ingested. To ask for the test trials opens them.
    """
    output = outputs.subject_store(experiment)
    if seal.status(output.folder, wanted=output.seal).state != "sealed":
        return []
    opened = store.open_store(output.folder, splits="test" if test else "training")
    contexts = ("test",) if test else ("train", "validation")
    return [
        described
        for context in contexts
        if (described := _part(experiment, opened, context, digest=output.seal.digest))
    ]


def parts_of_others(experiment: Experiment, target: str) -> list[Described]:
    """Return the trials of other subjects that the decoder of a target trains on as well."""
    names = outputs.subjects_of(experiment, dict(outputs.targets(experiment))[target])
    return [
        part
        for one in outputs.each_subject(experiment)[1:]
        if outputs.subject_name(experiment, one) in names
        for part in parts_of_data(one, test=False)
    ]


def _part(
    experiment: Experiment, opened: SubjectStore, context: str, *, digest: str
) -> Described | None:
    trials = opened.trials[opened.trials["split"] == context]
    if trials.empty:
        return None
    entry = outputs.dataset_entry(experiment)
    kinds = {"image_id": "string", "session": "long", "repeat": "long"}
    return Described(
        name=f"{entry.name}/{experiment.subject}/{context}",
        digest=hashlib.sha256(f"{digest} {context}".encode()).hexdigest(),
        source=outputs.dataset_root(experiment),
        context=context,
        columns={
            "betas": ("float", (-1, len(opened.voxels))),
            **{name: (kind, (-1,)) for name, kind in kinds.items()},
            **{f"roi {name}": ("voxels", (int(mask.sum()),)) for name, mask in opened.rois.items()},
        },
        counts={
            "trials": len(trials),
            "images": int(trials["image_id"].nunique()),
            "sessions": int(trials["session"].nunique()),
            "voxels": len(opened.voxels),
        },
    )


def decoders_page(experiment: Experiment, target: str) -> str:
    """Return what all versions of a registered decoder have in common."""
    entry = outputs.dataset_entry(experiment)
    return (
        f"Decodes `{target}` from the fMRI betas of {experiment.subject}, {entry.title}. The alias "
        f"`champion` is the version with the best R² on training images that were held out; test "
        f"images never decide. Licence of the data: {entry.licence.name}, {entry.licence.url}."
    )


def decoder_card(
    experiment: Experiment,
    target: str,
    *,
    voxels: int,
    dimensions: int,
    held_out_r2: float,
    tested: Mapping[str, float] | None = None,
) -> str:
    """Return the model card of one fitted decoder, in Markdown.

    Parameters
    ----------
    experiment, target
        What was decoded, and from what.
    voxels, dimensions : int
        In and out.
    held_out_r2 : float
        Mean over dimensions.
    tested : mapping, optional
        From `raybrain.evaluation.LatentScores.summary`, of the test images.
    """
    entry = outputs.dataset_entry(experiment)
    decode = dict(outputs.targets(experiment))[target]
    lines = [
        f"# {target} of {entry.name}, {experiment.subject}",
        f"`{decode.decoder.kind}` from {voxels:,} voxels of {', '.join(decode.rois)} to "
        f"{dimensions:,} dimensions, in experiment `{experiment.name}`. Input: betas (trial, "
        f"voxel) of these ROIs in the order of the store; `session` chooses the z-scoring.",
        f"**Data.** {entry.title}; {entry.cite}. Split: test {entry.split.test}, validation "
        f"{entry.split.validation:g} by {entry.split.group}. "
        f"Licence {entry.licence.name}, {entry.licence.url}.",
        "**Scores.**",
        "| | floor (training mean) | decoder | ceiling |\n|---|---|---|---|\n"
        f"| R², held-out training images | 0 | {held_out_r2:.3f} | |",
    ]
    if tested is not None:
        ceiling = tested.get("r2_ceiling_mean")
        shown = "" if ceiling is None else f"{ceiling:.3f}"
        lines[-1] += (
            f"\n| R², test images | 0 | {tested.get('r2_mean', float('nan')):.3f} | {shown} |"
        )
        if "two_way" in tested:
            lines[-1] += f"\n| two-way, test images | 0.5 | {tested['two_way']:.3f} | 1 |"
    if decode.shuffled:
        lines.append("**A control**: it was trained on shuffled targets and must be at chance.")
    lines.append(CAUTION if experiment.simulation is None else f"{SIMULATED} {CAUTION}")
    return "\n\n".join(lines)


def settings_of(experiment: Experiment, target: str) -> dict[str, str]:
    """Return the settings of a target's decoder by address, as they are typed."""
    prefixes = (f"decode.{target}.", "training.")
    return {
        address: as_text(value)
        for address, value in flatten(experiment).items()
        if address.startswith(prefixes)
    }


def _headline(experiment: Experiment) -> dict[str, Any] | None:
    try:
        output = outputs.report(experiment)
        if seal.status(output.folder, wanted=output.seal).state != "sealed":
            return None
        found: dict[str, Any] = json.loads(places.read_text(f"{output.folder}/{HEADLINE}"))
    except (FileNotFoundError, InputError):  # made before there was one; or its data are gone
        return None
    return found


def _table(scores: Mapping[str, Any]) -> str:
    lines = ["| | chance | floor | this run | ceiling |", "|---|---|---|---|---|"]
    for one in scores["metrics"]:
        cells = (
            _cell(one[name], one["percent"]) for name in ("chance", "floor", "system", "ceiling")
        )
        lines.append(f"| {one['label']} | {' | '.join(cells)} |")
    for target, numbers in scores["targets"].items():
        ceiling = numbers.get("r2_ceiling_mean")
        lines.append(
            f"| R² of {target} | 0 | 0 | {_cell(numbers.get('r2_mean'), False)} | "
            f"{_cell(ceiling, False)} |"
        )
    return "\n".join(lines)


def _cell(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.1%}" if percent else f"{value:.3f}"


def registered_name(experiment: Experiment, target: str) -> str:
    """Return the name under which the decoders of a target are registered."""
    name = outputs.dataset_entry(experiment).name
    return tracking.model_name(dataset=name, subject=experiment.subject, target=target)


def fitted(experiment: Experiment, target: str) -> dict[str, Any] | None:
    """Return what the seal of a decoder notes for its card; None of one made before it did."""
    found = seal.read_seal(outputs.decoder(experiment, target).folder)
    notes = {} if found is None else dict(found.notes)
    names = ("voxels", "dimensions", "held_out_r2")
    return {name: notes[name] for name in names} if all(name in notes for name in names) else None
