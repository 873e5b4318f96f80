"""A denoiser of small volumes as one of large volumes: overlapping patches, denoised together at every step.

At each step every patch gives its own posterior mean, and where patches overlap the means are averaged (Bar-Tal et al. 2023,
eq. 5). All patches then go on from one and the same noisy volume, so they agree when the noise is gone. What the network needs
of memory depends on the patch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from latentsynth.diffusion.guidance import ConditionedDenoise
from latentsynth.errors import DataError
from latentsynth.types import Conditioning

_AT_ONCE = 2  # patches in one call of the network
_GOLDEN = (5**0.5 - 1) / 2  # multiples of it spread evenly, however many there are


def patchwise(network: ConditionedDenoise, cells: Sequence[int], overlap: float) -> ConditionedDenoise:
    """A denoiser of any volume, made of one that sees patches.

    Patches lie elsewhere at every time, or their borders, where a mean knows one side alone, would add up to seams.

    Args:
        network: The denoiser of patches. That it learns where a patch lies is up to its conditioning.
        cells: Of a patch along each axis; less where the volume has less.
        overlap: Share of a patch, along each axis, that its neighbour has too, from 0 to below 1.

    Returns:
        ``(x_t, t, conditioning) -> E[x0 | x_t]``, ``t`` a scalar tensor.

    Raises:
        DataError: When called with more than maps of conditions.
    """

    def denoise(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        if given.vector is not None or given.residuals:
            raise DataError("patches are cut out of maps, the conditioning holds more: leave vector and residuals out")
        size = [min(one, whole) for one, whole in zip(cells, x_t.shape[2:], strict=True)]
        weight = _bell(size).to(x_t)
        total, covered = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        places = list(product(*(_starts(x_t.shape[2 + a], size[a], overlap, float(t), a) for a in range(3))))
        for first in range(0, len(places), _AT_ONCE):
            where = [_cut(place, size) for place in places[first : first + _AT_ONCE]]
            maps = torch.cat([given.spatial[at] for at in where])
            means = network(torch.cat([x_t[at] for at in where]), t, Conditioning(maps)).chunk(len(where))
            for at, mean in zip(where, means, strict=True):
                total[at] += weight * mean
                covered[at] += weight
        return total / covered

    return denoise


def _cut(place: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """A patch of a tensor ``(B, C, i, j, k)``."""
    return (slice(None), slice(None), *(slice(start, start + n) for start, n in zip(place, size, strict=True)))


def _starts(whole: int, size: int, overlap: float, t: float, axis: int) -> list[int]:
    """Where patches begin along an axis at a time; the outermost end with the volume."""
    step = max(1, round(size * (1 - overlap)))
    shift = int(step * ((round(1000 * t) * _GOLDEN + axis / 3) % 1))
    return sorted({min(max(n - shift, 0), whole - size) for n in range(0, whole + step, step)})


def _bell(size: Sequence[int]) -> Tensor:
    """Weights of a patch's cells: they fall to nearly nothing at its border, which knows one side alone (a Hann window)."""
    along = [torch.sin(torch.pi * (torch.arange(n) + 0.5) / n) ** 2 for n in size]
    return along[0][:, None, None] * along[1][:, None] * along[2]
