"""Nearest neighbours by parts: does a part of a volume, or one of two mixed in it, come from another volume?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from latentsynth.metrics.neighbours import check_volumes

_MOST = 64  # cells of the longest axis: finer detail is noise in most scans
_FINE, _COARSE = 0.6, 1.5  # voxels: between these lies the detail that two patients do not share
_AROUND = 4.0  # voxels over which detail is brought to one strength, so that no bright structure outweighs the rest
_FAINT = 0.02  # of the window of 2: weaker detail than that is taken for noise and left weak
_FLAT = 1e-4  # a range that padding does not exceed
_BLOCK = 12  # cells per axis, a step of half of them apart
_SHARE = 1 / 3  # of the blocks that must agree: the smallest part that is looked for
_FULL = 0.3  # of the detail of the fullest block, below which a block is not asked
_SHIFT = 8  # an eighth of each axis: how far a copy may have moved as a whole
_PEAKS = 3  # displacements that are looked at closely, beside none
_CLOSE = 32  # reference volumes of which they are, those with the highest cross-correlation
_CHUNK = 1 << 23  # voxels that are compared at a time


def detail(image: np.ndarray) -> np.ndarray:
    """The fine structure of a volume, everywhere of one strength; what a copied part keeps and two patients do not share.

    A difference of Gaussians, divided by its own strength nearby; nought where the volume is flat, as padding is, whose
    outline would be shared by all volumes that it was added to.

    Args:
        image: In [-1, 1], shape ``(C, I, J, K)``.

    Returns:
        float32; thinned out where an axis has more than 64 cells, so its shape follows from that of the image alone.
    """
    step = -(-max(image.shape[1:]) // _MOST)
    return np.stack([_detail(channel, step) for channel in image.astype(np.float32)])


def _detail(volume: np.ndarray, step: int) -> np.ndarray:
    smooth = lambda x, width: ndimage.gaussian_filter(x, width * step, mode="nearest")  # noqa: E731
    flat = ndimage.maximum_filter(volume, 3) - ndimage.minimum_filter(volume, 3) < _FLAT
    padding = ndimage.binary_dilation(ndimage.binary_opening(flat, iterations=2), iterations=3 * step)
    inside = (~padding).astype(np.float32)
    band = (smooth(volume, _FINE) - smooth(volume, _COARSE)) * inside
    strength = np.sqrt(smooth(band**2, _AROUND) / np.maximum(smooth(inside, _AROUND), 0.05))
    return np.ascontiguousarray((band / (strength + _FAINT) * inside)[::step, ::step, ::step])


def nearest_by_parts(
    queries: np.ndarray, reference: np.ndarray, k: int, shape: Sequence[int], mirror: Sequence[int] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """The reference volumes of which some part stands in a query.

    Each pair is laid on each other where it lies and where its cross-correlation is highest (Lewis 1995), mirrored too. There,
    overlapping blocks are correlated one by one, and the third of them that agree best count: a copied half or third of a volume
    gives 1 whatever the rest holds, and a mean of two volumes gives about 0.7 for both.

    Args:
        queries: What :func:`detail` makes of volumes, as rows ``(N, C I J K)``.
        reference: Shape ``(M, C I J K)``.
        k: How many neighbours.
        shape: ``(C, I, J, K)``.
        mirror: Axes along which volumes may be mirrored, each by itself: 0 left and right, 1 back and front.

    Returns:
        ``sqrt(2 (1 - s))``, s being the mean absolute correlation of the best third of the blocks, ascending, and rows of the
        reference, both ``(N, k)``.

    Raises:
        DataError: Rows of other lengths, or more neighbours than rows.
    """
    check_volumes(queries, reference, k, shape)
    x, y = (torch.from_numpy(np.ascontiguousarray(a, np.float32)).view(-1, *shape) for a in (queries, reference))
    size = max(1, _CHUNK // math.prod(shape))
    score = torch.zeros(len(x), len(y))
    for first in range(0, len(y), size):
        some = slice(first, first + size)
        for way in (y[some], *(y[some].flip(1 + axis + 1) for axis in mirror)):
            score[:, some] = torch.maximum(score[:, some], _scores(x, way))
    best, rows = score.double().topk(k)
    return (2 * (1 - best).clamp(min=0)).sqrt().numpy(), rows.numpy()


def _scores(queries: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute correlation of the best third of the blocks, ``(N, M)``."""
    reach = [n // _SHIFT for n in reference.shape[2:]]
    padded = [n + r for n, r in zip(reference.shape[2:], reach, strict=True)]
    spectra = torch.fft.rfftn(reference, s=padded, dim=(2, 3, 4))
    around = functional.pad(reference, [r for r in reversed(reach) for _ in range(2)])
    power = _blocks(reference.square().sum(1))
    found = []
    for query in queries:
        score = _agreement(query, reference, power)
        height, places = _peaks(query, spectra, padded, reach)
        near = height[:, 0].topk(min(_CLOSE, len(reference))).indices
        for place in places[near].unbind(1):
            there = _laid(around[near], place, query.shape[1:])
            score[near] = torch.maximum(score[near], _agreement(query, there, _blocks(there.square().sum(1))))
        found.append(score)
    return torch.stack(found)


def _agreement(query: Tensor, there: Tensor, power: Tensor) -> Tensor:
    """The same of one query and volumes ``(M, C, ...)`` that lie on it, whose power by block is known, ``(M,)``."""
    own = _blocks(query.square().sum(0)[None])[0]
    asked = own > _FULL * own.max()
    own, power, product = own[asked], power[:, asked], _blocks((query * there).sum(1))[:, asked]
    alike = product.abs() / (own * power).clamp(min=1e-12).sqrt()
    alike = torch.where(power > _FULL * own, alike, 0.0)
    count = min(max(1, math.ceil(alike.shape[1] * _SHARE)), alike.shape[1])
    return alike.topk(count, 1).values.mean(1) if count else torch.zeros(len(there))


def _peaks(query: Tensor, spectra: Tensor, padded: Sequence[int], reach: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Highest places of the cross-correlation within reach: heights ``(M, P)``, and first cells there, ``(M, P, 3)``."""
    product = (spectra * torch.fft.rfftn(query, s=list(padded), dim=(1, 2, 3)).conj()).sum(1)
    # The inverse transform, at the few displacements within reach alone.
    ways = [_inverse(n, r, spectra.shape[2 + axis]) for axis, (n, r) in enumerate(zip(padded, reach, strict=True))]
    for way in ways:
        product = torch.tensordot(product, way, ([1], [1]))  # the axis that was transformed comes out last
    together = product.real.abs()
    highest = functional.max_pool3d(together[:, None], 3, 1, 1)[:, 0]
    peaks = torch.where(together == highest, together, -1.0).flatten(1)
    found = peaks.topk(min(_PEAKS, peaks.shape[1]), 1)
    return found.values, torch.stack(torch.unravel_index(found.indices, tuple(together.shape[1:])), 2)


def _inverse(cells: int, reach: int, frequencies: int) -> Tensor:
    """The rows of an inverse Fourier transform for displacements from ``-reach`` to ``reach``, ``(2 reach + 1, frequencies)``."""
    places = torch.arange(-reach, reach + 1)
    waves = torch.exp(2j * math.pi * places[:, None] * torch.arange(frequencies) / cells)
    twice = torch.ones(frequencies)
    if frequencies < cells:  # of a real volume, half of the frequencies are not stored
        twice[1 : (cells + 1) // 2] = 2
    return (waves * twice).to(torch.complex64)


def _laid(around: Tensor, where: Tensor, shape: Sequence[int]) -> Tensor:
    """Each volume ``(M, C, ...)`` from its own first cell on."""
    ways = [tuple(slice(int(a), int(a) + n) for a, n in zip(at, shape, strict=True)) for at in where]
    return torch.stack([one[(slice(None), *way)] for one, way in zip(around, ways, strict=True)])


def _blocks(x: Tensor) -> Tensor:
    """Means over blocks of ``(M, I, J, K)``, a step of half a block apart, flattened: ``(M, blocks)``."""
    halves = functional.avg_pool3d(x[:, None], [max(1, min(_BLOCK, n) // 2) for n in x.shape[1:]])
    return functional.avg_pool3d(halves, [min(2, n) for n in halves.shape[2:]], 1).flatten(1)
