"""``tune``: a search over how is decoded, or how is drawn, by validation images alone."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from raybrain import catalog, cluster, outputs, places, store, tracking
from raybrain.config import ClosedForm, Decode, Experiment, InputError, KernelRidge
from raybrain.decoders import (
    Examples,
    Regressors,
    fit_factor,
    fit_target_scaler,
    gradient_task,
    penalties_of,
    prepare,
    wants_ceiling,
    within,
)
from raybrain.decoders.examples import Repeats
from raybrain.decoders.normalisation import Averaged
from raybrain.stages import Made
from raybrain.stages.fitting_data import image_rows, targets_of
from raybrain.stages.searching_drawn import Decoded, draw_candidate, drawn_data, searches_drawing

if TYPE_CHECKING:
    from raybrain.cluster import Candidate, Outcome, Refit, Shared, Shelf
    from raybrain.outputs import Output
    from raybrain.tracking import Run

BEST = "best.yaml"
TABLE = "candidates.txt"
WINNER = "winner.json"
BASE = "experiment.yaml"
"""The experiment as it was searched, for the commands of the table to start from."""

_RIDGE_REPEATS: dict[bool, Repeats] = {False: "average", True: "trial"}
"""How `train` fits ridge, by whether a target stands for a category."""

State = dict[str, Any]


def check(experiment: Experiment) -> None:
    """Refuse a space that names what does not exist, before anything is written.

    Raises
    ------
    raybrain.config.InputError
        If an address, a value or an ROI does not fit, or nothing that is searched is fitted.
    """
    cluster.check_space(experiment)
    assert experiment.tuning is not None
    entry = outputs.dataset_entry(experiment)
    for address, span in experiment.tuning.space.items():
        if address.endswith(".rois"):
            named = {roi for choice in span.choices or () for roi in choice}
            catalog.check_choice(entry, subject=experiment.subject, rois=tuple(sorted(named)))
    for target, decode in outputs.targets(experiment):
        weighed, _ = _weighing(experiment, target, decode)
        catalog.check_choice(entry, subject=experiment.subject, rois=tuple(sorted(weighed)))
    if searches_drawing(experiment):
        return
    if not searched_targets(experiment):
        raise InputError(
            "tuning.space searches training, which ridge does not use; search decode.<target> "
            "or choose another decoder"
        )


def searched_targets(experiment: Experiment) -> list[str]:
    """Return the targets whose decoders the space changes."""
    assert experiment.tuning is not None
    space = experiment.tuning.space
    trains = any(address.startswith("training.") for address in space)
    return [
        target
        for target, decode in outputs.targets(experiment)
        if any(address.startswith(f"decode.{target}.") for address in space)
        or (trains and not isinstance(decode.decoder, ClosedForm))
    ]


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Search, fit the best again with other seeds, and write the winner as an experiment."""
    tuning = experiment.tuning
    assert tuning is not None
    storage = cluster.storage_of(tuning, workspace=experiment.workspace)
    name = study_name(experiment, output)
    tracker = tracking.open_tracker(experiment.tracking, workspace=experiment.workspace)
    log = tracking.StudyLog(
        tracker, parent=run, study=name, objectives=[one.metric for one in tuning.objectives]
    )
    run.set_tags({"study": name, "study.storage": storage.rpartition("@")[2]})
    loop = _loop(experiment)
    workers = experiment.resources.tune
    checkpoints = f"{output.folder}/checkpoints"
    outcomes = cluster.search(
        loop,
        tuning=tuning,
        default=cluster.default_settings(experiment),
        name=name,
        storage=storage,
        folder=checkpoints,
        seed=experiment.seed,
        workers=workers,
        on_events=log.record,
    )
    log.settle(outcomes)
    if not outcomes or outcomes[0].state != "complete":
        last = outcomes[0].error.strip().splitlines()[-1:] if outcomes else []
        raise InputError(f"no candidate of the study '{name}' ran to its end: {''.join(last)}")
    refits = cluster.refit(loop, outcomes, tuning=tuning, folder=checkpoints, workers=workers)
    winner = _winner(outcomes, refits, experiment=experiment)
    log.mark_best(winner)
    run.set_tags({"best": winner.number})
    commands = f"raybrain train {output.folder}/{BASE} SETTINGS seed={experiment.seed}"
    listed = table(outcomes, refits, experiment=experiment)
    with places.writing(output.folder) as folder:
        (folder / WINNER).write_text(json.dumps({"settings": dict(winner.settings)}))
        (folder / BASE).write_text(_as_yaml(experiment, name=f"{experiment.name}-candidate"))
        (folder / TABLE).write_text(f"{listed}\nto fit one of them: {commands}\n")
        for path in cluster.plot_study(name=name, storage=storage, folder=str(folder)):
            run.log_artifact(path, "study")
        run.log_artifact(folder / TABLE)
    states = [one.state for one in outcomes]
    best = outcomes[0].values[0]
    run.log_metrics({f"objective/{tuning.objectives[0].metric}": best})
    return Made(
        f"{len(outcomes)} candidates ({states.count('pruned')} stopped early, "
        f"{states.count('failed')} failed), best {tuning.objectives[0].metric} {best:.4f}",
        notes={"study": name, "epochs": sum(one.epochs for one in outcomes)},
    )


def _loop(experiment: Experiment) -> Callable[[Candidate], dict[str, float]]:
    """Return what tries a candidate, with what all of them share in the object store."""
    assert experiment.tuning is not None
    prepared = functools.partial(
        cluster.on_worker, workers=experiment.resources.tasks, description="prepare"
    )
    if searches_drawing(experiment):
        return functools.partial(
            draw_candidate,
            experiment=experiment,
            data=prepared(
                functools.partial(
                    drawn_data, Decoded.each(experiment), images=experiment.tuning.images
                )
            ),
        )
    read = functools.partial(
        shared_data,
        experiment,
        stimuli=outputs.subject_store(experiment).folder,
        features=outputs.features(experiment).folder,
    )
    return functools.partial(
        fit_candidate, experiment=experiment, data=prepared(read), shelf=cluster.shelf()
    )


def study_name(experiment: Experiment, output: Output) -> str:
    """Return the study's name: another space is another study, more candidates are the same."""
    return f"{experiment.name}-{outputs.study_digest(output)[:8]}"


def write_best(experiment: Experiment, output: Output) -> str:
    """Write the winner as an experiment that every stage loads; return the file."""
    settings = json.loads(places.read_text(f"{output.folder}/{WINNER}"))["settings"]
    best = experiment.with_(settings, source="tuning.space")
    file = f"{outputs.run_folder(experiment)}/{BEST}"
    note = f"# The best of tuning '{experiment.name}', chosen by validation images.\n"
    places.write_text(file, note + _as_yaml(best, name=f"{experiment.name}-best"))
    return file


def _as_yaml(experiment: Experiment, *, name: str) -> str:
    tree = experiment.model_dump(mode="json", exclude={"tuning"}, exclude_none=True)
    return yaml.safe_dump({**tree, "name": name}, sort_keys=False)


@dataclass(frozen=True)
class _Responses:
    """Training and validation trials of all voxels that any candidate may use, z-scored once."""

    examples: Examples
    validation: Averaged
    ceiling: np.ndarray
    """(voxel,) of ``examples``."""
    runs: np.ndarray | None
    """(row,) scan run to leave out together where a target stands for a category."""


@dataclass(frozen=True)
class _Data:
    """What all candidates share, in the object store."""

    responses: Mapping[tuple[str, Repeats], _Responses]
    """By target and by how repeats are treated."""
    truth: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Target -> row of every image in the store, its true values."""
    by_category: bool
    """Whether a target stands for a category, so that repeats are different pictures."""


def shared_data(experiment: Experiment, *, stimuli: str, features: str) -> _Data:
    """Return what all candidates share, read from the subject's store and that of the targets."""
    opened = store.open_store(stimuli, splits="training")
    assert experiment.tuning is not None
    rows = image_rows(opened)
    session = opened.trials["session"].to_numpy()
    train = (opened.trials["split"] == "train").to_numpy()
    by_category = opened.attributes["target"] == "category"
    responses = {}
    for target in searched_targets(experiment):
        decode = dict(outputs.targets(experiment))[target]
        rois = sorted(
            _values(experiment, f"decode.{target}.rois", decode.rois, flat=True)  # type: ignore[type-var]
        )
        weighed, by_ceiling = _weighing(experiment, target, decode)
        mask = opened.mask(rois)
        betas = opened.betas(voxels=mask)
        treatments: set[Repeats] = _values(
            experiment, f"decode.{target}.repeats", (decode.repeats,)
        )
        for repeats in treatments | {_RIDGE_REPEATS[by_category]}:
            examples = prepare(
                betas[train],
                session=session[train],
                image_id=rows[train],
                repeats=repeats,
                rois={name: opened.rois[name][mask] for name in {*rois, *weighed}},
                xyz=opened.voxels[["x", "y", "z"]].to_numpy()[mask],
                edges=within(opened.edges, mask),
                estimate_ceiling=by_ceiling,
            )
            responses[target, repeats] = _Responses(
                examples=examples,
                validation=examples.like(
                    betas[~train], session=session[~train], image_id=rows[~train]
                ),
                ceiling=opened.voxels["noise_ceiling"].to_numpy()[mask][examples.voxels],
                runs=opened.trials["run"].to_numpy()[train] if by_category else None,
            )
    images = np.unique(rows)
    truth = {
        target: (
            images,
            targets_of(
                images,
                features=features,
                target=target,
                tokens=experiment.features.tokens,
                opened=opened,
            ),
        )
        for target in searched_targets(experiment)
    }
    return _Data(responses=responses, truth=truth, by_category=by_category)


def _values(experiment: Experiment, address: str, own: Any, *, flat: bool = False) -> set[Any]:
    """Return the experiment's own values at ``address`` and those that the space offers."""
    assert experiment.tuning is not None
    span = experiment.tuning.space.get(address)
    offered = span.choices or () if span else ()
    return set(own) | ({v for choice in offered for v in choice} if flat else set(offered))


def _weighing(experiment: Experiment, target: str, decode: Decode) -> tuple[set[str], bool]:
    """Return the ROIs that any candidate's kernel weighs voxels by, and whether any by ceilings."""
    assert experiment.tuning is not None
    space, address = experiment.tuning.space, f"decode.{target}.decoder"

    def offered(setting: str) -> list[Any]:
        return list(space[setting].choices or ()) if setting in space else []

    kinds = [kind for kind in offered(address) if isinstance(kind, dict)]
    weights = [*offered(f"{address}.weights"), *(kind.get("weights", {}) for kind in kinds)]
    within = f"{address}.weights."
    rois = {name for one in weights for name in one}
    rois |= {one.removeprefix(within) for one in space if one.startswith(within)}
    by_ceiling = (
        wants_ceiling(decode.decoder)
        or f"{address}.ceiling_power" in space
        or any(kind.get("ceiling_power") for kind in kinds)
    )
    return rois | set(decode.named_rois), by_ceiling


def fit_candidate(
    candidate: Candidate, *, experiment: Experiment, data: Shared[_Data], shelf: Shelf
) -> dict[str, float]:
    """Fit the searched targets of one candidate, an epoch of each in turn.

    Factors of ridge, which depend on the voxels alone, are made once and kept on ``shelf``.

    Returns
    -------
    dict
        ``validation_loss``, the mean over targets of the least mean squared error of standardised
        targets (predicting the training mean: about 1); that of each target as
        ``<target>/validation_loss``; ``parameters``, their number.
    """
    import torch

    tried = experiment.with_(candidate.settings, source="tuning.space")
    decodes = dict(outputs.targets(tried))
    with cluster.latest_checkpoint() as folder:
        saved = torch.load(folder / "state.pt", weights_only=True) if folder else {}
    epoch: int = saved.get("epoch", 0)
    best: dict[str, float] = dict(saved.get("best", {}))
    fits = {
        target: _fit(
            tried,
            target,
            decodes[target],
            data=data,
            shelf=shelf,
            seed=candidate.seed,
            state=state,
        )
        for target in searched_targets(experiment)
        if (state := saved.get("states", {}).get(target)) is not None or not saved
    }
    sizes: dict[str, float] = dict(saved.get("sizes", {}))
    states: dict[str, Any] = {}
    current = dict(best)
    while fits:
        epoch += 1
        for target, steps in list(fits.items()):
            step = next(steps, None)
            if step is None:
                del fits[target]
                states.pop(target, None)
                current[target] = best[target]
                continue
            current[target], sizes[target], states[target] = step
            best[target] = min(best.get(target, np.inf), current[target])
        if fits:
            loss = float(np.mean(list(current.values())))
            save = functools.partial(_save, epoch=epoch, best=best, sizes=sizes, states=states)
            cluster.report({"epoch": epoch, "validation_loss": loss}, save=save)
    return {
        "validation_loss": float(np.mean(list(best.values()))),
        **{f"{target}/validation_loss": loss for target, loss in best.items()},
        "parameters": float(sum(sizes.values())),
    }


def _save(folder: Path, *, epoch: int, best: State, sizes: State, states: State) -> None:
    import torch

    taken = {target: state() for target, state in states.items() if state is not None}
    torch.save(
        {"epoch": epoch, "best": dict(best), "sizes": dict(sizes), "states": taken},
        folder / "state.pt",
    )


def _fit(
    tried: Experiment,
    target: str,
    decode: Decode,
    *,
    data: Shared[_Data],
    shelf: Shelf,
    seed: int,
    state: State | None,
) -> Iterator[tuple[float, float, Any]]:
    """Yield validation loss, number of parameters and how to save, after each epoch."""
    chosen = (data, target, decode.rois, decode.named_rois, decode.min_noise_ceiling)
    if isinstance(decode.decoder, ClosedForm):
        repeats = _RIDGE_REPEATS[data.get().by_category]
        yield _ridge(*chosen, repeats, decode.decoder, shelf=shelf)
        return
    from raybrain import training

    examples, validation = _examples(*chosen, decode.repeats)
    task = gradient_task(
        examples,
        targets=_truth(data, target, examples.image_id),
        validation=validation,
        validation_targets=_truth(data, target, validation.image_id),
        section=decode.decoder,
    )
    network = task.build(seed=seed).to(cluster.device())
    size = float(sum(parameter.numel() for parameter in network.parameters()))
    for epoch in training.fit(
        network,
        train=training.resident(task.betas[:], targets=task.targets[:], count=task.count),
        validation=training.resident(task.validation_betas, targets=task.validation_targets),
        settings=decode.training or tried.training,
        seed=seed,
        cosine=decode.decoder.cosine,
        contrast=training.contrast_of(decode.decoder),
        state=state,
        rank=cluster.rank(),
        world_size=cluster.world_size(),
    ):
        yield epoch.validation_loss, size, epoch.state


def _ridge(
    data: Shared[_Data],
    target: str,
    rois: tuple[str, ...],
    named: tuple[str, ...],
    min_noise_ceiling: float,
    repeats: Repeats,
    section: ClosedForm,
    *,
    shelf: Shelf,
) -> tuple[float, float, None]:
    """Return the validation loss of ridge fitted on training images, and its size."""
    examples, validation = _examples(data, target, rois, named, min_noise_ceiling, repeats)
    gpu = cluster.gpu()
    make = functools.partial(Regressors.of, examples, section=section, device=gpu)
    if isinstance(section, KernelRidge):
        regressors = make()  # of nearly every candidate another: keeping them would fill the store
    else:
        key = ("factor", target, tuple(sorted(rois)), min_noise_ceiling, repeats)
        regressors = shelf.get(key, lambda: make().on(None)).on(gpu)
    targets = _truth(data, target, examples.image_id)
    runs = data.get().responses[target, repeats].runs
    fit = fit_factor(regressors.factor, targets=targets, alphas=penalties_of(section), folds=runs)
    estimates = fit.predict(regressors.rows(validation.betas))
    scaler = fit_target_scaler(targets, count=examples.count)
    wanted = scaler.transform(_truth(data, target, validation.image_id))
    error = float(np.mean((scaler.transform(estimates) - wanted) ** 2))
    return error, float(len(fit.centre) * targets.shape[1]), None


# A worker process tries many candidates; few sets of voxels come up again and again.
@functools.lru_cache(maxsize=4)
def _examples(
    data: Shared[_Data],
    target: str,
    rois: tuple[str, ...],
    named: tuple[str, ...],
    min_noise_ceiling: float,
    repeats: Repeats,
) -> tuple[Examples, Averaged]:
    """Return training and validation rows of a candidate's ``rois``, told all ``named`` ones."""
    responses = data.get().responses[target, repeats]
    examples = responses.examples
    keep = np.any([examples.rois[name] for name in rois], axis=0)
    if min_noise_ceiling > 0:
        keep &= responses.ceiling >= min_noise_ceiling
    if not keep.any():
        raise InputError(
            f"no voxel of {', '.join(rois)} reaches min_noise_ceiling={min_noise_ceiling:g}"
        )
    validation = responses.validation
    return examples.select(keep, rois=named), Averaged(
        betas=np.ascontiguousarray(validation.betas[:, keep]),
        image_id=validation.image_id,
        count=validation.count,
    )


def _truth(data: Shared[_Data], target: str, rows: np.ndarray) -> np.ndarray:
    images, values = data.get().truth[target]
    return values[np.searchsorted(images, rows)]


def _winner(
    outcomes: Sequence[Outcome], refits: Sequence[Refit], *, experiment: Experiment
) -> Candidate:
    """Return the candidate that is best on average over its seeds."""
    assert experiment.tuning is not None
    first = experiment.tuning.objectives[0]
    sign = 1 if first.direction == "minimize" else -1
    found = {one.candidate.number: one.values[0] for one in outcomes if one.values}
    means = {
        refit.candidate.number: np.mean(_over_seeds(refit, found, metric=first.metric))
        for refit in refits
    }
    ranked = sorted(refits, key=lambda refit: sign * means[refit.candidate.number])
    return ranked[0].candidate if ranked else outcomes[0].candidate


def _over_seeds(refit: Refit, found: Mapping[int, float], *, metric: str) -> list[float]:
    return [found[refit.candidate.number], *(float(one[metric]) for one in refit.metrics)]


def table(outcomes: Sequence[Outcome], refits: Sequence[Refit], *, experiment: Experiment) -> str:
    """Return the candidates, best first, with the spread over seeds and what to type for each."""
    assert experiment.tuning is not None
    metric = experiment.tuning.objectives[0].metric
    found = {one.candidate.number: one.values[0] for one in outcomes if one.values}
    spread = {refit.candidate.number: _over_seeds(refit, found, metric=metric) for refit in refits}
    seeds = ", ".join(str(seed) for refit in refits[:1] for seed in refit.seeds)
    title = f"{metric} on validation images"
    if refits:
        title += f"; of the best {len(refits)} also with seeds {seeds}"
    width = max(16, len(metric) + 1)
    seeded = f"{'over seeds':<20}{'epochs':>6}"
    head = f"{'candidate':>9}  {'state':<9}{metric:>{width}}  {seeded}  settings"
    lines = [title, head]
    for one in outcomes:
        number = one.candidate.number
        value = f"{one.values[0]:.4f}" if one.values else "-"
        over = ""
        if number in spread:
            values = np.array(spread[number])
            over = f"{values.mean():.4f} ± {values.std(ddof=1) if len(values) > 1 else 0:.4f}"
        typed = cluster.assignments(_typed(one.candidate.settings, experiment=experiment))
        lines.append(
            f"{number:>9}  {one.state:<9}{value:>{width}}  {over:<20}{one.epochs:>6}  {typed}"
        )
    return "\n".join(lines) + "\n"


def _typed(settings: Mapping[str, Any], *, experiment: Experiment) -> dict[str, Any]:
    """Return settings as they can be typed: a decoder of another kind is typed whole."""
    changed = [
        address.removesuffix(".kind")
        for address, value in settings.items()
        if address.endswith("decoder.kind")
        and value != cluster.default_settings(experiment).get(address)
    ]
    typed: dict[str, Any] = {}
    for address, value in settings.items():
        parent, _, leaf = address.rpartition(".")
        if parent in changed:
            typed.setdefault(parent, {})[leaf] = value
        else:
            typed[address] = value
    return typed
