"""Mask to image by a plain network: the generators of pix2pix and CycleGAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.config import Pix2PixConfig
from latentsynth.errors import ConfigError, DataError
from latentsynth.gans.base import Generator, Inputs, Painted, pyramid, pyramid_widths, resize, with_place
from latentsynth.gans.build import builds
from latentsynth.pretrained import register_to_config
from latentsynth.randomness import Draws

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def drop(x: Tensor, draws: Draws, rate: float) -> Tensor:
    """Dropout from the sample's own generator, in training and sampling alike: it is pix2pix's only noise."""
    if not rate:
        return x
    return x * (draws.uniform(*x.shape[1:]).to(x) >= rate) / (1 - rate)


@builds(Pix2PixConfig, network="unet")
class UNetGenerator(Generator):
    """pix2pix's U-Net (Isola et al. 2017, sec. 6.1.1; in 3D Platscher et al. 2022).

    Convolutions of kernel 4 halve the grid, repetition and a convolution of kernel 3 bring it back (transposed
    ones leave checkerboards), instance normalisation, dropout in the three coarsest decoder levels.

    Args:
        shape: Grid, two axes or three.
        out_channels: Channels of its answer.
        labels: Labels of the mask.
        channels: Features of the first level; doubled at each.
        max_channels: Most features of any level.
        levels: Halvings; fewer where the grid allows no more.
        dropout: Rate.
        squash: Whether the answer ends in tanh, for images in [-1, 1].
        placed: Whether it is told where slices lie.
    """

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        labels: int,
        channels: int = 24,
        max_channels: int = 192,
        levels: int = 4,
        dropout: float = 0.3,
        squash: bool = True,
        placed: bool = False,
    ):
        super().__init__()
        self.shape, self.labels = tuple(shape), labels
        self.grids = pyramid(self.shape, smallest=2)[: levels + 1]
        if len(self.grids) < 2:
            raise ConfigError(f"grid {self.shape} cannot be halved once: use axes that are multiples of 4")
        dims = len(self.shape)
        conv, norm = _CONV[dims], _NORM[dims]
        steps = [
            tuple(a // b for a, b in zip(*pair, strict=True)) for pair in zip(self.grids, self.grids[1:], strict=False)
        ]
        widths = pyramid_widths(len(steps), channels, max_channels)
        self.start = conv(labels + placed, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = channels
        for n, (step, width) in enumerate(zip(steps, widths, strict=True)):
            kernel = tuple(4 if s == 2 else 3 for s in step)
            layers = [conv(before, width, kernel, stride=step, padding=1)]
            if n + 1 < len(steps):  # a normalised single cell would be nothing but zeros
                layers.append(norm(width))
            self.down.append(nn.Sequential(*layers))
            before = width
        for n in reversed(range(len(steps))):
            skip = channels if n == 0 else widths[n - 1]
            width = channels if n == 0 else widths[n - 1]
            self.up.append(nn.Sequential(conv(before + skip, width, 3, padding=1), norm(width)))
            before = width
        self.out = conv(before + labels + placed, out_channels, 3, padding=1)
        self.dropout, self.squash = dropout, squash

    def forward(self, inputs: Inputs) -> Painted:
        """Mask, and the noise of dropout, to channels."""
        given, draws = given_mask(self, inputs), inputs.draws
        x = self.start(given)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.leaky_relu(x, 0.2))
        for n, block in enumerate(self.up):
            skip = skips.pop()
            x = block(torch.cat([resize(functional.leaky_relu(x, 0.2), skip.shape[2:], smooth=False), skip], 1))
            x = drop(x, draws, self.dropout if n < 3 else 0.0)
        y = self.out(torch.cat([functional.leaky_relu(x, 0.2), given], 1))
        return Painted(y.tanh() if self.squash else y)


@builds(Pix2PixConfig, network="resnet")
class ResNetGenerator(Generator):
    """The residual generator (Johnson et al. 2016; Zhu et al. 2017, sec. 7.1).

    A convolution of kernel 7 (3 in volumes), two halvings, residual blocks with dropout, two doublings, another such.

    Args:
        shape: Grid, two axes or three; multiples of 4.
        out_channels: Channels of its answer.
        labels: Channels of what it translates: labels of a mask, or of an image.
        channels: Features at full size.
        blocks: Residual blocks.
        dropout: Rate.
        squash: Whether the answer ends in tanh.
        attention: Adds an attention map m and blends: m G(x) + (1 - m) x (SAG-GAN, Nguyen et al. 2020). The mask has no
            intensities, so x is a learnt linear map of it.
        placed: Whether it is told where slices lie.
    """

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        labels: int,
        channels: int = 16,
        blocks: int = 4,
        dropout: float = 0.3,
        squash: bool = True,
        attention: bool = False,
        placed: bool = False,
    ):
        super().__init__()
        self.shape, self.labels = tuple(shape), labels
        if any(n % 4 or n < 8 for n in self.shape):
            raise ConfigError(
                f"grid {self.shape} must have axes that are multiples of 4, at least 8, for a residual generator"
            )
        dims = len(self.shape)
        conv, norm = _CONV[dims], _NORM[dims]
        edge: dict[str, Any] = {"padding_mode": "reflect"}  # zeros beyond the edge would draw a frame
        first = 7 if dims == 2 else 3  # 7 x 7 x 7 would take most of the time of the whole network
        outer: dict[str, Any] = {"kernel_size": first, "padding": first // 2, **edge}
        self.start = nn.Sequential(conv(labels + placed, channels, **outer), norm(channels), nn.ReLU())
        self.down = nn.Sequential(
            *(
                nn.Sequential(conv(a, 2 * a, 3, stride=2, padding=1), norm(2 * a), nn.ReLU())
                for a in (channels, 2 * channels)
            )
        )
        width = 4 * channels
        self.residuals = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(conv(width, width, 3, padding=1, **edge), norm(width), *after)
                for after in ([nn.ReLU()], [])
            )
            for _ in range(blocks)
        )
        self.up = nn.ModuleList(
            nn.Sequential(conv(a, a // 2, 3, padding=1), norm(a // 2), nn.ReLU()) for a in (width, width // 2)
        )
        # The place once more: instance normalisation removes what is the same everywhere.
        self.out = conv(channels + placed, out_channels, **outer)
        self.attend = conv(channels + placed, 1, **outer) if attention else None
        self.blend = conv(labels, out_channels, 1) if attention else None
        self.dropout, self.squash = dropout, squash

    def forward(self, inputs: Inputs) -> Painted:
        """Mask, and the noise of dropout, to channels."""
        given, draws = given_mask(self, inputs), inputs.draws
        x = self.down(self.start(given))
        for one, two in (cast(nn.ModuleList, pair) for pair in self.residuals):
            x = x + two(drop(one(x), draws, self.dropout))
        for block in self.up:
            x = block(resize(x, [2 * n for n in x.shape[2:]], smooth=False))
        x = torch.cat([x, given[:, self.labels :]], 1)
        y = self.out(x)
        y = y.tanh() if self.squash else y
        if self.attend is not None and self.blend is not None:
            m = self.attend(x).sigmoid()
            y = m * y + (1 - m) * self.blend(given[:, : self.labels])
            y = y.clamp(-1, 1) if self.squash else y
        return Painted(y)


def given_mask(generator: Generator, inputs: Inputs) -> Tensor:
    """The mask, or zeros where none is given, with where the slice lies for those that are told."""
    draws, mask = inputs.draws, inputs.mask
    if mask is None:
        mask = torch.zeros(len(draws), generator.labels, *generator.shape, device=draws.device)
    if mask.shape[1] > generator.labels:
        raise DataError(
            f"a mask of {mask.shape[1]} labels for a generator of {generator.labels}: give it its own labels"
        )
    # CycleGAN's translators take images too, which may have more channels than there are labels.
    mask = functional.pad(mask, (0, 0) * len(generator.shape) + (0, generator.labels - mask.shape[1]))
    if not generator.config["placed"]:
        return mask
    where = torch.zeros(len(draws), device=mask.device) if inputs.place is None else inputs.place
    return with_place(mask, where)
