"""Label maps of rough ellipsoids, as a person places them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsynth.errors import DataError
from latentsynth.masks.roughness import unit_field
from latentsynth.randomness import Stream, generator
from latentsynth.types import Grid, Labels

_MOST = 50  # ellipsoids of one mask
_BUMPS = 0.7  # distance of control points of the surface, in mean half axes


@dataclass(frozen=True)
class Ellipsoid:
    """One shape.

    Attributes:
        label: Label value.
        centre_mm: From the middle of the map, to the right, the front and the head.
        radii_mm: Half axes along these directions.
        roughness: Deviation of the surface, as a share of the radius.
        seed: Of the roughness.
    """

    label: int
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    roughness: float = 0.0
    seed: int = 0


def empty_affine(grid: Grid) -> np.ndarray:
    """Affine of a map on a grid of its own, whose middle is the origin of the world."""
    affine = np.diag([*grid.spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(grid.shape) - 1) / 2 * np.array(grid.spacing_mm)
    return affine


def draw(shapes: Sequence[Ellipsoid], labels: Labels, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """The label map of some ellipsoids; later ones lie over earlier ones.

    Args:
        shapes: At least one.
        labels: Label values that may be drawn.
        shape: Of the map, ``(I, J, K)``.
        affine: Of the map, ``(4, 4)``: its own grid, or that of a scan.

    Returns:
        Label values, int16.

    Raises:
        DataError: No shape, a label that the model does not know, or a shape without voxels.
    """
    if not 1 <= len(shapes) <= _MOST:
        raise DataError(f"{len(shapes)} ellipsoids: draw 1 to {_MOST}")
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    index = np.indices(tuple(shape)).reshape(3, -1)
    where = (affine[:3, :3] @ index - middle[:, None]).reshape(3, *shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    values = np.zeros(tuple(shape), dtype=np.int16)
    for number, one in enumerate(shapes, 1):
        _check(one, number, labels)
        away = (where - np.array(one.centre_mm)[:, None, None, None]) / np.array(one.radii_mm)[:, None, None, None]
        distance = np.sqrt((away**2).sum(0))
        if one.roughness:
            bumps_mm = max(_BUMPS * float(np.mean(one.radii_mm)), 2 * float(spacing.max()))
            rng = generator(one.seed, Stream.DEFORMED, number)
            distance = distance - one.roughness * unit_field(rng, shape, spacing.tolist(), bumps_mm)
        if not (distance <= 1).any():
            raise DataError(f"ellipsoid {number} holds no voxel: move it inside, or make it larger")
        values[distance <= 1] = one.label
    return values


def _check(one: Ellipsoid, number: int, labels: Labels) -> None:
    numbers = (*one.centre_mm, *one.radii_mm, one.roughness)
    if not np.isfinite(numbers).all() or min(one.radii_mm) <= 0 or not 0 <= one.roughness <= 1:
        raise DataError(
            f"ellipsoid {number}: centre {one.centre_mm}, half axes {one.radii_mm} mm, roughness {one.roughness:g}: give finite "
            "numbers, half axes above 0 and a roughness from 0 to 1"
        )
    if one.label not in labels.values or one.label == 0:
        known = ", ".join(f"{v} = {n}" for v, n in zip(labels.values, labels.names, strict=True) if v)
        raise DataError(f"ellipsoid {number}: label {one.label} is none of {known}")
