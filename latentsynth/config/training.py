"""What every run has: its folder, its seed, how long and how fast it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from latentsynth.config.numbers import Fraction, NotNegative, Seed
from latentsynth.strict import Positive, Strict


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
    # YAML reads a bare `no` as false.
    precision: Annotated[Literal["no", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)] = "no"
    gradient_checkpointing: bool = False
    attention: Literal["torch", "xformers"] = Field(
        "torch",
        description="what computes self-attention: torch's own kernels, or xFormers', on a GPU where it is installed",
    )
    compile: bool = Field(False, description="torch.compile the trained network (a GPU option)")
    log_every_images: Positive = 200
    save_every_images: Positive = 4_000
    validate_every_images: Positive = 4_000
    sample_every_images: Positive = 4_000
    tracker: Literal["tensorboard", "wandb", "mlflow"] | None = Field(
        None, description="where metrics go beside metrics.jsonl, if its package is installed"
    )
    workers: int = Field(0, ge=0, description="data loader processes per training process")


class Run(Strict):
    """What every trained thing has."""

    may_change: ClassVar[tuple[str, ...]] = ("train", "sampling")  # between a run and its continuation

    run: Path = Field(description="run folder; the same command again resumes it")
    seed: Seed = 0
    train: TrainConfig = TrainConfig()
    init_from: Path | None = Field(None, description="checkpoint whose weights training starts from")
