"""Where a generator's files are and what they are, found without loading torch."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raybrain import plugins
from raybrain.config import Generator, InputError, extension

POCKET_DIFFUSION = Path(__file__).parents[1] / "assets" / "pocket-diffusion"
MODELS = ("vae", "unet", "text_encoder")
PARTS = (*MODELS, "tokenizer", "scheduler")
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")
PIPELINES = frozenset({"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"})
UNCLIP = "StableUnCLIPImg2ImgPipeline"
UNCLIP_PARTS = ("image_encoder", "image_normalizer", "image_noising_scheduler")
IMAGE_ENCODER = "image_encoder"
IMAGE_PROCESSOR = "preprocessor_config.json"
LITE1 = "EfficientNetLite1WithProjection"
"""How the config of an image encoder names the one that raybrain brings; others are CLIP's."""
POOLED = "image_proj.proj.weight"
PLUS = "image_proj.proj_in.weight"
"""What tells an IP-Adapter of the pooled form from one of the plus form."""
FIRST_KEY = "ip_adapter.1.to_k_ip.weight"
LATENT_CHANNELS = 4  # StableDiffusionImg2ImgPipeline takes an image of 4 channels as latents


@dataclass(frozen=True)
class Checkpoint:
    """The files of a generator: a diffusers folder, and one file of weights when they are apart."""

    folder: Path
    """Holds ``model_index.json`` and a folder per part; only its configs count with ``weights``."""
    weights: Path | None = None
    """One ``.safetensors`` or ``.ckpt`` file in the layout of the original repository."""
    adapter: Path | None = None
    """An IP-Adapter's ``.safetensors`` file."""
    image_encoder: Path | None = None
    """Folder of the network that makes image embeddings, its config and weights."""

    @property
    def unclip(self) -> bool:
        """Whether the UNet takes image embeddings as class embeddings."""
        return self.pipeline_class() == UNCLIP

    @property
    def image_processor(self) -> Path | None:
        """The folder that says how pictures are prepared for the image encoder, if any does."""
        beside = [self.folder / "feature_extractor"] if self.unclip else []
        candidates = [*([self.image_encoder] if self.image_encoder else []), *beside]
        return next((place for place in candidates if (place / IMAGE_PROCESSOR).is_file()), None)

    def image_encoder_settings(self) -> dict[str, Any]:
        """Return the JSON configuration of the image encoder."""
        assert self.image_encoder is not None
        file = self.image_encoder / "config.json"
        found = read_json(file)
        needed = ["projection_dim"]
        if found.get("architectures") != [LITE1]:
            needed += ["hidden_size", "image_size", "patch_size"]
        for name in needed:
            value = found.get(name)
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    f"{file} has no usable '{name}' (found {value!r}); copy the folder of the "
                    f"image encoder again from where it is from"
                )
        return found

    def pipeline_class(self) -> str:
        """Return the name of the diffusers pipeline that the folder was saved from."""
        return str(read_json(self.folder / "model_index.json").get("_class_name", ""))

    def settings(self, part: str) -> dict[str, Any]:
        """Return the JSON configuration of a part such as ``"unet"``."""
        name = "config.json"
        if part == "tokenizer" or part.endswith("scheduler"):
            name = f"{part.rpartition('_')[2]}_config.json"
        return read_json(self.folder / part / name)

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
            return [*configs, self.weights, *self.image_files()]
        weights = [path for part in MODELS for path in self.weight_files(part)]
        return [*configs, *weights, *self.image_files()]

    def image_files(self) -> list[Path]:
        """Return those files that are about image embeddings, in order."""
        if self.image_encoder is None:
            return []
        found = [self.image_encoder / "config.json"]
        found += sorted(self.image_encoder.glob("*.safetensors"))
        if self.image_processor is not None:
            found.append(self.image_processor / IMAGE_PROCESSOR)
        if self.unclip:
            for part in ("image_normalizer", "image_noising_scheduler"):
                inside = sorted((self.folder / part).glob("*"))
                found += [path for path in inside if path.suffix in {".json", ".safetensors"}]
        return [*found, *([self.adapter] if self.adapter else [])]


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
        An installed package may offer one, see `raybrain.plugins`.
    """
    name = settings.checkpoint
    path = _place(name)
    if path.is_dir():
        checkpoint = Checkpoint(folder=path.resolve())
    elif path.is_file() and path.suffix in SINGLE_FILE_SUFFIXES:
        checkpoint = Checkpoint(folder=_configs_for(path, settings), weights=path.resolve())
    elif re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and path.suffix != ".ckpt":
        checkpoint = Checkpoint(folder=_from_hub(name))
    else:
        raise InputError(
            f"there is no generator at '{name}': it is neither a diffusers folder, nor a "
            f".safetensors or .ckpt file, nor a hub id such as CompVis/stable-diffusion-v1-4, and "
            f"no installed package offers it; type generator.checkpoint=pocket-diffusion for the "
            f"one that ships with raybrain"
        )
    _check(checkpoint, name=name)
    checkpoint = _with_image_parts(checkpoint, settings)
    _check_image_parts(checkpoint, name=name)
    return checkpoint


def _place(name: str) -> Path:
    """Return where a generator is, if it is on disk."""
    if name == "pocket-diffusion":
        return POCKET_DIFFUSION
    if name not in plugins.names(plugins.GENERATORS):
        return Path(name).expanduser()
    folder = extension(plugins.GENERATORS, name)
    found = folder() if callable(folder) else None
    if not isinstance(found, str | Path) or not Path(found).is_dir():
        raise InputError(
            f"the generator '{name}' of {plugins.version(plugins.GENERATORS, name)} gives "
            f"{found!r}, where the folder of a diffusers checkpoint is expected; mend it"
        )
    return Path(found)


def _with_image_parts(checkpoint: Checkpoint, settings: Generator) -> Checkpoint:
    """Return the checkpoint with its image encoder and its adapter, where it has any.

    An adapter comes from ``generator.image_adapter``; its encoder from ``generator.image_encoder``
    or from a folder of that name beside it. An encoder that neither an adapter nor an unCLIP UNet
    listens to does not count.
    """
    adapter = None
    if settings.image_adapter is not None:
        adapter = Path(settings.image_adapter).expanduser().resolve()
    if adapter is None and not checkpoint.unclip:
        if settings.image_encoder is not None:
            raise InputError(
                f"'generator.image_encoder' is given, but '{settings.checkpoint}' listens to no "
                f"image embedding; type generator.image_adapter=FILE, an IP-Adapter made for it, "
                f"or choose a Stable unCLIP checkpoint"
            )
        return checkpoint
    if adapter is not None and checkpoint.unclip:
        raise InputError(
            f"'{settings.checkpoint}' is a Stable unCLIP checkpoint, which takes image embeddings "
            f"without an adapter; leave out generator.image_adapter"
        )
    beside = checkpoint.folder if adapter is None else adapter.parent
    encoder = Path(settings.image_encoder or beside / IMAGE_ENCODER).expanduser().resolve()
    return replace(checkpoint, adapter=adapter, image_encoder=encoder)


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
            reason = first_line(error)
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
    pipeline = checkpoint.pipeline_class()
    if pipeline not in PIPELINES | {UNCLIP}:
        raise InputError(
            f"the generator '{name}' is a {pipeline or 'folder without a pipeline class'}, but "
            f"raybrain draws with Stable Diffusion 1.x or 2.x (StableDiffusionPipeline) or with "
            f"Stable unCLIP ({UNCLIP})"
        )
    parts = (*PARTS, *UNCLIP_PARTS) if checkpoint.unclip else PARTS
    for part in parts:
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


def _check_image_parts(checkpoint: Checkpoint, *, name: str) -> None:
    """Raise `InputError` where image encoder, adapter and UNet do not fit each other.

    Shapes are read from configs and from the head of the adapter's file; no weights are loaded.
    """
    encoder, adapter = checkpoint.image_encoder, checkpoint.adapter
    if encoder is None:
        return
    shapes = _adapter_shapes(adapter) if adapter else {}
    if not (encoder / "config.json").is_file() or not any(encoder.glob("*.safetensors")):
        raise InputError(
            f"the generator '{name}' has no image encoder at {encoder}: a config.json and "
            f".safetensors weights of a CLIPVisionModelWithProjection belong there; copy them, or "
            f"type generator.image_encoder=FOLDER"
        )
    config = checkpoint.image_encoder_settings()
    unet = checkpoint.settings("unet")
    if checkpoint.unclip:
        found = unet.get("projection_class_embeddings_input_dim")
        width = found if isinstance(found, int) else 0
        if width != 2 * config["projection_dim"]:
            raise InputError(
                f"the image encoder at {encoder} gives embeddings of {config['projection_dim']}, "
                f"but the UNet of '{name}' was trained with {width // 2}; use the image_encoder/ "
                f"that came with it"
            )
        return
    plus = PLUS in shapes
    key = PLUS if plus else POOLED
    if key not in shapes or FIRST_KEY not in shapes:
        raise InputError(
            f"{adapter} is no IP-Adapter of the pooled or the plus form (it has no '{POOLED}' nor "
            f"'{PLUS}'); others are not supported"
        )
    reads, gives = shapes[key][1], config["hidden_size" if plus else "projection_dim"]
    if reads != gives:
        raise InputError(
            f"the adapter {adapter} reads embeddings of {reads}, but the image encoder at "
            f"{encoder} gives {gives}; type generator.image_encoder=FOLDER, the one it was "
            f"trained with"
        )
    attends = shapes[FIRST_KEY][1]
    if attends != unet["cross_attention_dim"]:
        raise InputError(
            f"the adapter {adapter} was made for a UNet of width {attends}, but '{name}' has "
            f"{unet['cross_attention_dim']}; choose the adapter made for this checkpoint"
        )


def hidden_states_wanted(checkpoint: Checkpoint) -> bool:
    """Return whether the adapter reads hidden states instead of the pooled embedding."""
    return checkpoint.adapter is not None and PLUS in _adapter_shapes(checkpoint.adapter)


def image_embeds_shape(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """Return the shape of one image's embedding, or None where the checkpoint knows none."""
    if checkpoint.image_encoder is None:
        return None
    config = checkpoint.image_encoder_settings()
    if not hidden_states_wanted(checkpoint):
        return (config["projection_dim"],)
    return ((config["image_size"] // config["patch_size"]) ** 2 + 1, config["hidden_size"])


def first_line(error: Exception) -> str:
    """Return the first line of what a library says is wrong, or the error's type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name to shape of the tensors of a ``.safetensors`` file, from its head alone.

    Raises
    ------
    SafetensorError
        If it is damaged.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _adapter_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError

    if path.suffix != ".safetensors" or not path.is_file():
        raise InputError(
            f"there is no adapter at {path}: generator.image_adapter should be the .safetensors "
            f"file of an IP-Adapter"
        )
    try:
        return tensor_shapes(path)
    except SafetensorError as error:
        raise InputError(f"the adapter {path} could not be read ({error}); copy it again") from None


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
        where = _role(path, checkpoint)
        digest.update(f"{where}\n{file_digest(path)}\n".encode())
    return digest.hexdigest()


def _role(path: Path, checkpoint: Checkpoint) -> str:
    """Return what a file is to a checkpoint, wherever it lies."""
    if path == checkpoint.weights:
        return "weights"
    if path == checkpoint.adapter:
        return "adapter"
    if checkpoint.image_encoder is not None and path.parent == checkpoint.image_encoder:
        return f"{IMAGE_ENCODER}/{path.name}"
    return path.relative_to(checkpoint.folder).as_posix()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file; it is read again only when size or modification time changed."""
    status = path.stat()
    return _file_digest(path, size=status.st_size, modified=status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, *, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
