"""The one interface of everything that makes volumes: all that anything downstream may know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentsynth.errors import DataError
from latentsynth.types import Condition, Domain, Generated, Grid


class Synthesizer(ABC):
    """Makes volumes from conditions and seeds.

    Attributes:
        domain: The volumes it makes.
        fingerprint: Names its weights and settings in sidecars.
    """

    domain: Domain
    fingerprint: str

    @property
    def grid(self) -> Grid:
        """The voxel grid of its volumes."""
        return self.domain.grid

    @abstractmethod
    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        """Makes one volume per seed.

        Args:
            condition: What to make, a batch of ``len(seeds)``; None leaves it to the model.
            seeds: Volume b depends on ``(condition[b], seeds[b])`` alone, whatever else is in the batch.
            settings: What the family lets a caller change; see :meth:`settings`.

        Raises:
            DataError: The condition does not fit the model.
        """

    @abstractmethod
    def settings(self, **changes: Any) -> dict[str, Any]:
        """The sampling settings, changed as asked and checked; what sidecars record.

        Raises:
            ConfigError: An unknown setting or an impossible value.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Synthesizer:
        """Moves the weights."""

    def check(self, condition: Condition | None, seeds: Sequence[int]) -> None:
        """Refuses a condition that does not fit the model.

        Raises:
            DataError: Wrong batch, label count or grid.
        """
        if condition is None:
            return
        expected = (len(seeds), len(self.domain.labels), *self.grid.shape)
        if tuple(condition.mask.shape) != expected:
            raise DataError(
                f"condition.mask has shape {tuple(condition.mask.shape)}, expected {expected} "
                "(seeds, labels, grid): resample the mask to the model's grid"
            )


def seeded_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise ``(B, *shape)`` from one CPU generator per seed: the same on every device."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s) % (1 << 63))) for s in seeds])
