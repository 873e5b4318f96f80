"""Scans whose header has a wrong spacing: copies with the spacing that a table gives, which every later reading uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from latentsynth.data import nifti
from latentsynth.outputs import claim, finish
from latentsynth.types import Case

KIND = "scans with another spacing"
_PART = "scans"

Spacing = tuple[float, float, float]


def respaced(affine: np.ndarray, spacing_mm: Spacing | None) -> np.ndarray:
    """An affine ``(4, 4)`` with other voxel edges along the file's axes; directions and the first voxel stay."""
    if spacing_mm is None:
        return affine
    out = affine.copy()
    out[:3, :3] *= np.asarray(spacing_mm) / voxel_sizes(affine)
    return out


def write_respaced(cases: Sequence[Case], spacings: dict[str, Spacing], folder: Path) -> list[Case]:
    """Copies the files of some cases with another spacing; the cases name the copies, all others stay as they are.

    Args:
        cases: The cohort.
        spacings: Edges in mm along the file's axes, by case id.
        folder: Where the copies go.

    Raises:
        DataError: The folder holds something else.
    """
    if not any(case.case_id in spacings for case in cases):
        return list(cases)
    claim(folder, KIND, parts=(_PART,))
    made = []

    def copied(path: Path, case: Case, name: str) -> Path:
        voxels, affine = nifti.read(path)
        made.append(folder / _PART / f"{case.case_id}_{name}.nii.gz")
        nifti.write(made[-1], voxels, respaced(affine, spacings[case.case_id]))
        return made[-1]

    out = [
        replace(
            case,
            images=tuple(copied(path, case, f"{n:04d}") for n, path in enumerate(case.images)),
            mask=copied(case.mask, case, "mask") if case.mask else None,
        )
        if case.case_id in spacings
        else case
        for case in cases
    ]
    finish(folder, made)
    return out
