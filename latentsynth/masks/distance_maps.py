"""Lesions as smooth maps that a diffusion model can make: signed distances on a coarse grid, in the box they occur in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from latentsynth.errors import DataError
from latentsynth.pretrained import Pretrained


class DistanceMaps(Pretrained):
    """Label indices to whitened distance maps and back. Owns their scale, as an autoencoder owns its latents'.

    Per lesion label the signed distance to its border, positive inside, cut at ``reach_mm`` and kept inside a box; on
    cells of ``coarsen`` voxels by least squares, so that interpolation comes closest to it (means of cells would be
    smoothed twice and shrink every lesion); gathered so that ``patch`` cells per axis become channels. Back on the
    voxels the border is where the interpolated map crosses 0.

    Args:
        grid: Voxels ``(I, J, K)``.
        spacing_mm: Voxel edges.
        lesions: Label indices that are mapped.
        start: First voxel of the box along each axis.
        size: Voxels of the box along each axis.
        coarsen: Voxels per cell along each axis.
        patch: Cells per axis that become channels.
        reach_mm: Distance at which the maps saturate.
    """

    @register_to_config
    def __init__(
        self,
        grid: Sequence[int],
        spacing_mm: Sequence[float],
        lesions: Sequence[int],
        start: Sequence[int],
        size: Sequence[int],
        coarsen: int,
        patch: int,
        reach_mm: float,
    ):
        super().__init__()
        self.grid, self.spacing_mm, self.lesions = tuple(grid), tuple(spacing_mm), tuple(lesions)
        self.box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
        self.coarsen, self.patch, self.reach_mm = coarsen, patch, reach_mm
        self.cells = tuple(n // (coarsen * patch) for n in size)
        # Not a number until fitted, so that maps of an unfitted scale cannot pass for data.
        self.register_buffer("mean", torch.full((len(self.lesions), 1, 1, 1), torch.nan))
        self.register_buffer("deviation", torch.full((len(self.lesions), 1, 1, 1), torch.nan))
        self.mean: Tensor
        self.deviation: Tensor

    @property
    def channels(self) -> int:
        """Channels ``c`` of the whitened maps."""
        return len(self.lesions) * self.patch**3

    def distances(self, index: np.ndarray) -> Tensor:
        """Label indices ``(I, J, K)`` to coarse distances in the box, in units of the reach, ``(lesions, i, j, k)``."""
        maps = [_signed(index == lesion, self.spacing_mm, self.reach_mm)[self.box] for lesion in self.lesions]
        coarse = torch.from_numpy(np.stack(maps))
        for axis in (1, 2, 3):
            solved = torch.tensordot(coarse, _least_squares(coarse.shape[axis], self.coarsen), dims=([axis], [1]))
            coarse = solved.movedim(-1, axis)
        return coarse.float().contiguous()

    @torch.no_grad()
    def fit_scale(self, distances: Iterable[Tensor]) -> None:
        """Sets mean and deviation per lesion label from what :meth:`distances` gave for the training masks.

        Raises:
            DataError: A lesion label occurs nowhere.
        """
        stacked = torch.stack(list(distances)).double()
        mean, deviation = stacked.mean((0, 2, 3, 4)), stacked.std((0, 2, 3, 4))
        if bool((deviation < 1e-6).any()):
            missing = self.lesions[int(deviation.argmin())]
            raise DataError(f"label index {missing} occurs in no training mask: leave it out of framing.lesion_labels")
        self.mean.copy_(mean.view(-1, 1, 1, 1))
        self.deviation.copy_(deviation.view(-1, 1, 1, 1))

    def whiten(self, distances: Tensor) -> Tensor:
        """Coarse distances ``(..., lesions, i, j, k)`` to what the diffusion model sees, ``(..., c, cells)``."""
        p = self.patch
        white = (distances - self.mean) / self.deviation
        return rearrange(white, "... l (i a) (j b) (k c) -> ... (l a b c) i j k", a=p, b=p, c=p)

    def fields(self, x: Tensor) -> Tensor:
        """What :meth:`whiten` gave, ``(B, c, cells)``, to distances on the voxels, ``(B, lesions, I, J, K)``; -1 beyond the box."""
        p = self.patch
        white = rearrange(x, "n (l a b c) i j k -> n l (i a) (j b) (k c)", a=p, b=p, c=p)
        coarse = white * self.deviation + self.mean
        fine = (
            functional.interpolate(coarse, scale_factor=self.coarsen, mode="trilinear") if self.coarsen > 1 else coarse
        )
        out = coarse.new_full((len(x), len(self.lesions), *self.grid), -1.0)
        out[(slice(None), slice(None), *self.box)] = fine
        return out

    def index(self, fields: Tensor, voxels: Sequence[int | None] | None = None) -> Tensor:
        """Distances ``(B, lesions, I, J, K)`` to label indices, int16, ``(B, I, J, K)``: the deepest label where one is above 0.

        Args:
            fields: What :meth:`fields` gave.
            voxels: Lesion voxels that each mask must hold; the border is moved to where they are that many. None
                leaves it at 0.
        """
        deepest, which = fields.max(1)
        level = torch.zeros(len(fields))
        for row, count in enumerate(voxels or []):
            if count is not None:
                level[row] = deepest[row].flatten().kthvalue(deepest[row].numel() - count).values
        values = torch.tensor(self.lesions, dtype=torch.int16)
        return torch.where(deepest > level.view(-1, 1, 1, 1), values[which.cpu()], 0)


def _least_squares(voxels: int, coarsen: int) -> Tensor:
    """Values on a line to those on its cells from which linear interpolation comes closest, ``(voxels / coarsen, voxels)``."""
    cells = torch.eye(voxels // coarsen, dtype=torch.float64)[None]
    return torch.linalg.pinv(functional.interpolate(cells, scale_factor=coarsen, mode="linear")[0].T)


def _signed(inside: np.ndarray, spacing_mm: Sequence[float], reach_mm: float) -> np.ndarray:
    """Distance to the border between voxels, positive inside, in units of the reach and cut there."""
    if not inside.any():
        return np.full(inside.shape, -1.0)
    # The border runs half a voxel from the centres on either side of it.
    half = min(spacing_mm) / 2
    # Beyond the grid counts as outside, or a lesion that touches its edge would be deep there.
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
    beyond = ndimage.distance_transform_edt(~inside, spacing_mm)
    return np.clip(np.where(inside, depth - half, half - beyond) / reach_mm, -1, 1)


def box_around(seen: np.ndarray, margin: int, unit: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest box of whole units around everything that was seen, with a margin, as far as the grid reaches.

    Args:
        seen: Boolean, ``(I, J, K)``; each axis divides by ``unit``.
        margin: Voxels around it.
        unit: Sizes are multiples of it.

    Returns:
        First voxel and number of voxels along each axis.
    """
    start, size = [], []
    for axis, length in enumerate(seen.shape):
        filled = np.flatnonzero(seen.any(axis=tuple(n for n in range(3) if n != axis)))
        low, high = max(0, int(filled[0]) - margin), min(length, int(filled[-1]) + 1 + margin)
        wide = min(length, -(-(high - low) // unit) * unit)
        start.append(int(np.clip(low - (wide - (high - low)) // 2, 0, length - wide)))
        size.append(wide)
    return tuple(start), tuple(size)
