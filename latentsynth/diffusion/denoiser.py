"""The denoiser: ``(x_t, t, conditioning) -> E[x0 | x_t]``, whatever the network inside predicts.

The network sees ``x_t / sqrt(alpha^2 + sigma^2)``, which has unit variance for whitened data, and the mixing angle
``atan(sigma / alpha)`` for a time. Both are functions of the signal-to-noise ratio alone, so a trained network is not
tied to the schedule it was trained with, and samplers of another parametrisation may call it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.diffusion.noise import Schedule, expand, schedule_named
from latentsynth.errors import DataError, UnknownNameError
from latentsynth.pretrained import Pretrained, recompute
from latentsynth.types import Conditioning


class Denoiser(Pretrained):
    """A MONAI diffusion U-Net with preconditioning.

    Args:
        latent_channels: ``c``.
        spatial_channels: Channels of the conditioning, concatenated to the input.
        schedule: Name of the noise schedule that ``t`` refers to.
        prediction: What the network predicts: ``"v"``, ``"epsilon"`` or ``"x0"``.
        channels: Feature channels per level.
        attention: Whether a level has self-attention.
        res_blocks: Residual blocks per level.
        head_channels: Channels per attention head.
        norm_groups: Groups of the group normalisation.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        spatial_channels: int,
        schedule: str,
        prediction: str,
        channels: Sequence[int],
        attention: Sequence[bool],
        res_blocks: int,
        head_channels: int,
        norm_groups: int,
    ):
        super().__init__()
        if prediction not in ("v", "epsilon", "x0"):
            raise UnknownNameError("prediction", prediction, ("v", "epsilon", "x0"))
        self.schedule = schedule_named(schedule)
        self.prediction = prediction
        self.network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_channels + spatial_channels,
            out_channels=latent_channels,
            num_res_blocks=res_blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention),
            num_head_channels=head_channels,
            norm_num_groups=norm_groups,
            use_flash_attention=True,  # scaled_dot_product_attention; it picks the fastest kernel of the device
        )

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Posterior mean of the data. Latents that the network cannot halve as often as it has levels are padded inside.

        Args:
            x_t: Noisy latents, shape ``(B, c, i, j, k)``.
            t: Times in [0, 1], shape ``()`` or ``(B,)``.
            conditioning: ``spatial`` has shape ``(B, S, i, j, k)``; ``residuals``, where there are any, one per skip
                connection and one for the middle block.

        Returns:
            ``E[x0 | x_t]``, shaped like ``x_t``, float32.

        Raises:
            DataError: A vector, which this network does not take.
        """
        if conditioning.vector is not None:
            raise DataError("this denoiser takes no vector of features: leave Conditioning.vector None")
        t = t.to(x_t).expand(x_t.shape[0])
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        norm = torch.sqrt(alpha**2 + sigma**2)
        a, s, x = expand(alpha / norm, x_t), expand(sigma / norm, x_t), x_t / expand(norm, x_t)
        angle = torch.atan2(sigma, alpha) * (2 / math.pi)
        added: dict[str, object] = {}
        if conditioning.residuals:
            *skips, middle = conditioning.residuals
            added = {"down_block_additional_residuals": tuple(skips), "mid_block_additional_residual": middle}
        fed = torch.cat([x, conditioning.spatial], dim=1)
        missing = [-n % 2 ** (len(self.config["channels"]) - 1) for n in x.shape[2:]]
        if any(missing):
            fed = functional.pad(fed, [n for extra in reversed(missing) for n in (0, extra)], mode="replicate")
        out = self.network(fed, timesteps=1000 * angle, **added).float()
        if any(missing):
            i, j, k = x.shape[2:]
            out = out[..., :i, :j, :k]
        if self.prediction == "v":
            return a * x - s * out
        if self.prediction == "epsilon":
            return (x - s * out) / a
        return out

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes."""
        return [*self.network.down_blocks, self.network.middle_block, *self.network.up_blocks]

    def checkpoint_gradients(self) -> None:
        """Recomputes each level's activations in the backward pass instead of keeping them: less memory, more time."""
        for block in self.blocks:
            recompute(block)


def denoising_loss(
    module: nn.Module,
    x0: Tensor,
    conditioning: Conditioning,
    schedule: Schedule,
    t: Tensor,
    noise: Tensor,
    weight: Tensor,
    cell_weight: Tensor | None = None,
) -> Tensor:
    """Weighted squared error of the posterior mean.

    Args:
        module: The denoiser *as the training loop wrapped it*: reaching past a distributed wrapper would train every
            process differently, silently.
        x0: Whitened latents, shape ``(B, c, i, j, k)``.
        conditioning: For the same cases.
        schedule: The denoiser's schedule.
        t: Times, ``(B,)``.
        noise: Standard normal, shaped like ``x0``.
        weight: Per case, ``(B,)``; see :func:`latentsynth.diffusion.noise.target_weight`.
        cell_weight: Per latent cell, ``(B, 1, i, j, k)``, or None for 1 everywhere.

    Returns:
        A loss per case, ``(B,)``. Each is a mean over the case's own cells, so a mean over cases does not depend on
        how they are spread over processes.
    """
    error = (module(schedule.noisy(x0, t, noise), t, conditioning) - x0) ** 2
    if cell_weight is not None:
        error = error * cell_weight / cell_weight.mean(dim=(1, 2, 3, 4), keepdim=True)
    return weight * error.flatten(1).mean(1)
