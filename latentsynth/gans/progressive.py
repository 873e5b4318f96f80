"""Progressive GAN and StyleGAN 1: networks that learn small images first and grow.

Every stage is built at the start, so checkpoints and optimizers never change; a counter says how far it has grown.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.config import GrownConfig, ProgressiveGANConfig, StyleGAN1Config
from latentsynth.gans.base import Generator, Inputs, Opinion, Painted, beside, pyramid, pyramid_widths, resize
from latentsynth.gans.build import builds
from latentsynth.gans.discriminators import WholeDiscriminator
from latentsynth.gans.layers import Conv, Linear, Mapping, activate, normalise, place_features
from latentsynth.gans.stylegan2 import mixed_styles
from latentsynth.pretrained import register_to_config
from latentsynth.randomness import Draws

_STEP = 1000  # an integer counter, since an average of weights would average a fraction


class Growth(nn.Module):
    """How many levels of a pyramid are in use: 0 the smallest alone, 1.5 half way into fading in the third.

    Args:
        levels: Grids, smallest first.
    """

    def __init__(self, levels: Sequence[tuple[int, ...]]):
        super().__init__()
        self.last = len(levels) - 1
        self.register_buffer("grown", torch.tensor(self.last * _STEP))
        self.grown: Tensor

    def set(self, level: float) -> None:
        """Grows to ``level``; more than there is means all."""
        self.grown.fill_(round(min(max(level, 0.0), self.last) * _STEP))

    @property
    def top(self) -> int:
        """Index of the largest grid in use."""
        return -(-int(self.grown) // _STEP)

    @property
    def share(self) -> float:
        """How far the largest grid is faded in, above 0 to 1."""
        return 1 + int(self.grown) / _STEP - self.top


def fade(before: Tensor, after: Tensor, share: float) -> Tensor:
    """From ``before`` (share 0) to ``after`` (share 1), in the finer of their two precisions.

    Autocast computes means and interpolation in float32 and convolutions in bfloat16; ``lerp`` takes no mixture.
    """
    kind = torch.promote_types(before.dtype, after.dtype)
    return torch.lerp(before.to(kind), after.to(kind), share)


def _climbing_blocks(dims: int, widths: Sequence[int]) -> nn.ModuleList:
    """One convolution on the smallest grid, two on each above."""
    blocks = nn.ModuleList([nn.ModuleList([Conv(dims, widths[0], widths[0])])])
    blocks.extend(nn.ModuleList([Conv(dims, a, b), Conv(dims, b, b)]) for a, b in pairwise(widths))
    return blocks


class _GrownGenerator(Generator):
    def _build(self, shape: Sequence[int], out_channels: int, channels: int, max_channels: int) -> list[int]:
        """Everything but the blocks; returns the features per level, smallest grid first."""
        self.shape = tuple(shape)
        self.levels = pyramid(self.shape)[::-1]
        self.growth = Growth(self.levels)
        widths = pyramid_widths(len(self.levels), channels, max_channels)[::-1]
        self.images = nn.ModuleList(Conv(len(self.shape), width, out_channels, 1) for width in widths)
        return widths

    def grow(self, level: float) -> None:
        self.growth.set(level)

    @abstractmethod
    def _block(self, n: int, x: Tensor, styles: Tensor, draws: Draws) -> Tensor:
        """Features of level n."""

    def _climb(self, x: Tensor, styles: Tensor, draws: Draws) -> Tensor:
        """From the features before the first level to the image at full size."""
        top, share = self.growth.top, self.growth.share
        before: Tensor | None = None
        for n in range(top + 1):
            if n:
                if n == top and share < 1:
                    before = self.images[n - 1](x)
                x = resize(x, self.levels[n], smooth=False)
            x = self._block(n, x, styles, draws)
        image = self.images[top](x)
        if before is not None:
            image = fade(resize(before, self.levels[top], smooth=False), image, share)
        return resize(image, self.shape, smooth=False)


@builds(ProgressiveGANConfig)
class ProgressiveGenerator(_GrownGenerator):
    """Progressive GAN (Karras et al. 2018, table 2): equalised convolutions, features normalised at every place.

    Args:
        shape: Grid, two axes or three.
        out_channels: Channels of its answer.
        latent: Features of z.
        channels: Features at full size; doubled at each level below.
        max_channels: Most features of any level.
        placed: Whether it is told where slices lie.
    """

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        latent: int = 64,
        channels: int = 16,
        max_channels: int = 64,
        placed: bool = False,
    ):
        super().__init__()
        widths = self._build(shape, out_channels, channels, max_channels)
        dims, self.latent = len(shape), latent
        self.placed = placed
        features = latent + (place_features(torch.zeros(1)).shape[1] if placed else 0)
        self.dense = Linear(features, widths[0] * math.prod(self.levels[0]))
        self.blocks = _climbing_blocks(dims, widths)

    def forward(self, inputs: Inputs) -> Painted:
        """Noise to channels."""
        z, place = normalise(inputs.draws.normal(self.latent)), inputs.place
        if self.placed:
            where = torch.zeros(len(z), device=z.device) if place is None else place
            z = torch.cat([z, place_features(where).to(z)], 1)
        x = normalise(activate(self.dense(z).unflatten(1, (-1, *self.levels[0]))))
        return Painted(self._climb(x, z, inputs.draws))

    def _block(self, n: int, x: Tensor, styles: Tensor, draws: Draws) -> Tensor:
        for conv in cast(nn.ModuleList, self.blocks[n]):
            x = normalise(activate(conv(x)))
        return x


class AdaptiveNorm(nn.Module):
    """Noise, leaky ReLU, then statistics of each map set by the style (Karras et al. 2019, eq. 1)."""

    def __init__(self, width: int, style: int):
        super().__init__()
        self.affine = Linear(style, 2 * width)
        self.noise_strength = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, w: Tensor, draws: Draws) -> Tensor:
        """``(B, width, *shape)`` and styles ``(B, style)`` to the same shape."""
        ones = [1] * (x.ndim - 2)
        noise = draws.normal(1, *x.shape[2:]).to(x)
        x = functional.instance_norm(activate(x + self.noise_strength.view(-1, *ones) * noise))
        scale, shift = self.affine(w).view(len(x), -1, *ones).chunk(2, 1)
        return x * (1 + scale) + shift


@builds(StyleGAN1Config)
class StyleGAN1Generator(_GrownGenerator):
    """StyleGAN 1 (Karras et al. 2019): mapping network, adaptive instance normalisation, noise inputs, style mixing.

    Args:
        shape: Grid, two axes or three.
        out_channels: Channels of its answer.
        latent: Features of z.
        style: Features of w.
        mapping_layers: Depth of the mapping network.
        channels: Features at full size; doubled at each level below.
        max_channels: Most features of any level.
        placed: Whether it is told where slices lie.
    """

    truncates = True

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        latent: int = 64,
        style: int = 64,
        mapping_layers: int = 4,
        channels: int = 16,
        max_channels: int = 64,
        placed: bool = False,
    ):
        super().__init__()
        widths = self._build(shape, out_channels, channels, max_channels)
        dims = len(shape)
        self.mapping = Mapping(latent, style, mapping_layers, placed)
        self.start = nn.Parameter(torch.randn(widths[0], *self.levels[0]))  # of ones, the norms would leave nothing
        self.blocks = _climbing_blocks(dims, widths)
        self.norms = nn.ModuleList(
            nn.ModuleList(AdaptiveNorm(width, style) for _ in cast(nn.ModuleList, block))
            for width, block in zip(widths, self.blocks, strict=True)
        )

    def forward(self, inputs: Inputs) -> Painted:
        """Noise to channels."""
        layers = 1 + 2 * self.growth.top  # mixing falls between layers that are in use
        styles = mixed_styles(self.mapping, layers, inputs)
        start = self.start.expand(len(styles), *self.start.shape)
        return Painted(self._climb(start, styles, inputs.draws), styles)

    def _block(self, n: int, x: Tensor, styles: Tensor, draws: Draws) -> Tensor:
        first = 2 * n - 1 if n else 0
        convs, norms = cast(nn.ModuleList, self.blocks[n]), cast(nn.ModuleList, self.norms[n])
        for m, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
            x = norm(conv(x), styles[:, first + m], draws)
        return x


@builds(GrownConfig)
class GrownDiscriminator(WholeDiscriminator):
    """The discriminator that grows with them (Karras et al. 2018, table 2).

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
        self.levels = pyramid(shape)[::-1]
        self.growth = Growth(self.levels)
        dims = len(shape)
        widths = pyramid_widths(len(self.levels), channels, max_channels)[::-1]
        self.starts = nn.ModuleList(Conv(dims, in_channels + labels + placed, width, 1) for width in widths)
        self.blocks = nn.ModuleList(nn.ModuleList([Conv(dims, b, b), Conv(dims, b, a)]) for a, b in pairwise(widths))
        self._build_verdict(widths[0], self.levels[0])

    def grow(self, level: float) -> None:
        self.growth.set(level)

    def forward(
        self, image: Tensor, mask: Tensor | None = None, place: Tensor | None = None, parts: int = 1
    ) -> Opinion:
        """One logit per case, ``(B, 1)``, and the features of every level in use."""
        given = beside(image, mask, place)
        top, share = self.growth.top, self.growth.share
        x = activate(self.starts[top](resize(given, self.levels[top])))
        features = []
        for n in range(top, 0, -1):
            one, two = cast(nn.ModuleList, self.blocks[n - 1])
            x = resize(activate(two(activate(one(x)))), self.levels[n - 1])
            if n == top and share < 1:
                x = fade(activate(self.starts[n - 1](resize(given, self.levels[n - 1]))), x, share)
            features.append(x)
        return self._verdict(x, features, parts)
