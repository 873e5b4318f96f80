"""Autoencoder whose latents are rounded, each channel to a few levels (finite scalar quantisation, Mentzer et al. 2024).

As with a codebook, the latents that a diffusion model learns are the values *before* rounding. Nothing is learnt about the
levels, so none can die, and bits grow with the channels: 8 channels of 8 levels hold 24 in a cell, 16 hold 48.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from vector_quantize_pytorch import FSQ

from latentsynth.autoencoders.networks import build_trunk
from latentsynth.autoencoders.quantized import QuantizedAutoencoder


class FSQAutoencoder(QuantizedAutoencoder):
    """Autoencoder with finite scalar quantisation.

    Args:
        image_channels: ``C``.
        latent_channels: ``c``.
        factors: Voxels per latent cell along each axis.
        trunk: Kind and settings, see :mod:`latentsynth.autoencoders.networks`.
        levels: Values that each channel of a cell can take.
    """

    spread = 0.5  # where the tanh that bounds latents is nearly straight

    @register_to_config
    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        factors: Sequence[int],
        trunk: Mapping[str, Any],
        levels: int,
    ):
        i, j, k = factors
        super().__init__(latent_channels, (i, j, k))
        self.codes = levels
        self.encoder, self.decoder = build_trunk(trunk, image_channels, latent_channels, latent_channels, (i, j, k))
        # Indices of whole cells overflow from 11 channels of 8 levels on, and nothing needs them.
        self.quantizer = FSQ([levels] * latent_channels, channel_first=True, return_indices=False)

    def quantize(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(raw.device.type, enabled=False):
            codes: Tensor = self.quantizer(raw.float())[0]
        half = self.codes // 2
        return codes, (codes.detach() * half + half).round().long(), codes.new_zeros(())
