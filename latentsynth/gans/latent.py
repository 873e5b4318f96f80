"""One step from noise and mask to a latent: the opponent that diffusion in the same latents is fairly compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import DiffusionModelUNet

from latentsynth.config import LatentGANConfig
from latentsynth.gans.base import Generator, Inputs, Painted
from latentsynth.gans.build import builds
from latentsynth.pretrained import register_to_config


@builds(LatentGANConfig)
class LatentGenerator(Generator):
    """The kind of network that the denoiser is (MONAI's DiffusionModelUNet), called once on pure noise.

    Args:
        shape: Latent grid ``(i, j, k)``.
        out_channels: Latent channels.
        labels: Channels of the conditioner's answer, concatenated to the noise.
        channels: Feature channels per level.
        attention: Whether a level has self-attention.
        res_blocks: Residual blocks per level.
        head_channels: Channels per attention head.
        norm_groups: Groups of the group normalisation.
    """

    truncates = True

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        labels: int,
        channels: Sequence[int] = (48, 96),
        attention: Sequence[bool] = (False, True),
        res_blocks: int = 1,
        head_channels: int = 48,
        norm_groups: int = 16,
    ):
        super().__init__()
        self.shape, self.labels, self.latent = tuple(shape), labels, out_channels
        self.network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=out_channels + labels,
            out_channels=out_channels,
            num_res_blocks=res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention),
            num_head_channels=head_channels,
            norm_num_groups=norm_groups,
            use_flash_attention=True,
        )

    def forward(self, inputs: Inputs) -> Painted:
        """Noise and the conditioner's maps ``(B, S, i, j, k)`` to whitened latents."""
        noise = inputs.draws.normal(self.latent, *self.shape) * inputs.truncation
        mask = inputs.mask
        if mask is None:
            mask = noise.new_zeros(len(noise), self.labels, *self.shape)
        return Painted(self.network(torch.cat([noise, mask], 1), timesteps=noise.new_zeros(len(noise))))
