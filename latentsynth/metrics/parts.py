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
_MOST_VOXELS = 1 << 24  # of reference volumes at a time: their spectra and surroundings lie in memory
_IN_CACHE = 1 << 18  # frequencies that are worked on at a time


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
    x, y = (torch.from_numpy(np.require(a, np.float32, ["C", "W"])).view(-1, *shape) for a in (queries, reference))
    size = max(1, _MOST_VOXELS // math.prod(shape))
    score = torch.zeros(len(x), len(y))
    for first in range(0, len(y), size):
        some = slice(first, first + size)
        laid = _Reference(y[some])
        for way in (x, *(x.flip(1 + axis + 1) for axis in mirror)):
            score[:, some] = torch.maximum(score[:, some], laid.scores(way))
    best, rows = score.double().topk(k)
    return (2 * (1 - best).clamp(min=0)).sqrt().numpy(), rows.numpy()


class _Reference:
    """Volumes ``(M, C, I, J, K)`` that others are laid on."""

    def __init__(self, volumes: Tensor):
        shape = volumes.shape[2:]
        self.volumes, self.reach = volumes, [n // _SHIFT for n in shape]
        self.padded = [n + r for n, r in zip(shape, self.reach, strict=True)]
        self.spectra = torch.fft.rfftn(volumes, s=self.padded, dim=(2, 3, 4))
        self.around = functional.pad(volumes, [r for r in reversed(self.reach) for _ in range(2)])
        self.power = _power_everywhere(self.around, shape)
        self.halves, self.blocks = _cut(volumes), _blocks(volumes.square().sum(1))

    def scores(self, queries: Tensor) -> Tensor:
        """Mean absolute correlation of the best third of the blocks, ``(N, M)``."""
        owns = _blocks(queries.square().sum(1))
        scores = self._where_they_lie(queries, owns)
        for query, own, score in zip(queries, owns, scores, strict=True):
            height, places = _peaks(query, self.spectra, self.padded, self.reach)
            for m in height[:, 0].topk(min(_CLOSE, len(height))).indices.tolist():
                score[m] = torch.maximum(score[m], self._displaced(m, query, own, places[m].tolist()))
        return scores

    def _where_they_lie(self, queries: Tensor, owns: Tensor) -> Tensor:
        """The same with no displacement, as products of matrices, one for each half of a block."""
        size, counts = _halves(queries.shape[2:])
        products = torch.bmm(_cut(queries), self.halves.transpose(1, 2)) / math.prod(size)
        product = _joined(products.flatten(1).T, counts).view(len(queries), len(self.volumes), -1)
        return torch.stack([_agreement(one, own, self.blocks) for one, own in zip(product, owns, strict=True)])

    def _displaced(self, m: int, query: Tensor, own: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
        """The best score of one volume at some first cells."""
        around, shape = self.around[m], query.shape[1:]
        product = torch.stack([(query * _laid(around, at, shape)).sum(0) for at in places])
        power = torch.stack([_blocks_of(self.power[m], at, shape) for at in places])
        return _agreement(_blocks(product), own, power).max()


def _agreement(product: Tensor, own: Tensor, power: Tensor) -> Tensor:
    """Mean absolute correlation of the best third of the blocks of one query and volumes ``(M,)`` that lie on it.

    Args:
        product: Mean product by block, ``(M, blocks)``.
        own: Mean square of the query by block, ``(blocks,)``.
        power: Of the volumes, ``(M, blocks)``.
    """
    asked = own > _FULL * own.max()
    own, power, product = own[asked], power[:, asked], product[:, asked]
    alike = product.abs() / (own * power).clamp(min=1e-12).sqrt()
    alike = torch.where(power > _FULL * own, alike, 0.0)
    count = min(max(1, math.ceil(alike.shape[1] * _SHARE)), alike.shape[1])
    return alike.topk(count, 1).values.mean(1) if count else torch.zeros(len(product))


def _peaks(query: Tensor, spectra: Tensor, padded: Sequence[int], reach: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Highest places of the cross-correlation within reach: heights ``(M, P)``, and first cells there, ``(M, P, 3)``."""
    own = torch.fft.rfftn(query, s=list(padded), dim=(1, 2, 3)).conj()
    # The inverse transform, at the few displacements within reach alone.
    i, j, k = (_inverse(n, r, spectra.shape[2 + axis]) for axis, (n, r) in enumerate(zip(padded, reach, strict=True)))
    few = spectra.split(max(1, _IN_CACHE // spectra[0].numel()))
    products = ((part * own).sum(1) if len(own) > 1 else part[:, 0] * own[0] for part in few)
    together = torch.cat([(i @ (j @ (part @ k.T)).flatten(2)).real.abs() for part in products])
    together = together.unflatten(2, (len(j), len(k)))
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


def _laid(around: Tensor, where: Sequence[int], shape: Sequence[int]) -> Tensor:
    """A volume ``(C, ...)`` from a cell on."""
    return around[(slice(None), *(slice(at, at + n) for at, n in zip(where, shape, strict=True)))]


def _halves(shape: Sequence[int]) -> tuple[list[int], list[int]]:
    """Cells of half a block by axis, and how many such halves there are."""
    size = [max(1, min(_BLOCK, n) // 2) for n in shape]
    return size, [n // cells for n, cells in zip(shape, size, strict=True)]


def _cut(volumes: Tensor) -> Tensor:
    """Volumes ``(N, C, I, J, K)`` by halves of blocks, ``(halves, N, cells)``."""
    (a, b, c), (i, j, k) = _halves(volumes.shape[2:])
    inside = volumes[:, :, : a * i, : b * j, : c * k].reshape(*volumes.shape[:2], i, a, j, b, k, c)
    return inside.permute(2, 4, 6, 0, 1, 3, 5, 7).reshape(i * j * k, len(volumes), -1)


def _blocks(x: Tensor) -> Tensor:
    """Means over blocks of ``(M, I, J, K)``, a step of half a block apart, flattened: ``(M, blocks)``."""
    size, counts = _halves(x.shape[1:])
    return _joined(functional.avg_pool3d(x[:, None], size).flatten(1), counts)


def _joined(halves: Tensor, counts: Sequence[int]) -> Tensor:
    """Blocks ``(M, blocks)`` of their halves ``(M, halves)``, each the mean of those it covers."""
    return functional.avg_pool3d(halves.view(-1, 1, *counts), [min(2, n) for n in counts], 1).flatten(1)


def _power_everywhere(around: Tensor, shape: Sequence[int]) -> Tensor:
    """Mean square of a block of volumes of that shape that begins at each cell of ``(M, C, I, J, K)``, ``(M, I', J', K')``."""
    power = around.square().sum(1)
    for axis, (size, count) in enumerate(zip(*_halves(shape), strict=True), 1):
        power = power.unfold(axis, size * min(2, count), 1).mean(-1)
    return power


def _blocks_of(power: Tensor, where: Sequence[int], shape: Sequence[int]) -> Tensor:
    """What :func:`_blocks` gives for a volume that lies at a cell, of what :func:`_power_everywhere` gives, ``(blocks,)``."""
    size, counts = _halves(shape)
    starts = [n - min(2, n) + 1 for n in counts]
    ways = [slice(at, at + (many - 1) * step + 1, step) for at, many, step in zip(where, starts, size, strict=True)]
    return power[tuple(ways)].flatten()
