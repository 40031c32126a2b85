"""Where every output of an experiment lies, and what it depends on.

An output depends on the settings named here and on the outputs it is made from, and on nothing
else: changing a setting redoes only what depends on it. Workers, tracking and the name of the
experiment are never part of a seal.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from raybrain import catalog, cluster, digests, plugins, seal
from raybrain.catalog import CatalogEntry
from raybrain.config import (
    Backbone,
    ClosedForm,
    Decode,
    Decodes,
    Experiment,
    InputError,
    OtherNetwork,
    changes_drawing,
    flatten,
)
from raybrain.seal import Seal

if TYPE_CHECKING:
    from raybrain.datasets.drawn import DrawnPictures

TOLD_BYTES = 2_000_000_000
"""Reading so much to see whether it changed takes seconds, and is told."""


OPTIONAL = (
    "latents.training",
    "embeds.training",
    "latents.sessions",
    "embeds.sessions",
    "reconstruct.guidance_interval",
    "reconstruct.spacing",
)
"""Ends of settings that are no part of a seal unless they are given: seals of before there were any
stay valid."""
DIGITS = 12
"""Of a seal, in the name of a folder."""


@dataclass(frozen=True)
class Output:
    """A folder that one stage makes."""

    stage: str
    folder: str
    seal: Seal


def dataset_entry(experiment: Experiment) -> CatalogEntry:
    """Return the catalog entry, checked to have the experiment's subject and ROIs.

    Raises
    ------
    InputError
        If the entry, the subject or an ROI does not exist.
    """
    entry = catalog.load_entry(experiment.dataset)
    for one in each_subject(experiment):
        own = one.dataset == experiment.dataset
        rois = {
            roi
            for _, decode in targets(experiment)
            for roi in decode.named_rois
            if own or isinstance(decode.decoder, Backbone)
        }
        whose = entry if own else catalog.load_entry(one.dataset)
        catalog.check_choice(whose, subject=one.subject, rois=tuple(sorted(rois)))
    return entry


def dataset_root(experiment: Experiment) -> str:
    """Return the folder or URL of the dataset on disk."""
    return catalog.root_of(dataset_entry(experiment), workspace=experiment.workspace)


def targets(experiment: Experiment) -> list[tuple[str, Decode]]:
    """Return the targets that the experiment decodes, by name."""
    return list(experiment.decode.each.items())


def has_networks(experiment: Experiment) -> bool:
    """Return whether a decoder, or a prior behind one, is fitted by gradient descent."""
    return any(
        decode.prior is not None or not isinstance(decode.decoder, ClosedForm)
        for _, decode in targets(experiment)
    )


def each_subject(experiment: Experiment) -> list[Experiment]:
    """Return the experiment for every subject whose data it trains on, its own subject first.

    Raises
    ------
    InputError
        If a subject of another dataset is measured where the experiment's own is simulated.
    """
    names = dict.fromkeys((experiment.subject, *experiment.subjects))
    return [_of_subject(experiment, name) for name in names]


def _of_subject(experiment: Experiment, name: str) -> Experiment:
    dataset, _, subject = name.rpartition(":")
    if dataset in ("", experiment.dataset):
        return experiment.model_copy(update={"subject": subject})
    simulation = experiment.simulation
    if simulation is not None:
        entry = catalog.load_entry(dataset)
        reader, layouts = entry.reader, type(simulation).model_fields["layout"].annotation
        if reader not in get_args(layouts) or not catalog.in_workspace(entry):
            raise InputError(
                f"'subjects' has {name}, but {experiment.subject} is simulated, and a simulated "
                f"brain trains with no measured one; leave one of them out"
            )
        simulation = simulation.model_copy(update={"layout": reader})
    # Those of another dataset have no further subjects: names are as the experiment writes them.
    return experiment.model_copy(
        update={
            "dataset": dataset,
            "subject": subject,
            "subjects": (),
            "simulation": simulation,
            "decode": _trained_together(experiment),
        }
    )


def _trained_together(experiment: Experiment) -> Decodes:
    """Return what is decoded, as far as it asks something of a subject of another dataset.

    A decoder that trains on the experiment's own subject alone names ROIs that others may lack.
    """
    each = experiment.decode.each
    shared = [decode for decode in each.values() if isinstance(decode.decoder, Backbone)]
    if not shared:
        return experiment.decode
    update = {
        name: decode if decode in shared else shared[0].model_copy(update={"prior": None})
        for name, decode in each.items()
    }
    return experiment.decode.model_copy(update=update)


def subject_name(experiment: Experiment, one: Experiment) -> str:
    """Return what one of `each_subject` is called among those of the experiment."""
    if one.dataset == experiment.dataset:
        return one.subject
    return f"{catalog.load_entry(one.dataset).name}:{one.subject}"


def subjects_of(experiment: Experiment, decode: Decode) -> list[str]:
    """Return the subjects that train the decoder of one target together, as `subject_name` says."""
    if not isinstance(decode.decoder, Backbone):
        return [experiment.subject]
    return [subject_name(experiment, one) for one in each_subject(experiment)]


def simulated(experiment: Experiment) -> Output | None:
    """Return the simulated dataset, or None where the dataset is a real one.

    Raises
    ------
    InputError
        If it would be written among the files of a dataset that lies elsewhere.
    """
    if experiment.simulation is None:
        return None
    entry = dataset_entry(experiment)
    if not catalog.in_workspace(entry):
        raise InputError(
            f"'simulation' would be written among the files of {entry.name} at {entry.root}; "
            f"choose dataset=simulated, or leave 'simulation' out (simulation=null)"
        )
    root = catalog.root_of(entry, workspace=experiment.workspace)
    folder = f"{root}/simulation/{experiment.subject}"
    settings = {"subject": experiment.subject, **_under(experiment, "simulation")}
    return Output("simulate", folder, Seal("simulate", settings))


def subject_store(experiment: Experiment) -> Output:
    """Return the Zarr store of betas, trials and stimuli."""
    entry = dataset_entry(experiment)
    named = f"{experiment.workspace}/stores/{entry.name}/{experiment.subject}.zarr"
    made_from = simulated(experiment)
    inputs = (
        {"the simulated subject": made_from.seal.digest}
        if made_from
        else {"the files of the dataset": _digest_of_files(experiment, entry, folder=named)}
    )
    described = entry.model_dump(
        mode="json",
        include={"reader", "layout", "rois", "split"},
        exclude={"rois": {"__all__": {"source"}}},  # words that change no voxel
    )
    settings = {
        "subject": experiment.subject,
        **_under(experiment, "ingest"),
        **{f"catalog.{key}": value for key, value in described.items()},
    }
    made = Seal("ingest", settings, inputs)
    return Output("ingest", _shared(experiment, named, made=made), made)


def features(experiment: Experiment) -> Output:
    """Return the targets made from the stimuli by the generator's encoders."""
    from raybrain import diffusion

    checkpoint = experiment.generator.checkpoint
    digest = diffusion.generator_digest(experiment.generator)
    name = f"{experiment.subject}-{Path(checkpoint.rstrip('/')).stem}-{digest[:8]}"
    named = f"{experiment.workspace}/features/{dataset_entry(experiment).name}/{name}.zarr"
    settings: dict[str, Any] = {
        "features.resolution": experiment.features.resolution,
        "generator.dtype": experiment.generator.dtype,
    }
    if experiment.features.layers:
        settings["features.layers"] = list(experiment.features.layers)
        settings["features.grid"] = experiment.features.grid
    for name in experiment.decode.others:
        settings[f"features.{name}"] = plugins.version(plugins.TARGETS, name)
    inputs = {"the store": subject_store(experiment).seal.digest, "the generator": digest}
    made = Seal("features", settings, inputs)
    return Output("features", _shared(experiment, named, made=made), made)


def decoder(experiment: Experiment, target: str) -> Output:
    """Return the fitted decoder of one target."""
    decode = dict(targets(experiment))[target]
    settings = {**_under(experiment, f"decode.{target}"), "seed": experiment.seed}
    if target == "prompt_embeds":
        settings["features.tokens"] = experiment.features.tokens
    if isinstance(decode.decoder, ClosedForm):
        own = f"decode.{target}.training."
        settings = {name: value for name, value in settings.items() if not name.startswith(own)}
    elif decode.training is None:
        settings |= _under(experiment, "training")
    inputs = {
        "the store": subject_store(experiment).seal.digest,
        "the targets": features(experiment).seal.digest,
    }
    if isinstance(decode.decoder, OtherNetwork):
        whose = plugins.version(plugins.DECODERS, decode.decoder.kind)
        inputs["the package of the decoder"] = whose
    others = set(subjects_of(experiment, decode)) - {experiment.subject}
    for one in each_subject(experiment):
        name = subject_name(experiment, one)
        if name in others:
            inputs[f"the store of {name}"] = subject_store(one).seal.digest
            inputs[f"the targets of {name}"] = features(one).seal.digest
    made = Seal("train", settings, inputs)
    folder = f"{_folder_of(experiment, 'decoders', made=made)}/{target}"
    return Output("train", folder, made)


def predictions(experiment: Experiment) -> Output:
    """Return the decoded targets of the test images."""
    inputs = {
        f"the decoder of {target}": decoder(experiment, target).seal.digest
        for target, _ in targets(experiment)
    }
    made = Seal("predict", {}, inputs)
    return Output("predict", f"{_folder_of(experiment, 'predictions', made=made)}.zarr", made)


def reconstructions(experiment: Experiment) -> Output:
    """Return the images drawn from the predictions."""
    inputs = {"the predictions": predictions(experiment).seal.digest}
    made = _drawn(experiment, inputs)
    folder = f"{_folder_of(experiment, 'reconstructions', made=made)}.zarr"
    return Output("reconstruct", folder, made)


RUN_STAGES = ("simulate", "ingest", "features", "train", "predict", "reconstruct", "evaluate")
"""The stages of `raybrain.pipeline.run`, in order."""


def of_stage(experiment: Experiment, stage: str) -> list[Output]:
    """Return everything that one stage makes."""
    subjects = each_subject(experiment)
    if stage == "simulate":
        return [made for one in subjects if (made := simulated(one)) is not None]
    if stage == "ingest":
        return [subject_store(one) for one in subjects]
    if stage == "features":
        return [features(one) for one in subjects]
    if stage == "train":
        return [decoder(experiment, target) for target, _ in targets(experiment)]
    alone = {
        "tune": tuning,
        "predict": predictions,
        "reconstruct": reconstructions,
        "export": pictures,
        "evaluate": report,
    }
    return [alone[stage](experiment)]


def in_order(experiment: Experiment) -> Iterator[Output]:
    """Yield every output of `raybrain.pipeline.run`, each made from those before it."""
    for stage in RUN_STAGES:
        yield from of_stage(experiment, stage)


def pictures(experiment: Experiment) -> Output:
    """Return the reconstructions as picture files."""
    inputs = {"the reconstructions": reconstructions(experiment).seal.digest}
    return Output("export", f"{run_folder(experiment)}/png", Seal("export", {}, inputs))


def tensors(experiment: Experiment) -> Output:
    """Return the reconstructions as tensors, for the scripts of others."""
    inputs = {"the reconstructions": reconstructions(experiment).seal.digest}
    return Output("export", f"{run_folder(experiment)}/tensors", Seal("export", {}, inputs))


def models(experiment: Experiment) -> Output:
    """Return the decoders with their cards, for others to load."""
    inputs = {
        f"the decoder of {target}": decoder(experiment, target).seal.digest
        for target, _ in targets(experiment)
    }
    inputs["the scores"] = report(experiment).seal.digest
    return Output("export", f"{run_folder(experiment)}/models", Seal("export", {}, inputs))


def report(experiment: Experiment) -> Output:
    """Return the scores, figures and gallery."""
    settings = _scored_how(experiment)
    inputs = {"the reconstructions": reconstructions(experiment).seal.digest}
    return Output(
        "evaluate", f"{run_folder(experiment)}/report", Seal("evaluate", settings, inputs)
    )


def ceiling(experiment: Experiment) -> Output:
    """Return the images drawn from the true targets alone, for pictures that others drew."""
    inputs = {"the targets": features(experiment).seal.digest}
    folder = f"{run_folder(experiment)}/ceiling.zarr"
    return Output("reconstruct", folder, _drawn(experiment, inputs))


def pictures_report(experiment: Experiment, drawn: DrawnPictures, *, with_ceiling: bool) -> Output:
    """Return the scores of a folder of pictures, which may come from anywhere.

    Parameters
    ----------
    experiment : Experiment
    drawn : DrawnPictures
    with_ceiling : bool
        Whether the experiment's own ceiling stands beside them.
    """
    from raybrain.datasets import contents  # imports pandas

    digest = contents.digest_of_contents(
        drawn.files,
        root=drawn.root,
        digests=functools.partial(_digests, workspace=experiment.workspace),
    )
    assert digest is not None
    settings = _scored_how(experiment)
    del settings["evaluate.rerank"]
    inputs = {"the store": subject_store(experiment).seal.digest, "the pictures": digest}
    if with_ceiling:
        inputs["the ceiling"] = ceiling(experiment).seal.digest
    label = re.sub(r"[^A-Za-z0-9_.-]", "_", drawn.root.url.rstrip("/").rpartition("/")[2])
    folder = f"{run_folder(experiment)}/scored/{label}-{digest[:8]}/report"
    return Output("evaluate", folder, Seal("evaluate", settings, inputs))


def changes_of_generator(experiment: Experiment) -> dict[str, str | None]:
    """Return what draws other pictures than the checkpoint by itself does, and changes no target.

    The digest of its LoRA and the type it is quantized to, each if there is one.
    """
    from raybrain import diffusion

    generator = experiment.generator
    found = {"lora": diffusion.lora_digest(generator), "quantize": generator.quantize}
    return {name: value for name, value in found.items() if value not in (None, "none")}


def _drawn(experiment: Experiment, inputs: dict[str, str]) -> Seal:
    """Return the seal of pictures that are drawn from ``inputs``."""
    settings = {**_under(experiment, "reconstruct"), "seed": experiment.seed}
    settings["generator.dtype"] = experiment.generator.dtype
    changes = changes_of_generator(experiment)
    settings |= {f"generator.{name}": value for name, value in changes.items()}
    return Seal("reconstruct", settings, inputs)


def tuning(experiment: Experiment) -> Output:
    """Return the search for better settings of the decoders.

    Raises
    ------
    InputError
        If the experiment has no ``tuning`` section.
    """
    if experiment.tuning is None:
        raise InputError(
            f"experiment '{experiment.name}' has no 'tuning' section, so there is nothing to "
            f"search; add one with a space, such as training.lr: {{low: 1e-5, high: 1e-2, log: on}}"
        )
    settings = {
        **_under(experiment, "tuning"),
        **_under(experiment, "decode"),
        **_under(experiment, "training"),
        "seed": experiment.seed,
    }
    del settings["tuning.storage"]
    settings["tuning.space"] = {
        address: span.model_dump(mode="json") for address, span in experiment.tuning.space.items()
    }
    settings["tuning.objectives"] = [
        one.model_dump(mode="json") for one in experiment.tuning.objectives
    ]
    inputs = {
        "the store": subject_store(experiment).seal.digest,
        "the targets": features(experiment).seal.digest,
    }
    if any(changes_drawing(address) for address in experiment.tuning.space):
        changes = changes_of_generator(experiment)
        settings |= _under(experiment, "reconstruct")
        settings |= {f"generator.{name}": value for name, value in changes.items()}
        settings["evaluate.protocol"] = experiment.evaluate.protocol
    return Output("tune", f"{run_folder(experiment)}/tuning", Seal("tune", settings, inputs))


def study_digest(output: Output) -> str:
    """Return a digest of all that a study depends on but how far it goes."""
    extent = ("tuning.candidates", "tuning.top", "tuning.seeds")
    settings = {name: value for name, value in output.seal.settings.items() if name not in extent}
    return seal.digest_of([settings, dict(output.seal.inputs)])


def run_folder(experiment: Experiment) -> str:
    """Return the folder of everything that belongs to this experiment alone."""
    return f"{experiment.workspace}/runs/{experiment.name}"


def _scored_how(experiment: Experiment) -> dict[str, Any]:
    settings = {**_under(experiment, "evaluate"), "seed": experiment.seed}
    # Of other packages, whose versions count; reports without any were sealed before there were.
    del settings["evaluate.metrics"]
    for name in experiment.evaluate.metrics:
        settings[f"evaluate.metrics.{name}"] = plugins.version(plugins.METRICS, name)
    return settings


def _folder_of(experiment: Experiment, what: str, *, made: Seal) -> str:
    """Return a folder within the run's own, or the one of all runs that need the same."""
    if experiment.folders == "by_name":
        return f"{run_folder(experiment)}/{what}"
    return f"{experiment.workspace}/{what}/{made.digest[:DIGITS]}"


def _shared(experiment: Experiment, named: str, *, made: Seal) -> str:
    """Return the folder by its name, or by its seal where it is not there as it is wanted."""
    if experiment.folders == "by_name":
        return named
    stem = named.removesuffix(".zarr")
    by_seal = f"{stem}-{made.digest[:DIGITS]}.zarr"
    # Once chosen it stays: another command may make the one by name meanwhile.
    if by_seal not in _CHOSEN and seal.status(named, wanted=made).state == "sealed":
        return named
    _CHOSEN.add(by_seal)
    return by_seal


_CHOSEN: set[str] = set()


def _under(experiment: Experiment, prefix: str) -> dict[str, Any]:
    leaves = flatten(experiment)
    return {
        name: value
        for name, value in leaves.items()
        if name.startswith(f"{prefix}.") and not (value is None and name.endswith(OPTIONAL))
    }


def _digest_of_files(experiment: Experiment, entry: CatalogEntry, *, folder: str) -> str:
    """Return a digest of the names and contents of the files that ingest would read.

    New or changed files make a new digest. A dataset that has gone from the disk after it was
    ingested keeps the digest of its sealed store.
    """
    from raybrain.datasets import contents  # imports pandas
    from raybrain.datasets.files import Root

    root = catalog.root_of(entry, workspace=experiment.workspace)
    files = contents.required_files(
        entry, root=root, subject=experiment.subject, settings=experiment.ingest
    )
    digest = contents.digest_of_contents(
        files,
        root=Root(root, storage=entry.storage),
        digests=functools.partial(_digests, workspace=experiment.workspace),
    )
    if digest:
        return digest
    found = seal.read_seal(folder)
    if found:
        return found.inputs["the files of the dataset"]
    raise InputError(f"the dataset {entry.name} has no files at {root}; {entry.get}".rstrip("; "))


def _digests(files: list[Path], *, workspace: str) -> list[str]:
    ledger = digests.ledger(workspace)
    unread = ledger.unread(files)
    if unread < TOLD_BYTES:
        return ledger.digests(files)
    with cluster.Progress(total=unread, description="check files", unit="bytes") as progress:
        return ledger.digests(files, advance=progress.advance)
