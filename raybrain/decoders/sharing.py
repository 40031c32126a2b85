"""A decoder as the model hub lays one out: ``config.json``, ``model.safetensors``, a card.

`load_decoder` reads such a folder as it reads one that `TrainedDecoder.save` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from raybrain.decoders.trained import TrainedDecoder

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Says which file holds which array, where there are several: the hub's own convention."""
CARD = "README.md"
LARGEST_FILE = 5_000_000_000
"""Bytes that the hub advises for one file."""
WEIGHTS = "weights."
"""Begins the names of the linear weights of each block of targets."""


def write_model(
    decoder: TrainedDecoder,
    folder: Path,
    *,
    card: str,
    about: Mapping[str, Any],
    arrays: Mapping[str, NDArray],
    largest_file: int = LARGEST_FILE,
) -> None:
    """Write a decoder with its card to a folder.

    Parameters
    ----------
    decoder : TrainedDecoder
    folder : Path
    card : str
        Markdown with a head in YAML.
    about : mapping
        Added to ``config.json``.
    arrays : mapping of str to ndarray of any shape
        Stored beside the decoder's own, such as where its voxels lie.
    largest_file : int
        Bytes; one file holds one block of weights at least.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {**decoder.arrays(), **{f"about.{name}": array for name, array in arrays.items()}}
    files = list(_files(decoder, stored, largest=largest_file))
    where: dict[str, str] = {}
    total = 0
    for number, names in enumerate(files, start=1):
        name = MODEL if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        content = {one: _array(one, decoder, stored) for one in names}
        _save(content, folder / name)
        where |= dict.fromkeys(names, name)
        total += sum(array.nbytes for array in content.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    config = {"model_type": "raybrain-decoder", **decoder.header(), **about}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")


def read_arrays(folder: Path) -> tuple[dict[str, NDArray], dict[str, Path]]:
    """Return the arrays of a model but its linear weights, and the file of each of these by name.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    """
    from safetensors import safe_open

    files = [MODEL]
    if (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    arrays, weights = {}, {}
    for name in files:
        # A name out of somebody's index may lead nowhere else.
        file = folder / Path(name).name
        with safe_open(file, framework="np") as opened:
            for one in opened.keys():  # noqa: SIM118 - it is no mapping
                if one.startswith(WEIGHTS):
                    weights[one] = file
                else:
                    arrays[one] = opened.get_tensor(one)
    return arrays, weights


def weights_name(number: int) -> str:
    """Return what the linear weights of a block of targets are called."""
    return f"{WEIGHTS}{number:04}"


def _files(
    decoder: TrainedDecoder, stored: Mapping[str, NDArray], *, largest: int
) -> Iterator[list[str]]:
    """Yield the names of the arrays of each file."""
    names = list(stored)
    size = sum(array.nbytes for array in stored.values())
    voxels = int(decoder.voxels.sum())
    for number, targets in enumerate(decoder.header()["blocks"]):
        block = 4 * voxels * targets
        if size + block > largest and names:
            yield names
            names, size = [], 0
        names.append(weights_name(number))
        size += block
    yield names


def _array(name: str, decoder: TrainedDecoder, stored: Mapping[str, NDArray]) -> NDArray:
    from raybrain.decoders.ridge import read_weights

    if not name.startswith(WEIGHTS):
        return np.ascontiguousarray(stored[name])
    block = decoder.blocks[int(name.removeprefix(WEIGHTS))]
    return np.ascontiguousarray(read_weights(block))


def _save(arrays: Mapping[str, NDArray], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path, metadata={"format": "np"})
