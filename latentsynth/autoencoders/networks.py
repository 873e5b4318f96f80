"""The convolutional trunks both bottlenecks share, assembled from MONAI's.

``strided`` is the trunk of MONAI's VQVAE: every level halves the resolution first, so full-resolution feature maps are
few and a CPU can train it. ``resnet`` is the trunk of MONAI's AutoencoderKL: residual blocks at full resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.autoencoderkl import Decoder as ResnetDecoder
from monai.networks.nets.autoencoderkl import Encoder as ResnetEncoder
from monai.networks.nets.vqvae import Decoder as StridedDecoder
from monai.networks.nets.vqvae import Encoder as StridedEncoder
from torch import nn

from latentsynth.errors import UnknownNameError


def build_trunk(
    backbone: str,
    image_channels: int,
    encoded_channels: int,
    latent_channels: int,
    channels: Sequence[int],
    res_blocks: int,
    factors: tuple[int, int, int],
) -> tuple[nn.Module, nn.Module]:
    """Builds an encoder and a decoder.

    Args:
        backbone: ``"strided"`` or ``"resnet"``.
        image_channels: ``C``.
        encoded_channels: Channels the encoder gives out (twice ``c`` for mean and log variance).
        latent_channels: ``c``, what the decoder takes in.
        channels: Feature channels, one entry per halving.
        res_blocks: Residual blocks per level.
        factors: Downsampling per axis.

    Returns:
        Encoder and decoder.
    """
    channels = tuple(channels)
    if backbone == "strided":
        strides = [tuple(2 if factor >> level > 1 else 1 for factor in factors) for level in range(len(channels))]
        # Kernel 4 where an axis is halved, 3 where it is left alone; padding 1 gives exact sizes in both cases.
        steps = [(stride, tuple(4 if s == 2 else 3 for s in stride), 1, 1) for stride in strides]
        encoder: nn.Module = StridedEncoder(
            3, image_channels, encoded_channels, channels, res_blocks, channels, steps, 0.0, "SWISH"
        )
        decoder: nn.Module = StridedDecoder(
            3, latent_channels, image_channels, channels, res_blocks, channels,
            [(*step, 0) for step in reversed(steps)], 0.0, "SWISH", None,
        )  # fmt: skip
        return encoder, decoder
    if backbone == "resnet":
        widths = (*channels, channels[-1])  # AutoencoderKL halves between levels, so it has one level more
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if all(width % g == 0 for width in widths))
        encoder = ResnetEncoder(
            3, image_channels, widths, encoded_channels, [res_blocks] * len(widths), groups, 1e-6,
            [False] * len(widths), with_nonlocal_attn=False, include_fc=False,
        )  # fmt: skip
        decoder = ResnetDecoder(
            3, widths, latent_channels, image_channels, [res_blocks] * len(widths), groups, 1e-6,
            [False] * len(widths), with_nonlocal_attn=False, include_fc=False,
        )  # fmt: skip
        return encoder, decoder
    raise UnknownNameError("backbone", backbone, ("strided", "resnet"))
