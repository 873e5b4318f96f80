"""A trunk that starts from a linear map: blocks of voxels to latents and back, with residual blocks around it.

Space to depth puts each block of ``a x b x c`` voxels into the channels of one cell (Shi et al. 2016, sec. 3.2, the other
way round); a 1 x 1 x 1 convolution maps it to latents. Started from the principal components of the training blocks
(:mod:`latentsynth.autoencoders.principal`), that alone is the best linear autoencoder of blocks (Baldi and Hornik 1989).
Residual convolutions whose last layers start at zero (Zhang et al. 2019) then learn what a linear map of single blocks
cannot: what neighbours say about each other. Nothing looks at statistics of a whole volume, so a volume decoded in parts
equals the whole away from the parts' borders.
"""

from __future__ import annotations

from math import prod

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.autoencoders.principal import PrincipalComponents
from latentsynth.autoencoders.texture import Texture

Axes = tuple[int, int, int]

_LOG_VARIANCE = -6.0  # of a Gaussian bottleneck at the start: a deviation of a twentieth beside means that vary by 1


class SpaceToDepth(nn.Module):
    """``(B, C, I, J, K)`` to ``(B, C a b c, I/a, J/b, K/c)`` for blocks of ``(a, b, c)`` voxels."""

    def __init__(self, block: Axes):
        super().__init__()
        self.block = block

    def forward(self, image: Tensor) -> Tensor:
        a, b, c = self.block
        return rearrange(image, "n d (i a) (j b) (k c) -> n (d a b c) i j k", a=a, b=b, c=c)


class DepthToSpace(nn.Module):
    """Inverse of :class:`SpaceToDepth`."""

    def __init__(self, block: Axes):
        super().__init__()
        self.block = block

    def forward(self, cells: Tensor) -> Tensor:
        a, b, c = self.block
        return rearrange(cells, "n (d a b c) i j k -> n d (i a) (j b) (k c)", a=a, b=b, c=c)


class CellNorm(nn.Module):
    """Root mean square over the channels of one cell (Zhang and Sennrich 2019, eq. 4), the same wherever the cell lies."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)
        return x * scale * self.gain[:, None, None, None]


class ResidualBlock(nn.Module):
    """``x + f(x)``: two 3 x 3 x 3 convolutions, the second of which starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = CellNorm(channels)
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = zeroed(nn.Conv3d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(self.norm(x)))))


class SpaceToDepthEncoder(nn.Module):
    """Image to latents: the linear map plus a residual trunk.

    Args:
        image_channels: ``C``.
        encoded_channels: What it gives out.
        factors: Voxels per latent cell along each axis.
        width: Feature channels on the latent grid.
        res_blocks: Residual blocks on the latent grid.
    """

    TILE = 24  # cells along an axis of a part of a large volume

    def __init__(self, image_channels: int, encoded_channels: int, factors: Axes, width: int, res_blocks: int):
        super().__init__()
        self.cells = SpaceToDepth(factors)
        self.linear = nn.Conv3d(image_channels * prod(factors), encoded_channels, 1)
        self.stem = nn.Conv3d(image_channels * prod(factors), width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(res_blocks))
        self.head = nn.Sequential(CellNorm(width), nn.SiLU(), zeroed(nn.Conv3d(width, encoded_channels, 3, padding=1)))
        self.reach = 2 * res_blocks + 1  # cells: one for each convolution of 3 x 3 x 3

    @torch.no_grad()
    def start_from(self, components: PrincipalComponents, spread: float) -> None:
        """Makes the linear map that of principal components, each scaled to deviation ``spread``; log variances are small."""
        count = len(components.directions)
        projection = components.directions * (spread / components.deviation)[:, None]
        weight, bias = self.linear.parameters()
        weight.zero_()
        weight[:count, :, 0, 0, 0] = projection
        bias[:count] = -projection @ components.mean
        bias[count:] = _LOG_VARIANCE

    def forward(self, image: Tensor) -> Tensor:
        """Shape ``(B, C, I, J, K)`` to ``(B, encoded channels, i, j, k)``."""
        cells = self.cells(image)
        x = self.stem(cells)
        for block in self.blocks:
            x = block(x)
        return torch.add(self.linear(cells), self.head(x))


class SpaceToDepthDecoder(nn.Module):
    """Latents to an image: the linear map plus a residual trunk. Arguments as of :class:`SpaceToDepthEncoder`."""

    TILE = 24

    def __init__(self, latent_channels: int, image_channels: int, factors: Axes, width: int, res_blocks: int):
        super().__init__()
        self.linear = nn.Conv3d(latent_channels, image_channels * prod(factors), 1)
        self.voxels = DepthToSpace(factors)
        self.stem = nn.Conv3d(latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(res_blocks))
        self.head = nn.Sequential(
            CellNorm(width), nn.SiLU(), zeroed(nn.Conv3d(width, image_channels * prod(factors), 1))
        )
        self.texture = Texture(width, image_channels, SpaceToDepth(factors), self.voxels, prod(factors))
        self.reach = 2 * res_blocks + 1

    @torch.no_grad()
    def start_from(self, components: PrincipalComponents, spread: float) -> None:
        """Inverse of what :meth:`SpaceToDepthEncoder.start_from` makes, on the span of the components."""
        weight, bias = self.linear.parameters()
        weight[:, :, 0, 0, 0] = (components.directions * (components.deviation / spread)[:, None]).T
        bias.copy_(components.mean)

    def forward(self, z: Tensor) -> Tensor:
        """Shape ``(B, c, i, j, k)`` to ``(B, C, I, J, K)``."""
        return self.image(z, self.features(z))

    def features(self, z: Tensor) -> Tensor:
        """What the image is made of beside the linear map, ``(B, width, i, j, k)``."""
        x = self.stem(z)
        for block in self.blocks:
            x = block(x)
        return self.head[1](self.head[0](x))  # type: ignore[no-any-return]

    def with_deviation(self, z: Tensor) -> Tensor:
        """The image, and behind it in the channels the deviation of what it leaves out, ``(B, 2 C, I, J, K)``."""
        features = self.features(z)
        return torch.cat([self.image(z, features), self.texture.deviation(features)], 1)

    def image(self, z: Tensor, features: Tensor) -> Tensor:
        """The image, where the features of the latents are known."""
        image: Tensor = self.voxels(self.linear(z) + self.head[2](features))
        return image


def zeroed(layer: nn.Conv3d) -> nn.Conv3d:
    """A layer that starts by giving out nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
