"""Every random number of the library: who draws, and from which stream.

Randomness is an argument. Training noise is a function of (seed, position, stream), so one process and many draw the same
numbers, and resuming is starting from another position. Whatever noise a network takes in comes from :class:`Draws`, a
generator per row, so a volume depends on its own seed and on nothing else in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

VALIDATION = 1 << 40  # validation positions start here, far from every training position


class Stream(IntEnum):
    """What a number at a position is for. No two uses of one run share a stream; two recipes may."""

    PATIENTS = 0  # which ones a subset takes
    ORDER = 1  # of cases within an epoch
    NOISE = 2  # of the diffusion process; of an autoencoder's latents
    TIME = 3
    LATENT = 4  # draw from cached moments
    DROP_CONDITION = 5
    DROP_CONTEXT = 6
    FIRST_VIEW = 6  # of a contrastive pair
    SECOND_VIEW = 7
    SLICE = 10
    GAN_LATENT = 11
    POOL_SWAP = 12
    POOL_PLACE = 13
    MAKE = 14
    MAKE_AGAIN = 15
    DISCRIMINATOR_NOISE = 16
    PATH = 17
    MIX = 18
    MOVE_FAKE = 19
    MOVE_ALL = 20
    TRANSLATE = 21
    MASK_LATENT = 30
    MASK_SLICE = 31
    MASK_TIME = 32
    MASK_NOISE = 33
    MASK_DROP = 34
    MASK_FORGET_VOLUME = 35
    MASK_FORGET_COUNT = 36


def keyed_generator(seed: int, position: int, stream: int) -> torch.Generator:
    """A CPU generator for one image at one position; ``stream`` separates independent uses."""
    # Any fixed injective-enough mixing serves; these are the odd constants of splitmix64.
    key = (seed * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
    return torch.Generator().manual_seed(key)


def keyed_noise(seed: int, positions: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
    """Standard normal noise ``(B, *shape)`` whose row b depends on ``(seed, positions[b], stream)`` alone."""
    rows = [torch.randn(shape, generator=keyed_generator(seed, int(p), stream)) for p in positions]
    return torch.stack(rows)


def keyed_uniform(seed: int, positions: Tensor, stream: int) -> Tensor:
    """Uniform numbers in [0, 1), shape ``(B,)``, keyed as :func:`keyed_noise`."""
    rows = [torch.rand((), generator=keyed_generator(seed, int(p), stream)) for p in positions]
    return torch.stack(rows)


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

    @classmethod
    def keyed(cls, seed: int, positions: Tensor, stream: int, device: torch.device | str = "cpu") -> Draws:
        """One generator per position, the same on any number of processes; see :func:`keyed_generator`."""
        return cls([keyed_generator(seed, int(p), stream) for p in positions], device)

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, ``(B, *shape)``."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), ``(B, *shape)``."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators]).to(self.device)
