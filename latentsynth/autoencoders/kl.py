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
        latent_noise: Noise on the latents while the decoder trains, as a share of each channel's deviation over its case.
            A sampler's latents are never exact: a decoder that has seen noise makes of small errors what is likely, not
            seams between cells. Relative to the channel, so that larger latents are no way out.
    """

    @register_to_config
    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        factors: Sequence[int],
        trunk: Mapping[str, Any],
        kl_weight: float,
        latent_noise: float = 0.0,
    ):
        i, j, k = factors
        super().__init__(latent_channels, (i, j, k))
        self.kl_weight, self.latent_noise = kl_weight, latent_noise
        self.encoder, self.decoder = build_trunk(trunk, image_channels, 2 * latent_channels, latent_channels, (i, j, k))

    def moments(self, image: Tensor) -> Moments:
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        return Moments(mean, torch.exp(0.5 * log_variance.clamp(-30, 20)))

    def decode_raw(self, raw: Tensor) -> Tensor:
        return self.decoder(raw).clamp(-1, 1)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Reconstruction:
        moments = self.moments(image)
        raw = moments.mean if noise is None else self._noisy(moments).sample(noise)
        variance = moments.deviation**2
        kl = 0.5 * (moments.mean**2 + variance - 1 - variance.clamp_min(1e-20).log())  # against N(0, 1)
        per_value = kl.flatten(1).sum(1).mean() / image[0].numel()
        return Reconstruction(
            self.decoder(raw), self.kl_weight * per_value, raw.new_tensor(float(self.latent_channels))
        )

    def _noisy(self, moments: Moments) -> Moments:
        spread = moments.mean.detach().std(dim=(2, 3, 4), correction=0, keepdim=True)
        return Moments(moments.mean, torch.sqrt(moments.deviation**2 + (self.latent_noise * spread) ** 2))
