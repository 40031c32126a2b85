"""``evaluate``: the table with its floors and ceiling, the gallery, and both in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrain import cluster, evaluation, outputs, places, report, store
from raybrain.evaluation import (
    CATEGORY_ORACLE,
    CEILING,
    E_ONLY,
    EMBEDDING_RERANKED,
    NEAREST_TRAINING,
    RERANKED,
    SYSTEM,
    Z_ONLY,
    LatentScores,
)
from raybrain.stages import Made, describing, drawing, reranking
from raybrain.stages import scoring_logged as logging
from raybrain.stages.describing import GALLERY, GRID
from raybrain.stages.fitting_networks import CURVES
from raybrain.stages.scoring_targets import (
    category_scores,
    decoded_scores,
    decoded_text,
    nearest_by,
    nearest_training,
    retrieval_scores,
    retrieved_images,
)

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.evaluation import CategoryScore, Stratum, Table
    from raybrain.outputs import Output
    from raybrain.store import SubjectStore
    from raybrain.tracking import Run

TABLE = "scores.txt"
SCORES = "scores.npz"
ERRORS = "decoded.npz"
"""Squared errors of every image's decoded targets."""
DECODERS = "decoders.json"
PROTOTYPES = "\nimages are category prototypes: these scores measure category decoding\n"
GRID_IMAGES = 20
STRIP_IMAGES, STRIP_PLACES = 12, 5
STRATUM = 20
"""Test images in a stratum, at least, when they are divided by likeness to training images."""
RETRIEVED = "retrieval.png"
ROW_NAMES = {
    drawing.CATEGORY: CATEGORY_ORACLE,
    drawing.Z_ONLY: Z_ONLY,
    drawing.E_ONLY: E_ONLY,
    drawing.SYSTEM: SYSTEM,
    drawing.CEILING: CEILING,
}

RERANKED_BY = {"encoding": RERANKED, "embedding": EMBEDDING_RERANKED}


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Score every row, write the report and log it."""
    with places.writing(output.folder) as folder:
        return _scored(experiment, folder=folder, run=run)


def _scored(experiment: Experiment, *, folder: Path, run: Run) -> Made:
    opened = store.open_store(outputs.subject_store(experiment).folder, splits="test")
    run.set_tags({"opened_test_trials": "evaluate"})
    image_ids = store.row_ids(outputs.reconstructions(experiment).folder)
    training_ids = drawing.training_images(outputs.subject_store(experiment).folder)
    seen, training = opened.pixels(image_ids), opened.pixels(training_ids)
    decoded = _decoded(
        experiment,
        image_ids=image_ids,
        training_ids=training_ids,
        by_category=opened.attributes["target"] == "category",
    )
    rows = _rows(
        experiment,
        image_ids=image_ids,
        training_ids=training_ids,
        training=training,
        nearest=decoded.nearest,
    )
    if experiment.evaluate.rerank:
        for name, chosen in reranking.chosen_samples(experiment, test=opened).items():
            rows[RERANKED_BY[name]] = rows[SYSTEM][np.arange(len(chosen)), chosen][:, None]
    table = tabled(experiment, seen=seen, rows=rows, image_ids=image_ids)
    latents, categories = decoded.latents, decoded.categories
    text = f"{table.to_text()}\n\n{decoded_text(latents, retrieved=decoded.retrieved)}\n"
    likeness = likeness_of(experiment, image_ids=image_ids, training_ids=training_ids)
    pixels = evaluation.likeness_to_training(
        evaluation.thumbnails(seen), training=evaluation.thumbnails(training)
    )
    text += f"\n{evaluation.nearness_text({'pixels': pixels, **likeness})}"
    if categories:
        text += PROTOTYPES
    for target, score in categories.items():
        text += f"{target}: {score}\n"
    write_table(table, text=text, folder=folder)
    (folder / DECODERS).write_text(
        json.dumps({name: scores.summary() for name, scores in latents.items()}, indent=2) + "\n"
    )
    errors: dict[str, Any] = {
        f"{target}/{name}": values
        for target, scores in latents.items()
        for name, values in scores.errors.items()
    }
    np.savez(folder / ERRORS, **errors)
    figures = _maps(opened, folder=folder)
    figures |= _retrieved(experiment, seen=seen, image_ids=image_ids, table=table, folder=folder)
    write_pages(
        experiment,
        folder=folder,
        title=f"{experiment.name}: {experiment.dataset} {experiment.subject}",
        table=table,
        opened=opened,
        seen=seen,
        rows=rows,
        training_ids=training_ids,
        likeness=likeness,
        latents={name: scores.summary() for name, scores in latents.items()},
        curves=_curves(experiment),
        figures=figures,
        provenance=_provenance(experiment),
    )
    log(
        experiment,
        run,
        table=table,
        decoded=decoded,
        pictures=side_by_side(experiment, image_ids=image_ids, seen=seen, rows=rows),
        folder=folder,
    )
    return Made(f"{len(rows) + 1} rows x {len(image_ids)} images under {table.protocol.name}")


def tabled(
    experiment: Experiment, *, seen: np.ndarray, rows: dict[str, np.ndarray], image_ids: list[str]
) -> Table:
    """Return the scores of every row, measured by tasks."""
    return evaluation.evaluate(
        seen,
        rows,
        evaluation.with_metrics(
            evaluation.protocol_named(experiment.evaluate.protocol), experiment.evaluate.metrics
        ),
        image_ids=image_ids,
        bootstrap=experiment.evaluate.bootstrap,
        seed=experiment.seed,
        weights=experiment.evaluate.weights,
        mapper=partial(
            cluster.map_tasks,
            workers=experiment.resources.tasks,
            description="evaluate",
            unit="batches",
        ),
    )


def write_table(table: Table, *, text: str, folder: Path) -> None:
    """Write a table in every form it is read in: for people, programs and papers."""
    (folder / TABLE).write_text(text)
    table.save(folder / SCORES)
    table.to_csv(folder / "scores.csv")
    (folder / "scores.tex").write_text(table.to_latex())
    report.score_figure(table, folder=folder)


def write_pages(
    experiment: Experiment,
    *,
    folder: Path,
    title: str,
    table: Table,
    opened: SubjectStore,
    seen: np.ndarray,
    rows: dict[str, np.ndarray],
    training_ids: list[str],
    likeness: dict[str, np.ndarray],
    **told: Any,
) -> None:
    """Write the gallery, which says what it is ``told`` besides, and the grid of pictures."""
    image_ids = list(table.image_ids)
    texts = opened.images.loc[image_ids, "captions"]
    captions = [one[0] if one else "" for one in texts]
    report.write_gallery(
        folder / GALLERY,
        title=title,
        table=table,
        seen=seen,
        rows=rows,
        captions=captions,
        groups=opened.images.loc[image_ids, "group"].tolist(),
        published=evaluation.published_for(
            dataset=experiment.dataset, protocol=table.protocol.name, images=len(image_ids)
        ),
        strata=_strata(
            experiment, opened=opened, table=table, training_ids=training_ids, likeness=likeness
        ),
        **told,
    )
    _write_grid(folder / GRID, seen=seen, rows=rows, table=table, captions=captions)


@dataclass(frozen=True)
class _Decoded:
    """What the decoded targets say before any image is looked at."""

    nearest: np.ndarray
    latents: dict[str, LatentScores]
    retrieved: dict[str, float]
    categories: dict[str, CategoryScore]


def _decoded(
    experiment: Experiment, *, image_ids: list[str], training_ids: list[str], by_category: bool
) -> _Decoded:
    sources = drawing.Sources.of(experiment)
    drawn: dict[str, Any] = {"resamples": experiment.evaluate.bootstrap, "seed": experiment.seed}
    calls: list[Callable[[], Any]] = [
        partial(
            nearest_training,
            sources,
            training_ids=training_ids,
            targets=nearest_by(experiment),
        ),
        partial(decoded_scores, sources, image_ids=image_ids, training_ids=training_ids, **drawn),
        partial(retrieval_scores, sources, image_ids=image_ids),
    ]
    if by_category:
        calls.append(partial(category_scores, sources, **drawn))
    found = cluster.map_tasks(
        _called, calls, workers=experiment.resources.tasks, description="score targets"
    )
    nearest, latents, retrieved, *rest = found
    return _Decoded(nearest, latents, retrieved, categories=rest[0] if rest else {})


def _called(call: Callable[[], Any]) -> Any:
    return call()


def _maps(opened: SubjectStore, *, folder: Path) -> dict[str, Path]:
    """Return caption to map; datasets without noise ceilings have none."""
    ceiling = opened.voxels["noise_ceiling"].to_numpy()
    if not np.isfinite(ceiling).any():
        return {}
    files = report.noise_ceiling_figure(
        xyz=opened.voxels[["x", "y", "z"]].to_numpy(), noise_ceiling=ceiling, folder=folder
    )
    return {"Noise ceiling of every stored voxel, axial slices": files.png}


def _retrieved(
    experiment: Experiment,
    *,
    seen: np.ndarray,
    image_ids: list[str],
    table: Table,
    folder: Path,
) -> dict[str, Path]:
    """Return caption to a strip of pictures: what decoded image embeddings find among all tested.

    Of images at equal steps of the system's rank, chosen by no one.
    """
    if experiment.decode.image_embeds is None or len(image_ids) < 2:
        return {}
    order = retrieved_images(
        drawing.Sources.of(experiment), target="image_embeds", image_ids=image_ids
    )
    shown = _spread_over_ranks(table, count=STRIP_IMAGES)
    lines = {"seen": seen[shown]}
    for place in range(min(STRIP_PLACES, order.shape[1])):
        lines[f"{place + 1}."] = seen[order[shown, place]]
    report.image_grid(lines, per_line=STRIP_IMAGES, path=folder / RETRIEVED)
    about = (
        f"Seen, and below it the pictures whose embeddings are nearest the one decoded from the "
        f"brain, nearest first, among all {len(image_ids)} tested"
    )
    return {about: folder / RETRIEVED}


def _spread_over_ranks(table: Table, *, count: int) -> np.ndarray:
    """Return positions of images from best to worst at equal steps of their rank."""
    ranked = np.argsort(report.ranking(table, row=SYSTEM))
    return ranked[np.linspace(0, len(ranked) - 1, min(count, len(ranked))).astype(int)]


def _curves(experiment: Experiment) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return chart title to line to points: the losses of every network that was trained."""
    found = {}
    for target, _ in outputs.targets(experiment):
        folder = outputs.decoder(experiment, target).folder
        for part, what in (("", target), ("prior.", f"the prior of {target}")):
            if places.exists(file := f"{folder}/{part}{CURVES}"):
                curves = json.loads(places.read_text(file))
                found[f"Loss of {what} by epoch (predicting the mean: 1)"] = {
                    "training": curves["train_loss"],
                    "validation": curves["validation_loss"],
                }
    return found


def likeness_of(
    experiment: Experiment, *, image_ids: list[str], training_ids: list[str]
) -> dict[str, np.ndarray]:
    """Return target -> r (image,) with the nearest training image, for the first target."""
    features = outputs.features(experiment).folder
    target, _ = outputs.targets(experiment)[0]
    return {
        target: evaluation.likeness_to_training(
            store.read_rows(features, target, image_ids=image_ids),
            training=store.read_rows(features, target, image_ids=training_ids),
        )
    }


def _strata(
    experiment: Experiment,
    *,
    opened: SubjectStore,
    table: Table,
    training_ids: list[str],
    likeness: dict[str, np.ndarray],
) -> dict[str, tuple[Stratum, ...]]:
    """Return scores by how far the image seen is from what was shown in training.

    By concept, where some test images share theirs with training images and others do not; and by
    likeness to the nearest training image, where targets tell it.
    """
    metric = table.protocol.ranking[0]
    scores = partial(
        evaluation.scores_by,
        table,
        row=SYSTEM,
        metric=metric,
        resamples=experiment.evaluate.bootstrap,
    )
    found = {}
    groups = opened.images["group"]
    known = set(groups[training_ids])
    labels = [
        "shown in training" if group in known else "never shown in training"
        for group in groups[list(table.image_ids)]
    ]
    if len(set(labels)) > 1:
        found["By whether pictures of the same concept were shown in training"] = scores(
            labels=labels
        )
    parts = min(10, len(table.image_ids) // STRATUM)
    if parts < 2:
        return found
    for target, values in likeness.items():
        found[f"By likeness to the nearest training image (r of their {target})"] = scores(
            labels=evaluation.quantile_labels(values, parts=parts)
        )
    return found


def _rows(
    experiment: Experiment,
    *,
    image_ids: list[str],
    training_ids: list[str],
    training: np.ndarray,
    nearest: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return (image, sample, y, x, rgb) of every row of the table."""
    drawn = outputs.reconstructions(experiment).folder
    rows = {
        **evaluation.floor_rows(training, images=len(image_ids), seed=experiment.seed),
        NEAREST_TRAINING: training[nearest][:, None],
    }
    for name in drawing.drawn_rows(experiment):
        rows[ROW_NAMES[name]] = store.read_rows(drawn, name, image_ids=image_ids)
    return rows


def log(
    experiment: Experiment,
    run: Run,
    *,
    table: Table,
    pictures: dict[str, np.ndarray],
    folder: Path,
    decoded: _Decoded | None = None,
) -> None:
    """Record the scores, and of the report what may leave this machine.

    With ``decoded`` they are the experiment's own, which its run and the cards of its decoders tell
    as well; without, they are of pictures that others drew.
    """
    latents = {} if decoded is None else decoded.latents
    headline = logging.headline(table, latents=latents)
    metrics = logging.headline_metrics(headline)
    summary = dict(metrics)
    if decoded is not None:
        (folder / describing.HEADLINE).write_text(json.dumps(headline, indent=2) + "\n")
        metrics |= logging.target_metrics(latents, retrieved=decoded.retrieved)
        metrics |= logging.category_metrics(decoded.categories)
        run.log_table(
            logging.decoded_columns(latents, retrieved=decoded.retrieved), "decoded_targets.json"
        )
    metrics |= logging.row_metrics(table, row=SYSTEM)
    run.log_metrics(logging.at_most(metrics))
    run.log_table(logging.score_columns(table), "scores.json")
    # Artifacts leave this machine; stimuli may do so only under a licence or to a private server.
    shown = describing.may_show(experiment)
    strips = [RETRIEVED] if (folder / RETRIEVED).exists() else []
    pages = [GALLERY, GRID, *strips] if shown else []
    figures = sorted(f.name for f in folder.iterdir() if f.suffix in (".png", ".pdf"))
    for name in (GRID, *strips):
        figures.remove(name)
    decoders = [DECODERS] if latents else []
    for name in (TABLE, SCORES, "scores.csv", "scores.tex", *decoders, *figures, *pages):
        run.log_artifact(folder / name)
    parent = None if decoded is None else run.parent
    if parent is not None:
        parent.log_metrics(summary)
        parent.log_table(logging.score_columns(table), "scores.json")
        for name in (TABLE, *([GALLERY, GRID] if shown else [])):
            parent.log_artifact(folder / name)
    for one in [run, *([parent] if parent is not None else [])] if shown else []:
        for name, picture in pictures.items():
            one.log_image(picture, name)
    if not shown:
        licence = outputs.dataset_entry(experiment).licence
        run.set_tags({"pictures_withheld": f"{licence.name}; tracking.private=true logs them"})
    if decoded is not None:
        logging.complete_cards(experiment, run, latents=latents)


def side_by_side(
    experiment: Experiment,
    *,
    image_ids: list[str],
    seen: np.ndarray,
    rows: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return name to picture: test images at equal steps of their ids, each beside what was drawn.

    The same images in every run of a dataset, so that runs can be compared.
    """
    count = min(experiment.tracking.pictures, len(image_ids))
    found = {}
    for place in np.linspace(0, len(image_ids) - 1, count).astype(int):
        columns = {"seen": seen[place]}
        for sample in range(min(2, rows[SYSTEM].shape[1])):
            columns[f"sample {sample + 1}"] = rows[SYSTEM][place, sample]
        if CEILING in rows:
            columns[CEILING] = rows[CEILING][place, 0]
        found[f"test/{image_ids[place]}"] = report.side_by_side(columns)
    return found


def _write_grid(
    path: Path,
    *,
    seen: np.ndarray,
    rows: dict[str, np.ndarray],
    table: Table,
    captions: list[str],
) -> None:
    """Draw images from best to worst at equal steps of their rank, chosen by no one."""
    chosen = _spread_over_ranks(table, count=GRID_IMAGES)
    columns = {"seen": seen[chosen]}
    for sample in range(min(2, rows[SYSTEM].shape[1])):
        columns[f"sample {sample + 1}"] = rows[SYSTEM][chosen, sample]
    for name in (Z_ONLY, E_ONLY, NEAREST_TRAINING, CEILING):
        if name in rows:
            columns[name] = rows[name][chosen, 0]
    names = [captions[k] for k in chosen]
    report.image_grid(columns, per_line=GRID_IMAGES // 2, captions=names, path=path)


def _provenance(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Return what the gallery says of its making, by heading."""
    decoders = {
        target: f"{decode.decoder.kind} from {', '.join(decode.rois)}; "
        f"seal {outputs.decoder(experiment, target).seal.digest}"
        for target, decode in outputs.targets(experiment)
    }
    return {
        "dataset": dataset_provenance(experiment),
        "decoders": decoders,
        "generator": generator_provenance(experiment),
    }


def dataset_provenance(experiment: Experiment) -> dict[str, str]:
    """Return what was seen by whom, under which terms."""
    entry = outputs.dataset_entry(experiment)
    return {
        "title": entry.title,
        "subject": experiment.subject,
        "licence": f"{entry.licence.name}, {entry.licence.url}",
        "cite": entry.cite,
        "store": outputs.subject_store(experiment).seal.digest,
    }


def generator_provenance(experiment: Experiment) -> dict[str, str]:
    """Return what drew, and how."""
    settings = experiment.reconstruct.model_dump(mode="json")
    return {
        "checkpoint": experiment.generator.checkpoint,
        "digest": outputs.features(experiment).seal.inputs["the generator"],
        "seed": str(experiment.seed),
        **{name: str(value) for name, value in settings.items()},
    }
