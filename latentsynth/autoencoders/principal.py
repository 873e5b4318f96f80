"""Principal components of blocks of voxels: what a space-to-depth trunk starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from latentsynth.errors import TrainingError


@dataclass(frozen=True)
class PrincipalComponents:
    """The linear map of blocks that keeps most of their variance (Hotelling 1933).

    Attributes:
        mean: Of a block, ``(P,)``.
        directions: Orthonormal rows, that of the largest variance first, ``(c, P)``; the largest entry of each is positive.
        deviation: Standard deviation along each, ``(c,)``.
    """

    mean: Tensor
    directions: Tensor
    deviation: Tensor


def principal_components(blocks: Iterable[Tensor], count: int) -> PrincipalComponents:
    """Finds the leading principal components.

    Args:
        blocks: Blocks of voxels in the channels of cells, ``(B, P, i, j, k)`` each.
        count: ``c``, at most P.

    Raises:
        TrainingError: There are no blocks, or they vary in fewer than ``count`` directions.
    """
    number, total, square = 0, torch.zeros(()), torch.zeros(())
    for batch in blocks:
        rows = rearrange(batch, "n p i j k -> (n i j k) p").double()
        number += len(rows)
        total = total + rows.sum(0)
        square = square + rows.T @ rows
    if not number:
        raise TrainingError("no volumes to find the principal components of blocks in: give at least one training case")
    mean = total / number
    variance, vectors = torch.linalg.eigh(square / number - torch.outer(mean, mean))
    variance, vectors = variance.flip(0)[:count], vectors.flip(1).T[:count]
    if len(vectors) < count or not bool(variance[-1] > 1e-9 * variance[0]):
        kept = int((variance > 1e-9 * variance[0]).sum())
        raise TrainingError(
            f"blocks of {len(mean)} voxels vary in {kept} directions, autoencoder.latent_channels is {count}: lower it"
        )
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return PrincipalComponents(mean.float(), (vectors * largest.sign()).float(), variance.sqrt().float())
