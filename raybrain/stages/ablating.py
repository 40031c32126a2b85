"""``ablate``: the same experiment with one ROI removed, and with one ROI alone."""

from __future__ import annotations

from raybrain import outputs
from raybrain.config import Experiment, InputError


def variants(experiment: Experiment) -> list[Experiment]:
    """Return an experiment without each ROI and one with each ROI alone, under names of their own.

    A target that would be left without an ROI keeps its own: what a reconstruction needs must be
    decoded from somewhere, so only targets that have an ROI to lose or to keep change.

    Raises
    ------
    InputError
        If the experiment decodes from a single ROI, so that there is nothing to compare.
    """
    chosen = dict(outputs.targets(experiment))
    rois = list(dict.fromkeys(roi for decode in chosen.values() for roi in decode.rois))
    if all(len(decode.rois) < 2 for decode in chosen.values()):
        raise InputError(
            f"'{experiment.name}' decodes every target from one ROI, so none can be left out; list "
            f"ROIs singly, as in 'decode.latents.rois=[V1, V2, V3, hV4]'"
        )
    found: list[Experiment] = []
    for roi in rois:
        without = {
            target: tuple(one for one in decode.rois if one != roi)
            for target, decode in chosen.items()
        }
        alone = {
            target: tuple(one for one in decode.rois if one == roi)
            for target, decode in chosen.items()
        }
        found.insert(len(found) // 2, _variant(experiment, f"without-{roi}", without))
        found.append(_variant(experiment, f"only-{roi}", alone))
    # Without one of two ROIs is with the other alone: each is made once.
    different: list[Experiment] = []
    for one in found:
        if one.decode not in (experiment.decode, *(other.decode for other in different)):
            different.append(one)
    return different


def _variant(experiment: Experiment, suffix: str, rois: dict[str, tuple[str, ...]]) -> Experiment:
    decode = experiment.decode.model_copy(
        update={
            target: one.model_copy(update={"rois": rois[target] or one.rois})
            for target, one in outputs.targets(experiment)
        }
    )
    name = f"{experiment.name}-{suffix}"
    return experiment.model_copy(update={"name": name, "decode": decode})
