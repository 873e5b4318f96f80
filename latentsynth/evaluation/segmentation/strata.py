"""Lesions by size: thirds of a reference cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_LEAST = 6  # fewer cases give strata of one


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
