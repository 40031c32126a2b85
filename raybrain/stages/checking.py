"""What is known to fail, told before anything runs and not hours later at its stage."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raybrain import outputs, seal
from raybrain.config import ClosedForm, InputError
from raybrain.stages import drawing, encoding, extent

if TYPE_CHECKING:
    from raybrain.config import Decode, Experiment
    from raybrain.outputs import Output

LEAST_TRAINING_IMAGES = 3
"""With fewer, no penalty of ridge can be chosen."""
LEAST_TEST_IMAGES = 2
"""One alone cannot be told from others."""
NO_LETTERS = "?#%"
"""What addresses of databases and of runs take for something else than a letter of a path."""

Pending = Mapping[str, Sequence["Output"]]
"""Stage -> its outputs that are not sealed yet."""


def check(experiment: Experiment, *, stage: str, pictures: bool = False) -> None:
    """Raise the first of `faults` that a command would meet; the plan lists them itself.

    With ``pictures`` it is about pictures that were drawn elsewhere, with whatever generator.
    """
    outputs.dataset_entry(experiment)
    if pictures:
        _workspace(experiment)
        _weights(experiment, {"evaluate": (outputs.subject_store(experiment),)})
    elif stage != "plan":
        for fault in faults(experiment, stage=stage):
            raise fault


def faults(experiment: Experiment, *, stage: str) -> Iterator[InputError]:
    """Yield what will fail in the stages that a command has still to do, each with a remedy.

    Parameters
    ----------
    experiment : Experiment
    stage : str
        A stage, or a command that is about all of them.
    """
    alone = stage in (*outputs.RUN_STAGES, "tune", "export")
    before = [lambda: _workspace(experiment)]
    if stage not in ("simulate", "ingest"):
        before.append(lambda: _generator(experiment))
    found = [*_raised(before)]
    yield from found
    if found:
        return  # nothing below could be asked
    pending: dict[str, list[Output]] = {}
    try:
        for one in (stage,) if alone else outputs.RUN_STAGES:
            made = outputs.of_stage(experiment, one)
            states = [seal.status(output.folder, wanted=output.seal).state for output in made]
            pending[one] = [
                output for output, state in zip(made, states, strict=True) if state != "sealed"
            ]
    except InputError as error:
        if stage != "plan":  # which shows it where it belongs
            yield error
            return
    checks = (_folders, _steps, _weights, _counts, _validation, _memory, _disk)
    yield from _raised([lambda one=one: one(experiment, pending) for one in checks])  # type: ignore[misc]


def _raised(checks: Sequence[Callable[[], None]]) -> Iterator[InputError]:
    for one in checks:
        try:
            one()
        except InputError as error:
            yield error


def _workspace(experiment: Experiment) -> None:
    from raybrain import tracking

    workspace = experiment.workspace
    odd = sorted(
        {letter for letter in workspace if letter in NO_LETTERS or not letter.isprintable()}
    )
    if odd or ("::" in workspace):
        raise InputError(
            f"'workspace': {workspace!r} holds {', '.join(map(repr, odd)) or repr('::')}, which "
            f"databases and runs do not take as part of a path; choose a name without it"
        )
    if "://" not in workspace:
        _writable(workspace, what="the workspace")
    uri = tracking.uri_of(experiment.tracking, workspace=workspace)
    if uri.startswith("sqlite:///"):
        _writable(uri.removeprefix("sqlite:///"), what="the database of runs", file=True)


def _folders(experiment: Experiment, pending: Pending) -> None:
    for made in pending.values():
        for output in made:
            if "://" not in output.folder:
                _writable(output.folder, what=f"the output of {output.stage}")


def _writable(path: str, *, what: str, file: bool = False) -> None:
    """Raise `InputError` if a folder, or a file, cannot be written or made at ``path``."""
    try:
        place = _existing(Path(path), what=what)
        if place.is_dir() == (file and place == Path(path)):
            kind = "a folder" if place.is_dir() else "a file"
            raise InputError(f"{what} cannot be at {path}: {place} is {kind}; choose another place")
        writable = os.access(place, os.W_OK | (os.X_OK if place.is_dir() else 0))
    except OSError as error:
        reason = "links that go round in a circle" if error.errno == errno.ELOOP else error.strerror
        raise InputError(f"{what} cannot be at {path} ({reason}); choose another place") from None
    if not writable:
        raise InputError(
            f"{what} cannot be written at {path}: {place} is read-only for you; change its "
            f"permissions, or choose another place, as with workspace=FOLDER"
        )


def _existing(place: Path, *, what: str) -> Path:
    """Return the path itself, or the nearest folder or file above it that is there."""
    while True:
        try:
            place.stat()
        except (FileNotFoundError, NotADirectoryError):
            if place.is_symlink():
                raise InputError(
                    f"{what} cannot be at {place}, a link to nowhere; remove the link"
                ) from None
            place = place.parent
        else:
            return place


def _generator(experiment: Experiment) -> None:
    from raybrain import diffusion

    diffusion.check_sound(experiment.generator)
    diffusion.generator_digest(experiment.generator)
    shapes = encoding.shapes_of(experiment, tokens=experiment.features.tokens)
    if experiment.decode.image_embeds is not None and "image_embeds" not in shapes:
        raise InputError(
            f"decode.image_embeds needs an image encoder, and the generator "
            f"'{experiment.generator.checkpoint}' has none; type generator.image_adapter=FILE, an "
            f"IP-Adapter made for it, or choose a Stable unCLIP checkpoint"
        )


def _steps(experiment: Experiment, pending: Pending) -> None:
    from raybrain import diffusion

    if pending.get("reconstruct"):
        checkpoint = diffusion.find_checkpoint(experiment.generator)
        for row in drawing.drawn_rows(experiment):
            diffusion.check_steps(
                drawing.drawn_how(experiment.reconstruct, row=row),
                name=experiment.generator.checkpoint,
                scheduler=checkpoint.settings("scheduler"),
            )


def _weights(experiment: Experiment, pending: Pending) -> None:
    if pending.get("evaluate"):
        from raybrain import evaluation

        evaluation.weights_of(
            evaluation.protocol_named(experiment.evaluate.protocol),
            folder=evaluation.weights_folder(experiment.evaluate.weights),
        )


def _counts(experiment: Experiment, pending: Pending) -> None:
    found = (
        extent.extent_of(experiment) if pending.get("train") or pending.get("evaluate") else None
    )
    if found is None:
        return
    whose = f"{experiment.dataset} {experiment.subject}"
    training, tests = found.training_images, found.test_images
    if pending.get("train") and training is not None and training < LEAST_TRAINING_IMAGES:
        raise InputError(
            f"{whose} has {training} images to train on, but a decoder needs "
            f"{LEAST_TRAINING_IMAGES} at least; use more sessions or another test set (split.test)"
        )
    if pending.get("evaluate") and tests is not None and tests < LEAST_TEST_IMAGES:
        raise InputError(
            f"{whose} has {tests} test image, but scores tell an image from others, so "
            f"{LEAST_TEST_IMAGES} are needed at least; use more sessions or another test set "
            f"(split.test)"
        )


def _validation(experiment: Experiment, pending: Pending) -> None:
    targets = outputs.targets(experiment)
    networks = [
        f"{name}.decoder" for name, one in targets if not isinstance(one.decoder, ClosedForm)
    ]
    networks += [f"{name}.prior" for name, one in targets if one.prior is not None]
    wants = [f"'decode.{name}'" for name in networks if pending.get("train")]
    wants += ["the search"] if pending.get("tune") else []
    if not wants:
        return
    entry, found = outputs.dataset_entry(experiment), extent.extent_of(experiment)
    if found is None or found.validation_images is None:
        none = entry.split.validation == 0 and entry.split.test != "given"
    else:
        none = found.validation_images == 0
    if none:
        raise InputError(
            f"{wants[0]} is chosen by validation images, but {entry.name} holds out none; set "
            f"'split: {{validation: 0.1}}' in its catalog entry, or choose ridge"
        )


def _memory(experiment: Experiment, pending: Pending) -> None:
    from raybrain import cluster

    for target, decode in outputs.targets(experiment) if pending.get("train") else []:
        dimensions = _dimensions(experiment, target)
        several = len(outputs.subjects_of(experiment, decode)) > 1
        sizes = [
            extent.gigabytes(one, decode, dimensions=dimensions)
            for one in (outputs.each_subject(experiment) if several else [experiment])
        ]
        known = [size for size in sizes if size is not None]
        if several:
            if len(known) == len(sizes):
                extent.check_together(experiment, known)
        elif isinstance(decode.decoder, ClosedForm) and cluster.starts_its_own():
            _holds(known, target=target, decode=decode)


def _holds(sizes: Sequence[float], *, target: str, decode: Decode) -> None:
    import psutil

    total = psutil.virtual_memory().total / 1e9
    if sum(sizes) > total:
        raise InputError(
            f"ridge holds its data, {sum(sizes):.1f} GB of betas and {target}, but this machine "
            f"has {total:.1f} GB; choose fewer voxels than {', '.join(decode.rois)}, fewer "
            f"features.tokens or a smaller features.resolution, or a network, which is streamed: "
            f"'decode.{target}.decoder={{kind: residual_mlp}}'"
        )


def _dimensions(experiment: Experiment, target: str) -> int:
    shapes = encoding.shapes_of(experiment, tokens=experiment.features.tokens)
    return math.prod(shapes[target])


def _disk(experiment: Experiment, pending: Pending) -> None:
    if "://" in experiment.workspace:
        return
    subjects = outputs.each_subject(experiment)
    planned = {
        stage: sum(extent.planned_bytes(one, stage) for one in subjects[: len(made)])
        for stage, made in pending.items()
    }
    check_disk(
        experiment.workspace,
        planned=planned,
        folders=[one.folder for made in pending.values() for one in made],
    )


def check_disk(workspace: str, *, planned: Mapping[str, int], folders: Sequence[str]) -> None:
    """Raise `InputError` if a workspace has no room for what is planned.

    Parameters
    ----------
    workspace : str
        A folder of this machine.
    planned : mapping
        Stage -> bytes that it writes.
    folders : sequence of str
        Where it writes them, part of which may be there already.
    """
    total = sum(planned.values())
    place = _existing(Path(workspace), what="the workspace")
    free = shutil.disk_usage(place).free
    if total <= free:
        return
    total -= sum(_bytes_in(one) for one in folders)
    if total > free:
        largest = max(planned, key=lambda stage: planned[stage])
        raise InputError(
            f"what is still to be written takes about {total / 1e9:.1f} GB, most of it for "
            f"{largest}, but {place} has {free / 1e9:.1f} GB free; make room, or choose another "
            f"workspace="
        )


def _bytes_in(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
