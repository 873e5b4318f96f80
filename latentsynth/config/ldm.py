"""Training a mask-conditioned latent diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentsynth.config.data import AugmentConfig
from latentsynth.config.numbers import Fraction, NotNegative
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict


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


class ConditionerConfig(Strict):
    """How the mask reaches the denoiser."""

    detail: Literal[1, 2, 4] = Field(
        2,
        description="parts per axis in which the mask is described inside each latent cell; 1 gives one share per cell",
    )
    context: bool = Field(
        False, description="also give the scan with its lesion cut out, so that lesions can be painted into real scans"
    )
    cut_margin_mm: NotNegative = Field(4.0, description="voxels so near a lesion are cut out of the scan with it")
    context_dropout: Fraction = Field(0.1, description="probability that a case trains without the scan")


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
    conditioner: ConditionerConfig = ConditionerConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
