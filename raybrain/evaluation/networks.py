"""Images to the features of a protocol: resize, normalise, run declared weights, read layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raybrain.evaluation.declarations import Layer, Network, Protocol
from raybrain.evaluation.weights import locate, weights_folder

if TYPE_CHECKING:
    import torch

    from raybrain.evaluation.architectures import Lpips

BATCH_SIZE = 16  # on 2 cores 16 took 30 ms an image, 4 took 49 and 32 took 50


def extract_features(
    images: NDArray[np.uint8],
    *,
    protocol: Protocol,
    batch_size: int = BATCH_SIZE,
    weights: Path | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return every layer the protocol declares, one row per image.

    Parameters
    ----------
    images
        (image, y, x, rgb), 0..255; any square size.
    protocol
        Names the networks, weights and layers.
    batch_size
        Images per forward pass; changes memory and the last bits, nothing else.
    weights
        Folder of weights; torch's own when not given.

    Returns
    -------
    dict
        Layer name to (image, feature) float32. `lite0-v1` has 113 thousand features per image in
        all (.45 MB), so a thousand images take .45 GB.

    Raises
    ------
    ValueError
        If `images` has another shape or type.
    InputError
        If weights are missing or are not the declared ones.
    """
    found: dict[str, list[NDArray[np.float32]]] = {}
    for batch in canvases(images, size=protocol.canvas, batch_size=batch_size):
        for name, values in read_layers(batch, protocol=protocol, weights=weights).items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def canvases(
    images: NDArray[np.uint8], *, size: int, batch_size: int = BATCH_SIZE
) -> Iterator[torch.Tensor]:
    """Yield batches (image, rgb, size, size) of float32 in 0..1, bilinear with antialiasing."""
    import torch

    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(
            f"images to score are uint8 (image, y, x, rgb) and at least one; "
            f"found {images.dtype} {images.shape}"
        )
    for start in range(0, len(images), batch_size):
        batch = torch.tensor(images[start : start + batch_size]).permute(0, 3, 1, 2).float()
        yield resize(batch / 255.0, size=size)


def resize(images: torch.Tensor, *, size: int, mode: str = "bilinear") -> torch.Tensor:
    """Return (image, rgb, size, size), antialiased, clipped to 0..1."""
    from torch.nn.functional import interpolate

    if tuple(images.shape[-2:]) == (size, size):
        return images
    return interpolate(
        images, size=(size, size), mode=mode, align_corners=False, antialias=True
    ).clamp(0.0, 1.0)


def read_layers(
    canvas: torch.Tensor, *, protocol: Protocol, weights: Path | None = None
) -> dict[str, NDArray[np.float32]]:
    """Return layer name to (image, feature) for images (image, rgb, y, x) in 0..1."""
    features: dict[str, NDArray[np.float32]] = {}
    for network in protocol.networks:
        if network.layers:
            features |= _reader(network, folder=weights_folder() if weights is None else weights)(
                prepared(canvas, network=network)
            )
    return features


def prepared(canvas: torch.Tensor, *, network: Network) -> torch.Tensor:
    """Return images in 0..1 at the network's size and in the range it was trained on."""
    import torch

    images = resize(canvas, size=network.size, mode=network.resize)
    mean = torch.tensor(network.mean).view(1, 3, 1, 1)
    std = torch.tensor(network.std).view(1, 3, 1, 1)
    return ((images - mean) / std).to(_device())


def lpips_model(protocol: Protocol, *, weights: Path | None = None) -> tuple[Network, Lpips]:
    """Return the protocol's network for LPIPS and its model."""
    network = next(n for n in protocol.networks if n.architecture == "lpips-alexnet")
    folder = weights_folder() if weights is None else weights
    return network, _model(network, folder=folder)


@lru_cache(maxsize=8)
def _model(network: Network, *, folder: Path) -> Any:
    from raybrain.evaluation.architectures import build

    files = [locate(file, folder=folder) for file in network.weights]
    return build(network.architecture, weights=files).to(_device())


@lru_cache(maxsize=8)
def _reader(
    network: Network, *, folder: Path
) -> Callable[[torch.Tensor], dict[str, NDArray[np.float32]]]:
    import torch

    model = _model(network, folder=folder)
    kept: dict[str, torch.Tensor] = {}

    def keep(layer: Layer) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            kept[layer.name] = output.flatten(1)

        return hook

    for layer in network.layers:
        model.get_submodule(layer.module).register_forward_hook(keep(layer))

    def read(batch: torch.Tensor) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            model(batch.contiguous(memory_format=torch.channels_last))
        return {
            layer.name: kept.pop(layer.name).float().cpu().contiguous().numpy()
            for layer in network.layers
        }

    return read


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
