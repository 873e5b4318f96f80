"""Autoencoder with a Gaussian bottleneck (Kingma & Welling 2014; latent diffusion: Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from latentsynth.autoencoders.base import Autoencoder, Moments, Reconstruction
from latentsynth.autoencoders.networks import build_trunk


class KLAutoencoder(Autoencoder):
    """KL-regularised autoencoder.

    Args:
        image_channels: ``C``.
        latent_channels: ``c``.
        factors: Voxels per latent cell along each axis.
        trunk: Kind and settings, see :mod:`latentsynth.autoencoders.networks`.
        kl_weight: Weight of the KL divergence, summed over a case and divided by its voxels and channels, beside a
            reconstruction error that is a mean over them.
    """

    @register_to_config
    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        factors: Sequence[int],
        trunk: Mapping[str, Any],
        kl_weight: float,
    ):
        i, j, k = factors
        super().__init__(latent_channels, (i, j, k))
        self.kl_weight = kl_weight
        self.encoder, self.decoder = build_trunk(trunk, image_channels, 2 * latent_channels, latent_channels, (i, j, k))

    def moments(self, image: Tensor) -> Moments:
        mean, log_variance = self.encoded(image).chunk(2, dim=1)
        return Moments(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def forward(self, image: Tensor, noise: Tensor | None = None, level: Tensor | None = None) -> Reconstruction:
        channels = image.new_full((), float(self.latent_channels))
        if level is not None and noise is not None:
            return Reconstruction(self.decoder(self.disturbed(image, noise, level)), image.new_zeros(()), channels)
        moments = self.moments(image)
        raw = moments.mean if noise is None else moments.sample(noise)
        variance = moments.deviation**2
        kl = 0.5 * (moments.mean**2 + variance - 1 - variance.clamp_min(1e-20).log())  # against N(0, 1)
        per_value = kl.flatten(1).sum(1).mean() / image[0].numel()
        return Reconstruction(self.decoder(raw), self.kl_weight * per_value, channels)
