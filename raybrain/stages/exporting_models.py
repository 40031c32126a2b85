"""``export form=models``: every decoder of a run as a folder that others can load, with its card.

A folder goes to a model hub as it is. Whether it may is for the terms of the dataset to say; the
card quotes them.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from raybrain import __version__, cluster, outputs, places, store
from raybrain.decoders import load_decoder, write_model
from raybrain.stages import Made
from raybrain.stages.fitting_data import DECODER, PRIOR
from raybrain.stages.predicting import target_shape
from raybrain.stages.scoring import DECODERS, TABLE

if TYPE_CHECKING:
    from raybrain.config import Decode, Experiment
    from raybrain.decoders import TrainedDecoder
    from raybrain.outputs import Output
    from raybrain.tracking import Run

PARTS = {
    "latents": "the VAE's latents of the image seen",
    "prompt_embeds": "the text embedding of the image's caption",
    "image_embeds": "the image embedding of the image seen",
    "image_features": "the features of the image seen in inner layers of the image encoder",
}


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Write ``<target>/`` for every target that the experiment decodes."""
    models = [
        _Model.of(experiment, target, decode) for target, decode in outputs.targets(experiment)
    ]
    cluster.map_tasks(
        functools.partial(_write, folder=output.folder),
        models,
        workers=experiment.resources.tasks,
        description="export models",
        unit="decoders",
    )
    return Made(f"{len(models)} decoders with their cards: {', '.join(m.target for m in models)}")


@dataclass(frozen=True)
class _Model:
    """What a decoder's folder is written from, on whatever node."""

    target: str
    trained: str
    """The output of ``train``."""
    voxel_index: np.ndarray
    """(voxel,) int64: where the voxels of the ROIs lie in the volume."""
    about: dict[str, Any]
    scores: dict[str, Any]
    """Of the decoded target, from the report."""
    table: str
    """Of the reconstructions."""
    licence: dict[str, str]
    cite: str
    title: str

    @classmethod
    def of(cls, experiment: Experiment, target: str, decode: Decode) -> _Model:
        entry = outputs.dataset_entry(experiment)
        opened = store.open_store(outputs.subject_store(experiment).folder, splits="training")
        report = outputs.report(experiment).folder
        described = json.loads(places.read_text(f"{report}/{DECODERS}"))
        training = opened.trials["split"] == "train"
        return cls(
            target=target,
            trained=outputs.decoder(experiment, target).folder,
            voxel_index=opened.voxels["index"].to_numpy()[opened.mask(decode.rois)],
            about={
                "raybrain": __version__,
                "experiment": experiment.name,
                "target": target,
                "shape": list(target_shape(experiment, target)),
                "dataset": entry.name,
                "subject": experiment.subject,
                "rois": list(decode.rois),
                "generator": _name(experiment.generator.checkpoint),
                "generator_digest": outputs.features(experiment).seal.inputs["the generator"],
                "seal": outputs.decoder(experiment, target).seal.digest,
                "training_trials": int(training.sum()),
                "validation_trials": int((~training).sum()),
                "training_images": int(opened.trials["image_id"].nunique()),
            },
            scores={
                name: numbers for name, numbers in described.items() if name.split()[0] == target
            },
            table=places.read_text(f"{report}/{TABLE}"),
            licence={
                "name": entry.licence.name,
                "url": entry.licence.url,
                "redistributable": "yes" if entry.licence.redistributable else "no",
            },
            cite=entry.cite,
            title=entry.title,
        )


def _name(checkpoint: str) -> str:
    """Return a hub id as it is, and of a folder here its name alone."""
    return checkpoint if not Path(checkpoint).is_absolute() else Path(checkpoint).name


def _write(model: _Model, *, folder: str) -> None:
    with (
        places.reading(f"{model.trained}/{DECODER}") as saved,
        places.writing(f"{folder}/{model.target}") as place,
    ):
        decoder = load_decoder(saved)
        write_model(
            decoder,
            place,
            card=card_of(model, decoder),
            about=model.about,
            arrays={"voxel_index": model.voxel_index},
        )
        if places.exists(f"{model.trained}/{PRIOR}"):
            with places.reading(f"{model.trained}/{PRIOR}") as prior:
                shutil.copytree(prior, place / PRIOR, dirs_exist_ok=True)


def card_of(model: _Model, decoder: TrainedDecoder) -> str:
    """Return the card: a head that hubs read, and what people should know."""
    about = model.about
    head = {
        "license": "other",
        "license_name": model.licence["name"],
        "license_link": model.licence["url"],
        "library_name": "raybrain",
        "tags": ["fmri", "brain-decoding", about["dataset"], model.target],
    }
    used, given = int(decoder.voxels.sum()), len(decoder.voxels)
    varying = decoder.held_out_r2[decoder.targets.varying]
    settings = decoder.section.model_dump(mode="json")
    terms = (
        "The dataset may be passed on under its terms."
        if model.licence["redistributable"] == "yes"
        else "The dataset may not be passed on. Whether what was fitted on it may, its terms say: "
        "read them before you share this folder."
    )
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip()}\n---",
            "",
            f"# {about['experiment']}: {model.target} of {about['subject']}, {about['dataset']}",
            "",
            f"From the fMRI responses of one person to {PARTS.get(model.target, model.target)}, "
            f"{' x '.join(map(str, about['shape']))} numbers. Fitted by raybrain "
            f"{about['raybrain']}; it fits this person's brain and no other's.",
            "",
            "## Use",
            "",
            "```python",
            "from raybrain import Decoder",
            "",
            "decoder = Decoder.from_pretrained('.')  # this folder",
            f"estimates = decoder.predict(betas)     # (trial, {given}) -> (trial, "
            f"{len(decoder.gain)})",
            "```",
            "",
            f"Betas are those of the {given:,} voxels of {', '.join(about['rois'])}, in the order "
            f"and unit of the dataset; `about.voxel_index` in the weights says where each lies in "
            f"the volume (C order). {used:,} of them are used. They are z-scored by the decoder: "
            f"per scan session where `session` is one it was fitted on.",
            "",
            "## Data",
            "",
            f"- {model.title} ({model.cite}), subject {about['subject']}",
            f"- {about['training_trials']:,} training and {about['validation_trials']:,} "
            f"validation trials of {about['training_images']:,} images; no test trial was opened "
            f"before prediction",
            f"- target made by the generator `{about['generator']}` "
            f"({about['generator_digest'][:12]})",
            "",
            "## Decoder",
            "",
            *[f"- {name}: {value}" for name, value in settings.items()],
            f"- R² on images held out of the fit, mean over {len(varying):,} dimensions: "
            f"{varying.mean():.3f}",
            "",
            "## Scores on the test images",
            "",
            *_score_lines(model.scores),
            "",
            "What was drawn from this and the other decoders of the experiment, beside floors and "
            "ceiling; the first line names the protocol:",
            "",
            "```",
            model.table.strip("\n"),
            "```",
            "",
            "## Licence",
            "",
            f"Data: {model.licence['name']}, {model.licence['url']}. {terms}",
            "",
        ]
    )


def _score_lines(scores: dict[str, Any]) -> list[str]:
    lines = [
        "| | n | R² | r | two-way | chance | MSE | of the mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, numbers in scores.items():
        lines.append(
            f"| {name} | {numbers['n']:.0f} | {numbers.get('r2_mean', float('nan')):.3f} "
            f"| {numbers.get('pearson_mean', float('nan')):.3f} | {numbers['two_way']:.1%} "
            f"| {numbers['two_way_chance']:.0%} | {numbers['mse']:.4f} "
            f"| {numbers['mse_of_mean']:.4f} |"
        )
    return lines
