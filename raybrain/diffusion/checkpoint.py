"""Where a generator's files are and what they are, found without loading torch."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybrain.config import Generator, InputError

POCKET_DIFFUSION = Path(__file__).parents[1] / "assets" / "pocket-diffusion"
MODELS = ("vae", "unet", "text_encoder")
PARTS = (*MODELS, "tokenizer", "scheduler")
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")
LATENT_CHANNELS = 4  # StableDiffusionImg2ImgPipeline takes an image of 4 channels as latents


@dataclass(frozen=True)
class Checkpoint:
    """The files of a generator: a diffusers folder, and one file of weights when they are apart."""

    folder: Path
    """Holds ``model_index.json`` and a folder per part; only its configs count with ``weights``."""
    weights: Path | None = None
    """One ``.safetensors`` or ``.ckpt`` file in the layout of the original repository."""

    def settings(self, part: str) -> dict[str, Any]:
        """Return the JSON configuration of a part such as ``"unet"``."""
        names = {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}
        return read_json(self.folder / part / names.get(part, "config.json"))

    def weight_files(self, part: str) -> list[Path]:
        """Return the files diffusers reads the weights of ``part`` from, in order."""
        for suffix in ("safetensors", "bin"):
            found = sorted((self.folder / part).glob(f"*.{suffix}"))
            full = [path for path in found if not re.search(r"\.(fp16|non_ema)\b", path.name)]
            half = [path for path in found if ".fp16." in path.name]
            if full or half:
                return full or half
        return []

    @property
    def variant(self) -> str | None:
        """``"fp16"`` for a folder that holds the weights in half precision only."""
        names = [path.name for part in MODELS for path in self.weight_files(part)]
        return "fp16" if names and all(".fp16." in name for name in names) else None

    def files(self) -> list[Path]:
        """Return every file that determines what the generator does, in order."""
        configs = [self.folder / "model_index.json"]
        for part in PARTS:
            inside = sorted((self.folder / part).glob("*"))
            configs += [path for path in inside if path.suffix in {".json", ".txt", ".model"}]
        if self.weights:
            return [*configs, self.weights]
        return [*configs, *(path for part in MODELS for path in self.weight_files(part))]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file of a generator.

    Raises
    ------
    InputError
        If it is missing, damaged, or holds no mapping.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(
            f"{path} cannot be read ({reason}); copy it again from where the generator is from"
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no settings; copy it again from where it is from")
    return found


def find_checkpoint(settings: Generator) -> Checkpoint:
    """Return the files of ``settings.checkpoint``, downloading only a hub id that is not cached.

    Raises
    ------
    InputError
        If there is no such checkpoint, or it lacks a part, or is not Stable Diffusion 1.x or 2.x.
    """
    name = settings.checkpoint
    path = POCKET_DIFFUSION if name == "pocket-diffusion" else Path(name).expanduser()
    if path.is_dir():
        checkpoint = Checkpoint(folder=path.resolve())
    elif path.is_file() and path.suffix in SINGLE_FILE_SUFFIXES:
        checkpoint = Checkpoint(folder=_configs_for(path, settings), weights=path.resolve())
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix != ".ckpt":
        checkpoint = Checkpoint(folder=_from_hub(name))
    else:
        raise InputError(
            f"there is no generator at '{name}': it is neither a diffusers folder, nor a "
            f".safetensors or .ckpt file, nor a hub id such as CompVis/stable-diffusion-v1-4; "
            f"type generator.checkpoint=pocket-diffusion for the one that ships with raybrain"
        )
    _check(checkpoint, name=name)
    return checkpoint


def _configs_for(weights: Path, settings: Generator) -> Path:
    candidates = [Path(settings.configs).expanduser()] if settings.configs else []
    candidates += [weights.with_suffix(""), weights.parent]
    for folder in candidates[:1] if settings.configs else candidates:
        if (folder / "model_index.json").is_file():
            return folder.resolve()
    raise InputError(
        f"{weights} holds weights only, and no model_index.json was found in "
        f"{' or '.join(map(str, candidates[:1] if settings.configs else candidates))}; "
        f"type generator.configs=FOLDER, a diffusers folder of the same model (weights not needed)"
    )


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        _check(Checkpoint(folder=folder), name=name)
    except (OSError, ValueError, InputError):
        # Not cached, or cached in part; diffusers knows which files a pipeline needs.
        from diffusers import StableDiffusionImg2ImgPipeline

        try:
            return Path(StableDiffusionImg2ImgPipeline.download(name, safety_checker=None))
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(
                f"the generator '{name}' is neither a folder here nor complete in the hub's cache, "
                f"and could not be downloaded ({reason.rstrip('.')}); "
                f"type generator.checkpoint=FOLDER for a copy on disk"
            ) from None
    return folder


def _check(checkpoint: Checkpoint, *, name: str) -> None:
    index = checkpoint.folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"the generator '{name}' has no model_index.json in {checkpoint.folder}; "
            f"generator.checkpoint should be a folder written by diffusers' save_pretrained"
        )
    pipeline = read_json(index).get("_class_name", "")
    if pipeline not in {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"}:
        raise InputError(
            f"the generator '{name}' is a {pipeline or 'folder without a pipeline class'}, but "
            f"raybrain draws with Stable Diffusion 1.x or 2.x (StableDiffusionPipeline)"
        )
    for part in PARTS:
        if not any((checkpoint.folder / part).glob("*.json")):
            raise InputError(
                f"the generator '{name}' lacks {part}/ in {checkpoint.folder}; copy it"
            )
        if part in MODELS and not checkpoint.weights and not checkpoint.weight_files(part):
            raise InputError(
                f"the generator '{name}' has no weights in {checkpoint.folder / part}; "
                f"copy its .safetensors file there"
            )
    channels = checkpoint.settings("vae").get("latent_channels", LATENT_CHANNELS)
    if channels != LATENT_CHANNELS:
        raise InputError(
            f"the generator '{name}' has latents of {channels} channels, but img2img from latents "
            f"works with {LATENT_CHANNELS}; choose a Stable Diffusion 1.x or 2.x checkpoint"
        )


def generator_digest(settings: Generator) -> str:
    """Return the sha256 over the names and bytes of all weight and config files of a generator.

    Neither torch nor diffusers is loaded. Within a process a file is read again only when its
    size or modification time changed.

    Returns
    -------
    str
        64 hexadecimal digits; the same for the same files in another place.
    """
    checkpoint = find_checkpoint(settings)
    digest = hashlib.sha256()
    for path in checkpoint.files():
        where = path.relative_to(checkpoint.folder) if path != checkpoint.weights else "weights"
        status = path.stat()
        content = _file_digest(path, size=status.st_size, modified=status.st_mtime_ns)
        digest.update(f"{where}\n{content}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, *, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
