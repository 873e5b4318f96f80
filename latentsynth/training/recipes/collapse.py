"""Watching a GAN for collapse while it trains: do different seeds still make different volumes?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import DataError
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Condition

_MONITORED = 8  # volumes of the fixed batch
_ALIKE = 0.3  # below this share of the real spread, samples are copies of one another
_WON, _LOST = 0.97, 0.03


@dataclass(frozen=True)
class Health:
    """How the game stands.

    Attributes:
        diversity: How much samples of a fixed batch of seeds differ, as a share of how much real volumes differ.
        seed_diversity: The same for samples of one mask and different seeds; None where the masks come with the seeds.
        accuracy: Running mean of the discriminator's accuracy: 0.5 is a draw.
        augmentation: Probability of adaptive augmentation.
    """

    diversity: float
    seed_diversity: float | None
    accuracy: float
    augmentation: float = 0.0

    @property
    def scores(self) -> dict[str, float]:
        """Numbers to log."""
        numbers = {"diversity": self.diversity, "discriminator_accuracy": self.accuracy}
        if self.seed_diversity is not None:
            numbers["seed_diversity"] = self.seed_diversity
        if self.augmentation:
            numbers["augmentation"] = self.augmentation
        return numbers

    @property
    def words(self) -> str:
        """What that means and what helps, for people."""
        found = []
        if math.isnan(self.diversity):
            found.append("too few different validation cases to tell a collapse: annotate at least two")
        elif self.diversity < _ALIKE:
            found.append(
                f"collapsed, or not yet begun: samples differ by {self.diversity:.0%} of what real volumes differ by. If it "
                "stays so, lower the learning rates, raise game.r1, or train on more cases"
            )
        elif self.seed_diversity is not None and self.seed_diversity < _ALIKE / 3:
            found.append(
                f"one answer per mask: seeds change {self.seed_diversity:.0%} of what real volumes differ by. The mask "
                "decides nearly all; lower game.l1, or use a family with a style"
            )
        if self.accuracy > _WON:
            found.append(
                f"the discriminator has won (accuracy {self.accuracy:.0%}) and teaches little: lower discriminator.lr, "
                "raise game.r1, or set game.augment_target=0.6"
            )
        elif self.accuracy < _LOST:
            found.append(f"the discriminator is fooled (accuracy {self.accuracy:.0%}): raise discriminator.lr")
        return "; ".join(found) or "no sign of collapse"


def share(ours: float, real: float) -> float:
    """How much samples differ as a share of how much real ones do; not a number where those do not."""
    return ours / real if real > 0 else float("nan")


def spread(images: Tensor) -> float:
    """Mean root-mean-square difference over all pairs of images ``(N, ...)``."""
    pairs = [(images[a] - images[b]).square().mean().sqrt() for a, b in combinations(range(len(images)), 2)]
    return float(torch.stack(pairs).mean()) if pairs else float("nan")


class CollapseMonitor:
    """Looks at a fixed batch of seeds and masks.

    Args:
        volumes: Validation volumes; their masks are asked for, and their spread is the measure.
        seed: First seed.
    """

    def __init__(self, volumes: VolumeCache, seed: int):
        self.seed = seed
        shown = volumes.annotated[:_MONITORED]
        if not shown:
            raise DataError(
                "no validation case has a mask: a GAN is monitored on volumes for real masks; annotate two or more"
            )
        items = [volumes.item(n) for n in shown]
        self.real = torch.stack([item["image"] for item in items])
        self.masks = torch.stack([item["mask"] for item in items])

    def __call__(self, model: Synthesizer, memory: dict[str, Any]) -> Health:
        """How the game stands."""
        seeds = [self.seed + n for n in range(len(self.real))]
        facts = float(memory["accuracy"]), float(memory["probability"])
        if model.makes_masks:
            made = model.generate(None, seeds)
            real, ours = (self.real, made.image) if model.makes_images else (self.masks, made.mask)
            return Health(share(spread(ours), spread(real)), None, *facts)
        made = model.generate(Condition(self.masks), seeds)
        first = self.masks[:1].expand(4, *self.masks.shape[1:])
        again = model.generate(Condition(first), seeds[:4] if len(seeds) >= 4 else list(range(4)))
        measure = spread(self.real)
        return Health(share(spread(made.image), measure), share(spread(again.image), measure), *facts)
