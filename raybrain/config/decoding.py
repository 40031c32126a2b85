"""``decode``: targets, decoders, priors and how networks are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializeAsAny, WrapValidator, model_validator

from raybrain import plugins, spelling
from raybrain.config.base import Fraction, Positive, Section, extension


class Penalised(Section):
    """What decoders have in common that are solved at once, each dimension at its best penalty."""

    alphas: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    """Penalties in units of the mean eigenvalue; 13 log steps from 1e-3 to 1e3 when not given."""
    rescale: bool = True
    """Scale each predicted dimension to the training targets' standard deviation."""


class Ridge(Penalised):
    """L2-regularised linear regression (Hoerl & Kennard 1970) with a penalty per target."""

    kind: Literal["ridge"] = "ridge"


class KernelRidge(Penalised):
    """Ridge regression on how alike a response pattern is to each one of training.

    Two patterns are alike by exp(-(1 - r) / width), with r the cosine of their z-scores less the
    training mean, so the prediction is a smooth function of the pattern that need not be linear.
    The distance is that of Kriegeskorte et al. 2008, one less the correlation.
    """

    kind: Literal["kernel_ridge"] = "kernel_ridge"
    width: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the kernel, in units of correlation distance: the wider, the closer to linear."""
    ceiling_power: Annotated[float, Field(ge=0.0)] = 0.0
    """Weigh voxels by this power of their noise ceiling, estimated from the repeats of training
    images; 0 weighs all alike."""
    weights: dict[str, Annotated[float, Field(gt=0.0)]] = {}
    """ROI to what voxels in it are weighted by besides, as in banded ridge (Nunez-Elizalde et al.
    2019). It need not be one of ``rois``; where ROIs overlap, their weights multiply."""


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
    """The backbone with a linear read-out, after that of MindEye (Scotti et al. 2023)."""

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
    """ROIs of each node of the graph. They need not be among ``rois``: a node has those of their
    voxels that are decoded from."""
    threshold: Fraction = 0.5
    """Nodes are joined where their mean signals correlate more than this, in absolute value."""


class RoiGraph(Network):
    """A linear layer per ROI, graph convolutions over functional connectivity, a read-out.

    The graph convolutions are those of Morris et al. 2019, on weights normalised as in Kipf &
    Welling 2017.
    """

    kind: Literal["roi_graph"] = "roi_graph"
    width: Positive = 256
    """Units of each ROI."""
    depth: Positive = 2
    """Graph convolutions."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of rows of units left out in training."""
    read_out: Literal["attention", "sum"] = "attention"
    """How the units of all ROIs become one vector."""


class MeshGcn(Network):
    """Graph convolutions between neighbours on the cortical surface, and the backbone behind them.

    The convolutions are those of Defferrard et al. 2016.

    For stores of vertices whose mesh is known (`nod`); a volume has none.
    """

    kind: Literal["mesh_gcn"] = "mesh_gcn"
    channels: Positive = 8
    """Units of each vertex."""
    reach: Positive = 2
    """Edges of the mesh that one convolution looks far: the degree of its Chebyshev polynomial."""
    convolutions: Positive = 2
    """Residual graph convolutions, one after the other."""
    width: Positive = 512
    """Units of each hidden layer of the read-out."""
    depth: Positive = 1
    """Residual blocks of the read-out."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of units left out in training."""


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
        voxels : int
            Columns of what it is given.
        outputs : int
            Dimensions of the target that vary.
        wiring : mapping of str to ndarray
            What `wire` returned; saved with the decoder.

        Raises
        ------
        NotImplementedError
            If a package's decoder does not define it.
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


NetworkDecoder = (
    ResidualMLP | MindEye2 | CnnText | CnnImage | Vae | Gcn | RoiGraph | MeshGcn | OtherNetwork
)


BUILT_IN = (
    Ridge,
    KernelRidge,
    ResidualMLP,
    MindEye2,
    CnnText,
    CnnImage,
    Vae,
    Gcn,
    RoiGraph,
    MeshGcn,
)


KINDS = tuple(str(section.model_fields["kind"].default) for section in BUILT_IN)
"""Of the decoders that this package has."""


Decoder = Annotated[
    Annotated[
        Ridge
        | KernelRidge
        | ResidualMLP
        | MindEye2
        | CnnText
        | CnnImage
        | Vae
        | Gcn
        | RoiGraph
        | MeshGcn,
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type in which matrix products are computed; weights stay float32. Auto is bfloat16 on a GPU
    that has it (NVIDIA Ampere and later), and float32 elsewhere."""
    replay: Literal["auto"] | bool = "auto"
    """On a GPU record a step once and replay it as one CUDA graph, three to six times as fast where
    kernels take less time than their starting. Rows must fit on the GPU; one worker, no contrastive
    loss. Auto replays the networks of the paper and ``residual_mlp``; true, any other as well."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay per step of the moving average of the weights, which is what is kept; 0 for none."""
    memory: Annotated[float, Field(gt=0.0)] = 8.0
    """Gigabytes of betas and targets that a node may hold; larger data are prepared on disk and
    streamed in shuffled chunks. Ridge always holds its data."""


class Prior(Section):
    """A diffusion prior: draws embeddings that a picture could have and that fit the decoded ones.

    After Ramesh et al. 2022 and Scotti et al. 2023. Fitted after the decoder on the true embeddings
    of training images, by gradient descent.
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
        """The ROIs decoded from, and those that the decoder tells their voxels apart by."""
        others: Iterable[str] = ()
        if isinstance(self.decoder, KernelRidge):
            others = self.decoder.weights
        elif isinstance(self.decoder, Gcn):
            others = (name for node in self.decoder.nodes for name in node)
        return tuple(dict.fromkeys((*self.rois, *others)))


class Decodes(Section):
    """The targets to decode: those below, and those that other packages add by name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    other_settings = Decode
    __pydantic_extra__: dict[str, Decode | None]

    latents: Decode | None = None
    """Of the VAE: where things are and their colours; z in ``reconstruct.mode``."""
    prompt_embeds: Decode | None = None
    """Of the caption, by the text encoder; c."""
    image_embeds: Decode | None = None
    """Of the picture, by the checkpoint's image encoder: what it is of; e."""
    image_features: Decode | None = None
    """Of the picture, by inner layers of the image encoder (``features.layers``): what is where.
    ``reconstruct.gradient`` looks at them."""

    @property
    def each(self) -> dict[str, Decode]:
        """Target to how it is decoded, of those that are."""
        names = (*type(self).model_fields, *(self.model_extra or {}))
        return {name: one for name in names if (one := getattr(self, name)) is not None}

    @property
    def others(self) -> list[str]:
        """The targets among them that other packages add."""
        return [name for name in self.each if name not in type(self).model_fields]

    @model_validator(mode="before")
    @classmethod
    def _known(cls, tree: Any) -> Any:
        known = (*cls.model_fields, *plugins.names(plugins.TARGETS))
        for name in tree if isinstance(tree, dict) else ():
            if name not in known:
                told = spelling.hint(str(name), known, otherwise=f"choose from {', '.join(known)}")
                raise ValueError(f"there is no target '{name}'; {told}")
        return tree

    @model_validator(mode="after")
    def _some_target(self) -> Decodes:
        if not self.each:
            raise ValueError("needs at least one target: latents, prompt_embeds or image_embeds")
        for name in ("latents", "image_features", *self.others):
            decode = self.each.get(name)
            if decode is not None and decode.prior is not None:
                raise ValueError(
                    f"{name} cannot have a prior, which is for embeddings; leave it out"
                )
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        """Name the targets of installed packages, and no others."""
        schema = handler(core)
        written = handler.resolve_ref_schema(schema)
        other = written.pop("additionalProperties", None)
        for name in plugins.names(plugins.TARGETS):
            written["properties"][name] = {**other, "default": None}
        written["additionalProperties"] = False
        return schema
