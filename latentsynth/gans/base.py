"""What all generators and discriminators share: their calls, their answers, and the pyramid of grids they work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from latentsynth.pretrained import Pretrained
from latentsynth.randomness import Draws


@dataclass(frozen=True)
class Inputs:
    """What a generator is given.

    Attributes:
        draws: All the noise it may use, a row per grid to make.
        mask: One-hot labels ``(B, L, *shape)``, for those that take one.
        style: Reference image ``(B, C, *shape)`` whose look to take, for those that encode one.
        place: For slices, where in the volume each lies, ``(B,)`` from -1 to 1.
        truncation: How far latents keep from the mean one, 0 to 1.
        mixing: Probability of two latents in one image (a training option).
    """

    draws: Draws
    mask: Tensor | None = None
    style: Tensor | None = None
    place: Tensor | None = None
    truncation: float = 1.0
    mixing: float = 0.0


class Painted(NamedTuple):
    """What a generator made.

    Attributes:
        image: ``(B, T, *shape)``, T target channels in [-1, 1] (latents: any range).
        styles: The per-layer styles it was made from, ``(B, layers, w)``, where path lengths are asked for.
        divergence: Kullback-Leibler divergence of an encoded style from its prior, per case ``(B,)``, or None.
    """

    image: Tensor
    styles: Tensor | None = None
    divergence: Tensor | None = None


class Opinion(NamedTuple):
    """What a discriminator thinks, larger is more real.

    Attributes:
        logits: One tensor per scale that it judges at; the first axis is the batch.
        features: Per scale, the maps on the way there, for feature matching.
    """

    logits: list[Tensor]
    features: list[list[Tensor]]


class Generator(Pretrained, ABC):
    """Noise, and a mask where it takes one, to channels on a grid in one pass.

    Attributes:
        shape: The grid it fills, two axes (slices) or three.
        labels: Labels of the mask that it takes; 0 takes none.
        truncates: Whether it has a latent whose spread can be cut (``truncation``).
        encodes_style: Whether it takes a reference scan (``style``).
    """

    shape: tuple[int, ...]
    labels: int = 0
    truncates: bool = False
    encodes_style: bool = False

    @abstractmethod
    def forward(self, inputs: Inputs) -> Painted:
        """Makes one grid per row of ``inputs.draws``."""

    def grow(self, level: float) -> None:
        """Brings ``level`` further grids of the pyramid into use, for networks that grow; others are full-grown."""


class Discriminator(Pretrained, ABC):
    """Judges images together with what they were made for."""

    def grow(self, level: float) -> None:
        """As :meth:`Generator.grow`."""

    @abstractmethod
    def forward(
        self, image: Tensor, mask: Tensor | None = None, place: Tensor | None = None, parts: int = 1
    ) -> Opinion:
        """An opinion per case.

        Args:
            image: ``(B, T, *shape)``.
            mask: ``(B, L, *shape)`` that they should show, or None.
            place: ``(B,)``, where slices lie, or None.
            parts: Equal runs of the batch (real, fake, ...) that statistics over the batch must not mix.
        """


def pyramid(shape: Sequence[int], smallest: int = 4) -> list[tuple[int, ...]]:
    """Grids from full size down: each axis is halved while it is even and stays at least ``smallest``.

    Axes that are short, as slices of thick volumes, stop halving before the others.
    """
    levels = [tuple(shape)]
    while True:
        last = levels[-1]
        halved = tuple(n // 2 if n % 2 == 0 and n // 2 >= smallest else n for n in last)
        if halved == last:
            return levels
        levels.append(halved)


def pyramid_widths(levels: int, channels: int, most: int) -> list[int]:
    """Features per level of a pyramid, full size first: doubled at each level below, up to ``most``."""
    return [min(most, channels * 2**n) for n in range(levels)]


def resize(x: Tensor, shape: Sequence[int], smooth: bool = True) -> Tensor:
    """To another level of a pyramid: means of cells downward, upward linear interpolation or, not smooth, repetition."""
    current = tuple(x.shape[2:])
    if current == tuple(shape):
        return x
    if all(new <= old for new, old in zip(shape, current, strict=True)):
        sizes = [old // new for new, old in zip(shape, current, strict=True)]
        return (functional.avg_pool2d if len(sizes) == 2 else functional.avg_pool3d)(x, sizes)
    if not smooth:
        return functional.interpolate(x, tuple(shape), mode="nearest")
    return functional.interpolate(x, tuple(shape), mode="bilinear" if len(current) == 2 else "trilinear")


def slice_places(count: int, device: torch.device) -> Tensor:
    """Where ``count`` slices lie, from -1 to 1."""
    return (torch.arange(count, device=device) + 0.5) / count * 2 - 1


def beside(image: Tensor, mask: Tensor | None, place: Tensor | None = None) -> Tensor:
    """Everything that is judged, moved or kept together, as channels."""
    return with_place(image if mask is None else torch.cat([image, mask.to(image)], 1), place)


def with_place(x: Tensor, place: Tensor | None) -> Tensor:
    """The maps with one more channel that says where the slice lies, where there is a place."""
    if place is None:
        return x
    return torch.cat([x, place.to(x).view(-1, 1, *[1] * (x.ndim - 2)).expand(-1, 1, *x.shape[2:])], 1)
