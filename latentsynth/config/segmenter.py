"""Training a segmenter on any mixture of cohorts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.config.data import AugmentConfig
from latentsynth.config.numbers import Axes, Fraction, NotNegative
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict, default_kind
from latentsynth.types import Framing, Grid, Split


class SourceConfig(Strict):
    """Cases of one manifest, real or synthetic."""

    manifest: Path
    split: Split = "train"
    patients: Positive | None = Field(
        None, description="take so many patients, drawn by the run's seed; null takes all"
    )
    repeat: Positive = Field(1, description="times that every case is seen while an unrepeated one is seen once")


class ValidationConfig(Strict):
    """The real patients that choose the checkpoint."""

    manifest: Path
    split: Split = "val"


class SegmenterDataConfig(Strict):
    """What to train on, whom to validate on, and the grid both are brought to."""

    train: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    validation: ValidationConfig
    grid: Grid
    framing: Framing = Framing()
    augment: AugmentConfig = AugmentConfig()
    cache: Path = Field(Path("runs/cache"), description="where preprocessed volumes are kept")


class _LevelsConfig(Strict):
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = Field(
        (16, 32, 64, 128), description="feature channels, one per level"
    )

    @property
    def units(self) -> Axes:
        """Voxels that each axis of the grid must be a multiple of."""
        unit = 2 ** (len(self.channels) - 1)
        return (unit, unit, unit)

    @property
    def smallest(self) -> int:
        """Voxels that each axis must have; instance norms need more than one value at the lowest level."""
        return 2 * self.units[0]


class UNetConfig(_LevelsConfig):
    """MONAI's U-Net with residual units."""

    kind: Literal["unet"] = "unet"
    res_units: int = Field(2, ge=0)
    dropout: Fraction = 0.0


class DynUNetConfig(_LevelsConfig):
    """MONAI's DynUNet, the network of nnU-Net."""

    kind: Literal["dynunet"] = "dynunet"
    channels: Annotated[tuple[Positive, ...], Field(min_length=3)] = Field(
        (16, 32, 64, 128), description="feature channels, one per level"
    )
    deep_supervision: bool = Field(True, description="train on the outputs of the upper levels too")


class SwinUNETRConfig(Strict):
    """MONAI's Swin-UNETR."""

    kind: Literal["swin_unetr"] = "swin_unetr"
    feature_size: Positive = Field(24, multiple_of=12)
    window: Positive = Field(7, description="edge of the attention windows, in tokens; 4 trains twice as fast on a CPU")
    dropout: Fraction = 0.0

    @property
    def units(self) -> Axes:
        """Voxels that each axis of the grid must be a multiple of: five halvings."""
        return (32, 32, 32)

    @property
    def smallest(self) -> int:
        """Voxels that each axis must have; instance norms need more than one value at the lowest level."""
        return 64


NetworkConfig = Annotated[UNetConfig | DynUNetConfig | SwinUNETRConfig, Field(discriminator="kind")]


class SegmentationLossConfig(Strict):
    """Soft Dice over the foreground labels plus cross-entropy over all."""

    dice_weight: NotNegative = 1.0
    ce_weight: NotNegative = 1.0

    @model_validator(mode="after")
    def _something(self) -> SegmentationLossConfig:
        if not self.dice_weight + self.ce_weight:
            raise ValueError("dice_weight and ce_weight are both 0: nothing would be trained")
        return self


class InferenceConfig(Strict):
    """Sliding windows over scans larger than the grid."""

    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="share of a window that its neighbour covers")
    windows_at_once: Positive = 2


class SegmenterRun(Run):
    """Training a segmenter."""

    data: SegmenterDataConfig
    network: NetworkConfig = UNetConfig()
    loss: SegmentationLossConfig = SegmentationLossConfig()
    inference: InferenceConfig = InferenceConfig()

    @model_validator(mode="before")
    @classmethod
    def _unet_by_default(cls, values: Any) -> Any:
        """A section ``network`` that does not say its kind is a U-Net."""
        return default_kind(values, "network", "unet")

    @model_validator(mode="after")
    def _divisible(self) -> SegmenterRun:
        shape, units = self.data.grid.shape, self.network.units
        least = self.network.smallest
        if any(n % u or n < least for n, u in zip(shape, units, strict=True)):
            nearest = tuple(max(math.ceil(n / u) * u, least) for n, u in zip(shape, units, strict=True))
            raise ValueError(
                f"data.grid.shape {shape} does not suit {self.network.kind}: every axis must be a multiple of {units[0]} "
                f"and at least {least}, for example {nearest}"
            )
        return self
