"""Cutting lesions out of scans: what a model that paints into a scan sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

MIDDLE = 0.0  # what is put in place of a lesion: the middle of the window, so that the cut itself says nothing


@dataclass(frozen=True)
class Cut:
    """What is cut out of a scan.

    Attributes:
        lesions: Label indices that count as lesion.
        margin_mm: Voxels so near a lesion go with it.
        spacing_mm: Of the grid.
    """

    lesions: tuple[int, ...]
    margin_mm: float
    spacing_mm: tuple[float, float, float]

    def __call__(self, image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """The scan without its lesions.

        Args:
            image: Shape ``(C, I, J, K)`` in [-1, 1].
            mask: Label indices ``(I, J, K)``, or None where nobody annotated: then nothing is cut out.

        Returns:
            A copy, shaped like ``image``.
        """
        out = image.copy()
        if mask is not None:
            out[:, distance_to(np.isin(mask, self.lesions), self.spacing_mm) <= self.margin_mm] = MIDDLE
        return out


def distance_to(inside: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance of every voxel to the nearest one of a mask, mm; 0 inside, infinity where the mask is empty."""
    if not inside.any():
        return np.full(inside.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~inside, sampling=spacing_mm))
