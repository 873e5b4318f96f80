"""Every random number of the library: who draws, and from which stream.

Randomness is an argument. A number is a function of (seed, stream, position), mixed by NumPy's seed sequence (O'Neill's
``seed_seq`` with a spawn key per use), every bit of which counts. Training noise is keyed by the image's position, so one
process and many draw the same numbers, and resuming is starting from another position. Whatever noise a network takes in
comes from :class:`Draws`, a generator per row, so a volume depends on its own seed and on nothing else in its batch.

Training on a GPU must not wait for numbers made on the CPU: where positions lie on one, the numbers of training are made
there, by a counter-based generator (Salmon et al. 2011) in torch's own integers. They are other numbers than a CPU draws,
and the same on every GPU. Sampling always draws on the CPU: a seed is one volume everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum, auto

import numpy as np
import torch
from torch import Tensor

VALIDATION = 1 << 40  # validation positions start here, far from every training position


class Stream(IntEnum):
    """What a number is for: no two uses share a stream. The order is part of every seed's meaning, so add at the end."""

    WEIGHTS = 0  # a new network's
    PATIENTS = auto()  # which ones a subset takes
    ORDER = auto()  # of cases within an epoch
    AUGMENT = auto()  # changes of a cached copy; its position is the copy, its part the case
    RECONSTRUCTION = auto()  # an autoencoder's latents while it is trained
    NOISE = auto()  # of the diffusion process
    TIME = auto()
    LATENT = auto()  # draw from cached moments
    DROP_CONDITION = auto()
    DROP_CONTEXT = auto()
    FIRST_VIEW = auto()  # of a contrastive pair
    SECOND_VIEW = auto()
    SLICE = auto()
    GAN_LATENT = auto()  # draw from cached moments
    POOL_SWAP = auto()
    POOL_PLACE = auto()
    MAKE = auto()
    MAKE_AGAIN = auto()
    DISCRIMINATOR_NOISE = auto()
    PATH = auto()
    MIX = auto()
    MOVE_FAKE = auto()
    MOVE_ALL = auto()
    TRANSLATE = auto()
    MASK_LATENT = auto()  # the next seven: training generators of masks
    MASK_SLICE = auto()
    MASK_TIME = auto()
    MASK_NOISE = auto()
    MASK_DROP = auto()
    MASK_FORGET_VOLUME = auto()
    MASK_FORGET_COUNT = auto()
    SAMPLE = auto()  # a volume
    MASK_SAMPLE = auto()  # the next seven: making masks
    RULE = auto()
    DEFORMED = auto()
    PROCEDURAL = auto()
    COMPOSED = auto()
    ATTRIBUTES = auto()
    ANATOMY = auto()
    CROP = auto()  # of a training volume
    DECODER_NOISE = auto()  # its level, while a decoder trains alone
    DECOY = auto()  # where healthy tissue is cut out of a scan
    TAKE_DECOY = auto()  # whether a case trains on that


def generator(seed: int, stream: Stream, position: int = 0, part: int = 0) -> np.random.Generator:
    """The numbers of one use at one position.

    Args:
        seed: From 0; of any size, every bit counts.
        stream: What the numbers are for.
        position: Of the image or case; from 0.
        part: Tells apart what one use draws several times at one position; from 0.

    Raises:
        ValueError: One of them is negative.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), position, part)))


def seed_weights(seed: int) -> None:
    """Sets torch's global generator, from which layers take their first weights; every bit of ``seed`` counts."""
    torch.manual_seed(int(generator(seed, Stream.WEIGHTS).integers(1 << 32)))  # of a longer seed the CPU takes 32 bits


def keyed_noise(seed: int, positions: Tensor, shape: tuple[int, ...], stream: Stream) -> Tensor:
    """Standard normal noise ``(B, *shape)`` whose row b depends on ``(seed, positions[b], stream)`` alone, where they lie."""
    return Draws.keyed(seed, positions, stream).normal(*shape)


def keyed_uniform(seed: int, positions: Tensor, stream: Stream) -> Tensor:
    """Uniform numbers in [0, 1), shape ``(B,)``, keyed as :func:`keyed_noise`."""
    return Draws.keyed(seed, positions, stream).uniform()


class Draws:
    """Numbers that networks may use, in the order in which they ask.

    Args:
        generators: One per row of the batch; on the CPU, so the same numbers on every device.
        device: Where the numbers are wanted.
    """

    def __init__(self, generators: Sequence[np.random.Generator], device: torch.device | str = "cpu"):
        self.generators = list(generators)
        self.device = torch.device(device)

    @classmethod
    def seeded(cls, seeds: Sequence[int], device: torch.device | str = "cpu", stream: Stream = Stream.SAMPLE) -> Draws:
        """One new generator per seed."""
        return cls([generator(int(seed), stream) for seed in seeds], device)

    @classmethod
    def keyed(cls, seed: int, positions: Tensor, stream: Stream, part: int = 0) -> Draws:
        """One generator per position, the same on any number of processes, for numbers on the device of ``positions``.

        Those of positions on the CPU are :func:`generator`'s, others :class:`CounterDraws`.
        """
        if positions.device.type != "cpu":
            return CounterDraws(seed, positions, stream, part)
        return cls([generator(seed, stream, int(position), part) for position in positions])

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, ``(B, *shape)``."""
        rows = [torch.from_numpy(np.asarray(g.standard_normal(shape, dtype=np.float32))) for g in self.generators]
        return torch.stack(rows).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), ``(B, *shape)``."""
        rows = [torch.from_numpy(np.asarray(g.random(shape, dtype=np.float32))) for g in self.generators]
        return torch.stack(rows).to(self.device)


# SplitMix64 (Steele, Lea and Flood 2014, fig. 15, with Stafford's mix 13), as signed integers.
_STEP, _FIRST, _SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class CounterDraws(Draws):
    """Numbers that are made where they are used: each a hash of seed, stream, part, position, and how many came before.

    Args:
        seed: From 0; every bit counts.
        positions: Of the rows, ``(B,)``, on the device where the numbers are wanted.
        stream: What the numbers are for.
        part: See :func:`generator`.
    """

    def __init__(self, seed: int, positions: Tensor, stream: Stream, part: int = 0):
        super().__init__([], positions.device)
        key = np.random.SeedSequence(seed, spawn_key=(int(stream), part)).generate_state(1, np.uint64)
        self.start = mixed(positions.long() * _STEP + int(key.astype(np.int64)[0]))  # the state of each row's generator
        self.drawn = 0

    def __len__(self) -> int:
        return len(self.start)

    def normal(self, *shape: int) -> Tensor:
        # Box and Muller (1958): two uniform numbers to two normal ones.
        count = math.prod(shape)
        first, second = self._uniform(-(-count // 2))
        radius, angle = torch.sqrt(-2 * torch.log1p(-first)), 2 * math.pi * second
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return both[:, :count].reshape(-1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        first, _ = self._uniform(math.prod(shape))
        return first.reshape(-1, *shape)

    def _uniform(self, count: int) -> tuple[Tensor, Tensor]:
        """Two uniform numbers in [0, 1) from each of ``count`` hashes of every row, both ``(B, count)``."""
        counter = torch.arange(self.drawn + 1, self.drawn + 1 + count, device=self.device)
        self.drawn += count
        bits = mixed(self.start[:, None] + counter * _STEP)
        # The upper 24 bits of each half, which float32 holds exactly.
        first, second = bits >> 40 & 0xFFFFFF, bits >> 8 & 0xFFFFFF
        return first.float() / (1 << 24), second.float() / (1 << 24)


def mixed(state: Tensor) -> Tensor:
    """SplitMix64's output for a state, both int64 of any shape: every bit depends on every bit."""
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted right with zeros coming in: torch repeats the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
