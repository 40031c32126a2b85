"""``train``: a decoder per target, from training and validation trials only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrain import outputs, places, tracking
from raybrain.config import ClosedForm, Ridge
from raybrain.decoders import TrainedDecoder, warn_of_penalties
from raybrain.stages import Made, describing
from raybrain.stages.fitting_data import DECODER, OTHERS, PRIOR, REFERENCE, Data
from raybrain.stages.fitting_networks import fit_network, fit_prior, fit_subjects
from raybrain.stages.fitting_ridge import ridge_on_worker

if TYPE_CHECKING:
    from raybrain.config import Experiment
    from raybrain.outputs import Output
    from raybrain.tracking import Run


def work(experiment: Experiment, output: Output, run: Run) -> Made:
    """Fit the decoder of the target that ``output`` is named after and save it."""
    target = Path(output.folder).name
    decode = dict(outputs.targets(experiment))[target]
    data = Data.of(experiment, target, decode)
    others: dict[str, TrainedDecoder] = {}
    if isinstance(decode.decoder, ClosedForm):
        decoder = ridge_on_worker(data, section=decode.decoder)
        warn_of_penalties(decoder)
    elif len(outputs.subjects_of(experiment, decode)) > 1:
        others = fit_subjects(data, output=output, run=run)
        decoder = others.pop(experiment.subject)
    else:
        decoder = fit_network(data, output=output, run=run)
    prior = None
    if decode.prior is not None:
        prior = fit_prior(data, decoder=decoder, section=decode.prior, output=output, run=run)
    with places.writing(output.folder) as folder:
        decoder.save(folder / DECODER)
        if prior is not None:
            prior.save(folder / PRIOR)
        for subject, other in others.items():
            other.save(folder / OTHERS / subject.replace(":", "/"))
        if data.wants_reference:
            ridge_on_worker(data, section=Ridge()).save(folder / REFERENCE)
        if experiment.tracking.models:
            _register(data, decoder=decoder, saved=folder / DECODER, output=output, run=run)
    told = _told(decoder)
    if not experiment.tracking.models or decode.shuffled:  # the model's record has it otherwise
        run.log_metrics({"held_out_r2": told["held_out_r2"]})
    run.log_metrics({"voxels": told["voxels"]})
    run.set_tags({"target": target, "decoder": decode.decoder.kind})
    return Made(
        f"{target}: {decode.decoder.kind} from {decoder.voxels.sum():,} voxels of "
        f"{', '.join(decode.rois)} to {len(decoder.gain):,} dimensions, "
        f"held-out R² {told['held_out_r2']:.3f} on training images",
        notes=told,
    )


def _register(
    data: Data, *, decoder: TrainedDecoder, saved: Path, output: Output, run: Run
) -> None:
    experiment, target = data.experiment, data.target
    held_out = describing.parts_of_data(experiment, test=False)[-1]
    told = _told(decoder)
    tracking.register_decoder(
        run,
        saved,
        name=describing.registered_name(experiment, target),
        example=data.opened.first_betas(2, voxels=data.mask),
        dimensions=len(decoder.gain),
        tags={
            "seal": output.seal.digest,
            "experiment": experiment.name,
            "dataset": outputs.dataset_entry(experiment).name,
            "subject": experiment.subject,
            "target": target,
            "decoder": data.decode.decoder.kind,
        },
        params=describing.settings_of(experiment, target),
        # A control decodes nothing and is never the best, whatever it scores.
        score=float("nan") if data.decode.shuffled else told["held_out_r2"],
        about=describing.decoders_page(experiment, target),
        card=describing.decoder_card(experiment, target, **told),
        dataset=held_out,
    )


def _told(decoder: TrainedDecoder) -> dict[str, Any]:
    """Return what cards and seals say of a fitted decoder."""
    varying = decoder.held_out_r2[decoder.targets.varying]
    return {
        "voxels": int(decoder.voxels.sum()),
        "dimensions": len(decoder.gain),
        "held_out_r2": float(varying.mean()),
    }
