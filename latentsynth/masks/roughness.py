"""Smooth random fields in millimetres, and the rough ellipsoids and gentle deformations made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.interpolate import BSpline

Floats = np.ndarray


def unit_field(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float], control_mm: float
) -> Floats:
    """Smooth Gaussian field of mean 0 and variance 1; features are about ``control_mm`` wide.

    Args:
        rng: Source of randomness.
        shape: Voxels ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        control_mm: Distance between control points.

    Returns:
        float32, shape ``(I, J, K)``.
    """
    bases = [basis / np.linalg.norm(basis, axis=1, keepdims=True) for basis in _bases(shape, spacing_mm, control_mm)]
    return _spread(rng.standard_normal, bases)


def bounded_field(
    rng: np.random.Generator, shape: Sequence[int], spacing_mm: Sequence[float], control_mm: float
) -> Floats:
    """Smooth field between -1 and 1: a cubic B-spline over uniform control points (Rueckert et al. 1999, eq. 1).

    As a displacement of at most 0.4 control spacings along each axis it never folds (Choi and Lee 2000).

    Args:
        rng: Source of randomness.
        shape: Voxels ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        control_mm: Distance between control points.

    Returns:
        float32, shape ``(I, J, K)``.
    """
    return _spread(lambda size: rng.uniform(-1, 1, size), _bases(shape, spacing_mm, control_mm))


def _bases(shape: Sequence[int], spacing_mm: Sequence[float], control_mm: float) -> list[Floats]:
    """Per axis the weight of every control point at every voxel, ``(voxels, points)``; rows sum to 1."""
    bases = []
    for voxels, spacing in zip(shape, spacing_mm, strict=True):
        at = np.arange(voxels) * spacing / control_mm
        points = int(at[-1]) + 4
        bases.append(BSpline(np.arange(-3, points + 1), np.eye(points), 3)(at).astype(np.float32))
    return bases


def _spread(draw: Callable[[tuple[int, ...]], Floats], bases: Sequence[Floats]) -> Floats:
    field = draw(tuple(basis.shape[1] for basis in bases)).astype(np.float32)
    for basis in bases:  # each turn spreads the first axis over its voxels and moves it to the back
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


def rough_radius(
    rng: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    centre: Sequence[float],
    radius_mm: float,
    elongation: float,
    roughness: Sequence[float],
) -> Floats:
    """Distance from a centre in the metric of a random ellipsoid with a rough surface.

    The voxels below any limit are a lesion; how many there are sets the limit, not the radius. With spheres of a few
    fixed sizes this is the shape generator of DiffTumor (Chen et al. 2024, https://arxiv.org/abs/2402.19470).

    Args:
        rng: Source of randomness.
        shape: Voxels ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        centre: Voxel coordinates of the centre, ``(3,)``.
        radius_mm: Radius of the sphere of the lesion's volume; the scale of the roughness.
        elongation: Largest |log| of a half axis over the radius.
        roughness: Per octave, the deviation of the surface in radii; features halve from octave to octave.

    Returns:
        Millimetres, float32, shape ``(I, J, K)``.
    """
    offsets = [
        ((np.arange(n, dtype=np.float32) - c) * mm).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (n, c, mm) in enumerate(zip(shape, centre, spacing_mm, strict=True))
    ]
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] * np.exp(rng.uniform(-elongation, elongation, (3, 1)))
    squared = np.zeros(tuple(shape), dtype=np.float32)
    for row in turn.astype(np.float32):
        squared += sum(t * offset for t, offset in zip(row, offsets, strict=True)) ** 2
    radius = np.sqrt(squared)
    finest_mm = 2 * max(spacing_mm)  # what is finer than two voxels is noise, not a surface
    for octave, rough in enumerate(roughness):
        radius += np.float32(rough * radius_mm) * unit_field(
            rng, shape, spacing_mm, max(radius_mm / 2**octave, finest_mm)
        )
    return radius
