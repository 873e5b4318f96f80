"""SPADE: the mask modulates the normalisation at every scale, and a style says how the scan looks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.networks.blocks.spade_norm import SPADE
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from latentsynth.config import SPADEConfig
from latentsynth.errors import ConfigError, DataError
from latentsynth.gans.base import Generator, Inputs, Painted, pyramid, pyramid_widths, resize
from latentsynth.gans.build import builds
from latentsynth.gans.layers import everybodys_mean
from latentsynth.pretrained import register_to_config
from latentsynth.randomness import Draws

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


class StyleEncoder(nn.Module):
    """A scan to a style code: strided convolutions, then one linear layer (Park et al. 2019, fig. 14).

    Args:
        shape: Grid of the scan.
        channels: Its channels.
        width: Features of the first layer; doubled at each, to eight times as many.
        outputs: Features of the code.
    """

    def __init__(self, shape: Sequence[int], channels: int, width: int, outputs: int):
        super().__init__()
        levels = pyramid(shape)
        conv = _CONV[len(levels[0])]
        layers: list[nn.Module] = []
        before = channels
        for n, (large, small) in enumerate(itertools.pairwise(levels)):
            after = width * min(2**n, 8)
            step = tuple(a // b for a, b in zip(large, small, strict=True))
            # No normalisation: it would remove the very intensities that make a style.
            layers += [conv(before, after, 3, stride=step, padding=1), nn.LeakyReLU(0.2)]
            before = after
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * math.prod(levels[-1]), outputs))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *shape)`` to ``(B, outputs)``."""
        code: Tensor = self.layers(image)
        return code


class SPADEBlock(nn.Module):
    """Residual block with label-modulated normalisations, one on a learnt shortcut (Park et al. 2019, fig. 4).

    The layer is MONAI's.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, labels: int, hidden: int):
        super().__init__()
        middle = min(inputs, outputs)
        self.norms = nn.ModuleList(_spade(dims, labels, width, hidden) for width in (inputs, middle))
        self.convs = nn.ModuleList(
            spectral_norm(_CONV[dims](a, b, 3, padding=1)) for a, b in ((inputs, middle), (middle, outputs))
        )
        self.skip_norm = None if inputs == outputs else _spade(dims, labels, inputs, hidden)
        self.skip = None if inputs == outputs else spectral_norm(_CONV[dims](inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(B, inputs, *shape)`` and the mask at that scale to ``(B, outputs, *shape)``."""
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(functional.leaky_relu(norm(y, mask), 0.2))
        return y + (x if self.skip is None or self.skip_norm is None else self.skip(self.skip_norm(x, mask)))


def _spade(dims: int, labels: int, width: int, hidden: int) -> nn.Module:
    layer = SPADE(label_nc=labels, norm_nc=width, spatial_dims=dims, hidden_channels=hidden, norm="INSTANCE")
    for conv in (layer.mlp_gamma, layer.mlp_beta):
        # MONAI normalises scale and shift over the whole map, so what a label does to a voxel would depend on how much
        # of it lies elsewhere: just what SPADE is there to prevent.
        del conv.adn
    return layer


@builds(SPADEConfig)
class SPADEGenerator(Generator):
    """Semantic image synthesis with spatially adaptive normalisation (Park et al. 2019).

    Args:
        shape: Grid, two axes or three.
        out_channels: Channels of its answer; a reference scan has as many.
        labels: Labels of the mask.
        latent: Features of the style code.
        channels: Features at full size; doubled at each level below.
        max_channels: Most features of any level.
        hidden: Features between the mask and its modulation.
        style: ``"vae"``: the code is drawn around what an encoder reads from the scan, and from a standard normal where
            there is none (Park et al., sec. 3.3); ``"bottleneck"``: it is exactly what the encoder reads (Amirrajab et
            al. 2022), and where there is none is drawn as the training scans' codes are spread; ``"none"``: always a
            standard normal (Platscher et al. 2022).
        squash: Whether the answer ends in tanh.
    """

    truncates = True

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        labels: int,
        latent: int = 64,
        channels: int = 16,
        max_channels: int = 128,
        hidden: int = 32,
        style: Literal["vae", "bottleneck", "none"] = "vae",
        squash: bool = True,
    ):
        super().__init__()
        if style not in ("vae", "bottleneck", "none"):
            raise ConfigError(f"style {style!r}: choose vae, bottleneck or none")
        self.shape, self.labels, self.latent, self.kind = tuple(shape), labels, latent, style
        self.levels = pyramid(self.shape)[::-1]
        dims = len(self.shape)
        widths = pyramid_widths(len(self.levels), channels, max_channels)[::-1]
        self.encodes_style = style != "none"
        self.encoder = (
            StyleEncoder(self.shape, out_channels, 16, latent * (1 + (style == "vae"))) if self.encodes_style else None
        )
        self.dense = nn.Linear(latent, widths[0] * math.prod(self.levels[0]))
        self.blocks = nn.ModuleList([SPADEBlock(dims, widths[0], widths[0], labels, hidden)])
        self.blocks.extend(SPADEBlock(dims, a, b, labels, hidden) for a, b in itertools.pairwise(widths))
        self.out = _CONV[dims](widths[-1], out_channels, 3, padding=1)
        self.squash = squash
        # How codes of training scans are spread, tracked in training: what a bottleneck without a scan draws from.
        self.register_buffer("code_mean", torch.zeros(latent))
        self.register_buffer("code_deviation", torch.ones(latent))
        self.code_mean: Tensor
        self.code_deviation: Tensor

    def forward(self, inputs: Inputs) -> Painted:
        """Mask, and a scan or noise for the style, to channels.

        Raises:
            DataError: A reference scan for a model that encodes none.
        """
        code, divergence = self.code(inputs.draws, inputs.style, inputs.truncation)
        mask = inputs.mask
        if mask is None:
            mask = torch.zeros(len(inputs.draws), self.labels, *self.shape, device=code.device)
        return Painted(self.paint(code, mask), divergence=divergence)

    def code(self, draws: Draws, style: Tensor | None, truncation: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """The style code ``(B, latent)``, and per case its divergence from the prior for a VAE."""
        noise = draws.normal(self.latent)
        if style is None:
            spread = noise * truncation
            return (
                (self.code_mean + spread * self.code_deviation, None) if self.kind == "bottleneck" else (spread, None)
            )
        if self.encoder is None:
            raise DataError("this model was trained without a style encoder: leave Condition.style None")
        answer = self.encoder(style)
        if self.kind == "bottleneck":
            if self.training and torch.is_grad_enabled():
                self._track(answer.detach())
            return answer, None
        mean, log_variance = answer.chunk(2, 1)
        log_variance = log_variance.clamp(-10, 10)  # exp of a wild start would not be finite
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return mean + noise * truncation * (log_variance / 2).exp(), divergence

    def paint(self, code: Tensor, mask: Tensor) -> Tensor:
        """Code ``(B, latent)`` and mask to ``(B, C, *shape)``."""
        x = self.dense(code).unflatten(1, (-1, *self.levels[0]))
        for block, level in zip(self.blocks, self.levels, strict=True):
            x = block(resize(x, level, smooth=False), resize(mask, level))
        y = self.out(functional.leaky_relu(x, 0.2))
        return y.tanh() if self.squash else y

    def _track(self, codes: Tensor) -> None:
        self.code_mean.lerp_(everybodys_mean(codes), 0.01)
        # Squares: deviations of small batches are too small on average.
        squares = everybodys_mean((codes - self.code_mean).square())
        self.code_deviation.copy_(self.code_deviation.square().lerp(squares, 0.01).sqrt())
