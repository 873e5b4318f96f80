"""Learning rate and weight average as functions of images seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latentsynth.config import TrainConfig


def lr_factor(config: TrainConfig, images_seen: int) -> float:
    """Factor on the learning rate: linear warm-up, then constant or half a cosine down to a hundredth."""
    if images_seen < config.lr_warmup_images:
        return (images_seen + config.batch) / (config.lr_warmup_images + config.batch)
    if config.lr_schedule == "constant":
        return 1.0
    span = max(config.images - config.lr_warmup_images, 1)
    done = min((images_seen - config.lr_warmup_images) / span, 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def average(module: nn.Module, halflife_images: int, batch: int) -> AveragedModel:
    """An exponential moving average of weights *and* buffers (codebooks), in half-lives of images seen.

    The half-life is shortened to a tenth of the progress so far, or the average would remember its random start
    (Karras et al. 2024, sec. 3.1, argue for averages relative to training time).
    """

    def update(averages: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor) -> None:
        halflife = min(halflife_images, 0.1 * float(updates + 1) * batch)
        decay = 0.5 ** (batch / max(halflife, 1e-9))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(current), 1 - decay)
        else:  # counters and flags have no average
            for ours, theirs in zip(averages, current, strict=True):
                ours.copy_(theirs)

    kept: Callable[..., None] = torch.no_grad()(update)
    return AveragedModel(module, multi_avg_fn=kept, use_buffers=True)
