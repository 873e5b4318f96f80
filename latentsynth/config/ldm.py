"""Training a mask-conditioned latent diffusion model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from latentsynth.config.data import AugmentConfig
from latentsynth.config.numbers import Fraction, NotNegative
from latentsynth.config.training import Run
from latentsynth.errors import ConfigError
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
    cut_weight: Annotated[float, Field(ge=1)] = Field(
        4.0, description="with context: loss weight of cells that the cut changed; the others need only be copied"
    )
    decoys: Fraction = Field(
        0.25,
        description="with context: probability that healthy tissue is cut out of the scan instead of its lesions, which "
        "teaches to remove lesions",
    )
    context_dropout: Fraction = Field(0.1, description="probability that a case trains without the scan")
    patch: tuple[Positive, Positive, Positive] | None = Field(
        None,
        description="latent cells along each axis of the patches that the denoiser trains on and samples in, told where each "
        "lies, so that memory is bounded by the patch; null: whole volumes",
    )

    def seen(self, cells: Sequence[int]) -> tuple[int, ...]:
        """Latent cells along each axis that a network sees at a time, of so many in a volume."""
        return tuple(min(one, whole) for one, whole in zip(self.patch or cells, cells, strict=True))


class DiffusionConfig(Strict):
    """The noise process and what the network is asked to predict."""

    schedule: Literal["rectified", "cosine", "linear"] = "rectified"
    prediction: Literal["v", "x0", "epsilon"] = Field("v", description="preconditioning inside the denoiser")
    time: Literal["uniform", "logit_normal"] = "logit_normal"
    time_mean: float = 0.0
    time_std: Annotated[float, Field(gt=0)] = 1.0
    shift: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="time shift of training; auto: the cube root of latent cells over 32^3, from 1 to 3"
    )
    condition_dropout: Fraction = Field(0.1, description="probability that a case trains without its mask")
    lesion_weight: Annotated[float, Field(ge=1)] = Field(1.0, description="loss weight of cells inside the lesion")

    @model_validator(mode="after")
    def _stable(self) -> DiffusionConfig:
        if self.prediction == "epsilon" and self.flow:
            raise ValueError(
                "prediction: epsilon with schedule: rectified divides the network's error by 1 - t, without bound near "
                "noise: use prediction: v or x0, or schedule: cosine"
            )
        return self

    @property
    def flow(self) -> bool:
        """Whether paths from data to noise are straight lines."""
        return self.schedule == "rectified"


# Scheduler -> the time shift whose grid loses least of fine detail on straight paths (docs/explanation/diffusion.md), or
# None for one that has no such grid.
SCHEDULER_SHIFTS: dict[str, float | None] = {"euler": 0.33, "heun": 0.33, "dpmpp_2m": 0.5, "unipc": 0.33, "ddim": None}

_REFUSED = {
    "ddpm": "it draws fresh noise at every step, so a seed would not determine the volume whatever the batch; use ddim",
    "euler_a": "it draws fresh noise at every step; use euler",
    "sde": "it draws fresh noise at every step; use dpmpp_2m",
    "pndm": "it misses the data by 4 % with an exact denoiser; use unipc",
    "rflow": "MONAI's grid is float16 and its steps do not sum to 1; use euler",
    "lcm": "it needs a distilled model",
}


def _known_scheduler(name: object) -> object:
    if name in _REFUSED:
        raise ValueError(f"scheduler {name} is refused: {_REFUSED[str(name)]}")
    if isinstance(name, str) and name not in SCHEDULER_SHIFTS:
        raise ValueError(f"unknown scheduler {name!r}: choose one of {', '.join(sorted(SCHEDULER_SHIFTS))}")
    return name


class SamplingConfig(Strict):
    """Defaults that a checkpoint samples with; each can be changed at sampling."""

    scheduler: Annotated[str, BeforeValidator(_known_scheduler)] = Field(
        "unipc", description="of diffusers; `latentsynth sample --list-schedulers`"
    )
    steps: int = Field(20, ge=1, le=999)  # schedulers discretise noise levels into 1000
    shift: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        "auto",
        description="time shift of the sampling grid; below 1, more steps near the data; auto: the scheduler's best, and "
        "null, none, where it takes none",
    )
    guidance: NotNegative = Field(1.0, description="1 follows the condition as trained, larger exaggerates it")
    guidance_interval: tuple[Fraction, Fraction] = Field((0.0, 1.0), description="times t within which guidance acts")
    patch_overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.25, description="share of a patch, along each axis, that its neighbour has too; for a model of patches"
    )
    grain: NotNegative = Field(
        1.0,
        description="of volumes: how much of what the decoder's mean leaves out is drawn; 0 gives the mean, which is smooth",
    )

    @model_validator(mode="after")
    def _ordered(self) -> SamplingConfig:
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval} must ascend, or guidance never acts")
        return self

    def resolved(self, flow: bool) -> Self:
        """The same settings with ``shift`` as a number, or None where the scheduler takes none.

        Args:
            flow: Whether the model's paths are straight lines (schedule ``rectified``).

        Raises:
            ConfigError: A shift that would be ignored.
        """
        best = SCHEDULER_SHIFTS[self.scheduler] if flow else None
        if self.shift != "auto" and best is None and self.shift is not None:
            where = "rectified" if flow else "cosine or linear"
            raise ConfigError(
                f"sampling.shift {self.shift:g}: scheduler {self.scheduler} takes none with schedule {where}; leave it out"
            )
        chosen = best if self.shift == "auto" else 1.0 if self.shift is None and best is not None else self.shift
        return self.model_copy(update={"shift": chosen})

    @property
    def grid_shift(self) -> float | None:
        """``shift`` of settings that are :meth:`resolved`."""
        assert self.shift != "auto"
        return self.shift

    def with_changes(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values with some changed; another scheduler brings a shift of its own unless one is given."""
        own = {"shift": "auto"} if changes.get("scheduler", self.scheduler) != self.scheduler else {}
        return {**self.model_dump(), **own, **changes}


class LatentDataConfig(Strict):
    """What latents to train on; everything left out is as the autoencoder was trained."""

    manifest: Path | None = None
    augment: AugmentConfig | None = None
    cache: Path | None = None


class SelectionConfig(Strict):
    """Which checkpoint of a run is kept."""

    keep: Literal["best", "last"] = Field("best", description="best on validation patients, or the last")
    segmenter: Path | None = Field(
        None,
        description="segmenter that finds the masks in samples, by which the best is chosen; not the one that reports. Without "
        "one, validation loss chooses",
    )
    cases: Positive = Field(12, description="validation patients whose masks are sampled for it")
    guidance: tuple[NotNegative, ...] = Field(
        (1.0, 1.5, 2.0),
        description="with a segmenter: guidance scales to try when training ends; the least that shows masks as well as scans do, "
        "or else the best, becomes the checkpoint's default. Empty keeps sampling.guidance",
    )


class LdmRun(Run):
    """Training a mask-conditioned latent diffusion model."""

    autoencoder: Path = Field(description="run folder or checkpoint of the frozen autoencoder")
    data: LatentDataConfig = LatentDataConfig()
    conditioner: ConditionerConfig = ConditionerConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: SamplingConfig = SamplingConfig()
    selection: SelectionConfig = SelectionConfig()

    @model_validator(mode="after")
    def _samples(self) -> LdmRun:
        self.sampling.resolved(self.diffusion.flow)  # refuses a shift that sampling would not heed
        return self
