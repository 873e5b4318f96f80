"""Scores of one segmented case, label by label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from latentsynth.metrics.lesions import LesionScores, lesion_scores, volume_error
from latentsynth.metrics.surfaces import dice, surface_scores, volume_ml
from latentsynth.types import Case, Labels

UNION = "all lesion labels"


@dataclass(frozen=True)
class SegmentationScores:
    """One label of one case. The columns of ``segmenter.csv``.

    Attributes:
        case: Case id.
        patient: Patient id.
        label: Label name, or "all lesion labels" for those together.
        dice: Overlap, 0 to 1.
        surface_dice: Share of both surfaces within the tolerance of each other.
        hd95_mm: 95th percentile Hausdorff distance.
        reference_ml: Annotated volume.
        predicted_ml: Volume found.
        volume_error_ml: Found minus annotated.
        volume_error: The same as a share of the annotated volume.
        lesions: Connected annotated pieces.
        lesions_found: Of them, those that a found piece of their own overlaps by a tenth of their union.
        false_positives: Connected pieces found that are no annotated one's.
        lesion_recall: Share of the annotated pieces that were found.
        lesion_precision: Share of the pieces found that are an annotated one's.
        lesion_f1: Harmonic mean of the two.
        empty: Which of the two masks is empty, if any.
        lesion_ml: Volume of every annotated piece.
        lesion_found: Whether each was found.
    """

    case: str
    patient: str
    label: str
    dice: float
    surface_dice: float
    hd95_mm: float
    reference_ml: float
    predicted_ml: float
    volume_error_ml: float
    volume_error: float
    lesions: int
    lesions_found: int
    false_positives: int
    lesion_recall: float
    lesion_precision: float
    lesion_f1: float
    empty: str
    lesion_ml: tuple[float, ...]
    lesion_found: tuple[bool, ...]

    @property
    def pieces(self) -> LesionScores:
        """The pieces alone."""
        return LesionScores(self.lesions_found, self.lesions, self.false_positives, self.lesion_ml, self.lesion_found)


def score_case(
    case: Case,
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    labels: Labels,
    lesions: Sequence[int],
    tolerance_mm: float,
) -> list[SegmentationScores]:
    """Scores of every label but background, and of the lesion labels together where there are several.

    Args:
        case: For its names.
        reference: Annotated label values, ``(I, J, K)``.
        predicted: Label values found, same shape.
        spacing_mm: Millimetres per voxel along the arrays' own axes.
        labels: Label values and names.
        lesions: Label values that count as lesion.
        tolerance_mm: Tolerance of the surface Dice.
    """
    pairs = {n: (reference == v, predicted == v) for v, n in zip(labels.values, labels.names, strict=True) if v}
    if len(lesions) > 1:
        pairs[UNION] = (np.isin(reference, lesions), np.isin(predicted, lesions))
    rows = []
    for name, (wanted, found) in pairs.items():
        surfaces = surface_scores(wanted, found, spacing_mm, tolerance_mm)
        pieces = lesion_scores(wanted, found, spacing_mm)
        ml, relative = volume_error(wanted, found, spacing_mm)
        rows.append(
            SegmentationScores(
                case.case_id,
                case.patient_id,
                name,
                dice(wanted, found),
                surfaces.surface_dice,
                surfaces.hd95_mm,
                volume_ml(wanted, spacing_mm),
                volume_ml(found, spacing_mm),
                ml,
                relative,
                pieces.lesions,
                pieces.found,
                pieces.false_positives,
                pieces.recall,
                pieces.precision,
                pieces.f1,
                surfaces.empty,
                pieces.lesion_ml,
                pieces.lesion_found,
            )
        )
    return rows


def plain(row: SegmentationScores) -> list[Any]:
    """A row of the CSV file; what is one value per lesion as numbers with spaces between."""
    return [" ".join(f"{item:.4g}" for item in value) if isinstance(value, tuple) else value for value in astuple(row)]
