"""Learning rate and weight average as functions of images seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

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


class Average(nn.Module):
    """An exponential moving average of weights *and* buffers (codebooks), in half-lives of images seen.

    The half-life is shortened to a tenth of the progress so far, or the average would remember its random start
    (Karras et al. 2024, sec. 3.1, argue for averages relative to training time). Not torch's ``AveragedModel``, which asks
    the device for its count of updates at every step.

    Args:
        module: What is averaged; copied.
        halflife_images: After so many images half of what the average holds is newer.
        batch: Images per update.
    """

    def __init__(self, module: nn.Module, halflife_images: int, batch: int):
        super().__init__()
        self.module = copy.deepcopy(module)
        self.halflife_images, self.batch = halflife_images, batch

    @torch.no_grad()
    def update(self, module: nn.Module, seen: int) -> None:
        """Takes in what ``module`` has become; the first time it is all there is.

        Args:
            module: As it is after a step.
            seen: Images so far, the step's own included.
        """
        decay = 0.5 ** (self.batch / min(self.halflife_images, 0.1 * seen)) if seen > self.batch else 0.0
        pairs = [(ours, theirs.detach()) for ours, theirs in zip(_tensors(self.module), _tensors(module), strict=True)]
        real = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([ours for ours, _ in real], [theirs for _, theirs in real], 1 - decay)
        for ours, theirs in pairs:
            if not ours.is_floating_point():  # counters and flags have no average
                ours.copy_(theirs)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
