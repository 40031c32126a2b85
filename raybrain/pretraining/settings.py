"""Settings of pretraining: one frozen tree, one file, the same addresses as everywhere."""

from typing import Annotated, Literal

from pydantic import Field

from raybrain.config import Fraction, Location, Positive, Section

Rate = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0.0)]


class Images(Section):
    """What to train on."""

    folder: Location | None = None
    """A folder of images; OpenMoji without the held-out families when not given."""
    captions: Location | None = None
    """A csv with columns file and caption; the file names caption when not given."""
    limit: Positive | None = None
    """Use only so many, evenly spread; all when not given."""
    size: Positive = 64
    """Pixels along one side."""


class Optimisation(Section):
    """One run of the optimiser."""

    steps: NonNegative
    """0 keeps the part as it is, which only a start makes sense of."""
    batch_size: Positive
    """Samples per step over all workers together."""
    lr: Rate
    warmup: Positive = 100
    weight_decay: Weight = 0.0
    ema: Fraction = 0.999
    """Largest decay of the moving average of the weights."""
    precision: Literal["float32", "bfloat16"] = "float32"
    report_every: Positive = 50
    """Steps between reports; a checkpoint is written with each."""


class Autoencoder(Section):
    """The variational autoencoder (diffusers AutoencoderKL)."""

    channels: tuple[Positive, ...] = (32, 64, 96)
    """Of each resolution; every one but the last halves the picture."""
    latent_channels: Positive = 4
    perceptual: Weight = 0.2
    """Weight of the EfficientNet-Lite1 distance beside the absolute error."""
    colour: Weight = 2.0
    """Weight of the absolute error of red against green and of blue against yellow, averaged over
    each latent's block: without it the four latent channels went to edges and red came out as
    brown, for coloured areas are few and black lines are everywhere."""
    recolour: Fraction = 0.8
    """Share of pictures shown with all hues turned by a random angle: emoji are mostly yellow and
    blue, so that red against green would be learned last."""
    kl: Weight = 5e-4
    """Weight of the divergence from a standard normal, in nats per latent value."""
    optimisation: Optimisation = Optimisation(
        steps=2000, batch_size=32, lr=1e-3, precision="bfloat16", ema=0.995
    )


class Text(Section):
    """The text encoder (transformers CLIPTextModel) and its tokenizer."""

    vocabulary: Annotated[int, Field(ge=514)] = 2048
    """Byte-level BPE pieces, the 512 bytes and two markers included."""
    tokens: Annotated[int, Field(ge=3)] = 16
    width: Positive = 128
    layers: Positive = 3
    heads: Positive = 4
    optimisation: Optimisation = Optimisation(
        steps=3000, batch_size=256, lr=1e-3, weight_decay=0.05, ema=0.995
    )


class ImageEncoder(Section):
    """What the generator knows a picture by: EfficientNet-Lite1 features, projected and whitened.

    Fitted in closed form on the varied pictures, not trained.
    """

    components: Positive = 64
    """Principal components kept."""
    size: Positive = 128
    """Pixels along one side given to the network."""
    clean: Fraction = 0.25
    """Share of samples whose embedding the denoiser is shown as it is."""
    noise: tuple[Rate, Rate] = (0.02, 20.0)
    """The others are shown what is left of it behind noise, the posterior mean: white noise on the
    features, of a variance drawn log-uniformly between these multiples of a component's mean
    variance. So a short embedding means a doubtful one, as in a ridge prediction."""
    drop: Fraction = 0.3
    """Share of samples shown no embedding, that is zeros: for their captions to tell, and for
    classifier-free guidance."""
    noised: Fraction = 0.2
    """Share of samples whose embedding is noised at a level that the denoiser is told."""


class Denoiser(Section):
    """The U-Net (diffusers UNet2DConditionModel) and its noise schedule."""

    channels: tuple[Positive, ...] = (64, 128, 192)
    layers: Positive = 1
    """Residual blocks per resolution."""
    heads_of: Positive = 32
    """Channels per attention head."""
    noise_steps: Positive = 1000
    log_snr_shift: float = 1.4
    """Added to the log signal-to-noise ratio of the cosine schedule; small latents need more."""
    drop_caption: Fraction = 0.12
    """Share of samples trained without caption, for classifier-free guidance."""
    min_snr: Rate = 5.0
    """Largest signal-to-noise ratio that counts in the loss weight."""
    least_weight: Fraction = 0.3
    """Of any noise step in the loss, however little signal is left."""
    caption_noise: Weight = 0.1
    """Standard deviation of noise on caption embeddings: decoded ones are never exact."""
    caption_beside_image: Fraction = 0.2
    """Share of samples with an image embedding that have their caption as well."""
    copies: Positive = 6
    """Varied copies of every picture that are encoded once."""
    perceptual: Weight = 0.0
    """Weight of the EfficientNet-Lite1 distance of the decoded prediction."""
    looked_at: Fraction = 0.25
    """Share of samples whose prediction is decoded for it, which costs as much as they do."""
    degraded: Fraction = 0.0
    """Share of samples on the way from latents as a brain gives them to the true ones."""
    degraded_noise: tuple[Rate, Rate] = (1.0, 60.0)
    """Variance of the noise the degraded latents are seen through, log-uniform between these
    multiples of a principal component's mean variance."""
    degraded_rescaled: Fraction = 0.25
    """Share of the degraded that are stretched to the variance of undegraded latents."""
    zoom: Weight = 0.06
    """Of the varied copies: standard deviation of the log scale and of the tilt in radians."""
    hue: Fraction = 0.15
    """Of the varied copies: how many have their hues turned."""
    optimisation: Optimisation = Optimisation(
        steps=5000, batch_size=48, lr=8e-4, ema=0.999, precision="bfloat16"
    )


class Pretraining(Section):
    """Everything that determines a pocket generator."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    workspace: Location = "workspace"
    seed: int = 0
    start: Location | None = None
    """Folder of an earlier generator whose weights and tokenizer training goes on from."""
    images: Images = Images()
    autoencoder: Autoencoder = Autoencoder()
    text: Text = Text()
    image_encoder: ImageEncoder | None = ImageEncoder()
    """None for a generator without image embeddings."""
    denoiser: Denoiser = Denoiser()
    workers: Positive = 1
    cpus: Annotated[float, Field(gt=0.0)] = 2.0
    """Per worker."""
    gpus: Weight = 0.0
    """Per worker."""
    export: Location | None = None
    """Folder of the finished generator; ``<workspace>/generators/<name>`` when not given."""
    tracking: Location | None = None
    """MLflow server or database; a sqlite file in the workspace when not given."""
