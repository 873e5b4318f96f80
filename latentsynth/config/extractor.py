"""Training a feature extractor without labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from latentsynth.config.data import DataConfig
from latentsynth.config.numbers import NotNegative
from latentsynth.config.training import Run, TrainConfig
from latentsynth.strict import Positive, Strict


class ViewsConfig(Strict):
    """How far two views of one scan may differ and still count as the same."""

    rotate_deg: NotNegative = 10.0
    scale: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    shift: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.06, description="largest shift, as a share of each axis")
    flip_axes: tuple[Literal[0, 1, 2], ...] = Field((0,), description="axes mirrored with probability 1/2")
    gamma: NotNegative = Field(0.3, description="largest |log gamma| of contrast changes")
    brightness: NotNegative = Field(0.1, description="largest shift of intensities, the window being 2 wide")
    noise: NotNegative = Field(0.05, description="largest deviation of added noise")
    smooth: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="most smoothing; 1 is a deviation of a voxel")


class ExtractorRun(Run):
    """Training a contrastive feature extractor on real training patients."""

    data: DataConfig
    channels: Annotated[tuple[Positive, ...], Field(min_length=2)] = Field(
        (32, 64, 128, 256), description="feature channels, one per halving of the resolution"
    )
    projection: Positive = Field(64, description="size of the projection that the loss compares; dropped afterwards")
    head: Literal["pooled", "layout"] = Field(
        "pooled", description="what the loss compares: what there is (to judge looks), or also where (to find copies)"
    )
    temperature: Annotated[float, Field(gt=0)] = 0.1
    views: ViewsConfig = ViewsConfig()
    train: TrainConfig = TrainConfig(images=6000, batch=16, lr=1e-3, lr_warmup_images=300, ema_halflife_images=300)


# What finds copies: it must know where things lie, and that a generator's copy is smoother than the scan.
COPY_DETECTOR: dict[str, Any] = {
    "channels": (24, 48, 96),
    "head": "layout",
    "views": {"smooth": 1.0, "noise": 0.1},
    "train": {"batch": 32, "lr": 2e-3, "lr_warmup_images": 600, "ema_halflife_images": 300},
}
