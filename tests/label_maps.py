"""Small label maps on plain, anisotropic and permuted grids, for tests of what makes masks."""

from __future__ import annotations

import numpy as np

from latentsynth.masks import LabelMap
from latentsynth.types import Labels

ORGAN, OTHER, LESION = 1, 2, 4
LABELS = Labels((0, ORGAN, OTHER, LESION))
PERMUTED = np.array([[0, 0, -2.5, 9.0], [-1.25, 0, 0, 4.0], [0, 1.25, 0, -7.0], [0, 0, 0, 1]])  # axes: back, up, left
AFFINES = {"plain": np.diag([1.5, 1.5, 1.5, 1.0]), "anisotropic": np.diag([1.0, 1.5, 3.0, 1.0]), "permuted": PERMUTED}


def ball(shape: tuple[int, ...], spacing: tuple[float, ...], centre: tuple[float, ...], radius_mm: float) -> np.ndarray:
    """Voxels within a radius of a point given as a share of the extent along each axis."""
    axes = [(np.arange(n) - c * (n - 1)) * mm for n, mm, c in zip(shape, spacing, centre, strict=True)]
    return sum(x**2 for x in np.meshgrid(*axes, indexing="ij")) <= radius_mm**2


def anatomy(affine: np.ndarray, name: str = "case", shape: tuple[int, int, int] = (36, 32, 24)) -> LabelMap:
    """An organ with a lesion at its edge, another organ touching it."""
    made = LabelMap(name, np.zeros(shape, np.int16), affine, (f"patient of {name}",))
    s = made.spacing_mm
    reach = min(n * mm for n, mm in zip(shape, s, strict=True))
    made.values[ball(shape, s, (0.45, 0.5, 0.5), 0.42 * reach)] = ORGAN
    made.values[ball(shape, s, (0.8, 0.5, 0.5), 0.25 * reach)] = OTHER
    made.values[ball(shape, s, (0.45, 0.4, 0.5), 0.2 * reach) & (made.values == ORGAN)] = LESION
    return made
