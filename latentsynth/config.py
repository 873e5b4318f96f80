"""Every run as one strict model: an unknown key, a wrong type or an impossible value is an error that names it.

Imports no torch, so that ``--check`` and ``--help`` answer at once. Each field's meaning is its docstring's line;
defaults are chosen for a CPU, the files in ``configs/`` hold the settings for larger machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.strict import Positive, Strict, build, dump, load
from latentsynth.types import Framing, Grid

__all__ = ["AutoencoderRun", "LdmRun", "Run", "Strict", "build", "dump", "load"]

Axes = tuple[int, int, int]

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class AugmentConfig(Strict):
    """Augmented copies of every training case, made once and cached; copy 0 is the scan as it is."""

    copies: int = Field(0, ge=0, description="augmented copies per training case")
    rotate_deg: NotNegative = Field(8.0, description="largest rotation about each axis, degrees")
    scale: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.08, description="largest relative change of size")
    shift_mm: NotNegative = Field(4.0, description="largest shift along each axis, mm")
    flip_axes: tuple[Literal[0, 1, 2], ...] = Field(
        (), description="axes (0 = left-right) mirrored with probability 1/2"
    )
    elastic_mm: NotNegative = Field(0.0, description="largest elastic displacement, mm (TorchIO; slow)")
    gamma: NotNegative = Field(0.0, description="largest |log gamma| of contrast changes (TorchIO)")
    noise: NotNegative = Field(0.0, description="largest deviation of added noise, in units of the window (TorchIO)")
    bias: NotNegative = Field(0.0, description="largest bias field coefficient (TorchIO)")

    @property
    def changes_voxels(self) -> bool:
        """Whether anything but the position of the grid is augmented."""
        return bool(self.elastic_mm or self.gamma or self.noise or self.bias)


class DataConfig(Strict):
    """What to train on and the grid it is brought to."""

    manifest: Path
    grid: Grid
    framing: Framing = Framing()
    augment: AugmentConfig = AugmentConfig()
    cache: Path = Field(Path("runs/cache"), description="where preprocessed volumes are kept")


class _NetworkConfig(Strict):
    backbone: Literal["strided", "resnet"] = Field(
        "strided", description="strided: MONAI's VQVAE trunk, light; resnet: MONAI's AutoencoderKL trunk, heavy"
    )
    downsampling: Literal[2, 4, 8] | Axes = Field(
        4, description="voxels per latent cell: 2, 4 or 8, one for all axes or three"
    )
    channels: tuple[Positive, ...] = Field((32, 64), description="feature channels, one per halving of the resolution")
    res_blocks: Positive = 2
    latent_channels: Positive = 4

    @property
    def factors(self) -> Axes:
        """Voxels per latent cell along each axis."""
        f = self.downsampling
        return (f, f, f) if isinstance(f, int) else f

    @model_validator(mode="after")
    def _consistent(self) -> _NetworkConfig:
        if any(f not in (1, 2, 4, 8) for f in self.factors):
            raise ValueError(f"downsampling {self.factors}: each axis takes 2, 4 or 8 (1 leaves an axis alone)")
        halvings = max(self.factors).bit_length() - 1
        if len(self.channels) != halvings:
            raise ValueError(f"channels has {len(self.channels)} entries, downsampling {self.factors} needs {halvings}")
        if self.backbone == "resnet" and len(set(self.factors)) > 1:
            raise ValueError(f"backbone resnet halves all axes alike, downsampling is {self.factors}: use strided")
        return self


class VQConfig(_NetworkConfig):
    """Vector-quantised autoencoder."""

    kind: Literal["vq"] = "vq"
    latent_channels: Positive = 8
    codebook_size: Positive = Field(256, description="codes per codebook")
    codebooks: Positive = Field(2, description="groups of latent channels, each quantised by a codebook of its own")
    commitment: NotNegative = 0.25
    codebook_decay: Fraction = 0.95
    restart_below: NotNegative = Field(1.0, description="codes used less (moving average per batch) are restarted")

    @model_validator(mode="after")
    def _groups(self) -> VQConfig:
        if self.latent_channels % self.codebooks:
            raise ValueError(f"latent_channels {self.latent_channels} does not divide into {self.codebooks} codebooks")
        return self


class KLConfig(_NetworkConfig):
    """Autoencoder with a Gaussian bottleneck."""

    kind: Literal["kl"] = "kl"
    kl_weight: NotNegative = 1e-6


AutoencoderConfig = Annotated[VQConfig | KLConfig, Field(discriminator="kind")]


class PerceptualConfig(Strict):
    """A feature network from the user's disk (TorchScript); none is ever fetched."""

    path: Path
    weight: NotNegative = 0.1


class ReconstructionConfig(Strict):
    """Terms of the autoencoder's loss beside the bottleneck's own."""

    reconstruction: Literal["l1", "l2", "robust"] = Field("l1", description="robust: Charbonnier, smooth near zero")
    lesion_weight: Annotated[float, Field(ge=1)] = Field(1.0, description="weight of voxels inside the lesion")
    adversarial_weight: NotNegative = Field(0.0, description="0 trains without a discriminator")
    adversarial_after_images: int = Field(0, ge=0, description="images seen before the discriminator joins")
    discriminator_channels: Positive = 32
    discriminator_layers: Positive = 2
    discriminator_lr: Annotated[float, Field(gt=0)] = 2e-4
    perceptual: PerceptualConfig | None = None


class TrainConfig(Strict):
    """How long, how fast, what is kept. Progress is counted in images seen, so no meaning changes with processes."""

    images: Positive = Field(20_000, description="images to see in all")
    batch: Positive = Field(8, description="global batch, over processes and accumulation")
    accumulation: Positive = Field(1, description="parts that one batch is split into on each process")
    lr: Annotated[float, Field(gt=0)] = 3e-4
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    lr_warmup_images: int = Field(500, ge=0)
    weight_decay: NotNegative = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    ema_halflife_images: int = Field(2_000, ge=0, description="half-life of the weight average; 0 keeps raw weights")
    precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = Field(False, description="torch.compile the trained network (a GPU option)")
    log_every_images: Positive = 200
    save_every_images: Positive = 4_000
    validate_every_images: Positive = 4_000
    sample_every_images: Positive = 4_000
    tensorboard: bool = False
    workers: int = Field(0, ge=0, description="data loader processes per training process")


class Run(Strict):
    """What every trained thing has."""

    run: Path = Field(description="run folder; the same command again resumes it")
    seed: int = Field(0, ge=0)
    train: TrainConfig = TrainConfig()
    init_from: Path | None = Field(None, description="checkpoint whose weights training starts from")


class AutoencoderRun(Run):
    """Training an autoencoder."""

    data: DataConfig
    autoencoder: AutoencoderConfig = VQConfig()
    loss: ReconstructionConfig = ReconstructionConfig()

    @model_validator(mode="before")
    @classmethod
    def _vq_by_default(cls, values: Any) -> Any:
        """A section ``autoencoder`` that does not say its kind is a VQ one."""
        section = values.get("autoencoder") if isinstance(values, dict) else None
        return {**values, "autoencoder": {"kind": "vq", **section}} if isinstance(section, dict) else values

    @model_validator(mode="after")
    def _divisible(self) -> AutoencoderRun:
        bad = [n for n, f in zip(self.data.grid.shape, self.autoencoder.factors, strict=True) if n % f]
        if bad:
            raise ValueError(
                f"data.grid.shape {self.data.grid.shape} is not divisible by downsampling {self.autoencoder.factors}: "
                "scans of any size are padded and cropped to the grid, the grid itself must divide"
            )
        return self


class DenoiserConfig(Strict):
    """The denoising U-Net (MONAI's DiffusionModelUNet)."""

    channels: tuple[Positive, ...] = (64, 128)
    attention: tuple[bool, ...] = (False, True)
    res_blocks: Positive = 2
    head_channels: Positive = 32
    norm_groups: Positive = 16

    @model_validator(mode="after")
    def _consistent(self) -> DenoiserConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention has {len(self.attention)} entries, channels has {len(self.channels)}")
        bad = [n for n in self.channels if n % self.norm_groups or n % self.head_channels]
        if bad:
            raise ValueError(
                f"channels {bad} must be multiples of norm_groups {self.norm_groups} and head_channels {self.head_channels}"
            )
        return self


class DiffusionConfig(Strict):
    """The noise process and what the network is asked to predict."""

    schedule: Literal["rectified", "cosine", "linear"] = "rectified"
    prediction: Literal["v", "x0", "epsilon"] = Field("v", description="preconditioning inside the denoiser")
    time: Literal["uniform", "logit_normal"] = "logit_normal"
    time_mean: float = 0.0
    time_std: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        1.0, description="time shift for larger latents; auto: the square root of cells over 512"
    )
    condition_dropout: Fraction = Field(0.1, description="probability that a case trains without its mask")
    lesion_weight: Annotated[float, Field(ge=1)] = Field(1.0, description="loss weight of cells inside the lesion")


class SamplingConfig(Strict):
    """Defaults that a checkpoint samples with; each can be changed at sampling."""

    scheduler: str = "dpmpp_2m"
    steps: int = Field(20, ge=1, le=999)  # schedulers discretise noise levels into 1000
    guidance: NotNegative = Field(1.0, description="1 follows the condition as trained, larger exaggerates it")
    guidance_interval: tuple[Fraction, Fraction] = Field((0.0, 1.0), description="times t within which guidance acts")

    @model_validator(mode="after")
    def _ordered(self) -> SamplingConfig:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} must ascend, or guidance never acts")
        return self


class LatentDataConfig(Strict):
    """What latents to train on; everything left out is as the autoencoder was trained."""

    manifest: Path | None = None
    augment: AugmentConfig | None = None
    cache: Path | None = None


class LdmRun(Run):
    """Training a mask-conditioned latent diffusion model."""

    autoencoder: Path = Field(description="run folder or checkpoint of the frozen autoencoder")
    data: LatentDataConfig = LatentDataConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
