"""One experiment file is one frozen tree; the dotted address of a leaf is its name everywhere.

The same address is used in the YAML file, on the command line, in a search space, in an Optuna
candidate and in an MLflow column. Precedence: defaults written here, then the file, then the
assignments. The environment fills ``${NAME}`` or ``${NAME:-default}`` in paths only.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raybrain import plugins, shipped, spelling

Tree = TypeVar("Tree", bound=BaseModel)

LONGEST_SHOWN = 120
"""Characters of a value that a message repeats."""
SECRET = "secret"
SECRETS = ("token", "secret", "password", "passwd", "pwd", "signature", "credential", "api_key")
"""In the name of a parameter of a URL."""
NO_SECRETS = (
    "holds a password or a token, and settings are logged; leave it out and set PGPASSWORD or "
    "~/.pgpass for a database, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a "
    "tracking server, or a bucket's own credentials"
)


class InputError(Exception):
    """Something a user wrote or pointed at is wrong; the message is one sentence with a remedy.

    It is no `ValueError`, so that whoever expects those of a parser does not catch it.
    """

    def __init__(self, message: str) -> None:
        # What a library says of its error may span lines.
        super().__init__(" ".join(line.strip() for line in str(message).splitlines() if line))


def extension(group: str, name: str) -> Any:
    """Return what an installed package adds under a name.

    Raises
    ------
    InputError
        If it cannot be imported, or two packages offer the name.
    """
    try:
        return plugins.load(group, name)
    except plugins.BrokenPluginError as error:
        raise InputError(str(error)) from error


def fill_environment(text: str) -> str:
    """Return ``text`` with ``${NAME}`` and ``${NAME:-default}`` replaced from the environment.

    Raises
    ------
    InputError
        If a variable without a default is not set.

    Examples
    --------
    >>> fill_environment("${SURELY_NOT_SET:-/data}/nsd")
    '/data/nsd'
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = os.environ.get(name, default)
        if found is None:
            raise InputError(
                f"'{text}' needs the environment variable {name}, which is not set; "
                f"type: export {name}=/path/to/it"
            )
        return found

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", value, text)


def _location(text: str) -> str:
    try:
        filled = fill_environment(text)
    except InputError as error:
        raise ValueError(str(error)) from None  # pydantic adds the address of the setting
    if "://" not in filled:
        filled = os.path.expanduser(filled)  # noqa: PTH111 - Path would drop a leading ./
    if holds_secret(filled):
        raise PydanticCustomError(SECRET, NO_SECRETS)
    return filled


def holds_secret(address: str) -> bool:
    """Return whether a URL holds a password, a token or a signature.

    Examples
    --------
    >>> holds_secret("postgresql://me:word@host/db"), holds_secret("s3://lab/workspace")
    (True, False)
    """
    if "://" not in address:
        return False
    try:
        parts = urlsplit(address)
        user, password = parts.username, parts.password
        names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:  # no URL at all, which whoever opens it will say
        return "@" in address
    token = parts.scheme in ("http", "https") and user is not None
    return password is not None or token or any(word in one for one in names for word in SECRETS)


Location = Annotated[str, AfterValidator(_location)]
"""A folder or a URL, which may not hold a password."""


def _path_part(text: str) -> str:
    if text in ("", ".", "..") or any(one in text for one in "/\\") or not text.isprintable():
        raise ValueError(
            "becomes the name of a folder or a file, so it can have no / and no \\ in it and "
            "cannot be . or ..; choose another name"
        )
    return text


PathPart = Annotated[str, AfterValidator(_path_part)]
"""A name that becomes a part of a path."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen part of an experiment; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_sibling_defaults(cls, tree: Any) -> Any:
        # A default within a default section (max=2) must survive when a sibling (cpus) is given.
        if not isinstance(tree, dict):
            return tree
        merged = dict(tree)
        for name, field in cls.model_fields.items():
            default, given = field.default, tree.get(name)
            if isinstance(default, Section) and isinstance(given, dict):
                base = default.model_dump()
                if given.get("kind", base.get("kind")) == base.get("kind"):
                    merged[name] = {**base, **given}
        return merged


class Simulation(Section):
    """The simulated subject that ``simulate`` writes to disk as NSD or THINGS would ship it."""

    layout: Literal["nsd", "things"] = "nsd"
    """NSD's folders, or the tables of THINGS-fMRI (``betas_csv``)."""
    grid: tuple[Positive, Positive, Positive] = (30, 36, 28)
    """Voxels of the functional volume along x, y and z."""
    early_voxels: Positive = 1200
    """Voxels of V1, V2, V3 and hV4 together."""
    ventral_voxels: Positive = 900
    """Voxels of the ventral stream."""
    objects: Positive | None = None
    """How many stimuli to show, test images included; all when not given."""
    test_images: Positive | None = None
    """How many of them are in the shared test set, at most the 103 that the pocket generator has
    never seen; when not given, these 103 in proportion to the objects shown."""
    repeats: Positive = 3
    """Times every stimulus is shown (NSD: 3)."""
    trials_per_session: Positive = 750
    """Trials of a scan session (NSD: 750)."""
    image_size: Positive = 64
    """Pixels along one side of the square stimuli."""
    ncsnr_median: Annotated[float, Field(gt=0.0)] = 0.38
    """Median noise-ceiling signal-to-noise ratio over voxels (NSD subj01 nsdgeneral: .361)."""
    gain_drift: Annotated[float, Field(ge=0.0)] = 0.1
    """Standard deviation of the log gain of a scan session."""
    seed: int = 0
    """Of the voxels, the order of trials and the noise."""


class Ingest(Section):
    """What ``ingest`` keeps of a dataset."""

    image_size: Positive = 256
    """Stored stimuli are square with this many pixels along one side, or with as many as the
    largest picture has along its shorter side, if that is less."""
    square: Literal["crop", "pad", "stretch"] = "crop"
    """How a picture that is not square becomes one: its centre, as NSD was made from COCO; the
    whole of it on the background; or distorted."""
    background: Literal["white", "grey", "black"] = "white"
    """What transparent pixels and padding show; grey is half of white."""
    sessions: Positive | None = None
    """Use only the first so many scan sessions; all that are present when not given."""


class Generator(Section):
    """The Stable Diffusion that supplies targets and draws reconstructions."""

    checkpoint: Location = "pocket-diffusion"
    """``pocket-diffusion`` (ships with the package), a diffusers folder, a hub id, or one
    ``.safetensors`` or ``.ckpt`` file in the original layout."""
    configs: Location | None = None
    """A diffusers folder that describes a checkpoint of one file; looked for beside the file."""
    image_adapter: Location | None = None
    """An IP-Adapter's ``.safetensors`` file, which lets Stable Diffusion draw from image
    embeddings. Stable unCLIP and ``pocket-diffusion`` need none."""
    image_encoder: Location | None = None
    """Folder of the CLIP vision model that makes them; ``image_encoder`` beside the adapter, or in
    the folder of a Stable unCLIP checkpoint, when not given."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type in which UNet and VAE compute; ``auto`` is float16 on a GPU and float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` is a GPU where a worker has one."""
    vae_slicing: bool = False
    """Decode image by image: less memory for large images."""
    compile: bool = False
    """Compile the UNet: slower to start, faster afterwards."""


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


class Penalised(Section):
    """What decoders have in common that are solved at once, each dimension at its best penalty."""

    alphas: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    """Penalties in units of the mean eigenvalue; 13 log steps from 1e-3 to 1e3 when not given."""
    rescale: bool = True
    """Scale each predicted dimension to the training targets' standard deviation."""


class Ridge(Penalised):
    """L2-regularised linear regression with a penalty per target."""

    kind: Literal["ridge"] = "ridge"


class KernelRidge(Penalised):
    """Ridge regression on how alike a response pattern is to each one of training.

    Two patterns are alike by exp(-(1 - r) / width), with r the cosine of their z-scores less the
    training mean, so the prediction is a smooth function of the pattern that need not be linear.
    """

    kind: Literal["kernel_ridge"] = "kernel_ridge"
    width: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the kernel, in units of correlation distance: the wider, the closer to linear."""
    ceiling_power: Annotated[float, Field(ge=0.0)] = 0.0
    """Weigh voxels by this power of their noise ceiling, estimated from the repeats of training
    images; 0 weighs all alike."""
    weights: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    """ROI to what voxels in it are weighted by besides, as in banded ridge. It need not be one of
    ``rois``; where ROIs overlap, their weights multiply."""


class Network(Section):
    """What all decoders that are fitted by gradient descent have in common."""

    rescale: bool = True
    """Scale each predicted dimension to the training targets' standard deviation."""
    cosine: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of 1 - cosine similarity beside the mean squared error."""
    contrastive: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the soft-CLIP loss beside the mean squared error."""


class Backbone(Network):
    """Linear in, residual blocks of LayerNorm, GELU and dropout: what subjects can share."""

    width: Positive = 512
    """Units of each hidden layer."""
    depth: Positive = 2
    """Residual blocks."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of units left out in training."""


class ResidualMLP(Backbone):
    """The backbone with a linear read-out."""

    kind: Literal["residual_mlp"] = "residual_mlp"


class MindEye2(Backbone):
    """The backbone with a read-out for regression and a projector for contrast.

    After Scotti et al. 2024. Its contrastive loss is BiMixCo on mixed betas for the first epochs,
    then SoftCLIP. Temperatures are for cosines of standardised targets, which spread more widely
    than those of raw CLIP embeddings, for which the paper's are .006 and .004 to .0075.
    """

    kind: Literal["mindeye2"] = "mindeye2"
    contrastive: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the contrastive losses beside the mean squared error."""
    projection: Positive = 512
    """Units of the projector's hidden layers."""
    mixing: Fraction = 0.33
    """Share of the epochs that train on mixed betas with BiMixCo."""
    mixing_temperature: Annotated[float, Field(gt=0.0)] = 0.1
    """Of BiMixCo: cosines are divided by it."""
    soft_temperature: tuple[Annotated[float, Field(gt=0.0)], Annotated[float, Field(gt=0.0)]] = (
        0.1,
        0.125,
    )
    """Of SoftCLIP in its first and last epoch; a cosine between."""


VoxelOrder = Literal["stored", "hilbert", "permuted"]
"""How voxels follow each other where a decoder convolves over them; permuted is the control."""


class CnnText(Network):
    """The text decoder of Hou & Najafi Khoshnoo 2023; there lr 1e-4, batch_size 16, patience 5."""

    kind: Literal["cnn_text"] = "cnn_text"
    order: VoxelOrder = "stored"
    """How voxels follow each other where it convolves over them."""


class CnnImage(Network):
    """The image decoder of Hou & Najafi Khoshnoo 2023; there lr 5e-4, batch_size 256."""

    kind: Literal["cnn_image"] = "cnn_image"
    order: VoxelOrder = "stored"
    """How voxels follow each other where it convolves over them."""


class Vae(Network):
    """The variational decoder of Hou & Najafi Khoshnoo 2023; there lr 5e-4, batch_size 256."""

    kind: Literal["vae"] = "vae"
    share_middle: bool = True
    """Whether the second and third layer of its decoder are one; in the notebooks they are two."""


class Gcn(Network):
    """The graph decoder of Hou & Najafi Khoshnoo 2023; there lr 1e-3, batch_size 64."""

    kind: Literal["gcn"] = "gcn"
    nodes: tuple[tuple[str, ...], ...] = (("V1",), ("V2",), ("V3", "hV4"))
    """ROIs of each node of the graph."""
    threshold: Fraction = 0.5
    """Nodes are joined where their mean signals correlate more than this, in absolute value."""


class RoiGraph(Network):
    """A linear layer per ROI, graph convolutions over functional connectivity, a read-out."""

    kind: Literal["roi_graph"] = "roi_graph"
    width: Positive = 256
    """Units of each ROI."""
    depth: Positive = 2
    """Graph convolutions."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of rows of units left out in training."""
    read_out: Literal["attention", "sum"] = "attention"
    """How the units of all ROIs become one vector."""


class OtherNetwork(Network):
    """A network that another package adds: a subclass with a ``kind`` and settings of its own.

    The subclass is its entry point in the group ``raybrain.decoders``, under the name of its kind::

        class LowRank(OtherNetwork):
            kind: Literal["low_rank"] = "low_rank"
            rank: int = 8

            def build(self, *, voxels, outputs, wiring):
                return nn.Sequential(nn.Linear(voxels, self.rank), nn.Linear(self.rank, outputs))
    """

    kind: str

    def wire(self, *, examples: Any) -> Mapping[str, Any]:
        """Return arrays by name that the network is built from, out of training data alone.

        Parameters
        ----------
        examples : raybrain.decoders.Examples
            Z-scored betas (row, voxel), the ROIs and coordinates of the voxels.
        """
        return {}

    def build(self, *, voxels: int, outputs: int, wiring: Mapping[str, Any]) -> Any:
        """Return an untrained ``torch.nn.Module``: z-scores (row, voxel) to (row, output).

        Parameters
        ----------
        voxels, outputs : int
        wiring : mapping of str to ndarray
            What `wire` returned; saved with the decoder.
        """
        raise NotImplementedError(f"{type(self).__name__} has no build()")


def _decoder_of(value: Any, built_in: Callable[[Any], Any]) -> Any:
    """Return the section of a decoder of this package or another."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if not isinstance(kind, str) or kind in KINDS:
        return built_in(value)
    if kind not in plugins.names(plugins.DECODERS):
        known = ", ".join((*KINDS, *plugins.names(plugins.DECODERS)))
        raise ValueError(f"there is no decoder '{kind}'; choose from {known}")
    section = extension(plugins.DECODERS, kind)
    if not (isinstance(section, type) and issubclass(section, OtherNetwork)):
        raise ValueError(
            f"'{kind}' of {plugins.version(plugins.DECODERS, kind)} is no OtherNetwork; mend it"
        )
    return section.model_validate(value)


class _InSchema:
    """Lets the JSON Schema of experiments know the decoders of other packages."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        schema = handler(core)
        for kind in plugins.names(plugins.DECODERS):
            own = extension(plugins.DECODERS, kind).model_json_schema()
            if "$defs" not in own:
                handler.resolve_ref_schema(schema).setdefault("oneOf", []).append(own)
        return schema


ClosedForm = Ridge | KernelRidge
"""Decoders that the settings under ``training`` do not touch."""
NetworkDecoder = ResidualMLP | MindEye2 | CnnText | CnnImage | Vae | Gcn | RoiGraph | OtherNetwork
BUILT_IN = (Ridge, KernelRidge, ResidualMLP, MindEye2, CnnText, CnnImage, Vae, Gcn, RoiGraph)
KINDS = tuple(str(section.model_fields["kind"].default) for section in BUILT_IN)
"""Of the decoders that this package has."""
Decoder = Annotated[
    Annotated[
        Ridge | KernelRidge | ResidualMLP | MindEye2 | CnnText | CnnImage | Vae | Gcn | RoiGraph,
        Field(discriminator="kind"),
    ],
    WrapValidator(_decoder_of),
    SerializeAsAny(),
    _InSchema(),
]


class Training(Section):
    """Optimisation of decoders that are fitted by gradient descent."""

    lr: Annotated[float, Field(gt=0.0)] = 3e-4
    """Learning rate of AdamW, at its largest."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    """Of AdamW, on matrices alone."""
    batch_size: Positive = 128
    """Trials per step over all workers together."""
    epochs: Positive = 60
    """Passes over the training trials, at most."""
    patience: Positive = 8
    """Epochs without a better validation loss before stopping."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Of the learning rate: after a short rise down to 0 along a cosine, halved where validation
    stalls, or as it is."""
    gradient_clip: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Largest norm of the gradient over all weights; none when null."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type in which matrix products are computed; weights stay float32."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay per step of the moving average of the weights, which is what is kept; 0 for none."""
    memory: Annotated[float, Field(gt=0.0)] = 8.0
    """Gigabytes of betas and targets that a node may hold; larger data are prepared on disk and
    streamed in shuffled chunks. Ridge always holds its data."""


class Prior(Section):
    """A diffusion prior: draws embeddings that a picture could have and that fit the decoded ones.

    Fitted after the decoder on the true embeddings of training images, by gradient descent.
    """

    width: Positive = 256
    """Units of a token of the transformer."""
    depth: Positive = 3
    """Layers of the transformer."""
    heads: Positive = 4
    """Attention heads, which divide ``width``."""
    noise_steps: Positive = 100
    """Steps of the noise schedule that it is trained on."""
    sampling_steps: Positive = 20
    """Steps in which an embedding is drawn."""
    guidance: Annotated[float, Field(ge=0.0)] = 1.0
    """1 follows the decoded embedding as training did, more exaggerates it."""
    drop: Fraction = 0.2
    """Share of training samples that are not told the decoded embedding."""
    training: Training = Training(lr=5e-4, epochs=300, patience=40, ema=0.99)
    """Its own optimisation, apart from that of the decoder."""

    @property
    def cosine(self) -> float:
        """Squared error alone is minimised."""
        return 0.0

    @model_validator(mode="after")
    def _fits(self) -> Prior:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is no multiple of heads={self.heads}; change one")
        if self.sampling_steps > self.noise_steps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} exceeds noise_steps={self.noise_steps}"
            )
        return self


class Decode(Section):
    """One target, the voxels it is decoded from, and the decoder."""

    rois: tuple[str, ...] = Field(min_length=1)
    """Names of the catalog entry; their voxels together, each once."""
    decoder: Decoder = Ridge()
    """Kind and settings of the decoder."""
    min_noise_ceiling: Fraction = 0.0
    """Voxels below this noise ceiling (a fraction) are left out."""
    repeats: Literal["average", "trial"] = "average"
    """Train on the mean over an image's repeats or on single trials."""
    reference: bool = True
    """Beside any other decoder also fit ridge on the same voxels, to compare scores with."""
    shuffled: bool = False
    """Train on targets dealt out anew among the training images: a control that must end at
    chance, whatever the rest of the experiment does."""
    prior: Prior | None = None
    """Draw from what a diffusion prior makes of the decoded embedding; of embeddings alone."""
    training: Training | None = None
    """Optimisation of this decoder; the experiment's ``training`` when not given."""
    sessions: Positive | None = None
    """Train on the subject's first so many scan sessions alone. The test trials stay all of them,
    and of other ``subjects`` all sessions train."""

    @property
    def named_rois(self) -> tuple[str, ...]:
        """The ROIs decoded from, and those that weigh voxels of them."""
        weighed = self.decoder.weights if isinstance(self.decoder, KernelRidge) else {}
        return tuple(dict.fromkeys((*self.rois, *weighed)))


class Decodes(Section):
    """The targets to decode."""

    latents: Decode | None = None
    """Of the VAE: where things are and their colours; z in ``reconstruct.mode``."""
    prompt_embeds: Decode | None = None
    """Of the caption, by the text encoder; c."""
    image_embeds: Decode | None = None
    """Of the picture, by the checkpoint's image encoder: what it is of; e."""
    image_features: Decode | None = None
    """Of the picture, by inner layers of the image encoder (``features.layers``): what is where.
    ``reconstruct.gradient`` looks at them."""

    @model_validator(mode="after")
    def _some_target(self) -> Decodes:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("needs at least one target: latents, prompt_embeds or image_embeds")
        for name in ("latents", "image_features"):
            decode = getattr(self, name)
            if decode is not None and decode.prior is not None:
                raise ValueError(
                    f"{name} cannot have a prior, which is for embeddings; leave it out"
                )
        return self


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
    inner layers where they are decoded, through the checkpoint's image encoder and VAE decoder. A
    step costs about three times a decoding of the VAE.
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


class Reconstruct(Section):
    """How the generator draws from decoded targets."""

    mode: Mode = "z+c"
    """Draw from the decoded latents (z), prompt embeddings (c), image embeddings (e), or several;
    without z from pure noise. ``takagi`` draws from z and c after a detour of the latents through
    pixels at the generator's resolution."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Share of the noise schedule that is added to the decoded latents and removed again."""
    guidance: Annotated[float, Field(ge=1.0)] = 5.0
    """Scale of classifier-free guidance; 1 is none, 5 what Takagi & Nishimoto used."""
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
    scheduler: Literal["ddim", "dpm-solver++"] = "dpm-solver++"
    """Solver of the reverse diffusion."""
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


Reranker = Literal["encoding", "embedding"]


class Evaluate(Section):
    """How reconstructions are scored."""

    protocol: Literal["lite0-v1", "mindeye2-v1", "takagi-v1", "cs292f-v1"] = "lite0-v1"
    """What is measured; all but ``lite0-v1`` need weights that have to be fetched first."""
    weights: Location | None = None
    """Folder of these weights; where torch keeps its downloads when not given."""
    rerank: tuple[Reranker, ...] = ()
    """Add rows of one sample per image, chosen by the brain alone. ``encoding``: the one whose
    predicted brain response fits the measured response best; the encoding model is fitted on
    training images. ``embedding``: the one whose image embedding is nearest the decoded one.
    ``true`` means ``encoding``."""
    metrics: tuple[str, ...] = ()
    """Columns that other installed packages add beside those of the protocol."""
    bootstrap: Positive = 10_000
    """Resamples of the images for every interval."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        offered = plugins.names(plugins.METRICS)
        for name in value:
            if name not in offered:
                known = f"choose from {', '.join(offered)}" if offered else "no package adds any"
                raise ValueError(f"there is no metric '{name}'; {known}")
        if len(set(value)) < len(value):
            raise ValueError("a metric is named twice; name each once")
        return value

    @field_validator(
        "rerank", mode="before", json_schema_input_type=bool | Reranker | tuple[Reranker, ...]
    )
    @classmethod
    def _rerankers(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return ("encoding",) if value else ()
        return (value,) if isinstance(value, str) else value


class Workers(Section):
    """How many workers a stage may use and what each one holds."""

    min: Positive = 1
    """Workers without which the stage does not begin."""
    max: Positive = 1
    """Workers at most."""
    cpus: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs of each."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs of each; .5 puts two workers on one."""

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(
                f"min={self.min} is above max={self.max}; make max at least {self.min}"
            )
        return self


class Resources(Section):
    """Workers of every stage that runs on Ray."""

    tasks: Workers = Workers(max=2)
    """Tasks without a network or a generator: simulation, ingest, ridge, evaluation."""
    train: Workers = Workers()
    """Workers that fit one network together."""
    generate: Workers = Workers(max=2)
    """The pool of Stable Diffusion workers."""
    tune: Workers = Workers(max=2)
    """Candidates at once, and what each worker of a candidate holds. A cluster that was joined is
    asked for all of them together, so that it can add nodes."""


class Range(Section):
    """The values that one address may take in a search."""

    choices: tuple[Any, ...] | None = None
    """Values to choose among; lists are allowed, as in sets of ROIs."""
    low: int | float | None = None
    """Smallest value."""
    high: int | float | None = None
    """Bounds, both included; whole numbers when both are whole."""
    step: Annotated[int | float, Field(gt=0)] | None = None
    """Distance of the values from ``low`` on."""
    log: bool = False
    """Search the logarithm."""
    when: dict[str, Any] = {}
    """Search this address only in candidates that have these values at other addresses."""

    @property
    def whole(self) -> bool:
        """Whether whole numbers alone are searched."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @field_validator("choices", "when", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {address: _number(wanted) for address, wanted in value.items()}
        return _number(value)

    @model_validator(mode="after")
    def _choices_or_bounds(self) -> Range:
        if self.choices is not None:
            if not self.choices or (self.low, self.high, self.step) != (None, None, None):
                raise ValueError("needs either choices, at least one, or low and high")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs either choices or both low and high")
        if self.whole and self.step is not None and self.step != int(self.step):
            raise ValueError(
                f"step={self.step} is a fraction, but low={self.low} and high={self.high} are "
                f"whole numbers, and so is what lies between; write low: {self.low}.0, or a whole "
                f"step"
            )
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low} has no logarithm; raise it or leave out log")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; leave out one")
        return self


class Objective(Section):
    """A metric of the candidates and which way is better."""

    metric: str = "validation_loss"
    """Name of a metric that the candidates report."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Which way is better."""


DRAWN_OF_PRIOR = ("sampling_steps", "guidance")
"""Settings of a prior that change what is drawn from it and not how it was fitted."""


def changes_drawing(address: str) -> bool:
    """Return whether an address changes what is drawn and not what is decoded.

    Examples
    --------
    >>> changes_drawing("reconstruct.steps"), changes_drawing("decode.latents.rois")
    (True, False)
    """
    section, *rest = address.split(".")
    return section == "reconstruct" or (rest[1:2] == ["prior"] and rest[-1] in DRAWN_OF_PRIOR)


class Tuning(Section):
    """The search for better settings."""

    space: dict[str, Range] = Field(min_length=1)
    """Dotted address of this experiment -> the values it may take."""
    candidates: Positive = 30
    """How many to try in all, those of earlier attempts included; for ``grid``, at most."""
    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    """How values are proposed: Optuna's tree of Parzen estimators, at random, one after another, or
    its evolution of a front for several objectives."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Which candidates to stop early, by the first objective."""
    patience: Positive = 5
    """Epochs every candidate may train before it can be stopped early."""
    objectives: tuple[Objective, ...] = Field((Objective(),), min_length=1)
    """What to make better; several give a front of compromises."""
    storage: Location | None = None
    """Database of the study, as an SQLAlchemy URL or the path of a journal file that all nodes
    reach; a sqlite file in the workspace when not given."""
    workers: Positive = 1
    """Workers that train one candidate together."""
    images: Positive = 100
    """Validation images that a candidate draws, where drawing is searched."""
    top: Positive = 3
    """How many of the best are fitted again with other seeds."""
    seeds: Positive = 3
    """How many other seeds that are."""

    @model_validator(mode="after")
    def _samplers_fit(self) -> Tuning:
        several = len(self.objectives) > 1
        if several and self.pruner != "none":
            raise ValueError("several objectives cannot be compared early; write pruner: none")
        if several and self.sampler not in ("nsga2", "random", "grid"):
            raise ValueError("several objectives need sampler: nsga2, random or grid")
        for address, span in self.space.items():
            for other in span.when:
                if other not in self.space:
                    raise ValueError(
                        f"'{address}' is searched when '{other}' has a value, but '{other}' is "
                        f"not in the space; add it"
                    )
            if self.sampler == "grid" and not (span.choices or span.step or span.whole):
                raise ValueError(f"a grid needs choices or a step for '{address}'")
        return self


class Tracking(Section):
    """Where runs are recorded."""

    uri: Location | None = None
    """MLflow tracking server or database; a sqlite file in the workspace when not given."""
    models: bool = True
    """Register every fitted decoder as an MLflow model, a copy of its weights included."""
    system_metrics: Annotated[float, Field(gt=0.0)] | None = 10.0
    """Seconds between two looks at CPU, memory, disk, network and GPU of every node that works;
    null takes none."""
    pictures: NonNegative = 12
    """Test images in a run's image grid, seen beside reconstructed, and a third as many validation
    images while a network learns latents; 0 shows none."""
    private: bool = False
    """Whether stimuli that may not be redistributed may be logged as artifacts."""


class Experiment(Section):
    """Everything that determines a result, from one YAML file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Folder of the run under ``workspace/runs`` and name of its MLflow run."""
    dataset: str
    """A name in ``data_catalog/`` or the path of an entry file of one's own."""
    subject: str
    """A subject of the catalog entry."""
    subjects: tuple[str, ...] = ()
    """Subjects whose data train one ``residual_mlp`` together: an input layer each and one trunk.
    What follows training is about ``subject``, which is one of them anyway."""
    workspace: Location = "workspace"
    """Folder or bucket for all that is written."""
    seed: int = 0
    """Of decoders, noise and resamples; the noise of a picture depends on it, the image and the
    sample alone."""
    on_change: Literal["refuse", "replace"] = "refuse"
    """What to do with a sealed output that was made with other settings."""
    folders: Literal["by_name", "by_seal"] = "by_name"
    """Where outputs lie that runs can share: stores under the subject's and decoders under the
    run's name, or all under their seals, as in a sweep, whose runs make each of them once."""
    simulation: Simulation | None = None
    ingest: Ingest = Ingest()
    generator: Generator = Generator()
    features: Features = Features()
    decode: Decodes
    training: Training = Training()
    tuning: Tuning | None = None
    reconstruct: Reconstruct = Reconstruct()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    tracking: Tracking = Tracking()

    @classmethod
    def load(cls, path: str | Path, *assignments: str) -> Experiment:
        """Return the experiment of a file, whose paths hold from anywhere.

        Parameters
        ----------
        path : str or Path
            YAML file. A dataset named by a relative path is looked for here, then beside it.
        *assignments : str
            As on the command line: ``"training.lr=1e-4"``, ``"decode.latents.rois=[V1, V2]"``.

        Raises
        ------
        InputError
            If the file is missing or is not YAML, or if an address or value does not fit.

        Examples
        --------
        >>> import raybrain
        >>> raybrain.Experiment.load(raybrain.DEMO, "seed=1").seed
        1
        """
        return load(path, assignments, schema=cls).with_whole_paths(beside=Path(path).parent)

    def with_whole_paths(self, *, beside: Path) -> Experiment:
        """Return the experiment with paths that hold from anywhere.

        Ray moves the working directory of its workers.

        Parameters
        ----------
        beside : Path
            Where a dataset that is named by a relative path is looked for if not here.
        """
        absolute = {"dataset": shipped.locate(self.dataset, beside=beside)}
        if "://" not in self.workspace:
            absolute["workspace"] = str(Path(self.workspace).absolute())
        return self.model_copy(update=absolute)

    def with_(self, *changes: str | Mapping[str, Any], source: str = "with_") -> Experiment:
        """Return the experiment with other values at some addresses.

        Where a ``kind`` changes, the settings beside it belong to the old kind and are left out.

        Parameters
        ----------
        *changes : str or mapping
            ``"training.lr=1e-4"`` as on the command line, or ``{"training.lr": 1e-4}``.
        source : str
            What a message of an error begins with.

        Raises
        ------
        InputError
            If an address does not exist or a value does not fit.

        Examples
        --------
        >>> import raybrain
        >>> demo = raybrain.Experiment.load(raybrain.DEMO)
        >>> demo.with_({"training.lr": 1e-4}, "decode.latents.rois=[V1, V2]").decode.latents.rois
        ('V1', 'V2')
        """
        given: dict[str, tuple[Any, Any]] = {}
        for change in changes:
            if isinstance(change, str):
                address, value, written = read_assignment(change)
                given[address] = (value, written)
            else:
                given |= {address: (value, value) for address, value in change.items()}
        typed = self.model_dump()
        spelled = copy.deepcopy(typed)

        def whole_first(address: str) -> tuple[int, bool]:
            return address.count("."), not address.endswith(".kind")

        for address in sorted(given, key=whole_first):
            for tree, value in zip((typed, spelled), given[address], strict=True):
                # Copied, for a deeper address may change what is in it.
                _place(tree, address, copy.deepcopy(value), source=source)
        written = spelling.as_written(typed, spelled, type(self))
        return validate(written, schema=type(self), source=source)

    @model_validator(mode="after")
    def _mode_has_targets(self) -> Experiment:
        for letter in sorted(letters(self.reconstruct.mode)):
            if getattr(self.decode, TARGET_OF[letter]) is None:
                raise ValueError(
                    f"reconstruct.mode={self.reconstruct.mode} needs decode.{TARGET_OF[letter]}; "
                    f"add it or choose another mode"
                )
        if self.decode.image_features is not None and not self.features.layers:
            raise ValueError(
                "decode.image_features needs the layers that they are of; set features.layers"
            )
        modes = (self.reconstruct.mode, *self.reconstruct.references)
        gradient = self.reconstruct.gradient
        if gradient is not None and not any("e" in letters(mode) for mode in modes):
            raise ValueError(
                f"reconstruct.gradient guides towards the image embedding, which nothing draws "
                f"from in reconstruct.mode={self.reconstruct.mode}; choose a mode with e or leave "
                f"reconstruct.gradient out"
            )
        if gradient is not None and gradient.embedding == gradient.layers == 0:
            raise ValueError(
                "reconstruct.gradient.embedding and layers are both 0, so nothing would guide; "
                "raise one or leave reconstruct.gradient out"
            )
        if "embedding" in self.evaluate.rerank and self.decode.image_embeds is None:
            raise ValueError(
                "evaluate.rerank has 'embedding', which needs decode.image_embeds; add it or leave "
                "'embedding' out"
            )
        for row in self.reconstruct.references:
            if row in TARGET_OF and getattr(self.decode, TARGET_OF[row]) is None:
                raise ValueError(
                    f"reconstruct.references has '{row}', which needs decode.{TARGET_OF[row]}; "
                    f"add it or leave '{row}' out"
                )
        return self


NAMING = ("name", "workspace", "folders", "on_change", "tracking", "resources", "tuning")
"""Sections of an experiment that its results do not depend on."""


class Curve(Section):
    """A plot of one score over an axis of a sweep."""

    x: str
    """The axis along which is plotted; its labels begin with numbers, or are ``all``."""
    lines: str | None = None
    """The axis whose labels are lines; one line when not given."""
    metric: str
    """Of the protocol, or of a decoded target, as in ``image_embeds.two_way``."""


class Contrast(Section):
    """How the runs of a sweep stand beside each other."""

    rows: tuple[str, ...] = ()
    """What tells the rows of tables apart: axes along which the subject stays the same,
    ``dataset``, ``subject`` and ``metric``; what ``columns`` leaves, when not given."""
    columns: tuple[str, ...] = ("metric",)
    """What tells their columns apart."""
    baseline: dict[str, str] = {}
    """Axis -> label of what all others are compared with; the first label of every axis left
    out."""
    row: str = "system"
    """Row of every run's table that is compared."""
    metrics: tuple[str, ...] = ()
    """Of the protocol; all when not given."""
    beside: tuple[str, ...] = (
        "mean image", "random training", "shuffled brain", "nearest training", "ceiling",
    )  # fmt: skip
    """Rows of every dataset shown beside, floors first."""
    images: Positive = 24
    """Images that the page shows of every run, at equal steps through the test set."""
    curves: tuple[Curve, ...] = ()
    published: Literal["hou2023"] | None = None
    """Published figures to set beside: Hou & Najafi Khoshnoo 2023, tables 3 and 4."""
    document: Location | None = None
    """Markdown file to write the comparison to as well."""


class Sweep(Section):
    """Runs that differ along axes: experiments of one file, crossed or listed."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    experiment: Location
    """File of the experiment that all runs start from, beside the sweep's own."""
    settings: dict[str, Any] = {}
    """Address -> value for every run."""
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(min_length=1)
    """Address -> the values it takes; or a name -> label -> address -> value, where the address
    ``experiment`` starts from another file."""
    runs: tuple[dict[str, str], ...] | None = None
    """Axis -> label, each a run; axes left out take their first label. All combinations when not
    given."""
    without: tuple[dict[str, str], ...] = ()
    """Axis -> label: combinations that have all of these are left out."""
    compare: Contrast = Contrast()

    @field_validator("settings", "axes", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return _numbers_within(value)

    @field_validator("axes", mode="before")
    @classmethod
    def _axes_have_values(cls, value: Any) -> Any:
        for axis, values in value.items() if isinstance(value, dict) else ():
            labelled = isinstance(values, dict) and all(
                isinstance(settings, dict) for settings in values.values()
            )
            if not (labelled or isinstance(values, list)):
                raise ValueError(
                    f"'{axis}' needs a list of values, or label: {{address: value}} for each label"
                )
        return value


def load(path: str | Path, assignments: tuple[str, ...] = (), *, schema: type[Tree]) -> Tree:
    """Return the validated tree of an experiment file with assignments applied.

    Parameters
    ----------
    path : str or Path
        YAML file.
    assignments : tuple of str
        ``address=value`` each, the value in YAML: ``training.lr=1e-4``.
    schema : type
        The section class at the root, usually `Experiment`.

    Raises
    ------
    InputError
        If the file is missing or is not YAML, or if an address or value does not fit the schema.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"there is no experiment file at {file}; see jobs/experiments/ for examples"
        )
    tree, spelled = read_mapping(file, example="name: demo")
    for assignment in assignments:
        _assign(tree, spelled, assignment)
    return validate(spelling.as_written(tree, spelled, schema), schema=schema, source=str(file))


def read_mapping(file: Path, *, example: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the mapping of a YAML file twice: with types, and as it was spelled.

    Raises
    ------
    InputError
        If it cannot be read, is not YAML, gives a key twice, or holds no mapping.
    """
    try:
        tree, spelled = spelling.read(file.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{file}{line} is not valid YAML: {problem}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not text in UTF-8 ({error.reason}); save it as such") from None
    if not isinstance(tree, dict):
        raise InputError(f"{file} holds no settings; it should be a mapping such as '{example}'")
    return tree, spelled


def validate(tree: dict[str, Any], *, schema: type[Tree], source: str) -> Tree:
    """Return ``tree`` as a frozen `schema`, or raise one sentence that names the first fault."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise InputError(_sentence(error, schema=schema, source=source)) from None


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Return every leaf of ``section`` by dotted address, as plain YAML values.

    Examples
    --------
    >>> flatten(Resources(tune=Workers(max=3)))["tune.max"]
    3
    """
    leaves: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        address = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            leaves |= flatten(value, f"{address}.")
        else:
            leaves[address] = list(value) if isinstance(value, tuple) else value
    return leaves


def as_text(value: Any) -> str:
    """Return a setting as it is typed on the command line: ``null``, ``[V1, V2]``, ``0.001``."""
    plain = _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=math.inf, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _assign(tree: dict[str, Any], spelled: dict[str, Any], assignment: str) -> None:
    address, value, written = read_assignment(assignment)
    *parents, leaf = address.split(".")
    for top, placed in ((tree, value), (spelled, written)):
        node = top
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = placed


def read_assignment(assignment: str) -> tuple[str, Any, Any]:
    """Return address, value and the value as it was spelled of ``address=value``.

    Raises
    ------
    InputError
        If it is none, or its value is not YAML.
    """
    address, equals, text = assignment.partition("=")
    if not equals or not address:
        raise InputError(
            f"'{assignment}' is not an assignment; write address=value, as in training.lr=1e-4"
        )
    try:
        value, written = spelling.read(text)
    except yaml.YAMLError:
        raise InputError(f"the value of '{assignment}' is not valid YAML; quote it") from None
    return address, _number(value), written


def _place(tree: dict[str, Any], address: str, value: Any, *, source: str) -> None:
    """Put a value at an address of a whole tree, where a new ``kind`` clears what is beside it."""
    *parents, leaf = address.split(".")
    node: Any = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise InputError(f"{source}: '{address}' is not a setting; '{parent}' is one")
    if leaf == "kind" and node.get("kind") != value:
        node.clear()
    node[leaf] = value


def _numbers_within(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_within(one) for key, one in value.items()}
    return _number(value)


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4 (no dot) as a string; everyone who types it means the number.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    if isinstance(value, list):
        return [_number(item) for item in value]
    return value


def _sentence(error: ValidationError, *, schema: type[BaseModel], source: str) -> str:
    fault = error.errors()[0]
    # pydantic puts the discriminator's value into the address
    location = [str(part) for part in fault["loc"] if str(part) not in KINDS]
    address = "".join(one if one.isprintable() else repr(one)[1:-1] for one in ".".join(location))
    if fault["type"] == "extra_forbidden":
        section = _section_at(schema, location[:-1])
        known = list(section.model_fields) if section else []
        hint = spelling.hint(location[-1], known, otherwise=f"known here: {', '.join(known)}")
        return f"{source}: '{address}' is not a setting; {hint}"
    if fault["type"] == "missing":
        return f"{source}: '{address}' is missing; add it"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault.get("input")
    hidden = isinstance(found, dict | BaseModel) or fault["type"] == SECRET
    shown = "" if hidden else f" (found {_shortened(found)})"
    subject = f"'{address}': " if address else ""
    return f"{source}: {subject}{message[:1].lower()}{message[1:]}{shown}"


def _shortened(value: Any) -> str:
    # At most about a line: what was found may be a whole file.
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _section_at(schema: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """Return the section class at ``location``, or None inside a union of kinds."""
    section: type[BaseModel] | None = schema
    for name in location:
        field = section.model_fields.get(name) if section else None
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        sections = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        section = sections[0] if len(sections) == 1 else None
    return section
