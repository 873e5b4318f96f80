"""Which lesions of a reference mask a predicted one finds, and how far its volume is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics.surfaces import Mask, check_masks, check_spacing, volume_ml

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)  # faces, edges and corners: 26


@dataclass(frozen=True)
class LesionScores:
    """Which lesions were found.

    Attributes:
        found: Reference lesions that were found.
        lesions: Reference lesions in all.
        false_positives: Predicted components that touch no reference voxel.
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


def lesion_scores(
    reference: Mask, predicted: Mask, spacing_mm: Sequence[float], min_overlap: float = 0.1
) -> LesionScores:
    """Find each lesion of the reference, that is, each of its components, in the prediction.

    A lesion is found if at least ``min_overlap`` of its voxels are predicted, by one component or several. A
    predicted component that shares no voxel with the reference is a false positive; one that covers too little of a
    lesion to find it is neither.

    Args:
        reference: Boolean, ``(I, J, K)``.
        predicted: Same shape.
        spacing_mm: Size of a voxel along I, J and K in mm.
        min_overlap: Share of a lesion's voxels, above 0 and at most 1.

    Raises:
        DataError: If the masks are not boolean, 3D and of one shape, the spacing is not three positive numbers, or
            ``min_overlap`` is out of range.
    """
    check_masks(reference, predicted)
    check_spacing(spacing_mm)
    if not 0 < min_overlap <= 1:
        raise DataError(
            f"min_overlap is {min_overlap}, expected a share above 0 and at most 1: use 0.1 to count a lesion as found"
            " from a tenth of its voxels on"
        )
    lesions, count = components(reference)
    voxels = np.bincount(lesions[reference], minlength=count + 1)[1:]
    hits = np.bincount(lesions[reference & predicted], minlength=count + 1)[1:]
    found = hits / voxels >= min_overlap  # not a product: 0.07 * 100 is above 7

    candidates, candidate_count = components(predicted)
    touching = np.unique(candidates[reference & predicted])
    return LesionScores(
        found=int(found.sum()),
        lesions=count,
        false_positives=candidate_count - len(touching),
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
