"""Published files that experiments name, for ``plan``: how large they are and where they come from.

Sizes are those of the files as their authors published them; nothing is downloaded from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raybrain.config import Generator, InputError
from raybrain.diffusion.checkpoint import IMAGE_ENCODER
from raybrain.diffusion.lora import lora_file


@dataclass(frozen=True)
class PublishedFile:
    """One file that somebody has to fetch."""

    bytes: int
    repository: str
    """Id on the hub."""
    path: str
    """Within it."""
    licence: str


_IP_ADAPTER = "h94/IP-Adapter"
ADAPTERS = {
    file.path.rpartition("/")[2]: file
    for file in (
        PublishedFile(44_642_768, _IP_ADAPTER, "models/ip-adapter_sd15.safetensors", "Apache-2.0"),
        PublishedFile(
            98_183_288, _IP_ADAPTER, "models/ip-adapter-plus_sd15.safetensors", "Apache-2.0"
        ),
    )
}
"""By file name: for Stable Diffusion 1.4 and 1.5."""
ENCODER = PublishedFile(
    2_530_000_000, _IP_ADAPTER, "models/image_encoder/model.safetensors", "Apache-2.0"
)
"""CLIP ViT-H, which both adapters were trained with; its config.json lies beside it."""
CHECKPOINTS = {
    "CompVis/stable-diffusion-v1-4": PublishedFile(
        4_270_000_000, "CompVis/stable-diffusion-v1-4", "", "CreativeML OpenRAIL-M"
    ),
    "stabilityai/stable-diffusion-2-1-unclip": PublishedFile(
        7_710_000_000, "stabilityai/stable-diffusion-2-1-unclip", "", "CreativeML OpenRAIL++-M"
    ),
}
"""By hub id: UNet, VAE, text encoder and, for unCLIP, image encoder in full precision."""


@dataclass(frozen=True)
class WantedFile:
    """A file that a generator's settings name."""

    path: Path
    published: PublishedFile | None

    @property
    def present(self) -> bool:
        """Whether it is on this disk."""
        return self.path.is_file()


def wanted_files(settings: Generator) -> list[WantedFile]:
    """Return the adapter, the image encoder and the LoRA that ``settings`` name, in this order."""
    lora = [] if settings.lora is None else [WantedFile(_lora(settings.lora, settings), None)]
    if settings.image_adapter is None:
        return lora
    adapter = Path(settings.image_adapter).expanduser()
    folder = Path(settings.image_encoder or adapter.parent / IMAGE_ENCODER).expanduser()
    known = ADAPTERS.get(adapter.name)
    return [
        WantedFile(adapter, known),
        WantedFile(folder / "model.safetensors", ENCODER if known else None),
        *lora,
    ]


def _lora(name: str, settings: Generator) -> Path:
    """Return where a LoRA is, or where it is wanted while it or its checkpoint is not there."""
    try:
        found = lora_file(settings)
    except InputError:
        found = None
    return found or Path(name).expanduser()
