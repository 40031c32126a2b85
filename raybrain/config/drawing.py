"""``generator``, ``features`` and ``reconstruct``: pictures to targets and back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raybrain.config.base import Location, NonNegative, Positive, Section


class Generator(Section):
    """The Stable Diffusion (Rombach et al. 2022) that makes targets and draws reconstructions."""

    checkpoint: Location = "pocket-diffusion"
    """``pocket-diffusion`` (ships with the package), a diffusers folder, a hub id, one
    ``.safetensors`` or ``.ckpt`` file in the original layout, or a name that an installed package
    offers."""
    configs: Location | None = None
    """A diffusers folder that describes a checkpoint of one file; looked for beside the file."""
    image_adapter: Location | None = None
    """An IP-Adapter's ``.safetensors`` file (Ye et al. 2023), which lets Stable Diffusion draw from
    image embeddings. Stable unCLIP and ``pocket-diffusion`` need none."""
    image_encoder: Location | None = None
    """Folder of the CLIP vision model that makes them; ``image_encoder`` beside the adapter, or in
    the folder of a Stable unCLIP checkpoint, when not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type in which UNet and VAE compute; ``auto`` is float16 on a GPU and float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is a GPU where a worker has one."""
    vae_slicing: bool = False
    """Decode image by image: less memory for large images."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the UNet and the VAE's decoder: about a minute before the first batch on a node, then
    faster. ``auto`` does so on GPUs where more time is saved. It rounds otherwise, so pictures
    differ by a grey level here and there."""
    lora: Location | None = None
    """A ``.safetensors`` file of low-rank changes of the UNet (LoRA, Hu et al. 2022) that let it
    draw in few steps: LCM (Luo et al. 2023) or Hyper-SD (Ren et al. 2024); or the name of one that
    lies in the checkpoint's folder, such as ``pytorch_lora_weights.safetensors``. They are added to
    the weights once; none unless given, for they draw other pictures. Needs the extra ``lora``."""
    quantize: Literal["none", "int8", "float8"] = "none"
    """Type in which the linear layers of the UNet's transformers multiply, with a scale per row of
    weights and of activations, through torchao: ``float8`` needs a GPU of compute capability 8.9.
    ``none`` unless given, for rounding changes pictures. Needs the extra ``quantize``."""


class Features(Section):
    """Targets made from the stimuli by the generator's own encoders."""

    resolution: Positive | None = None
    """Pixels along one side given to the VAE; the generator's own sample size when not given."""
    tokens: Positive | None = None
    """Leading text tokens to decode; the rest keep the training mean. All when not given."""
    batch_size: Positive = 32
    """Images encoded together."""
    layers: tuple[NonNegative, ...] = ()
    """Inner layers of the checkpoint's image encoder that become the target ``image_features``:
    numbers of transformers' hidden states, or of EfficientNet's blocks from 0. None if not
    given."""
    grid: Positive = 4
    """Fields along each side of the picture that the features of a layer are averaged in."""


Mode = Literal["z", "c", "e", "z+c", "z+e", "c+e", "z+c+e", "takagi"]


TARGET_OF = {"z": "latents", "c": "prompt_embeds", "e": "image_embeds"}
"""Letter of a mode -> the target it stands for."""


def letters(mode: str) -> frozenset[str]:
    """Return the letters of `TARGET_OF` that a mode draws from.

    Examples
    --------
    >>> sorted(letters("z+e")), sorted(letters("takagi"))
    (['e', 'z'], ['c', 'z'])
    """
    return frozenset("zc") if mode == "takagi" else frozenset(mode.split("+"))


class GradientGuidance(Section):
    """Steps that move the picture being drawn until the image encoder sees what was decoded.

    The gradient is that of the cosine between both image embeddings, and between the features of
    inner layers where they are decoded, through the checkpoint's image encoder and VAE decoder
    (after He et al. 2024). A step costs about three times a decoding of the VAE.
    """

    embedding: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the image embedding's cosine, where layers are looked at beside it."""
    layers: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the mean cosine of the layers of ``decode.image_features``; a row that shows what
    the embedding alone gives has none."""

    size: Annotated[float, Field(gt=0.0)] = 0.05
    """Root mean square of a step over a picture's latents, whose own is about 1; the mean of the
    steps, which shrink linearly."""
    repeats: Positive = 10
    """Steps at each guided denoising step."""
    last: Positive = 1
    """Denoising steps that are guided, counted from the last: guesses before it are blurred."""


class GuidanceInterval(Section):
    """Noise levels at which classifier-free guidance acts (Kynkäänniemi et al., NeurIPS 2024).

    Elsewhere the UNet runs on what is told alone, for half the time. Levels are those of their
    paper, the noise's deviation in units of the signal's, ``sqrt((1 - a) / a)`` of the schedule's
    cumulative ``a``: unlike shares of steps they mean the same whatever solver, steps and strength.
    Stable Diffusion's go from .03 to 14.6.
    """

    low: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Levels at and below it are not guided."""
    high: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Levels above it are not guided; no limit if not given."""

    @model_validator(mode="after")
    def _ascends(self) -> GuidanceInterval:
        if self.high is not None and self.high <= self.low:
            raise ValueError(f"high={self.high} is not above low={self.low}; raise it")
        return self


class Reconstruct(Section):
    """How the generator draws from decoded targets."""

    mode: Mode = "z+c"
    """Draw from the decoded latents (z), prompt embeddings (c), image embeddings (e), or several;
    without z from pure noise. ``takagi`` draws from z and c after a detour of the latents through
    pixels at the generator's resolution."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Share of the noise schedule that is added to the decoded latents and removed again (SDEdit,
    Meng et al. 2022)."""
    guidance: Annotated[float, Field(ge=1.0)] = 5.0
    """Scale of classifier-free guidance (Ho & Salimans 2022); 1 is none, 5 what Takagi & Nishimoto
    used."""
    guidance_interval: GuidanceInterval | None = None
    """Noise levels at which that guidance acts; all, as published, unless given. It says nothing
    where ``guidance`` is 1 or the mode is z."""
    prompt_scale: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the decoded prompt embeddings against those of the empty caption."""
    image_scale: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the decoded image embeddings: what an IP-Adapter adds is multiplied by it, or the
    class embedding of unCLIP."""
    gradient: GradientGuidance | None = None
    """Guide modes with e by the gradient of the image embedding and decoded ``image_features``;
    none unless given."""
    noise_level: NonNegative = 0
    """Timesteps of noise that unCLIP adds to the image embedding: more lets pictures vary more."""
    scheduler: Literal["ddim", "dpm-solver++", "unipc", "lcm"] = "dpm-solver++"
    """Solver of the reverse diffusion: DDIM (Song et al. 2021), DPM-Solver++ (Lu et al. 2022) or
    UniPC (Zhao et al. 2023), for few steps; ``lcm`` (Luo et al. 2023), which adds new noise at
    every step, is for a ``generator.lora`` or a checkpoint that was distilled for it."""
    spacing: Literal["leading", "trailing"] | None = None
    """How steps lie in the noise schedule: ``trailing`` begins at its last level, as Hyper-SD wants
    with ddim (Lin et al. 2024 say why), ``leading`` does not. As the checkpoint and the solver have
    it unless given."""
    steps: Positive = 20
    """Denoising steps of the whole schedule, of which ``strength`` is the share that is run."""
    samples: Positive = 5
    """Reconstructions per image."""
    references: tuple[Literal["ceiling", "category", "z", "e"], ...] = ("ceiling",)
    """Rows drawn beside the system's: from the true targets, from the training mean of the image's
    true category, and, one sample each, from the decoded latents alone and from the decoded image
    embeddings alone."""
    images_per_unit: Positive = 4
    """Images whose samples share a batch; fixed by the plan, never by the number of workers."""

    @model_validator(mode="after")
    def _spaced_as_distilled(self) -> Reconstruct:
        if self.scheduler == "lcm" and self.spacing is not None:
            raise ValueError(
                f"spacing={self.spacing} says nothing to lcm, which takes the steps that it was "
                f"distilled for; leave spacing out"
            )
        return self

    @property
    def own_strength(self) -> float:
        """Strength in this mode: without latents all of the schedule is run, from pure noise."""
        return self.strength if "z" in letters(self.mode) else 1.0

    @property
    def own_guidance(self) -> float:
        """Guidance in this mode: from latents alone there is nothing to be guided by."""
        return 1.0 if letters(self.mode) == {"z"} else self.guidance
