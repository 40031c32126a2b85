"""What Hou & Najafi Khoshnoo (2023) report and claim, and what the same systems show here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raybrain.evaluation import EVERYONE, Across, Gain, Grid

if TYPE_CHECKING:
    from raybrain.stages.contrasting import Finished
    from raybrain.stages.decoded import Decoded

TEXT, PICTURE = "prompt_embeds", "latents"
NETWORKS = ("cnn_image", "vae", "gcn")
REAL = {"nsd": "NSD", "things": "THINGS"}
"""Datasets that the figures are of."""
PUBLISHED_MSE = {
    (TEXT, "ridge"): (.7283, 1.1444),
    (TEXT, "cnn_text"): (.2656, .7941),
    (PICTURE, "ridge"): (.7535, .7432),
    (PICTURE, "cnn_image"): (.5579, .6920),
    (PICTURE, "vae"): (.5665, .7260),
    (PICTURE, "gcn"): (.5540, .6873),
}  # fmt: skip
"""Target and decoder -> mean squared error of decoded latents on NSD and THINGS (its Table 3)."""
PUBLISHED_IMAGES = {
    ("linear", "NSD"): (.2659, .2141, .7695),
    ("cnn_text + gcn", "NSD"): (.3246, .3528, .7329),
    ("linear", "THINGS"): (.1293, .2407, .8364),
    ("cnn_text + gcn", "THINGS"): (.2013, .3993, .8148),
}  # fmt: skip
"""System and dataset -> PCC, SSIM and LPIPS-Alex of its images (its Table 4)."""
REASONS = (
    "its networks were stopped and chosen by the test set, here by validation images",
    "its linear baseline has penalties from 1e-6 to 1, no intercept and targets that are not "
    "centred, so that it does worse than predicting the mean; here ridge has an intercept and a "
    "penalty per dimension chosen by leave-one-out",
    "its betas were normalised with the statistics of the split they belong to, test included; "
    "here within each scan session, by training trials",
    "its text targets count the constant first token; the images of its tables are one subject's",
)


@dataclass(frozen=True)
class Verdict:
    """What one comparison says of a claim."""

    brain: str
    value: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """Return whether it speaks for the claim, against it, or neither."""
        return "for" if self.low > 0 else "against" if self.high < 0 else "neither"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and how it is looked at here."""

    text: str
    how: str
    verdicts: tuple[Verdict, ...]

    @property
    def word(self) -> str:
        """Return what all brains together say."""
        words = {one.word for one in self.verdicts}
        if not words:
            return "not measured"
        if words == {"for"}:
            return "confirmed"
        if words == {"against"}:
            return "contradicted"
        return "mixed" if words >= {"for", "against"} else "not decided"


def section(finished: Sequence[Finished], *, across: Across, lines: Sequence[Decoded]) -> str:
    """Return what the paper reports and claims, as the first part of a document."""
    simulated = sorted({one.scored.dataset for one in finished} - set(REAL))
    text = [
        "## What the paper reports, and what this shows of it",
        "",
        "Hou & Najafi Khoshnoo, *Image reconstruction from fMRI* (2023), decode text embeddings "
        "with a CNN and image latents with a CNN, a VAE and a graph network, and let Stable "
        "Diffusion v1.4 draw. Its figures cannot be met exactly, for its protocol is another:",
        "",
        *(f"- {reason};" for reason in REASONS),
        "",
    ]
    if simulated:
        text += [
            f"**{', '.join(simulated)}: a simulated brain.** Its scores are of another brain, "
            f"other pictures and a smaller generator: they say which decoder is better under the "
            f"same protocol, and nothing about the size of the paper's figures, which stand in "
            f"tables of their own.",
            "",
        ]
    text += [_verdict_table(list(claims(finished, across=across, lines=lines)))]
    text += [_mse_grid(lines).to_markdown(), _image_grid().to_markdown()]
    text += ["## What was measured here", ""]
    return "\n".join([*text, ""])


def claims(
    finished: Sequence[Finished], *, across: Across, lines: Sequence[Decoded]
) -> Iterator[Claim]:
    """Yield the paper's claims with the verdict of every brain."""
    single = [line for line in lines if not line.subject.startswith("mean of")]

    def on_ridge(line: Decoded) -> Verdict:
        brain = f"{line.dataset} {line.subject}"
        return Verdict(brain, line.gain_on_ridge, line.gain_on_ridge_low, line.gain_on_ridge_high)

    def on_mean(line: Decoded) -> Verdict:
        brain = f"{line.dataset} {line.subject}"
        return Verdict(brain, line.gain_on_mean, line.gain_on_mean_low, line.gain_on_mean_high)

    def decoders(target: str, *kinds: str) -> list[Decoded]:
        return [one for one in single if one.target == target and _kind(one) in kinds]

    error = "squared error of ridge minus the decoder's, paired over images"
    yield Claim(
        "The CNN decodes text embeddings with less error than linear regression",
        error,
        tuple(map(on_ridge, decoders(TEXT, "cnn_text"))),
    )
    for kind in NETWORKS:
        yield Claim(
            f"The {_called(kind)} decodes image latents with less error than linear regression",
            error,
            tuple(map(on_ridge, decoders(PICTURE, kind))),
        )
    yield Claim(
        "Its networks decode more than the training mean of the image latents",
        "squared error of predicting the mean minus the decoder's (which the paper does not show)",
        tuple(map(on_mean, decoders(PICTURE, *NETWORKS))),
    )
    yield Claim(
        "The CNN decodes more than the training mean of the text embeddings",
        "squared error of predicting the mean minus the decoder's (which the paper does not show)",
        tuple(map(on_mean, decoders(TEXT, "cnn_text"))),
    )
    system, linear = _systems(finished)
    names = [metric.name for metric in across.metrics]
    pixels = "pcc" if "pcc" in names else "pixcorr"
    for name, metric in (("correlate more with", pixels), ("are more like (SSIM)", "ssim")):
        yield Claim(
            f"The images of CNN and graph network {name} what was seen than those of the linear "
            f"system",
            "paired over images",
            tuple(_of_gains(across.gains, metric, system=system, linear=linear)),
        )
    if "lpips" in names:
        yield Claim(
            "They have less perceptual distance (LPIPS)",
            "paired over images",
            tuple(_of_gains(across.gains, "lpips", system=system, linear=linear)),
        )
    deep = [name for name in names if name.startswith("two_way") or name in ("clip", "inception")]
    for metric in deep[-1:]:
        yield Claim(
            "They are told apart better from other images by what they show",
            f"two-way identification ({metric}), which the paper does not report; paired over "
            f"images",
            tuple(_of_gains(across.gains, metric, system=system, linear=linear)),
        )


def _systems(finished: Sequence[Finished]) -> tuple[set[tuple], set[tuple]]:
    """Return the keys of the paper's system and of the linear one, drawn in its mode."""
    found: tuple[set[tuple], set[tuple]] = (set(), set())
    for one in finished:
        decode, mode = one.experiment.decode, one.experiment.reconstruct.mode
        if decode.latents is None or decode.prompt_embeds is None or mode not in ("z+c", "takagi"):
            continue
        kinds = (decode.prompt_embeds.decoder.kind, decode.latents.decoder.kind)
        if kinds == ("cnn_text", "gcn"):
            found[0].add(one.scored.key)
        elif kinds == ("ridge", "ridge") and mode == "z+c":
            found[1].add(one.scored.key)
    return found


def _of_gains(
    gains: Sequence[Gain], metric: str, *, system: set[tuple], linear: set[tuple]
) -> Iterator[Verdict]:
    for gain in gains:
        if gain.metric != metric or gain.subject == EVERYONE or gain.than not in linear:
            continue
        if gain.key in system:
            yield Verdict(f"{gain.dataset} {gain.subject}", gain.value, gain.low, gain.high)


def _kind(line: Decoded) -> str:
    return line.decoder.split(" ")[0]


def _called(kind: str) -> str:
    return {"cnn_image": "CNN", "vae": "VAE", "gcn": "graph network"}[kind]


def _verdict_table(found: Sequence[Claim]) -> str:
    def shown(one: Verdict) -> str:
        return f"{one.brain}: {one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"

    grid = Grid(
        "The paper's claims under a fair protocol",
        ("claim", "how it is measured", "verdict"),
        ("difference and 95 % interval",),
        tuple(
            ((one.text, one.how, one.word), ("; ".join(map(shown, one.verdicts)) or "–",))  # noqa: RUF001
            for one in found
        ),
        (
            "Confirmed: on every brain the interval lies above zero. Contradicted: on every brain "
            "below. Mixed: above on one, below on another. Not decided: otherwise. The intervals "
            "are of single claims and are not corrected for their number.",
        ),
    )
    return grid.to_markdown()


def _mse_grid(lines: Sequence[Decoded]) -> Grid:
    """Return its Table 3, with ours beside it where the dataset is the same."""
    real = {name: [line for line in lines if line.dataset == name] for name in REAL}
    columns = [f"{label}, published" for label in REAL.values()]
    columns += [f"{REAL[name]}, here" for name, found in real.items() if found]
    rows = []
    for (target, kind), published in PUBLISHED_MSE.items():
        cells = [f"{value:.4f}" for value in published]
        cells += [_ours(found, target, kind) for found in real.values() if found]
        rows.append(((target, kind), tuple(cells)))
    return Grid(
        "Its Table 3: squared error of decoded latents", ("target", "decoder"),
        tuple(columns), tuple(rows), ("Lower is better.",),
    )  # fmt: skip


def _ours(lines: Sequence[Decoded], target: str, kind: str) -> str:
    found = [one for one in lines if one.target == target and _kind(one) == kind]
    if not found:
        return "–"  # noqa: RUF001
    # The mean over subjects, where there are several.
    last = [one for one in found if one.decoder == found[0].decoder][-1]
    return f"{last.mse:.4f} ± {last.half:.4f} (mean: {last.mse_of_mean:.4f})"


def _image_grid() -> Grid:
    rows = [
        ((dataset, system), tuple(f"{value:.4f}" for value in values))
        for (system, dataset), values in PUBLISHED_IMAGES.items()
    ]
    return Grid(
        "Its Table 4: reconstructed images", ("dataset", "system"),
        ("PCC ↑", "SSIM ↑", "LPIPS-Alex ↓"), tuple(rows),
        ("Ours under cs292f-v1 are in the table of scores below.",),
    )  # fmt: skip
