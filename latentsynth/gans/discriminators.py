"""Discriminators: residual ones that judge a whole image, patch ones that judge neighbourhoods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latentsynth.config import PatchConfig, ResidualConfig
from latentsynth.errors import ConfigError
from latentsynth.gans.base import Discriminator, Opinion, beside, pyramid, pyramid_widths, resize
from latentsynth.gans.build import builds
from latentsynth.gans.layers import Conv, Linear, activate, batch_deviation
from latentsynth.pretrained import register_to_config


class ResidualBlock(nn.Module):
    """Two convolutions and a skip, down to a smaller grid (Karras et al. 2020, fig. 7c)."""

    def __init__(self, dims: int, inputs: int, outputs: int):
        super().__init__()
        self.one, self.two = Conv(dims, inputs, inputs), Conv(dims, inputs, outputs)
        self.skip = Conv(dims, inputs, outputs, 1)

    def forward(self, x: Tensor, level: Sequence[int]) -> Tensor:
        """``(B, inputs, *shape)`` to ``(B, outputs, *level)``."""
        y = resize(activate(self.two(activate(self.one(x)))), level)
        skipped: Tensor = self.skip(resize(x, level))
        return (y + skipped) / math.sqrt(2)  # keeps the variance of a sum of two


class WholeDiscriminator(Discriminator):
    """What discriminators share that judge a whole image: the way from the smallest grid to one logit."""

    def _build_verdict(self, width: int, smallest: Sequence[int]) -> None:
        self.last = Conv(len(smallest), width + 1, width)
        self.dense = Linear(width * math.prod(smallest), width)
        self.out = Linear(width, 1)

    def _verdict(self, x: Tensor, features: list[Tensor], parts: int) -> Opinion:
        """From features on the smallest grid; ``features`` are those of the levels above."""
        x = activate(self.last(batch_deviation(x, parts)))
        return Opinion([self.out(activate(self.dense(x.flatten(1))))], [[*features, x]])


@builds(ResidualConfig)
class ResidualDiscriminator(WholeDiscriminator):
    """StyleGAN 2's discriminator (Karras et al. 2020, fig. 7c): one logit per image.

    Args:
        shape: Grid, two axes or three.
        in_channels: Channels that it judges.
        labels: Labels of the mask beside them; 0 for none.
        channels: Features at full size; doubled at each level below.
        max_channels: Most features of any level.
        placed: Whether it is told where slices lie.
    """

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        in_channels: int,
        labels: int = 0,
        channels: int = 16,
        max_channels: int = 64,
        placed: bool = False,
    ):
        super().__init__()
        self.levels = pyramid(shape)
        dims = len(shape)
        widths = pyramid_widths(len(self.levels), channels, max_channels)
        self.start = Conv(dims, in_channels + labels + placed, widths[0], 1)
        self.blocks = nn.ModuleList(ResidualBlock(dims, a, b) for a, b in pairwise(widths))
        self._build_verdict(widths[-1], self.levels[-1])

    def forward(
        self, image: Tensor, mask: Tensor | None = None, place: Tensor | None = None, parts: int = 1
    ) -> Opinion:
        """One logit per case, ``(B, 1)``, and the features of every level."""
        x = activate(self.start(beside(image, mask, place)))
        features = []
        for block, level in zip(self.blocks, self.levels[1:], strict=True):
            x = block(x, level)
            features.append(x)
        return self._verdict(x, features, parts)


@builds(PatchConfig)
class PatchDiscriminators(Discriminator):
    """PatchGANs (MONAI's) at one or more scales: a map of logits each.

    pix2pix (Isola et al. 2017) uses one; pix2pixHD and SPADE (Park et al. 2019) several, each on an image half the size
    of the one before.

    Args:
        shape: Grid, two axes or three.
        in_channels: Channels that it judges.
        labels: Labels of the mask beside them; 0 for none.
        channels: Features of the first layer; doubled at each.
        layers: Halvings of each.
        scales: How many.
        spectral: Spectral normalisation of all weights (Miyato et al. 2018).
        placed: Whether it is told where slices lie.

    Raises:
        ConfigError: The grid is too small for so many layers and scales.
    """

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        in_channels: int,
        labels: int = 0,
        channels: int = 32,
        layers: int = 3,
        scales: int = 1,
        spectral: bool = False,
        placed: bool = False,
    ):
        super().__init__()
        least = min(shape) // 2 ** (scales - 1 + layers)
        if least < 3:  # two convolutions of kernel 4 and stride 1 follow, each takes one cell away
            raise ConfigError(
                f"a discriminator of {layers} layers at {scales} scales halves the grid {tuple(shape)} to less than 3 "
                "cells: use fewer layers or scales"
            )
        self.discriminators = nn.ModuleList(
            PatchDiscriminator(
                spatial_dims=len(shape), channels=channels, in_channels=in_channels + labels + placed,
                num_layers_d=layers, norm="INSTANCE",
            )
            for _ in range(scales)
        )  # fmt: skip
        if spectral:
            for module in list(self.discriminators.modules()):
                if isinstance(module, nn.Conv2d | nn.Conv3d):
                    spectral_norm(module)

    def forward(
        self, image: Tensor, mask: Tensor | None = None, place: Tensor | None = None, parts: int = 1
    ) -> Opinion:
        """A map of logits per scale, ``(B, 1, *cells)``, and the features before them."""
        x = beside(image, mask, place)
        logits, features = [], []
        for n, discriminator in enumerate(self.discriminators):
            if n:
                x = resize(x, [size // 2 for size in x.shape[2:]])
            *before, last = discriminator(x)
            logits.append(last)
            features.append(before)
        return Opinion(logits, features)
