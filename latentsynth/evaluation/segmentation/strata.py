"""Lesions by size: thirds of a reference cohort by volume, and fixed bins of diameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsynth.evaluation.cohorts import rng
from latentsynth.metrics.bootstrap import mean_interval
from latentsynth.metrics.lesions import LesionScores
from latentsynth.results import Estimate

_LEAST = 6  # fewer cases give strata of one
_DIAMETERS_MM = (5, 10, 20)
DIAMETERS = ("up to 5 mm", "5 to 10 mm", "10 to 20 mm", "above 20 mm")


def recall_by_diameter(scores: Sequence[LesionScores], patients: Sequence[str]) -> list[tuple[int, Estimate | None]]:
    """Lesions of each of :data:`DIAMETERS`, and the share of them that was found, with its interval over patients; None where
    there are none.

    Args:
        scores: Of every case.
        patients: Whose each case is.
    """
    lesions = [
        (int(np.searchsorted(_DIAMETERS_MM, mm)), hit, patient)
        for one, patient in zip(scores, patients, strict=True)
        for mm, hit in zip(one.lesion_mm, one.lesion_found, strict=True)
    ]
    bins = [[(hit, who) for n, hit, who in lesions if n == wanted] for wanted in range(len(DIAMETERS))]
    return [
        (
            len(one),
            Estimate(*mean_interval([float(hit) for hit, _ in one], [who for _, who in one], rng())) if one else None,
        )
        for one in bins
    ]


@dataclass(frozen=True)
class SizeBins:
    """Three strata of volume.

    Attributes:
        low_ml: Upper end of the small ones.
        high_ml: Lower end of the large ones.
    """

    low_ml: float
    high_ml: float

    @classmethod
    def of(cls, volumes_ml: Sequence[float]) -> SizeBins | None:
        """Thirds of these volumes, empty ones left out; None where there are too few, or where they hardly differ."""
        volumes_ml = [volume for volume in volumes_ml if volume > 0]
        if len(volumes_ml) < _LEAST:
            return None
        low, high = (float(q) for q in np.quantile(volumes_ml, (1 / 3, 2 / 3)))
        return cls(low, high) if low < high else None

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of the strata, with their bounds."""
        return (
            f"small, up to {self.low_ml:.3g} ml",
            f"medium, {self.low_ml:.3g} to {self.high_ml:.3g} ml",
            f"large, above {self.high_ml:.3g} ml",
        )

    def name(self, volume_ml: float) -> str:
        """The stratum of a volume."""
        return self.names[0 if volume_ml <= self.low_ml else 1 if volume_ml <= self.high_ml else 2]
