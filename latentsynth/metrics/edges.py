"""How sharply intensities change across the border of a lesion, by distance from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics.surfaces import Mask, check_masks, check_spacing


def signed_distance(mask: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Distance of every voxel centre to the border of a mask, mm, negative inside; the border runs along voxel faces.

    Raises:
        DataError: The mask is empty, or fills the grid, so that there is no border; or as :func:`check_masks`.
    """
    check_masks(mask)
    check_spacing(spacing_mm)
    if not mask.any() or mask.all():
        raise DataError(f"a mask of {int(mask.sum())} of {mask.size} voxels has no border: give one with both sides")
    outside, inside = (_to_faces(side, spacing_mm) for side in (~mask, mask))
    return np.where(mask, -inside, outside)


def _to_faces(side: Mask, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Distance of the voxels of a side to the face of the nearest voxel beyond it, along the way to its centre."""
    centres, nearest = ndimage.distance_transform_edt(side, sampling=spacing_mm, return_indices=True)
    step = np.asarray(spacing_mm).reshape(3, 1, 1, 1)
    way = np.abs(np.indices(side.shape) - nearest) * step / np.maximum(centres, 1e-9)  # a unit vector
    half = (step / np.maximum(way, 1e-9)).min(0) / 2  # from that voxel's centre to its own face
    return np.asarray(centres - half)


def border_gradient(
    image: NDArray[np.floating], mask: Mask, spacing_mm: Sequence[float], edges_mm: Sequence[float]
) -> NDArray[np.float64]:
    """Mean size of the intensity's derivative across the border, by distance from it.

    Args:
        image: One channel, ``(I, J, K)``.
        mask: The lesion, boolean, same shape.
        spacing_mm: Voxel edges.
        edges_mm: Ends of the bins of signed distance, ascending, ``(bins + 1,)``; negative inside the lesion.

    Returns:
        Units of intensity per mm, ``(bins,)``; not a number where a bin holds no voxel.

    Raises:
        DataError: As :func:`signed_distance`.
    """
    distance = signed_distance(mask, spacing_mm)
    # Along the distance's own gradient, which points straight away from the border.
    normal = np.array(np.gradient(ndimage.gaussian_filter(distance, 0.5), *spacing_mm))
    length = np.linalg.norm(normal, axis=0)
    slope = np.abs(
        (np.array(np.gradient(image.astype(np.float64), *spacing_mm)) * normal).sum(0) / np.maximum(length, 1e-6)
    )
    where = np.digitize(distance, edges_mm) - 1
    bins = len(edges_mm) - 1
    valid = (where >= 0) & (where < bins) & (length > 0.1)
    count = np.bincount(where[valid], minlength=bins)
    total = np.bincount(where[valid], slope[valid], minlength=bins)
    return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
