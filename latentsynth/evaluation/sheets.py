"""Volumes of several cohorts side by side: made for the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from latentsynth.data.cache.volumes import Volume
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.types import Case, Domain

_SHOWN = 4


def shared_patients(cohorts: Sequence[Cohort]) -> list[str]:
    """Whom all of the cohorts have a volume of, in the order of the first; some cohorts may bring none at all."""
    known = [set(cohort.patients) for cohort in cohorts]
    return [p for p in dict.fromkeys(cohorts[0].patients) if all(p in patients for patients in known)]


def same_masks(path: Path, cohorts: Sequence[Cohort], read: Callable[[Case], Volume], domain: Domain) -> Path | None:
    """Writes a picture: one row per mask, one volume of every cohort in it, the mask outlined.

    Args:
        path: PNG to write.
        cohorts: At least two with patients in common; without any, nothing is written.
        read: Brings a case to one grid.
        domain: Of that grid.
    """
    everyone = shared_patients(cohorts)
    if len(cohorts) < 2 or not everyone:
        return None
    rows = []
    for n in np.linspace(0, len(everyone) - 1, min(_SHOWN, len(everyone))).astype(int):
        tiles = []
        for cohort in cohorts:
            volume = read(cohort.cases[cohort.patients.index(everyone[n])])
            tiles.append(Tile(cohort.name, volume.image, volume.mask))
        rows.append(tiles)
    return contact_sheet(path, rows, Legend.of(domain), "volumes for the same masks", domain.lesion_indices)
