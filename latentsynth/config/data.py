"""What a run trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentsynth.config.numbers import NotNegative
from latentsynth.strict import Strict
from latentsynth.types import Framing, Grid


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

    @model_validator(mode="after")
    def _images(self) -> DataConfig:
        if not self.grid.windows:
            raise ValueError("grid.windows is empty: give one intensity window per channel")
        return self
