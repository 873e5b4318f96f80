"""Cutting lesions out of scans: what a model that paints into a scan sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_AIR = 0.05  # above the bottom of the window, in every channel
_MOSTLY = 0.8  # of a decoy lies in tissue
_ZOOMS = (1.0, 0.7, 0.5, 0.35)  # of the lesions, for a decoy
_TRIES = 40  # places per size
MIDDLE = 0.0  # what is put in place of a lesion: the middle of the window, so that the cut itself says nothing


@dataclass(frozen=True)
class Cut:
    """What is cut out of a scan.

    Attributes:
        lesions: Label indices that count as lesion.
        margin_mm: Voxels so near a lesion go with it.
        spacing_mm: Of the grid.
        decoys: Whether healthy tissue is cut out of a further version.
    """

    lesions: tuple[int, ...]
    margin_mm: float
    spacing_mm: tuple[float, float, float]
    decoys: bool = False

    def __call__(self, image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """The scan without its lesions.

        Args:
            image: Shape ``(C, I, J, K)`` in [-1, 1].
            mask: Label indices ``(I, J, K)``, or None where nobody annotated: then nothing is cut out.

        Returns:
            A copy, shaped like ``image``.
        """
        return image.copy() if mask is None else self.out_of(image, np.isin(mask, self.lesions))

    def out_of(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """A copy of an image ``(C, I, J, K)`` without a region ``(I, J, K)`` and what lies within the margin of it."""
        out = image.copy()
        out[:, distance_to(inside, self.spacing_mm) <= self.margin_mm] = MIDDLE
        return out

    def decoy(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
        """A place for a cut of healthy tissue: the lesions' shape, moved to where there is none.

        A model that sees such cuts without a lesion in its mask learns to fill them with healthy tissue.

        Args:
            image: Shape ``(C, I, J, K)`` in [-1, 1]; -1 everywhere is air.
            mask: Label indices ``(I, J, K)``.
            rng: Draws the place. Shapes are tried at full size first, then smaller.

        Returns:
            The region, ``(I, J, K)``, farther from every lesion than both margins; None where no place was found.
        """
        lesions = np.isin(mask, self.lesions)
        if not lesions.any():
            return None
        free = distance_to(lesions, self.spacing_mm) > 2 * self.margin_mm
        tissue = image.max(axis=0) > -1 + _AIR
        centres = np.argwhere(free & tissue)
        box = lesions[ndimage.find_objects(lesions.view(np.uint8))[0]]
        for zoom in _ZOOMS if len(centres) else ():
            shape = ndimage.zoom(box.view(np.uint8), zoom, order=0).astype(bool) if zoom != 1 else box
            for centre in centres[rng.integers(len(centres), size=_TRIES)]:
                low = centre - np.array(shape.shape) // 2
                if (low < 0).any() or (low + shape.shape > mask.shape).any() or not shape.any():
                    continue
                where = tuple(slice(a, a + n) for a, n in zip(low, shape.shape, strict=True))
                if free[where][shape].all() and tissue[where][shape].mean() >= _MOSTLY:
                    region = np.zeros(mask.shape, bool)
                    region[where] = shape
                    return region
        return None


def distance_to(inside: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance of every voxel to the nearest one of a mask, mm; 0 inside, infinity where the mask is empty."""
    if not inside.any():
        return np.full(inside.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~inside, sampling=spacing_mm))
