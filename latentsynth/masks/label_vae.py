"""A variational autoencoder of label maps, slices or volumes, and the maker that samples whole volumes from its prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.config import LabelSamplingConfig
from latentsynth.masks.base import Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.trained import TrainedMaker
from latentsynth.pretrained import Pretrained
from latentsynth.randomness import Draws, Stream

_GROUPS = 4
_BACKGROUND = 4.0  # logit that networks start with: odds of 55 to 1


class LabelVAE(Pretrained):
    """Encoder and decoder of one-hot label maps on a grid of two or three axes.

    Amirrajab et al. 2022 (their code): each encoder block halves the grid by a strided convolution and follows with two
    more, the decoder doubles it by interpolation with two convolutions each, and fully connected layers stand between.
    Groups are normalised instead of batches, so that no mask depends on what else is decoded.

    Args:
        shape: Grid, every axis divisible by 2 per entry of ``channels``.
        labels: ``L``.
        channels: Features, one entry per halving.
        hidden: Features of the fully connected layers.
        latent: ``z``.
        coarse: Whether the last doubling is interpolation of logits alone: volumes cost most at full size.
    """

    @register_to_config
    def __init__(
        self, shape: Sequence[int], labels: int, channels: Sequence[int], hidden: int, latent: int, coarse: bool = False
    ):
        super().__init__()
        self.shape, self.labels, self.latent = tuple(shape), labels, latent
        self.smallest = tuple(n // 2 ** len(channels) for n in shape)
        dims, widths = len(self.shape), list(channels)
        features = widths[-1] * math.prod(self.smallest)
        down: list[nn.Module] = []
        for before, width in zip([labels, *widths[:-1]], widths, strict=True):
            down += [_block(dims, before, width, stride=2), _block(dims, width, width), _block(dims, width, width)]
        self.encoder = nn.Sequential(
            *down, nn.Flatten(), nn.Linear(features, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 2 * latent)
        )
        self.dense = nn.Sequential(
            nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, features), nn.LeakyReLU(0.2)
        )
        double = nn.Upsample(scale_factor=2, mode="bilinear" if dims == 2 else "trilinear")
        narrower = list(zip(widths[::-1], [*widths[-2::-1], widths[0]], strict=True))
        up: list[nn.Module] = []
        for before, width in narrower[:-1] if coarse else narrower:
            up += [double, _block(dims, before, width), _block(dims, width, width)]
        last = _CONV[dims](widths[0], labels, 1)
        # Nearly all of a map is background, which takes long to learn from even odds.
        nn.init.zeros_(last.bias)
        last.bias.data[0] = _BACKGROUND
        up.append(last)
        self.decoder = nn.Sequential(*up, double) if coarse else nn.Sequential(*up)

    def encode(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot ``(B, L, *shape)`` to means and logarithms of variances, ``(B, z)`` each."""
        mean, log_variance = self.encoder(mask).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, z: Tensor) -> Tensor:
        """Latents ``(B, z)`` to logits ``(B, L, *shape)``."""
        return cast(Tensor, self.decoder(self.dense(z).unflatten(1, (-1, *self.smallest))))

    def forward(self, mask: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The training pass: logits of a draw, means, logarithms of variances; ``noise`` is ``(B, z)``."""
        mean, log_variance = self.encode(mask)
        return self.decode(mean + torch.exp(0.5 * log_variance) * noise), mean, log_variance

    @torch.no_grad()
    def decode_index(self, z: Tensor) -> Tensor:
        """Latents ``(B, z)`` to the most likely label indices, int16, ``(B, *shape)``."""
        return self.decode(z).argmax(1).short()


_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}


def _block(dims: int, before: int, width: int, stride: int = 1) -> nn.Module:
    groups = _GROUPS if width % _GROUPS == 0 else 1
    return nn.Sequential(
        _CONV[dims](before, width, 3, stride, 1), nn.GroupNorm(groups, width), nn.LeakyReLU(0.2, inplace=True)
    )


def vae_terms(logits: Tensor, mask: Tensor, mean: Tensor, log_variance: Tensor) -> dict[str, Tensor]:
    """Terms of the loss, each a mean over the batch.

    Args:
        logits: ``(B, L, *shape)``.
        mask: One-hot, same shape.
        mean: ``(B, z)``.
        log_variance: ``(B, z)``.

    Returns:
        ``cross_entropy`` summed over cells; ``dice``, 1 minus soft Dice over the labels but background that are in
        the mask; ``divergence`` per latent coordinate from a standard normal, ``(z,)``.
    """
    axes = tuple(range(2, mask.ndim))
    entropy = functional.cross_entropy(logits, mask.argmax(1), reduction="none").flatten(1).sum(1).mean()
    shares = logits.softmax(1)
    overlap, size = (shares * mask).sum(axes)[:, 1:], (shares + mask).sum(axes)[:, 1:]
    present = (mask.sum(axes)[:, 1:] > 0).to(size)
    score = ((2 * overlap + 1) / (size + 1) * present).sum(1) / present.sum(1).clamp_min(1)
    missing = (1 - score) * (present.sum(1) > 0)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return {"cross_entropy": entropy, "dice": missing.mean(), "divergence": divergence.mean(0)}


@dataclass(kw_only=True)
class LabelVAEMaker(TrainedMaker):
    """Samples a label VAE of volumes from its prior.

    Attributes:
        vae: The averaged weights.
    """

    kind = "label_vae"
    part_kinds = MappingProxyType({"vae": LabelVAE})
    sampling_kind = LabelSamplingConfig

    vae: LabelVAE

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        return {"grid": (self.vae.shape, self.domain.grid.shape), "labels": (self.vae.labels, len(self.labels))}

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        device = next(self.vae.parameters()).device
        z = self.sampling.spread * Draws.seeded(seeds, stream=Stream.MASK_SAMPLE).normal(self.vae.latent).to(device)
        made = self.vae.decode_index(z).cpu().numpy()
        return [self.placed(seed, index) for seed, index in zip(seeds, made, strict=True)]
