"""Training an autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.config.data import DataConfig
from latentsynth.config.numbers import Axes, Fraction, NotNegative
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict, default_kind


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


class AutoencoderRun(Run):
    """Training an autoencoder."""

    data: DataConfig
    autoencoder: AutoencoderConfig = VQConfig()
    loss: ReconstructionConfig = ReconstructionConfig()

    @model_validator(mode="before")
    @classmethod
    def _vq_by_default(cls, values: Any) -> Any:
        """A section ``autoencoder`` that does not say its kind is a VQ one."""
        return default_kind(values, "autoencoder", "vq")

    @model_validator(mode="after")
    def _divisible(self) -> AutoencoderRun:
        bad = [n for n, f in zip(self.data.grid.shape, self.autoencoder.factors, strict=True) if n % f]
        if bad:
            raise ValueError(
                f"data.grid.shape {self.data.grid.shape} is not divisible by downsampling {self.autoencoder.factors}: "
                "scans of any size are padded and cropped to the grid, the grid itself must divide"
            )
        return self
