"""Autoencoder with a vector-quantised bottleneck (van den Oord et al. 2017, eq. 3; codebook by moving averages, app. A).

The latents that a diffusion model learns are the vectors *before* quantisation; decoding quantises them, which also
removes small errors of the sampler. The codebook comes from ``vector-quantize-pytorch``: it restarts dead codes from
the batch and keeps the codebooks of several processes equal, which MONAI's quantiser does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from latentsynth.autoencoders.networks import build_trunk
from latentsynth.autoencoders.quantized import QuantizedAutoencoder


class VQAutoencoder(QuantizedAutoencoder):
    """Vector-quantised autoencoder.

    Args:
        image_channels: ``C``.
        latent_channels: ``c``, the dimension of a code.
        factors: Voxels per latent cell along each axis.
        trunk: Kind and settings, see :mod:`latentsynth.autoencoders.networks`.
        codebook_size: Codes per codebook.
        codebooks: Groups that the latent channels are split into, each quantised by a codebook of its own (product
            quantisation, Jegou et al. 2011): one codebook of 512 codes describes 4 x 4 x 4 voxels in 9 bits, which
            blurs them; four of 256 have 32.
        commitment: Weight of the commitment term.
        codebook_decay: Decay of the codebook's moving averages.
        restart_below: Codes used less often than this per batch, on average, are restarted.
    """

    @register_to_config
    def __init__(
        self,
        image_channels: int,
        latent_channels: int,
        factors: Sequence[int],
        trunk: Mapping[str, Any],
        codebook_size: int,
        codebooks: int,
        commitment: float,
        codebook_decay: float,
        restart_below: float,
    ):
        i, j, k = factors
        super().__init__(latent_channels, (i, j, k))
        self.codes = codebook_size
        self.encoder, self.decoder = build_trunk(trunk, image_channels, latent_channels, latent_channels, (i, j, k))
        self.quantizer = VectorQuantize(
            dim=latent_channels,
            codebook_size=codebook_size,
            heads=codebooks,
            codebook_dim=latent_channels // codebooks,
            separate_codebook_per_head=codebooks > 1,
            decay=codebook_decay,
            commitment_weight=commitment,
            threshold_ema_dead_code=restart_below,
            rotation_trick=False,  # straight-through, as published
        )

    def quantize(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # In float32 under autocast too: distances between close codes drown in bfloat16.
        with torch.autocast(raw.device.type, enabled=False):
            rows = rearrange(raw.float(), "b c i j k -> b (i j k) c")
            codes, indices, commitment = self.quantizer(rows)
        i, j, k = raw.shape[2:]
        return (
            rearrange(codes, "b (i j k) c -> b c i j k", i=i, j=j, k=k),
            rearrange(
                indices, "b (i j k) h -> b h i j k" if indices.ndim == 3 else "b (i j k) -> b 1 i j k", i=i, j=j, k=k
            ),
            commitment.sum(),
        )
