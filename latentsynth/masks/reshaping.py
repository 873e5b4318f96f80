"""Lesions reshaped in place: cut, bridged, smoothed, grown and shrunk, to a distance or to a number of voxels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from latentsynth.config.mask_shapes import DeformConfig
from latentsynth.masks.placement import fitted, holding
from latentsynth.masks.roughness import bounded_field, unit_field
from latentsynth.metrics.lesions import components

_SPECK = 0.05  # pieces with a smaller share of the volume are dropped where there are too many
_LEAST_SHARE = 0.15  # of a piece on either side of a cut
_WAVES = 0.05  # deviation of a cut from a plane, in lengths of the lesion
_MOST_DEPTH = 0.3  # of its greatest depth that a lesion may lose
_CUTS = 8  # most cuts or bridges to reach a wanted number of lesions


def reshaped(
    rng: np.random.Generator,
    shaped: np.ndarray,
    room: np.ndarray,
    spacing_mm: Sequence[float],
    config: DeformConfig,
    lesions: tuple[int, int] | None,
    voxels: int | None,
) -> np.ndarray | None:
    """A lesion cut, bridged, smoothed, and grown or shrunk.

    Args:
        rng: Source of randomness.
        shaped: The lesion, boolean, ``(I, J, K)``.
        room: Voxels that it may take, boolean, ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        config: How much.
        lesions: Least and largest number of pieces to come near to, instead of chance.
        voxels: How many to end with, instead of growth or shrinkage by chance.

    Returns:
        Boolean, ``(I, J, K)``; None where the room around the lesion does not hold so many voxels.
    """
    split, merge = rng.random(2) < (config.split, config.merge)
    offset_mm = rng.uniform(-config.shrink_mm, config.grow_mm)
    sigma_mm = rng.uniform(0, config.smooth_mm)
    if lesions is not None:
        shaped = _counted(rng, shaped, room, spacing_mm, config, lesions)
    else:
        shaped = cut(rng, shaped, spacing_mm, config.gap_mm) if split else shaped
        shaped = bridged(shaped, room, spacing_mm, config.bridge_mm) if merge else shaped
    if voxels is None and not offset_mm and not sigma_mm:
        return shaped

    depth = ndimage.distance_transform_edt(shaped, spacing_mm).astype(np.float32)
    away, nearest = ndimage.distance_transform_edt(~shaped, spacing_mm, return_indices=True)
    score = away.astype(np.float32) - depth
    if sigma_mm:
        score = ndimage.gaussian_filter(score, sigma_mm / np.array(spacing_mm))
    # Distances tie in layers of voxels: a gentle field says which part of a layer comes first.
    score += 0.25 * min(spacing_mm) * bounded_field(rng, shaped.shape, spacing_mm, 4 * max(spacing_mm))
    pieces, count = components(shaped)
    if count > 1:  # growing lesions do not merge: halfway between them is a wall
        owner = pieces[tuple(nearest)]
        wall = (ndimage.maximum_filter(owner, 3) != ndimage.minimum_filter(owner, 3)) & ~shaped
        room = room & ~wall
    if voxels is None:
        offset_mm = max(offset_mm, -_MOST_DEPTH * float(depth.max()))  # thin lesions stay
        return holding(room & (score <= offset_mm), shaped)
    return fitted(score, room, voxels, shaped)


def _counted(
    rng: np.random.Generator,
    shaped: np.ndarray,
    room: np.ndarray,
    spacing_mm: Sequence[float],
    config: DeformConfig,
    lesions: tuple[int, int],
) -> np.ndarray:
    """A lesion brought nearer to a number of pieces: specks dropped, neighbours bridged, the largest cut."""
    pieces, count = components(shaped)
    least, most = lesions
    if least <= count <= most:
        return shaped
    goal = int(rng.integers(least, min(most, 2 * least) + 1))
    if count > goal:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        ranks = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")  # 0 is the largest
        shaped = shaped & ((sizes >= _SPECK * sizes.sum()) | (ranks < goal))[pieces]
    for _ in range(_CUTS):
        count = components(shaped)[1]
        if count > goal:
            shaped = bridged(shaped, room, spacing_mm, config.bridge_mm)
        elif count < goal:
            shaped = cut(rng, shaped, spacing_mm, config.gap_mm)
    return shaped


def cut(rng: np.random.Generator, shaped: np.ndarray, spacing_mm: Sequence[float], gap_mm: float) -> np.ndarray:
    """The largest piece cut in two across its longest axis, not quite straight.

    Args:
        rng: Source of randomness.
        shaped: The lesion, boolean, ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        gap_mm: Width of the cut, at least so much that the halves do not touch.

    Returns:
        Boolean, ``(I, J, K)``; the lesion as it was where a half would be next to nothing.
    """
    pieces, _ = components(shaped)
    largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    where = np.argwhere(pieces == largest)
    along = (where - where.mean(axis=0)) * spacing_mm
    axis = np.linalg.svd(along.T @ along)[0][:, 0] + 0.2 * rng.standard_normal(3)
    height = along @ (axis / np.linalg.norm(axis))
    length_mm = float(np.ptp(height)) + min(spacing_mm)
    wavy = unit_field(rng, shaped.shape, spacing_mm, 0.5 * length_mm)  # no scalpel cuts lesions
    height = height + _WAVES * length_mm * wavy[tuple(where.T)]
    place = np.quantile(height, rng.uniform(0.35, 0.65))
    gap_mm = max(gap_mm, 1.3 * float(np.linalg.norm(spacing_mm)))  # the halves do not touch by a corner
    if min((height < place - gap_mm / 2).mean(), (height > place + gap_mm / 2).mean()) < _LEAST_SHARE:
        return shaped
    out = shaped.copy()
    out[tuple(where[np.abs(height - place) <= gap_mm / 2].T)] = False
    return out


def bridged(shaped: np.ndarray, room: np.ndarray, spacing_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """The smallest piece joined to its nearest neighbour by a straight bridge through the room.

    Args:
        shaped: The lesion, boolean, ``(I, J, K)``.
        room: Voxels that the bridge may take, boolean, ``(I, J, K)``.
        spacing_mm: Millimetres per voxel along each axis.
        radius_mm: Radius of the bridge.

    Returns:
        Boolean, ``(I, J, K)``; the lesion as it was where it is of one piece.
    """
    pieces, count = components(shaped)
    if count < 2:
        return shaped
    smallest = pieces == 1 + int(np.argmin(np.bincount(pieces.ravel())[1:]))
    away, nearest = ndimage.distance_transform_edt(~smallest, spacing_mm, return_indices=True)
    end = np.unravel_index(np.argmin(np.where(shaped & ~smallest, away, np.inf)), shaped.shape)
    start = np.array([axis[end] for axis in nearest])
    steps = 2 * int(np.abs(start - end).max()) + 1
    line = np.ones(shaped.shape, dtype=bool)
    line[tuple(np.rint(np.linspace(start, end, steps)).astype(int).T)] = False
    bridge = ndimage.distance_transform_edt(line, spacing_mm) <= radius_mm
    return np.asarray(shaped | (bridge & room))
