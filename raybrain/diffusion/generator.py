"""Loading a Stable Diffusion checkpoint, and what its targets look like."""

from __future__ import annotations

import contextlib
import pickle
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from raybrain.config import Features, Generator, InputError, Reconstruct, letters
from raybrain.diffusion.checkpoint import (
    PARTS,
    Checkpoint,
    find_checkpoint,
    first_line,
    image_embeds_shape,
)
from raybrain.diffusion.compiling import Compiled, compile_networks
from raybrain.diffusion.image_conditioning import IPAdapter, UnCLIP, load_encoder
from raybrain.diffusion.image_layers import layer_sizes
from raybrain.diffusion.lora import fuse
from raybrain.diffusion.quantizing import quantize
from raybrain.diffusion.silence import quiet

if TYPE_CHECKING:
    import torch

    from raybrain.diffusion.image_conditioning import Encoder, ImageConditioning

Pipeline: TypeAlias = Any
"""diffusers' ``StableDiffusionImg2ImgPipeline``, whose lazy import hides its type."""


@dataclass(frozen=True)
class TargetShapes:
    """The shape of one image's targets."""

    latents: tuple[int, int, int]
    """Channels, height and width of the VAE latents."""
    prompt_embeds: tuple[int, int]
    """Text tokens to decode and the width of their embedding."""
    image_embeds: tuple[int, ...] | None
    """Width of the image embedding, or tokens and width of hidden states; None for a checkpoint
    that draws from none."""
    image_features: tuple[int] | None
    """Features of the image encoder's layers that are wanted, together; None without any."""
    pixels: int
    """Pixels along one side of an image drawn from such latents."""


@dataclass(frozen=True)
class StableDiffusion:
    """A loaded generator: diffusers' img2img pipeline and what is fixed about it."""

    settings: Generator
    pipeline: Pipeline
    """Without a UNet in a generator that was loaded only to encode."""
    scheduler_config: Mapping[str, Any]
    """As in the checkpoint; every scheduler is built from it, never from its predecessor."""
    unconditional: torch.Tensor
    """(token, width) float32: the embedding of the empty caption, the other side of guidance."""
    resolution: int
    """Pixels along one side of the images the network was trained on."""
    latent_size: int
    """Latents along one side at that resolution."""
    image: ImageConditioning | None = None
    """How image embeddings are made and drawn from, if the checkpoint knows any."""
    compiled: tuple[Compiled, ...] = ()
    """Networks that are compiled when they are first called."""
    alone: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held by the thread that has the networks."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pipeline.device

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along one side of the square that one latent stands for."""
        return self.pipeline.vae_scale_factor

    @property
    def scaling_factor(self) -> float:
        """What turns the mean of the VAE's posterior into latents of about unit variance."""
        return self.pipeline.vae.config.scaling_factor


def load_generator(settings: Generator, *, draws: bool = True) -> StableDiffusion:
    """Return the generator with its networks on their device, ready to encode and to draw.

    The text encoder, the latents and the scheduler stay in float32 whatever ``settings.dtype`` is:
    only the UNet and the VAE compute in half precision. So the noise and the text embeddings are
    the same in every precision and on every device.

    Parameters
    ----------
    settings : Generator
        What to load, and how it computes.
    draws : bool
        Without, the UNet and what it is told by are left out: all that encoding does not need, and
        four fifths of Stable Diffusion v1.4.

    Raises
    ------
    InputError
        If there is no such checkpoint, its LoRA does not fit, or the device or a type it computes
        in is not available.
    """
    import diffusers.utils.logging as diffusers_log
    import torch
    import transformers.utils.logging as transformers_log

    device = _device(settings)
    dtype = _dtype(settings, device=device)
    checkpoint = find_checkpoint(settings)
    with quiet():
        diffusers_log.disable_progress_bar()
        transformers_log.disable_progress_bar()
        pipeline = _load_pipeline(checkpoint, draws=draws)
        if draws:
            fuse(pipeline, settings)
        image = _image_conditioning(checkpoint, pipeline, device=device, draws=draws)
        pipeline.set_progress_bar_config(disable=True)
        unet = [pipeline.unet] if draws else []
        for model in (*unet, pipeline.vae, pipeline.text_encoder):
            model.requires_grad_(False)
        if dtype != torch.float32:
            _compute_in(dtype, pipeline=pipeline, device=device)
        pipeline.to(device)
        if draws:
            quantize(pipeline.unet, settings)
        # Never the UNet: on CPUs group normalisation of small maps is up to 18 times slower in
        # channels_last. On an H100 the UNet is 14 % slower in it, decoder 14 % and encoder 40 %.
        if device.type == "cpu":
            pipeline.vae.to(memory_format=torch.channels_last)
        if settings.vae_slicing:
            pipeline.vae.enable_slicing()
        compiled = compile_networks(pipeline) if settings.compile is True and draws else ()
        with torch.inference_mode():
            unconditional, _ = pipeline.encode_prompt("", device, 1, False)
    shapes = target_shapes(settings, features=Features())
    return StableDiffusion(
        settings=settings,
        pipeline=pipeline,
        scheduler_config=dict(pipeline.scheduler.config),
        unconditional=unconditional[0],
        resolution=shapes.pixels,
        latent_size=shapes.latents[1],
        image=image,
        compiled=compiled,
    )


def target_shapes(generator: StableDiffusion | Generator, *, features: Features) -> TargetShapes:
    """Return the shapes of the targets, read from the checkpoint's configs without loading it.

    Parameters
    ----------
    generator : StableDiffusion or Generator
        A loaded generator, or the settings of one.
    features : Features
        ``resolution`` sets the latents' height and width, ``tokens`` how many tokens are decoded,
        ``layers`` and ``grid`` what is looked at within the image encoder.

    Raises
    ------
    InputError
        If the resolution is not a multiple of what the networks halve, there are fewer tokens, or
        no such layers.
    """
    settings = generator.settings if isinstance(generator, StableDiffusion) else generator
    checkpoint = find_checkpoint(settings)
    vae, unet = checkpoint.settings("vae"), checkpoint.settings("unet")
    text = checkpoint.settings("text_encoder")
    pixels_per_latent = 2 ** (len(vae["block_out_channels"]) - 1)
    native = _side(unet["sample_size"]) * pixels_per_latent
    resolution = features.resolution or native
    # Each level of the UNet but the last halves height and width.
    step = pixels_per_latent * 2 ** (len(unet["block_out_channels"]) - 1)
    if resolution % step:
        below = max(resolution // step, 1) * step
        raise InputError(
            f"'features.resolution' is {resolution}, but '{settings.checkpoint}' needs a multiple "
            f"of {step} pixels; type features.resolution={below}, or leave it out for {native}"
        )
    maximum = checkpoint.settings("tokenizer").get("model_max_length", 77)
    longest = min(int(maximum), text["max_position_embeddings"])
    tokens = features.tokens or longest
    if tokens > longest:
        raise InputError(
            f"'features.tokens' is {tokens}, but a caption has {longest} tokens for "
            f"'{settings.checkpoint}'; type features.tokens={longest} or less"
        )
    side = resolution // pixels_per_latent
    return TargetShapes(
        latents=(vae["latent_channels"], side, side),
        prompt_embeds=(tokens, text["hidden_size"]),
        image_embeds=image_embeds_shape(checkpoint),
        image_features=(sum(layer_sizes(checkpoint, features=features)),)
        if features.layers
        else None,
        pixels=resolution,
    )


def drawn_pixels(
    generator: StableDiffusion | Generator, *, features: Features, reconstruct: Reconstruct
) -> int:
    """Return the pixels along one side of a reconstruction.

    Modes that start from latents keep their size; those that start from noise or go through pixels
    draw at the generator's own.
    """
    own_size = reconstruct.mode == "takagi" or "z" not in letters(reconstruct.mode)
    return target_shapes(generator, features=Features() if own_size else features).pixels


def _side(sample_size: int | list[int]) -> int:
    return sample_size if isinstance(sample_size, int) else sample_size[0]


def _device(settings: Generator) -> torch.device:
    import torch

    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise InputError(
            "'generator.device' is cuda, but torch finds no GPU here; "
            "type generator.device=auto, or check the driver with nvidia-smi"
        )
    return torch.device("cuda" if available and settings.device != "cpu" else "cpu")


def _dtype(settings: Generator, *, device: torch.device) -> torch.dtype:
    import torch

    if settings.dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if settings.dtype == "float16" and device.type == "cpu":
        raise InputError(
            "'generator.dtype' is float16, which needs a GPU; "
            "type generator.dtype=bfloat16 or generator.dtype=float32"
        )
    return getattr(torch, settings.dtype)


def _image_conditioning(
    checkpoint: Checkpoint, pipeline: Pipeline, *, device: torch.device, draws: bool
) -> ImageConditioning | None:
    """Return what the pipeline that draws does with image embeddings, if anything."""
    if checkpoint.image_encoder is None:
        return None
    encoder = load_encoder(checkpoint, device=device)
    if checkpoint.adapter is None:
        return _unclip(checkpoint, pipeline, encoder=encoder)
    if not draws:
        return IPAdapter(pipeline, encoder)
    try:
        pipeline.load_ip_adapter(
            str(checkpoint.adapter.parent),
            subfolder="",
            weight_name=checkpoint.adapter.name,
            image_encoder_folder=None,
            local_files_only=True,
            low_cpu_mem_usage=False,  # what is missing is told instead of left without a value
        )
    except (RuntimeError, KeyError, ValueError) as error:
        reason = first_line(error)
        raise InputError(
            f"the adapter {checkpoint.adapter} does not fit the UNet of {checkpoint.folder} "
            f"({reason.rstrip('.:')}); choose the adapter made for this checkpoint"
        ) from None
    return IPAdapter(pipeline, encoder)


def _unclip(checkpoint: Checkpoint, pipeline: Pipeline, *, encoder: Encoder) -> UnCLIP:
    """Return diffusers' unCLIP pipeline around the networks of the one that draws.

    The img2img pipeline draws, for it starts from latents, which the unCLIP pipeline cannot.
    """
    import diffusers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    noising = checkpoint.settings("image_noising_scheduler")["_class_name"]
    whole = diffusers.StableUnCLIPImg2ImgPipeline(
        **{part: getattr(pipeline, part) for part in PARTS},
        feature_extractor=encoder.processor,
        image_encoder=encoder.network,
        image_normalizer=StableUnCLIPImageNormalizer.from_pretrained(
            checkpoint.folder / "image_normalizer", local_files_only=True
        ),
        image_noising_scheduler=getattr(diffusers, noising).from_pretrained(
            checkpoint.folder / "image_noising_scheduler", local_files_only=True
        ),
    )
    return UnCLIP(whole, encoder)


def _load_pipeline(checkpoint: Checkpoint, *, draws: bool) -> Pipeline:
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if not draws:
        unused["unet"] = None
    if checkpoint.weights is None:
        return StableDiffusionImg2ImgPipeline.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            variant=checkpoint.variant,
            local_files_only=True,
            image_encoder=None,
            **unused,
        )
    try:
        with _lightning_stand_ins(checkpoint.weights):
            return StableDiffusionImg2ImgPipeline.from_single_file(
                str(checkpoint.weights),
                config=str(checkpoint.folder),
                dtype=torch.float32,
                local_files_only=True,
                **unused,
            )
    except (ValueError, KeyError, RuntimeError, OSError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise InputError(
            f"{checkpoint.weights} could not be read with the configs of {checkpoint.folder} "
            f"({reason.rstrip('.')}); check that both are the same model, or save the weights as "
            f".safetensors"
        ) from None


@contextlib.contextmanager
def _lightning_stand_ins(weights: Path) -> Iterator[None]:
    """Let torch read a ``.ckpt`` that names the training library's classes, without running them.

    The published ``sd-v1-4.ckpt`` keeps its ModelCheckpoint beside the weights; torch refuses to
    load the file for it, though nothing of it is needed.
    """
    import torch

    if weights.suffix == ".safetensors" or not zipfile.is_zipfile(weights):
        yield
        return
    named = torch.serialization.get_unsafe_globals_in_checkpoint(weights)
    own = [name for name in named if name.startswith("pytorch_lightning.")]
    with torch.serialization.safe_globals([(type("Ignored", (), {}), name) for name in own]):
        yield


def _compute_in(dtype: torch.dtype, *, pipeline: Pipeline, device: torch.device) -> None:
    """Make the UNet and the VAE take and give float32 but compute in ``dtype``."""
    unet, vae = pipeline.unet, pipeline.vae
    # The timestep keeps its type: 981 is not a bfloat16 number.
    for first, last in (
        *([(unet, unet)] if unet else []),
        (vae.encoder, vae.quant_conv or vae.encoder),
        (vae.post_quant_conv or vae.decoder, vae.decoder),
    ):

        def lower(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            sample, *others = args
            for name in ("encoder_hidden_states", "class_labels"):
                if kwargs.get(name) is not None:
                    kwargs = kwargs | {name: kwargs[name].to(dtype)}
            added = kwargs.get("added_cond_kwargs")
            if added and "image_embeds" in added:
                lowered = [embeds.to(dtype) for embeds in added["image_embeds"]]
                kwargs = kwargs | {"added_cond_kwargs": added | {"image_embeds": lowered}}
            return (sample.to(dtype), *others), kwargs

        def raise_again(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0].float(), *output[1:])
            if isinstance(output, dict):  # with return_dict
                return type(output)({name: value.float() for name, value in output.items()})
            return output.float()

        first.register_forward_pre_hook(lower, with_kwargs=True)
        last.register_forward_hook(raise_again)
    for network in filter(None, (unet, vae)):
        network.to(device).to(dtype)  # a GPU converts at once what takes a CPU seconds
