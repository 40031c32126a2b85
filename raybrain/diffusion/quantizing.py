"""Linear layers of the UNet in eight bits, through torchao.

Weights have a scale per output and activations one per token, found as they come, so no row has a
say in another's. But batches of other sizes round otherwise, and eight bits make more of that:
pictures drawn alone and among others may differ by more than the grey level that they do without.
Only the transformers' layers are quantized; convolutions and the embedding of the timestep stay.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from raybrain.config import Generator, InputError

WITHIN = ".transformer_blocks."
MULTIPLE = 16
"""Of inputs and outputs, which the kernels of GPUs want."""
FLOAT8_SINCE = (8, 9)
"""Compute capability: Ada and Hopper."""


def check_quantize(settings: Generator) -> None:
    """Raise `InputError` if torchao is wanted and not installed; it is not loaded."""
    if settings.quantize != "none" and importlib.util.find_spec("torchao") is None:
        raise InputError(
            f"'generator.quantize' is {settings.quantize}, which is computed by torchao, and that "
            f"is not installed; type: pip install 'raybrain[quantize]'"
        )


def quantize(unet: Any, settings: Generator) -> None:
    """Quantize the linear layers of a UNet that is on its device, where the settings say so.

    Raises
    ------
    InputError
        If torchao is not installed, or the device does not compute in ``float8``.
    """
    if settings.quantize == "none":
        return
    check_quantize(settings)
    import torch

    if settings.quantize == "float8":
        device = unet.device
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < FLOAT8_SINCE:
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
            raise InputError(
                f"'generator.quantize' is float8, which needs a GPU of compute capability 8.9 or "
                f"more, such as an H100, and this worker has {name}; "
                f"type generator.quantize=int8 or generator.quantize=none"
            )
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        PerRow,
        quantize_,
    )

    if settings.quantize == "int8":
        how = Int8DynamicActivationInt8WeightConfig()
    else:
        how = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    quantize_(unet, how, filter_fn=_takes)


def _takes(layer: Any, name: str) -> bool:
    """Return whether a layer is quantized; an adapter's look at too few tokens."""
    import torch

    if not isinstance(layer, torch.nn.Linear) or WITHIN not in name or ".processor." in name:
        return False
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
