"""Training an autoencoder."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.config.data import DataConfig
from latentsynth.config.numbers import Axes, Fraction, NotNegative
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict, default_kind


class SpaceToDepthConfig(Strict):
    """A linear map of blocks of voxels that starts from their principal components, with residual blocks around it."""

    kind: Literal["space_to_depth"] = "space_to_depth"
    width: Positive = Field(64, description="feature channels on the latent grid")
    res_blocks: Positive = Field(2, description="residual blocks there, in the encoder and in the decoder")


class ResnetConfig(Strict):
    """The trunk of MONAI's AutoencoderKL: residual blocks from full resolution down, heavy."""

    kind: Literal["resnet"] = "resnet"
    channels: tuple[Positive, ...] = Field((32, 64), description="feature channels, one per halving of the resolution")
    res_blocks: Positive = Field(2, description="residual blocks per level")


TrunkConfig = Annotated[SpaceToDepthConfig | ResnetConfig, Field(discriminator="kind")]


class _NetworkConfig(Strict):
    downsampling: Literal[2, 4, 8] | Axes = Field(
        4, description="voxels per latent cell: 2, 4 or 8, one for all axes or three"
    )
    latent_channels: Positive = 8
    trunk: TrunkConfig = SpaceToDepthConfig()

    @property
    def factors(self) -> Axes:
        """Voxels per latent cell along each axis."""
        f = self.downsampling
        return (f, f, f) if isinstance(f, int) else f

    @model_validator(mode="before")
    @classmethod
    def _space_to_depth_by_default(cls, values: Any) -> Any:
        return default_kind(values, "trunk", "space_to_depth")

    @model_validator(mode="after")
    def _consistent(self) -> _NetworkConfig:
        if any(f not in (1, 2, 4, 8) for f in self.factors):
            raise ValueError(f"downsampling {self.factors}: each axis takes 2, 4 or 8 (1 leaves an axis alone)")
        trunk = self.trunk
        if not isinstance(trunk, ResnetConfig):
            return self
        if len(set(self.factors)) > 1:
            raise ValueError(
                f"trunk resnet halves all axes alike, downsampling is {self.factors}: use trunk space_to_depth"
            )
        halvings = self.factors[0].bit_length() - 1
        if len(trunk.channels) != halvings:
            raise ValueError(
                f"trunk.channels has {len(trunk.channels)} entries, downsampling {self.factors} needs {halvings}"
            )
        return self


class VQConfig(_NetworkConfig):
    """Vector-quantised autoencoder."""

    kind: Literal["vq"] = "vq"
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


class FSQConfig(_NetworkConfig):
    """Autoencoder whose latents are rounded, each channel to a few levels."""

    kind: Literal["fsq"] = "fsq"
    levels: Annotated[int, Field(ge=3, le=256)] = Field(8, description="values that a channel of a cell can take")


AutoencoderConfig = Annotated[VQConfig | KLConfig | FSQConfig, Field(discriminator="kind")]


class PerceptualConfig(Strict):
    """A feature network from the user's disk (TorchScript); none is ever fetched."""

    path: Path
    weight: NotNegative = 0.1


class ReconstructionConfig(Strict):
    """Terms of the autoencoder's loss beside the bottleneck's own."""

    reconstruction: Literal["l1", "l2", "robust"] = Field("l1", description="robust: Charbonnier, smooth near zero")
    lesion_weight: Annotated[float, Field(ge=1)] = Field(1.0, description="weight of voxels inside the lesion")
    high_band_weight: NotNegative = Field(
        1.0,
        description="weight of the error of the finest detail: each voxel minus the mean of its 3 x 3 x 3 neighbourhood",
    )
    energy_weight: NotNegative = Field(
        2.0,
        description="weight of the error of the finest detail's local energy: as much of it as there was, where it was; not in "
        "the decoder phase, where it would be painted in a lattice",
    )
    adversarial_weight: NotNegative = Field(0.0, description="0 trains without a discriminator")
    adversarial_after_images: int = Field(0, ge=0, description="images seen before the discriminator joins")
    discriminator_channels: Positive = 32
    discriminator_layers: Positive = 2
    discriminator_lr: Annotated[float, Field(gt=0)] = 2e-4
    perceptual: PerceptualConfig | None = None


class DecoderPhaseConfig(Strict):
    """The last part of training: the decoder alone, on latents with noise, as a sampler's will be."""

    share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="of the training, its end, in which the decoder trains alone; 0 leaves it out"
    )
    noise: NotNegative = Field(
        0.5,
        description="largest level of the noise, as a share of each channel's deviation; every case gets a level of its own",
    )


class AutoencoderRun(Run):
    """Training an autoencoder."""

    data: DataConfig
    autoencoder: AutoencoderConfig = KLConfig()
    loss: ReconstructionConfig = ReconstructionConfig()
    decoder_phase: DecoderPhaseConfig = DecoderPhaseConfig()
    crop: Axes | None = Field(
        None, description="voxels of the random crops that it trains on; whole volumes if not given"
    )

    @model_validator(mode="before")
    @classmethod
    def _kl_by_default(cls, values: Any) -> Any:
        """A section ``autoencoder`` that does not say its kind is a KL one."""
        return default_kind(values, "autoencoder", "kl")

    @model_validator(mode="after")
    def _divisible(self) -> AutoencoderRun:
        bad = [n for n, f in zip(self.data.grid.shape, self.autoencoder.factors, strict=True) if n % f]
        if bad:
            raise ValueError(
                f"data.grid.shape {self.data.grid.shape} is not divisible by downsampling {self.autoencoder.factors}: "
                "scans of any size are padded and cropped to the grid, the grid itself must divide"
            )
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> AutoencoderRun:
        factors, shape = self.autoencoder.factors, self.data.grid.shape
        if self.crop is not None and any(
            n < 1 or n % f or n > most for n, f, most in zip(self.crop, factors, shape, strict=True)
        ):
            raise ValueError(
                f"crop {self.crop}: each axis takes a multiple of the downsampling {factors}, at most the grid's {shape}"
            )
        return self

    @model_validator(mode="after")
    def _block_has_room(self) -> AutoencoderRun:
        voxels = self.data.grid.channels * prod(self.autoencoder.factors)
        if self.autoencoder.trunk.kind == "space_to_depth" and self.autoencoder.latent_channels > voxels:
            raise ValueError(
                f"autoencoder.latent_channels {self.autoencoder.latent_channels} is more than the {voxels} values of a block "
                "of voxels: nothing would be compressed; lower it, or raise autoencoder.downsampling"
            )
        return self
