"""Which lesions of a reference mask a predicted one finds, and how far its volume is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from latentsynth.errors import DataError
from latentsynth.metrics.surfaces import Mask, check_masks, check_spacing, volume_ml

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)  # faces, edges and corners: 26


@dataclass(frozen=True)
class LesionScores:
    """Which lesions were found.

    Attributes:
        found: Reference lesions that were found, each by a predicted component of its own.
        lesions: Reference lesions in all.
        false_positives: Predicted components that found none.
        lesion_ml: Volume of each reference lesion in ml.
        lesion_found: Whether each was found, in the same order.
    """

    found: int
    lesions: int
    false_positives: int
    lesion_ml: tuple[float, ...]
    lesion_found: tuple[bool, ...]

    @property
    def recall(self) -> float:
        """Share of the lesions that were found; not a number if there is none."""
        return self.found / self.lesions if self.lesions else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted components that found a lesion; not a number if nothing is predicted."""
        predicted = self.found + self.false_positives
        return self.found / predicted if predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of recall and precision; not a number if there is no lesion and nothing is predicted."""
        both = self.lesions + self.found + self.false_positives
        return 2 * self.found / both if both else math.nan

    @property
    def lesion_mm(self) -> tuple[float, ...]:
        """Diameter of the ball as large as each reference lesion, in mm."""
        return tuple(diameter_mm(ml) for ml in self.lesion_ml)


def diameter_mm(volume_ml: float) -> float:
    """Diameter of the ball of a volume in ml, in mm."""
    return float(np.cbrt(6000 * volume_ml / np.pi))


def components(mask: Mask) -> tuple[NDArray[np.int32], int]:
    """Connected components; voxels that share a face, an edge or a corner are connected.

    Args:
        mask: Boolean, ``(I, J, K)``.

    Returns:
        The number of the component at each voxel, from 1, with 0 outside the mask, ``(I, J, K)``; and how many
        components there are.

    Raises:
        DataError: If the mask is not boolean and 3D.
    """
    check_masks(mask)
    labels, count = ndimage.label(mask, structure=_NEIGHBOURS)
    return labels, int(count)


def lesion_scores(reference: Mask, predicted: Mask, spacing_mm: Sequence[float], min_iou: float = 0.1) -> LesionScores:
    """Match the lesions of the reference, that is, its components, with those of the prediction, one to one.

    Of all ways to pair lesions with predicted components so that none is used twice, the one with the largest sum of
    intersections over unions (Maier-Hein et al. 2024, Nature Methods 21:195; Kuhn 1955). Pairs below ``min_iou`` do not
    count. One component over several lesions thus finds one of them at most, and of several pieces of one lesion all
    but one are false positives.

    Args:
        reference: Boolean, ``(I, J, K)``.
        predicted: Same shape.
        spacing_mm: Size of a voxel along I, J and K in mm.
        min_iou: Least intersection over union of a pair, above 0 and at most 1.

    Raises:
        DataError: If the masks are not boolean, 3D and of one shape, the spacing is not three positive numbers, or
            ``min_iou`` is out of range.
    """
    check_masks(reference, predicted)
    check_spacing(spacing_mm)
    if not 0 < min_iou <= 1:
        raise DataError(
            f"min_iou is {min_iou}, expected a share above 0 and at most 1: use 0.1 to count a lesion as found from a"
            " tenth on"
        )
    lesions, count = components(reference)
    candidates, candidate_count = components(predicted)
    both = reference & predicted
    touching, column = np.unique(candidates[both], return_inverse=True)
    overlap = np.zeros((count, len(touching)), dtype=np.int64)
    np.add.at(overlap, (lesions[both] - 1, column), 1)
    voxels = np.bincount(lesions[reference], minlength=count + 1)[1:]
    sizes = np.bincount(candidates[predicted], minlength=candidate_count + 1)[touching]
    iou = overlap / (voxels[:, None] + sizes - overlap)
    iou[iou < min_iou] = 0
    rows, columns = linear_sum_assignment(iou, maximize=True)
    found = np.zeros(count, dtype=bool)
    found[rows] = iou[rows, columns] > 0
    return LesionScores(
        found=int(found.sum()),
        lesions=count,
        false_positives=candidate_count - int(found.sum()),
        lesion_ml=tuple((voxels * math.prod(spacing_mm) / 1000).tolist()),
        lesion_found=tuple(found.tolist()),
    )


def volume_error(reference: Mask, predicted: Mask, spacing_mm: Sequence[float]) -> tuple[float, float]:
    """Predicted minus reference volume.

    Args:
        reference: Boolean, ``(I, J, K)``.
        predicted: Same shape.
        spacing_mm: Size of a voxel along I, J and K in mm.

    Returns:
        The difference in ml, and as a share of the reference volume; the share is not a number if the reference is
        empty.

    Raises:
        DataError: If the masks are not boolean, 3D and of one shape, or the spacing is not three positive numbers.
    """
    check_masks(reference, predicted)
    expected = volume_ml(reference, spacing_mm)
    error = volume_ml(predicted, spacing_mm) - expected
    return error, error / expected if expected else math.nan
