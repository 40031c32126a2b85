"""``plan``: what is present, missing and sealed, and what would run next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from raybrain import outputs, seal
from raybrain.config import InputError
from raybrain.stages import STAGE_COLUMN, checking

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output


def describe(experiment: Experiment) -> str:
    """Return the data plan and the state of every output, a line each."""
    lines = [*_data(experiment), *_others(experiment), *_generator(experiment), ""]
    following = None
    refused = [str(fault) for fault in checking.faults(experiment, stage="plan")]
    for output in _outputs(experiment):
        if isinstance(output, InputError):
            refused = [fault for fault in refused if fault != str(output)]
            lines += [f"{'refused':<{STAGE_COLUMN}}{fault}" for fault in refused]
            lines.append(f"{'next':<{STAGE_COLUMN}}nothing can run yet: {output}")
            return "\n".join(lines)
        found = seal.status(output.folder, wanted=output.seal)
        detail = f" ({'; '.join(found.differences)})" if found.differences else ""
        lines.append(f"{output.stage:<{STAGE_COLUMN}}{found.state:<12}{output.folder}{detail}")
        if found.state != "sealed" and following is None and output.stage != "tune":
            following = output.stage
    lines += [f"{'refused':<{STAGE_COLUMN}}{fault}" for fault in refused]
    then = f"raybrain {following}" if following else "all is done"
    lines.append(f"{'next':<{STAGE_COLUMN}}{'mend what is refused' if refused else then}")
    return "\n".join(lines)


def _outputs(experiment: Experiment) -> Iterator[Output | InputError]:
    """Yield every output, the search before what it would change, or what is in the way."""
    try:
        for output in outputs.in_order(experiment):
            if output.stage == "train" and experiment.tuning is not None:
                yield outputs.tuning(experiment)
                experiment = experiment.model_copy(update={"tuning": None})
            yield output
    except InputError as error:
        yield error


def _data(experiment: Experiment) -> list[str]:
    entry = outputs.dataset_entry(experiment)
    root = outputs.dataset_root(experiment)
    title = f"{'data':<{STAGE_COLUMN}}{entry.title}, {experiment.subject}, at {root}"
    lines = [title, f"{'':<{STAGE_COLUMN}}{entry.licence.name} ({entry.licence.url})"]
    made = outputs.simulated(experiment)
    if made and seal.status(made.folder, wanted=made.seal).state != "sealed":
        return [*lines, f"{'':<{STAGE_COLUMN}}'raybrain simulate' writes it"]
    from raybrain.datasets import contents  # imports pandas

    files = contents.required_files(
        entry, root=root, subject=experiment.subject, settings=experiment.ingest
    )
    present = [file for file in files if file.present]
    absent = [file for file in files if not file.present]
    size = sum(file.bytes or 0 for file in present)
    lines.append(f"{'':<{STAGE_COLUMN}}{len(present)} files present, {told_bytes(size)}")
    if absent:
        known = sum(file.bytes or 0 for file in absent)
        about = f", about {told_bytes(known)}" if known else ""
        lines.append(f"{'':<{STAGE_COLUMN}}{len(absent)} files missing{about}:")
        for file in absent:
            note = f"  {told_bytes(file.bytes)}" if file.bytes else ""
            lines.append(f"{'':<{STAGE_COLUMN}}  {file.path}{note}")
        if entry.get:
            lines.append(f"{'':<{STAGE_COLUMN}}{entry.get}")
    return lines


def _others(experiment: Experiment) -> Iterator[str]:
    """Yield the data plan of the other subjects, or why there is none."""
    try:
        others = outputs.each_subject(experiment)[1:]
    except InputError:  # told as the reason why nothing can run
        return
    for one in others:
        try:
            yield from _data(one)
        except InputError as error:
            name = outputs.subject_name(experiment, one)
            yield f"{'data':<{STAGE_COLUMN}}{name}, in 'subjects': {error}"


def _generator(experiment: Experiment) -> list[str]:
    """Return what the generator consists of, and what of it has to be fetched from where."""
    from raybrain import diffusion

    settings = experiment.generator
    known = diffusion.CHECKPOINTS.get(settings.checkpoint)
    about = f" ({known.licence}, about {told_bytes(known.bytes)})" if known else ""
    lines = [f"{'generator':<{STAGE_COLUMN}}{settings.checkpoint}{about}"]
    for file in diffusion.wanted_files(settings):
        if file.present:
            lines.append(f"{'':<{STAGE_COLUMN}}{file.path}, {told_bytes(file.path.stat().st_size)}")
            continue
        source = file.published
        fetch = (
            f": fetch {source.path} of {source.repository}, {told_bytes(source.bytes)}, "
            f"{source.licence}"
            if source
            else ""
        )
        lines.append(f"{'':<{STAGE_COLUMN}}{file.path} is missing{fetch}")
    return lines


def told_bytes(count: int) -> str:
    """Return a size with a decimal unit, as disks and buckets are sold."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
