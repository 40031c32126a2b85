"""Whether the files of a generator are whole, told without loading torch."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from raybrain.config import Generator, InputError
from raybrain.diffusion.checkpoint import MODELS, Checkpoint, find_checkpoint, read_json
from raybrain.diffusion.lora import check_lora
from raybrain.diffusion.quantizing import check_quantize

NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "vae": {"block_out_channels": list, "latent_channels": int},
    "unet": {"block_out_channels": list, "sample_size": (int, list)},
    "text_encoder": {"hidden_size": int, "max_position_embeddings": int},
    "tokenizer": {},
    "scheduler": {},
}
"""Part -> settings without which nothing can be planned, and their types."""
LENGTH = 8
"""Bytes before a safetensors header, which say how long it is."""


def check_sound(settings: Generator) -> None:
    """Refuse a generator of which a file is missing, damaged or unfit.

    Every config is read, and of the weights what their headers promise is compared with the bytes
    that are there: a copy that broke off is found, a flipped bit is not.

    Raises
    ------
    InputError
        If a file is missing or damaged, or a config lacks what is needed; the first is named.
    """
    checkpoint = find_checkpoint(settings)
    for part, needed in NEEDED.items():
        found = checkpoint.settings(part)
        for name, kind in needed.items():
            if not isinstance(found.get(name), kind):
                raise InputError(
                    f"the config of {part} in {checkpoint.folder} has no usable '{name}' (found "
                    f"{found.get(name)!r}); copy {part}/ again from where the generator is from"
                )
    _check_tokenizer(checkpoint.folder / "tokenizer")
    for path in checkpoint.image_files():
        if path.suffix == ".json":
            read_json(path)
        else:
            _check_weights(path)
    if checkpoint.weights:
        _check_weights(checkpoint.weights)
    else:
        for part in MODELS:
            _check_shards(checkpoint, part=part)
            for path in checkpoint.weight_files(part):
                _check_weights(path)
    check_lora(settings)
    check_quantize(settings)


def _check_tokenizer(folder: Path) -> None:
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")
        return
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, so captions cannot be read; copy it")
    read_json(folder / "vocab.json")


def _check_shards(checkpoint: Checkpoint, *, part: str) -> None:
    folder = checkpoint.folder / part
    for index in sorted(folder.glob("*.index*.json")):
        listed = read_json(index).get("weight_map", {})
        named = sorted(set(listed.values())) if isinstance(listed, dict) else []
        missing = [name for name in named if not (folder / str(name)).is_file()]
        if missing:
            raise InputError(
                f"{folder} lacks {missing[0]} and {len(missing) - 1} more of the {len(named)} "
                f"files that {index.name} lists; copy them"
            )


def _check_weights(path: Path) -> None:
    if path.suffix == ".safetensors":
        promised = _promised_bytes(path)
        if promised is None:
            raise _damaged(path, "its header is no safetensors header")
        if path.stat().st_size < promised:
            raise _damaged(path, f"it has {path.stat().st_size} of {promised} bytes")
        return
    with path.open("rb") as file:
        start = file.read(2)
    if not start or (start == b"PK" and not zipfile.is_zipfile(path)):
        raise _damaged(path, "it is not a whole file of torch")


def _promised_bytes(path: Path) -> int | None:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(LENGTH))
            if length > size:
                return None
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (
        struct.error,
        ValueError,
        OverflowError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ):
        return None
    return LENGTH + int(length) + max(ends, default=0)


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); copy it again from where it is from")
