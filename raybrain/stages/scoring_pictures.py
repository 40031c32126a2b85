"""``evaluate images=FOLDER``: anyone's reconstructions under the protocol, as if drawn here.

What was seen, the floors and the ceiling are the experiment's; nothing needs to have been decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raybrain import evaluation, outputs, places, seal, store
from raybrain.datasets.drawn import DrawnPictures, find_drawn
from raybrain.evaluation import CEILING, SYSTEM
from raybrain.stages import Made, drawing, scoring

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run


def find(experiment: Experiment, *, folder: str) -> DrawnPictures:
    """Return the pictures of every test image that a folder holds, by row.

    Raises
    ------
    raybrain.config.InputError
        If any is missing, strange or ambiguous.
    """
    opened = store.open_store(outputs.subject_store(experiment).folder, splits="test")
    return find_drawn(
        folder, image_ids=opened.shown, rows=tuple(scoring.ROW_NAMES), system=drawing.SYSTEM
    )


def ceiling_beside(experiment: Experiment, drawn: DrawnPictures) -> Output | None:
    """Return where the ceiling lies or is to be drawn; None if it is brought, or not wanted."""
    if drawing.CEILING in drawn.rows or drawing.CEILING not in experiment.reconstruct.references:
        return None
    full = outputs.reconstructions(experiment)
    if seal.status(full.folder, wanted=full.seal).state == "sealed":
        return full
    return outputs.ceiling(experiment)


def work(
    experiment: Experiment,
    output: Output,
    run: Run,
    *,
    drawn: Mapping[str, np.ndarray],
    source: str,
    ceiling: Output | None,
) -> Made:
    """Score rows (image, sample, y, x, rgb) of pictures, write the report and log it."""
    run.set_tags({"opened_test_trials": "evaluate", "pictures": source})
    with places.writing(output.folder) as folder:
        return _scored(
            experiment, drawn=drawn, source=source, ceiling=ceiling, folder=folder, run=run
        )


def _scored(
    experiment: Experiment,
    *,
    drawn: Mapping[str, np.ndarray],
    source: str,
    ceiling: Output | None,
    folder: Path,
    run: Run,
) -> Made:
    stimuli = outputs.subject_store(experiment).folder
    opened = store.open_store(stimuli, splits="test")
    image_ids, training_ids = opened.shown, drawing.training_images(stimuli)
    seen = opened.pixels(image_ids)
    rows = evaluation.floor_rows(
        opened.pixels(training_ids), images=len(image_ids), seed=experiment.seed
    )
    rows |= {scoring.ROW_NAMES[name]: values for name, values in drawn.items()}
    if ceiling is not None:
        rows[CEILING] = store.read_rows(ceiling.folder, drawing.CEILING, image_ids=image_ids)
    table = scoring.tabled(experiment, seen=seen, rows=rows, image_ids=image_ids)
    by_category = opened.attributes["target"] == "category"
    scoring.write_table(
        table, text=f"{table.to_text()}\n{scoring.PROTOTYPES if by_category else ''}", folder=folder
    )
    provenance = {
        "dataset": scoring.dataset_provenance(experiment),
        "reconstructions": {
            "folder": source,
            "size": " x ".join(map(str, rows[SYSTEM].shape[2:4])),
        },
    }
    if ceiling is not None:
        provenance["generator of the ceiling"] = scoring.generator_provenance(experiment)
    scoring.write_pages(
        experiment,
        folder=folder,
        title=f"{source}: {experiment.dataset} {experiment.subject}",
        table=table,
        opened=opened,
        seen=seen,
        rows=rows,
        training_ids=training_ids,
        likeness={}
        if ceiling is None
        else scoring.likeness_of(experiment, image_ids=image_ids, training_ids=training_ids),
        provenance=provenance,
    )
    pictures = scoring.side_by_side(experiment, image_ids=image_ids, seen=seen, rows=rows)
    scoring.log(experiment, run, table=table, pictures=pictures, folder=folder)
    return Made(f"{len(table.rows)} rows x {len(image_ids)} images under {table.protocol.name}")
