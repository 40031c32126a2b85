"""Where the field stands, for a table beside one's own scores on the same test set.

Only the 1,000 shared images of 40 NSD sessions: scores on the 982 of 37 sessions, on another
dataset or on a simulated brain are other numbers and never stand in one table with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IMAGES = 1000  # shared images that all four subjects saw three times by session 40
DATASET = "nsd"
PROTOCOL = "mindeye2-v1"
METRICS = (
    "pixcorr", "ssim", "alexnet2", "alexnet5", "inception", "clip", "efficientnet", "swav",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """Scores of a published system, mean of NSD subjects 1, 2, 5 and 7."""

    system: str
    source: str
    scores: Mapping[str, float]
    """Metric of `mindeye2-v1` to value; identification as a fraction."""


def _row(system: str, source: str, *values: float) -> Published:
    return Published(system, source, dict(zip(METRICS, values, strict=True)))


FIELD = (
    _row("Takagi", "Takagi and Nishimoto 2023", .246, .410, .789, .856, .838, .821, .811, .504),
    _row("Brain-Diffuser", "Ozcelik and VanRullen 2023", .273, .365, .944, .966, .913, .909, .728, .421),  # noqa: E501
    _row("MindEye2", "Scotti et al. 2024", .322, .431, .961, .986, .954, .930, .619, .344),
    _row("Brain-IT", "Beliy et al. 2026", .386, .486, .984, .995, .973, .964, .564, .320),
)  # fmt: skip


def published_for(*, dataset: str, protocol: str, images: int) -> tuple[Published, ...]:
    """Return published scores that may stand beside these, or none if they are not comparable.

    Parameters
    ----------
    dataset : str
        Name of the catalog entry.
    protocol : str
        Name of the protocol.
    images : int
        How many images were scored.
    """
    comparable = (dataset, protocol, images) == (DATASET, PROTOCOL, IMAGES)
    return FIELD if comparable else ()
