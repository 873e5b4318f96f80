"""How well a predicted mask matches a reference one: overlap, volume and distance between their surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from latentsynth.errors import DataError

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

# Ties at the tolerance and at the percentile must not hang on rounding: MONAI's areas are single precision.
_SLACK = 1e-6


@dataclass(frozen=True)
class SurfaceScores:
    """Agreement of two surfaces.

    Attributes:
        surface_dice: Share of both surfaces that lies within the tolerance of the other one, 0 to 1.
        hd95_mm: The larger of the two directed 95th percentile distances, in mm.
        empty: Which of the masks is empty, ``""`` if none is; then the two scores are conventions, not measurements.
    """

    surface_dice: float
    hd95_mm: float
    empty: Literal["", "both", "reference", "predicted"]


def check_masks(*masks: NDArray[Any]) -> None:
    """Make sure that masks are boolean, 3D and of one shape.

    Raises:
        DataError: If one of them is not.
    """
    for mask in masks:
        if mask.dtype != bool:
            raise DataError(
                f"a mask has type {mask.dtype}, expected bool: compare it with a label or a threshold, for example"
                " mask == 1"
            )
        if mask.ndim != 3:
            raise DataError(
                f"a mask has shape {mask.shape}, expected three axes (I, J, K): give one case and one class at a time"
            )
        if mask.shape != masks[0].shape:
            raise DataError(
                f"the masks have shapes {masks[0].shape} and {mask.shape}, expected the same: resample one onto the"
                " grid of the other"
            )


def check_spacing(spacing_mm: Sequence[float]) -> None:
    """Make sure that a spacing is three positive finite numbers.

    Raises:
        DataError: If it is not.
    """
    if len(spacing_mm) != 3 or not all(math.isfinite(step) and step > 0 for step in spacing_mm):
        raise DataError(
            f"the spacing is {tuple(spacing_mm)}, expected three positive numbers of mm, one per axis: take them from"
            " the header of the scan"
        )


def dice(reference: Mask, predicted: Mask) -> float:
    """Dice coefficient of two masks: twice the voxels in common over the sum of both.

    Args:
        reference: Boolean, ``(I, J, K)``.
        predicted: Same shape.

    Returns:
        0 to 1; 1 if both are empty, 0 if exactly one is.

    Raises:
        DataError: If the masks are not boolean, 3D and of one shape.
    """
    check_masks(reference, predicted)
    total = np.count_nonzero(reference) + np.count_nonzero(predicted)
    return 2 * np.count_nonzero(reference & predicted) / total if total else 1.0


def mean_dice(reference: NDArray[Any], predicted: NDArray[Any], labels: int) -> float:
    """Mean Dice over the labels that are in at least one of two label maps; those in neither say nothing.

    Args:
        reference: Label indices, ``(I, J, K)``, 0 is background.
        predicted: Same shape.
        labels: Number of labels, background included.

    Returns:
        0 to 1; not a number where both maps are background alone.
    """
    present = [n for n in range(1, labels) if (reference == n).any() or (predicted == n).any()]
    scores = [dice(reference == n, predicted == n) for n in present]
    return sum(scores) / len(scores) if scores else math.nan


def volume_ml(mask: Mask, spacing_mm: Sequence[float]) -> float:
    """Volume of a mask in ml.

    Args:
        mask: Boolean, ``(I, J, K)``.
        spacing_mm: Size of a voxel along I, J and K in mm.

    Raises:
        DataError: If the mask is not boolean and 3D, or the spacing is not three positive numbers.
    """
    check_masks(mask)
    check_spacing(spacing_mm)
    return np.count_nonzero(mask) * math.prod(spacing_mm) / 1000


def surface_scores(reference: Mask, predicted: Mask, spacing_mm: Sequence[float], tolerance_mm: float) -> SurfaceScores:
    """Surface Dice (Nikolov et al. 2021, https://doi.org/10.2196/26151) and 95th percentile Hausdorff distance.

    The surface runs through the corners between voxels inside and outside the mask, and every corner weighs as much
    as the area of the surface around it. Beyond the border of the image lies background, so a mask that touches the
    border has a surface there.

    Two empty masks agree perfectly: surface Dice 1, distance 0. If exactly one is empty, the surface Dice is 0 and
    the distance is the diagonal of the whole image, a bound that no measured distance can exceed.

    Args:
        reference: Boolean, ``(I, J, K)``.
        predicted: Same shape.
        spacing_mm: Size of a voxel along I, J and K in mm.
        tolerance_mm: Distance in mm up to which two surfaces agree.

    Raises:
        DataError: If the masks are not boolean, 3D and of one shape, the spacing is not three positive numbers, or
            the tolerance is not a finite number of at least 0.
    """
    check_masks(reference, predicted)
    check_spacing(spacing_mm)
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise DataError(
            f"the tolerance is {tolerance_mm}, expected a finite number of mm, at least 0: use about the disagreement"
            " of two experts, for example 1"
        )
    if not reference.any() and not predicted.any():
        return SurfaceScores(1.0, 0.0, "both")
    if not reference.any() or not predicted.any():
        diagonal = math.hypot(*(size * step for size, step in zip(reference.shape, spacing_mm, strict=True)))
        return SurfaceScores(0.0, diagonal, "predicted" if reference.any() else "reference")

    (points, areas), (other_points, other_areas) = surface_points(reference, predicted, spacing_mm)
    there, back = KDTree(other_points).query(points)[0], KDTree(points).query(other_points)[0]
    limit = tolerance_mm * (1 + _SLACK)
    near = areas[there <= limit].sum() + other_areas[back <= limit].sum()
    return SurfaceScores(
        surface_dice=float(near / (areas.sum() + other_areas.sum())),
        hd95_mm=max(_percentile(there, areas), _percentile(back, other_areas)),
        empty="",
    )


def surface_points(reference: Mask, predicted: Mask, spacing_mm: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Of each mask the surface points in mm, ``(N, 3)``, and the areas around them in mm², ``(N,)``."""
    import torch  # both take seconds to import
    from monai.metrics.utils import get_mask_edges

    box = ndimage.find_objects((reference | predicted).astype(np.uint8))[0]
    # MONAI's own way around a pair, compute_surface_dice, warns in 1.6 of an argument that it sets itself, and its
    # Hausdorff distance knows no areas. Hence only the surfaces are MONAI's.
    padded = (torch.from_numpy(np.pad(mask[box], 1)) for mask in (reference, predicted))
    *edges, first, second = get_mask_edges(*padded, crop=False, spacing=tuple(spacing_mm))
    return [
        (np.argwhere(edge.numpy()) * np.asarray(spacing_mm, dtype=float), area[edge].double().numpy())
        for edge, area in zip(edges, (first, second), strict=True)
    ]


def _percentile(distances: Floats, areas: Floats, share: float = 0.95) -> float:
    """The distance that the share of the area does not exceed."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order])
    return float(distances[order][np.searchsorted(covered, share * covered[-1] * (1 - _SLACK))])
