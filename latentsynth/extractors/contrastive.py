"""A network that learns, without labels, which scans are the same scan seen twice (SimCLR, Chen et al. 2020).

It judges generators and belongs to none of them, so it shares nothing with an autoencoder or a denoiser.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.config import ViewsConfig
from latentsynth.metrics.registration import rotations
from latentsynth.pretrained import Pretrained, register_to_config
from latentsynth.randomness import Draws

_PER_CELL, _HIDDEN = 16, 256  # widths of a head that keeps the layout


class ContrastiveEncoder(Pretrained):
    """Convolutions of stride 2 with group norm; features are the mean and deviation of the last maps.

    Args:
        image_channels: ``C``.
        channels: Feature channels per halving of the resolution.
        projection: Size of the projection that the loss compares.
        cells: The projection sees the last maps averaged over so many cells per axis, and so what lies where; None
            gives it the features, which say what there is alone.
    """

    @register_to_config
    def __init__(
        self, image_channels: int, channels: Sequence[int], projection: int, cells: Sequence[int] | None = None
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((image_channels, *channels)):
            # A rim of edge values: zeros would paint a grey frame around the black background.
            layers += [
                nn.Conv3d(before, after, 3, stride=2, padding=1, padding_mode="replicate"),
                nn.GroupNorm(math.gcd(8, after), after),
                nn.LeakyReLU(0.1),
            ]
        self.network = nn.Sequential(*layers)
        if cells is None:
            width = 2 * channels[-1]
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection))
        else:
            width = _PER_CELL * math.prod(cells)
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool3d(tuple(cells)), nn.Conv3d(channels[-1], _PER_CELL, 1), nn.Flatten(),
                nn.Linear(width, _HIDDEN), nn.LeakyReLU(0.1), nn.Linear(_HIDDEN, projection),
            )  # fmt: skip

    def features(self, image: Tensor) -> Tensor:
        """Images ``(B, C, I, J, K)`` in [-1, 1] to features ``(B, F)``."""
        maps = self.network(image).flatten(2)
        return torch.cat([maps.mean(2), maps.std(2, correction=0)], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``(B, C, I, J, K)`` to unit vectors ``(B, P)`` that the loss compares."""
        seen = self.features(image) if self.config.cells is None else self.network(image)
        return functional.normalize(self.head(seen), dim=1)


def views(images: Tensor, config: ViewsConfig, draws: Draws) -> Tensor:
    """One random view of every image: moved a little, perhaps mirrored, its contrast and brightness changed.

    Args:
        images: In [-1, 1], shape ``(B, C, I, J, K)``.
        config: How much.
        draws: A generator per image, so that a view depends on its own numbers alone.

    Returns:
        Same shape, in [-1, 1].
    """
    uniform = draws.uniform(14).to(images)
    sign = 2 * uniform - 1
    angles = sign[:, :3] * math.radians(config.rotate_deg)
    scale = torch.exp(sign[:, 3] * math.log1p(config.scale))
    shift = sign[:, 4:7] * 2 * config.shift  # grid_sample's axes run from -1 to 1
    # grid_sample speaks of K, J, I; a cell of an axis is as long as one of another, whatever the shape.
    sizes = torch.tensor(images.shape[:1:-1], dtype=images.dtype, device=images.device)
    turn = rotations(angles) * scale.view(-1, 1, 1)
    turn = turn * sizes.view(1, 1, 3) / sizes.view(1, 3, 1)
    mirrored = torch.ones(len(images), 3, dtype=images.dtype, device=images.device)
    for axis in config.flip_axes:
        mirrored[:, 2 - axis] = torch.where(uniform[:, 7 + axis] < 0.5, -1.0, 1.0)
    matrix = torch.cat([turn * mirrored.unsqueeze(1), shift.unsqueeze(2)], dim=2)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    column = (-1, 1, 1, 1, 1)
    if config.smooth:
        moved = _smoothed(moved, (uniform[:, 13] * config.smooth).view(column))
    gamma = torch.exp(sign[:, 10] * config.gamma).view(column)
    bright = (sign[:, 11] * config.brightness).view(column)
    level = (uniform[:, 12] * config.noise).view(column)
    noise = draws.normal(*images.shape[1:]).to(images)
    contrast = ((moved + 1) / 2).clamp(0, 1) ** gamma * 2 - 1
    return (contrast + bright + level * noise).clamp(-1, 1)


def _smoothed(images: Tensor, share: Tensor) -> Tensor:
    """Two binomial filters along every axis, that share of them: at 1 a deviation of one voxel."""
    for axis in (2, 3, 4, 2, 3, 4):
        n = images.shape[axis]
        before = images.narrow(axis, 0, n - 1)
        after = images.narrow(axis, 1, n - 1)
        left = torch.cat([images.narrow(axis, 0, 1), before], axis)
        right = torch.cat([after, images.narrow(axis, n - 1, 1)], axis)
        images = images + share / 4 * (left + right - 2 * images)
    return images


def contrastive_loss(first: Tensor, second: Tensor, temperature: float, patients: Tensor | None = None) -> Tensor:
    """NT-Xent (Chen et al. 2020, eq. 1): each view must find its partner among all other views of the batch.

    Args:
        first: Unit vectors ``(B, P)``.
        second: Of the other views of the same images.
        temperature: Softmax temperature.
        patients: Number of the patient of each image, ``(B,)``; views of other images of the same patient are no
            wrong answers, so they are left out. None takes every image for a patient of its own.

    Returns:
        A scalar.
    """
    both = torch.cat([first, second])
    rows = len(first)
    logits = both @ both.T / temperature
    if patients is None:
        patients = torch.arange(rows, device=both.device)
    twice = patients.repeat(2)
    same = twice.unsqueeze(0) == twice.unsqueeze(1)
    partner = torch.arange(2 * rows, device=both.device).roll(rows)
    same[torch.arange(2 * rows, device=both.device), partner] = False
    return functional.cross_entropy(logits.masked_fill(same, float("-inf")), partner)
