"""Random numbers of a batch, each row from a generator of its own.

Whatever noise a network takes in (a latent, dropout, noise maps) comes from here, so a volume depends on its own seed
and on nothing else in its batch, and training draws the same numbers on one process as on many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Numbers that networks may use, in the order in which they ask.

    Args:
        generators: One CPU generator per row of the batch: the same numbers on every device.
        device: Where the numbers are wanted.
    """

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device | str = "cpu"):
        self.generators = list(generators)
        self.device = torch.device(device)

    @classmethod
    def seeded(cls, seeds: Sequence[int], device: torch.device | str = "cpu") -> Draws:
        """One new generator per seed."""
        return cls([torch.Generator().manual_seed(int(seed) % (1 << 63)) for seed in seeds], device)

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, ``(B, *shape)``."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), ``(B, *shape)``."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)
