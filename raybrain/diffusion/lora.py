"""Low-rank changes of a UNet (LoRA) that let it draw in few steps, added to its weights once.

Latent consistency models (Luo et al. 2023) and Hyper-SD (Ren et al. 2024) are published as such
files for Stable Diffusion 1.5: matrices A and B for many layers, ``W + alpha / rank B A``. They
change what is drawn and no target, so files that change the text encoder too are refused.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raybrain.config import Generator, InputError
from raybrain.diffusion.checkpoint import file_digest, find_checkpoint, first_line, tensor_shapes

if TYPE_CHECKING:
    from raybrain.diffusion.generator import Pipeline

OF_TEXT = ("lora_te", "text_encoder")
"""How names of the text encoder's layers begin."""
NAME = re.compile(r"(?:lora_unet_|unet\.)(.+?)[._]lora[._](?:(down|A)|(up|B))\.weight")
"""A matrix as kohya-ss's trainer, peft and diffusers name it: layer, first or second."""
ALPHA = re.compile(r"lora_unet_.+\.alpha")
ADAPTER = "raybrain"

Shapes = Mapping[str, tuple[int, ...]]
"""Names to shapes of tensors."""


def lora_file(settings: Generator) -> Path | None:
    """Return the file that ``generator.lora`` names, if it names one.

    Raises
    ------
    InputError
        If it is neither there nor, by a bare name, in the checkpoint's folder.
    """
    if settings.lora is None:
        return None
    path = Path(settings.lora).expanduser()
    if path.is_file():
        return path.resolve()
    places = [path]
    if len(path.parts) == 1:
        places.append(find_checkpoint(settings).folder / path)
        if places[1].is_file():
            return places[1]
    raise InputError(
        f"'generator.lora' names {settings.lora}, but there is no file "
        f"{' nor '.join(map(str, places))}; copy it there, or leave generator.lora out"
    )


def lora_digest(settings: Generator) -> str | None:
    """Return the sha256 of the file, or None without one."""
    path = lora_file(settings)
    return None if path is None else file_digest(path)


def check_lora(settings: Generator) -> None:
    """Raise `InputError` if the file is not one, or is of another UNet; torch is not loaded.

    With a checkpoint of one file, whose layers have other names, the latter is found at loading.
    """
    path = lora_file(settings)
    if path is None:
        return
    layers = _layers(path)
    checkpoint = find_checkpoint(settings)
    files = [] if checkpoint.weights else checkpoint.weight_files("unet")
    if files and all(file.suffix == ".safetensors" for file in files):
        weights = {name: shape for file in files for name, shape in tensor_shapes(file).items()}
        _check_fit(layers, weights, path=path, whose=settings.checkpoint)


def fuse(pipeline: Pipeline, settings: Generator) -> None:
    """Add what the file says to the UNet's weights, where the settings name one.

    Raises
    ------
    InputError
        If peft is not installed, the file is no LoRA of this UNet, or a layer could not be changed.
    """
    path = lora_file(settings)
    if path is None:
        return
    layers = _layers(path)
    unet = pipeline.unet
    weights = {name: tuple(value.shape) for name, value in unet.named_parameters()}
    _check_fit(layers, weights, path=path, whose=settings.checkpoint)
    try:
        pipeline.load_lora_weights(
            str(path.parent), weight_name=path.name, adapter_name=ADAPTER, local_files_only=True
        )
    except (RuntimeError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise InputError(
            f"{path} could not be added to the UNet of '{settings.checkpoint}' "
            f"({reason.rstrip('.:')}); choose a LoRA made for this checkpoint"
        ) from None
    changed = {_flat(name) for name, layer in unet.named_modules() if hasattr(layer, "base_layer")}
    if changed != set(layers):
        raise InputError(
            f"{path} could not be added to the UNet of '{settings.checkpoint}' as a whole: "
            f"'{min(changed ^ set(layers))}' is left out; choose a LoRA made for this checkpoint"
        )
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()


def _layers(path: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return for each layer of the UNet the shapes of its matrices A and B.

    Layers are named with ``_`` for every ``.``, as in kohya-ss's files.
    """
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            "'generator.lora' is added to the UNet by peft, which is not installed; type: "
            "pip install 'raybrain[lora]'"
        )
    from safetensors import SafetensorError

    try:
        shapes = tensor_shapes(path)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is no .safetensors file that can be read ({error}); copy it again from where "
            f"it is from"
        ) from None
    if not shapes:
        raise InputError(f"{path} holds no tensors; copy it again from where it is from")
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if name.startswith(OF_TEXT):
            raise InputError(
                f"{path} changes the text encoder ('{name}'), whose embeddings are decoded "
                f"and must stay; choose a LoRA of the UNet alone, such as those of LCM and Hyper-SD"
            )
        matrix = NAME.fullmatch(name)
        if matrix:
            found.setdefault(_flat(matrix[1]), {})["A" if matrix[2] else "B"] = shape
        elif not ALPHA.fullmatch(name):
            raise InputError(
                f"{path} is no LoRA of a UNet in a published layout (it has '{name}'); choose one "
                f"of kohya-ss's, peft's or diffusers' layout"
            )
    return found


def _flat(layer: str) -> str:
    """Return a layer's name whatever layout it is from."""
    flat = layer.replace(".processor", "").replace(".", "_")
    return f"{flat}_0" if flat.endswith("to_out") else flat


def _check_fit(layers: Mapping[str, Shapes], weights: Shapes, *, path: Path, whose: str) -> None:
    """Raise `InputError` if a layer is not the UNet's or its product has another shape."""
    own = {
        _flat(name.removesuffix(".weight")): shape
        for name, shape in weights.items()
        if name.endswith(".weight")
    }
    for layer, matrices in layers.items():
        a, b, weight = matrices.get("A"), matrices.get("B"), own.get(layer)
        if a and b and weight and (a[0], a[1:], b[0]) == (b[1], weight[1:], weight[0]):
            continue
        told = f"of {' x '.join(map(str, weight))}" if weight else "which that UNet does not have"
        raise InputError(
            f"{path} does not fit the UNet of '{whose}': its matrices for '{layer}' ({told}) are "
            f"{a} and {b}; choose a LoRA made for this checkpoint"
        )
