"""StyleGAN 2 for slices and volumes, alone or painting a mask."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentsynth.config import StyleGAN2Config
from latentsynth.errors import ConfigError
from latentsynth.gans.base import Generator, Inputs, Painted, pyramid, pyramid_widths, resize
from latentsynth.gans.build import builds
from latentsynth.gans.layers import Mapping, ModulatedConv, activate
from latentsynth.pretrained import register_to_config
from latentsynth.randomness import Draws


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU (Karras et al. 2020, fig. 2)."""

    def __init__(self, dims: int, inputs: int, outputs: int, style: int):
        super().__init__()
        self.conv = ModulatedConv(dims, inputs, outputs, style)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, w: Tensor, draws: Draws) -> Tensor:
        """``(B, inputs, *shape)`` to ``(B, outputs, *shape)``."""
        y = self.conv(x, w)
        noise = draws.normal(1, *x.shape[2:]).to(y)
        return activate(y + self.noise_strength * noise + self.bias.view(-1, *[1] * (x.ndim - 2)))


@builds(StyleGAN2Config)
class StyleGAN2Generator(Generator):
    """StyleGAN 2 with skip connections (Karras et al. 2020, fig. 7b).

    With ``labels`` it paints masks: at every level the shares of the labels in each cell are concatenated to the
    features, as in the conditional StyleGAN 2 of Vu et al. (2025).

    Args:
        shape: Grid, two axes or three.
        out_channels: Channels of its answer.
        labels: Labels of the mask it paints; 0 for none.
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
        labels: int = 0,
        latent: int = 64,
        style: int = 64,
        mapping_layers: int = 4,
        channels: int = 16,
        max_channels: int = 64,
        placed: bool = False,
    ):
        super().__init__()
        self.shape, self.labels = tuple(shape), labels
        self.levels = pyramid(self.shape)[::-1]
        if len(self.levels) < 2:
            raise ConfigError(f"grid {self.shape} cannot be halved once: use axes that are multiples of 8")
        dims = len(self.shape)
        widths = pyramid_widths(len(self.levels), channels, max_channels)[::-1]
        self.mapping = Mapping(latent, style, mapping_layers, placed)
        self.start = nn.Parameter(torch.randn(widths[0], *self.levels[0]))
        self.first = StyledConv(dims, widths[0] + labels, widths[0], style)
        self.first_image = ModulatedConv(dims, widths[0], out_channels, style, 1, demodulate=False)
        self.convs = nn.ModuleList()
        self.images = nn.ModuleList()
        for before, width in itertools.pairwise(widths):
            self.convs.append(StyledConv(dims, before + labels, width, style))
            self.convs.append(StyledConv(dims, width, width, style))
            self.images.append(ModulatedConv(dims, width, out_channels, style, 1, demodulate=False))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    @property
    def layers(self) -> int:
        """Convolutions that take a style of their own."""
        return 1 + len(self.convs)

    def forward(self, inputs: Inputs) -> Painted:
        """Noise, and a mask for a model that paints masks, to channels."""
        return self.synthesise(mixed_styles(self.mapping, self.layers, inputs), inputs.draws, inputs.mask)

    def synthesise(self, styles: Tensor, draws: Draws, mask: Tensor | None = None) -> Painted:
        """Styles ``(B, layers, w)`` to channels."""
        start = self.start.expand(len(styles), *self.start.shape)
        x = self.first(self._with_mask(start, mask), styles[:, 0], draws)
        image = self.first_image(x, styles[:, 0])
        for n, (to_image, level) in enumerate(zip(self.images, self.levels[1:], strict=True)):
            x = self.convs[2 * n](self._with_mask(resize(x, level), mask), styles[:, 2 * n + 1], draws)
            x = self.convs[2 * n + 1](x, styles[:, 2 * n + 2], draws)
            image = resize(image, level) + to_image(x, styles[:, 2 * n + 2])
        return Painted(image + self.bias.view(-1, *[1] * len(self.shape)), styles)

    def _with_mask(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not self.labels:
            return x
        if mask is None:
            mask = x.new_zeros(len(x), self.labels, *self.shape)
        return torch.cat([x, resize(mask, x.shape[2:]).to(x)], 1)


def mixed_styles(mapping: Mapping, layers: int, inputs: Inputs) -> Tensor:
    """One style per layer, ``(B, layers, w)``; with probability ``mixing`` the later layers take a second latent's.

    Karras et al. 2019, sec. 3.1. They are float32 under autocast too: what a network returns is brought to float32 on its
    way out, and path lengths ask for gradients by the very tensor that the image was made from.
    """
    z = inputs.draws.normal(mapping.latent)
    w = _at_least_float(mapping(z, inputs.place, inputs.truncation))[:, None].expand(-1, layers, -1)
    if not inputs.mixing:
        return w
    other = _at_least_float(mapping(inputs.draws.normal(mapping.latent), inputs.place, inputs.truncation))[:, None]
    chance, where = inputs.draws.uniform(2).unbind(1)
    start = torch.where(chance < inputs.mixing, 1 + (where * (layers - 1)).long(), layers)
    return torch.where(torch.arange(layers, device=w.device)[None, :, None] < start[:, None, None], w, other)


def _at_least_float(w: Tensor) -> Tensor:
    return w.to(torch.promote_types(w.dtype, torch.float32))
