"""The trunks that all bottlenecks share: our own, and MONAI's.

``space_to_depth`` is :mod:`latentsynth.autoencoders.space_to_depth`. ``resnet`` is the trunk of MONAI's AutoencoderKL,
residual blocks from full resolution down: the shape that published weights come in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.networks.nets.autoencoderkl import Decoder as ResnetDecoder
from monai.networks.nets.autoencoderkl import Encoder as ResnetEncoder
from torch import nn

from latentsynth.autoencoders.space_to_depth import SpaceToDepthDecoder, SpaceToDepthEncoder
from latentsynth.errors import UnknownNameError


def build_trunk(
    trunk: Mapping[str, Any],
    image_channels: int,
    encoded_channels: int,
    latent_channels: int,
    factors: tuple[int, int, int],
) -> tuple[nn.Module, nn.Module]:
    """Builds an encoder and a decoder.

    Args:
        trunk: Its ``kind`` and the settings of that kind, see :mod:`latentsynth.config.autoencoder`.
        image_channels: ``C``.
        encoded_channels: Channels the encoder gives out (twice ``c`` for mean and log variance).
        latent_channels: ``c``, what the decoder takes in.
        factors: Downsampling per axis.

    Returns:
        Encoder and decoder.

    Raises:
        UnknownNameError: There is no such trunk.
    """
    settings = dict(trunk)
    kind = settings.pop("kind", None)
    if kind == "space_to_depth":
        return (
            SpaceToDepthEncoder(image_channels, encoded_channels, factors, **settings),
            SpaceToDepthDecoder(latent_channels, image_channels, factors, **settings),
        )
    if kind == "resnet":
        return _resnet(image_channels, encoded_channels, latent_channels, **settings)
    raise UnknownNameError("trunk", str(kind), ("space_to_depth", "resnet"))


def _resnet(
    image_channels: int, encoded_channels: int, latent_channels: int, channels: list[int], res_blocks: int
) -> tuple[nn.Module, nn.Module]:
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
