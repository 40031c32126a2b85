"""The command line: a stage, an experiment file, and assignments.

Nothing heavy is imported before a stage is known, so that ``raybrain --help`` answers at once.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from raybrain.shipped import DEMO

STAGES = {
    "plan": "say what is present, missing and sealed, and what would run; writes nothing",
    "simulate": "write a simulated subject to disk as NSD would ship it",
    "ingest": "read the dataset into a sealed Zarr store of betas, trials and stimuli",
    "features": "encode the stimuli into the generator's latents and prompt embeddings",
    "tune": "search tuning.space for better settings; writes best.yaml",
    "train": "fit the decoders on training trials",
    "predict": "decode the test trials",
    "reconstruct": "draw images from the predictions with a pool of generators",
    "evaluate": "score the reconstructions beside floors and ceiling, and write the gallery",
    "export": "write the reconstructions as PNG files, or something else to share",
    "run": "all of the above but tune and export, in order, skipping what is sealed",
    "open": "open the experiment's run in MLflow's pages, which it starts if there is no server",
    "upgrade": "bring runs that an older MLflow recorded up to date; a database file is kept",
    "ablate": "run it again without each ROI and with each ROI alone, and compare",
    "demo": "run jobs/experiments/demo.yaml: a simulated subject, end to end",
}
SWEEP = "sweep"
COMPARE = "compare"
INIT = "init"
SCHEMA = "schema"
SCHEMAS = ("experiment", "catalog", "pretraining")
"""Kinds of files whose schema can be printed."""
INTERRUPTED = 130  # the shell's convention: 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
BAD_PLACES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
)  # fmt: skip
"""Numbers of errors that are about a place and not about the program."""
FULL_DISK = ("No space left on device", "database or disk is full", "Disk quota exceeded")


def usage() -> str:
    """Return the help text."""
    width = max(map(len, STAGES))
    stages = "\n".join(f"  {name:<{width}}  {what}" for name, what in STAGES.items())
    return (
        "raybrain reconstructs the images a person saw from their fMRI.\n\n"
        "  raybrain STAGE EXPERIMENT.yaml [address=value ...]\n"
        "  raybrain demo [address=value ...]\n"
        "  raybrain sweep SWEEP.yaml [address=value ...]\n"
        "  raybrain compare RUN RUN ... [out=FOLDER]\n"
        "  raybrain init FOLDER\n"
        f"  raybrain schema [{'|'.join(SCHEMAS)}]\n\n"
        f"Stages:\n{stages}\n\n"
        "sweep runs experiments that differ along axes, makes what they share once and sets them\n"
        "side by side; plan tells how far one is. Examples: jobs/sweeps/.\n"
        "compare tells what each later run gains on the first, image by image, with intervals;\n"
        "a run is a folder such as workspace/runs/demo, or its experiment file.\n"
        "evaluate EXPERIMENT.yaml images=FOLDER scores pictures from anywhere in place of the "
        "run's own,\nnamed IMAGE_ID.png or IMAGE_ID_SAMPLE.png; "
        "export EXPERIMENT.yaml form=FORM writes\npictures, tensors for other scripts, or models "
        "to share.\n"
        "init writes an experiment and a catalog entry of one's own to start from.\n"
        "schema prints the JSON Schema of such files, by which editors complete and check them.\n\n"
        "An address is the dotted path of a setting, its value is YAML:\n"
        "  raybrain train jobs/experiments/nsd.yaml 'decode.latents.rois=[V1, V2]'\n"
        "Settings, their meaning and defaults: raybrain/config/. Examples: jobs/experiments/."
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one stage and return the exit code: 0, 2 for bad input, 130 or 143 when stopped."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        from raybrain import __version__

        print(__version__)
        return 0
    import warnings

    from raybrain.config import InputError

    # A person reads these: what is wrong and what to do, not the line of code that noticed.
    warnings.showwarning = lambda message, *_, **__: print(
        f"raybrain: note: {message}", file=sys.stderr
    )
    try:
        return _run(words)
    except InputError as error:
        print(f"raybrain: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        sentence = _full_disk_sentence(error) if _disk_is_full(error) else _place_sentence(error)
        if sentence is None:
            raise
        print(f"raybrain: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("raybrain: stopped; the same command continues", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        if stop.code == TERMINATED:
            print("raybrain: stopped by SIGTERM; the same command continues", file=sys.stderr)
        raise


def _disk_is_full(error: BaseException | None) -> bool:
    """Return whether a disk without space is behind ``error``, whoever met it first."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in FULL_DISK):  # sqlite's and Arrow's have no number
            return True
        error = error.__cause__ or error.__context__
    return False


def _full_disk_sentence(error: Exception) -> str:
    path = getattr(error, "filename", None)
    where = f" at {path}" if path else ""
    return (
        f"the disk is full{where}; what is finished stays valid: make room, then the same command "
        f"continues"
    )


def _place_sentence(error: Exception) -> str | None:
    """Return what is wrong with a file or folder that may not be entered, read or written."""
    if not isinstance(error, OSError) or error.errno not in BAD_PLACES or not error.filename:
        return None
    return (
        f"{error.filename} cannot be used ({error.strerror}); change its permissions or what lies "
        f"there, then the same command continues"
    )


def _run(words: list[str]) -> int:
    from raybrain.config import Experiment, InputError

    stage, *rest = words
    if stage not in (*STAGES, SWEEP, COMPARE, INIT, SCHEMA):
        known = ", ".join((*STAGES, SWEEP, COMPARE, INIT, SCHEMA))
        raise InputError(f"'{stage}' is not a stage; choose from {known}")
    if any(word in ("-h", "--help") for word in rest):
        print(usage())
        return 0
    if stage == INIT:
        from raybrain.starting import init

        if len(rest) != 1:
            raise InputError("name one folder to write: raybrain init my-study")
        print(init(rest[0], example=DEMO))
        return 0
    if stage == SCHEMA:
        print(_schema(rest))
        return 0
    if stage == COMPARE:
        from raybrain.stages.comparing import compare

        print(compare(rest))
        return 0
    if stage == "demo":
        path, assignments = str(DEMO), rest
    elif not rest or "=" in rest[0]:
        kind, example = ("a sweep's", "sweeps/paper_small") if stage == SWEEP else (
            "an experiment", "experiments/demo"
        )  # fmt: skip
        raise InputError(f"name {kind} file: raybrain {stage} jobs/{example}.yaml")
    else:
        path, *assignments = rest
    from raybrain import sweeps, tracking

    tracking.typed(["run" if stage == "demo" else stage, path, *assignments])
    several = sweeps.is_sweep(path)
    if several and stage not in (SWEEP, "plan"):
        raise InputError(f"{path} describes a sweep; type: raybrain sweep {path}")
    if stage == SWEEP and not several and Path(path).is_file():
        raise InputError(
            f"{path} describes one experiment; type: raybrain run {path}, or write a file with "
            f"'experiment' and 'axes', such as jobs/sweeps/paper_small.yaml"
        )
    if stage == SWEEP or several:
        from raybrain import pipeline

        runs = sweeps.load_sweep(path, tuple(assignments))
        (pipeline.sweep if stage == SWEEP else pipeline.plan_sweep)(runs)
        return 0
    from raybrain.stages import OPTIONS

    named = {word.partition("=")[0]: word.partition("=")[2] for word in assignments}
    options = {name: named[name] for name in OPTIONS.get(stage, ()) if name in named}
    kept = [word for word in assignments if word.partition("=")[0] not in options]
    experiment = Experiment.load(path, *kept)
    from raybrain.api.running import run

    run(experiment, stage, **options)
    return 0


def _schema(rest: list[str]) -> str:
    """Return the JSON Schema of a kind of file."""
    import json

    from raybrain.config import Experiment, InputError
    from raybrain.schema import json_schema

    kind = rest[0] if rest else SCHEMAS[0]
    if kind not in SCHEMAS or len(rest) > 1:
        raise InputError(f"'{' '.join(rest)}' is no kind of file; name one of {', '.join(SCHEMAS)}")
    if kind == "catalog":
        from raybrain.catalog import CatalogEntry

        found = json_schema(CatalogEntry, filled_in=("name",))  # the file's own name
    elif kind == "pretraining":
        from raybrain.pretraining.settings import Pretraining

        found = json_schema(Pretraining)
    else:
        found = json_schema(Experiment)
    return json.dumps(found, indent=2)


if __name__ == "__main__":
    sys.exit(main())
