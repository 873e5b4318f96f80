"""Shapes against closed forms and symmetries; cells of a lattice against volumes; overlaps against Dice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics.shapes import Shape, cells_of, centroid_mm, mask_of, overlaps, shape_of
from latentsynth.metrics.surfaces import Mask, dice

seeds = st.integers(0, 2**32 - 1)


def scaled(*spacing: float, origin: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def ball(radius_mm: float, spacing: tuple[float, float, float]) -> Mask:
    axes = [np.arange(-math.ceil(radius_mm / s) - 2, math.ceil(radius_mm / s) + 3) * s for s in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


def box(*size: int) -> Mask:
    return np.pad(np.ones(size, dtype=bool), 2)


def blob(seed: int, shape: tuple[int, int, int] = (12, 14, 16)) -> Mask:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return field > np.quantile(field, 0.85)


def same(one: Shape, other: Shape, scale: float = 1.0) -> None:
    """Equal, or equal but for a scale in mm; where it lies aside."""
    assert other.volume_ml == pytest.approx(one.volume_ml * scale**3)
    assert other.surface_mm2 == pytest.approx(one.surface_mm2 * scale**2, rel=1e-5)
    assert other.sphericity == pytest.approx(one.sphericity, rel=1e-5)
    assert other.pieces == one.pieces
    assert other.largest_share == pytest.approx(one.largest_share)
    assert other.elongation == pytest.approx(one.elongation)


@pytest.mark.parametrize("voxel", [0.5, 1.0])
@pytest.mark.parametrize("radius", [8.0, 13.0])
def test_balls_are_the_roundest_but_for_the_roughness_of_voxels(voxel: float, radius: float) -> None:
    found = shape_of(ball(radius, (voxel,) * 3), scaled(voxel, voxel, voxel))
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * radius**3 / 1000, rel=0.02)
    assert found.sphericity == pytest.approx(0.92, abs=0.015)
    assert found.elongation == pytest.approx(1)
    assert found.centroid_mm == pytest.approx([(math.ceil(radius / voxel) + 2) * voxel] * 3)


def test_cubes_approach_their_sphericity_and_plates_have_less() -> None:
    values = [shape_of(box(n, n, n), np.eye(4)).sphericity for n in (10, 20, 40, 80)]
    away = np.abs(np.array(values) - (math.pi / 6) ** (1 / 3))  # 0.806; edges are cut by half a voxel
    assert (np.diff(away) < 0).all()
    assert away[-1] < 0.007
    assert shape_of(box(20, 20, 2), np.eye(4)).sphericity < 0.6


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.floats(0.4, 4)] * 3))
@settings(max_examples=25)
def test_the_elongation_of_a_cuboid_is_exact(size: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    edges = sorted(n * s for n, s in zip(size, spacing, strict=True))
    found = shape_of(box(*size), scaled(*spacing))
    assert found.elongation == pytest.approx(edges[1] / edges[2])
    assert found.volume_ml == pytest.approx(math.prod(edges) / 1000)


@given(seeds, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=20)
def test_the_order_of_axes_on_disk_is_no_matter(seed: int, order: list[int], flips: tuple[bool, bool, bool]) -> None:
    mask, affine = blob(seed), scaled(1.0, 2.5, 0.7, origin=(-30.0, 4.0, 11.0))
    stored = np.transpose(mask, order)
    turned = affine.copy()
    turned[:3, :3] = affine[:3, order]
    for axis in np.flatnonzero(flips):
        stored = np.flip(stored, axis)
        turned[:3, 3] += turned[:3, axis] * (stored.shape[axis] - 1)
        turned[:3, axis] *= -1
    one, other = shape_of(mask, affine), shape_of(stored, turned)
    same(one, other)
    assert other.centroid_mm == pytest.approx(one.centroid_mm)
    np.testing.assert_array_equal(cells_of(stored, turned, 3.1), cells_of(mask, affine, 3.1))


@given(seeds, st.floats(0.3, 5))
@settings(max_examples=10)
def test_size_scales_and_form_does_not(seed: int, scale: float) -> None:
    mask = blob(seed)
    same(shape_of(mask, scaled(1, 2, 0.7)), shape_of(mask, scaled(scale, 2 * scale, 0.7 * scale)), scale)


def test_a_turned_scan_is_the_same_shape_elsewhere() -> None:
    mask, angle = blob(3), math.radians(30)
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    affine, turned = scaled(1, 2, 0.7), np.eye(4)
    turned[:3, :3] = turn @ affine[:3, :3]
    one, other = shape_of(mask, affine), shape_of(mask, turned)
    same(one, other)
    np.testing.assert_allclose(other.centroid_mm, turn @ one.centroid_mm)


def test_pieces_and_the_share_of_the_largest() -> None:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[2:6, 2:6, 2:6] = True
    mask[10:12, 10:12, 10:12] = True
    mask[15, 15, 15] = mask[16, 16, 16] = True  # corners connect
    found = shape_of(mask, np.eye(4))
    assert (found.pieces, found.largest_share) == (3, pytest.approx(64 / 74))
    assert set(found.measures) >= {"volume, ml", "sphericity", "pieces"}
    assert found.measures["volume, log10 ml"] == pytest.approx(math.log10(found.volume_ml))


def test_one_voxel_has_a_shape_and_no_voxel_has_none() -> None:
    mask = np.zeros((5, 5, 5), dtype=bool)
    with pytest.raises(DataError, match="empty mask"):
        shape_of(mask, np.eye(4))
    mask[4, 0, 2] = True
    found = shape_of(mask, np.eye(4))
    assert found.pieces == 1
    assert np.isfinite(list(found.measures.values())).all()
    assert found.centroid_mm == centroid_mm(mask, np.eye(4)) == (4, 0, 2)


# Cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 0.5), (1.0, 1.0, 5.0), (3.0, 0.8, 2.0), (9.0, 9.0, 9.0)])
def test_cells_keep_the_volume_of_a_ball(spacing: tuple[float, float, float]) -> None:
    mask = ball(30.0, spacing)
    volume = mask.sum() * math.prod(spacing)
    assert len(cells_of(mask, scaled(*spacing), 4.0)) * 64 == pytest.approx(volume, rel=0.03)


@pytest.mark.parametrize("spacing", [(1.0, 2.0, 4.0), (4.0, 4.0, 4.0), (8.0, 4.0, 0.5), (12.0, 4.0, 4.0)])
def test_cells_of_a_box_on_the_lattice_are_exact(spacing: tuple[float, float, float]) -> None:
    """From 24 to 48 mm along every axis, whatever the voxels that it is made of."""
    sizes = [round(24 / step) for step in spacing]
    mask = np.ones(sizes, dtype=bool)
    origin = tuple(24 + step / 2 for step in spacing)
    found = cells_of(mask, scaled(*spacing, origin=origin), 4.0)  # type: ignore[arg-type]
    assert found.tolist() == [list(cell) for cell in itertools.product(range(6, 12), repeat=3)]


def test_cells_are_counted_from_the_origin_and_may_be_negative() -> None:
    mask = np.ones((2, 2, 2), dtype=bool)
    cells = cells_of(mask, scaled(1, 1, 1, origin=(-3.5, 0.5, 0.5)), 2.0)
    assert cells.tolist() == [[-2, 0, 0]]
    assert cells_of(mask, scaled(1, 1, 1, origin=(-3.5, 0.5, 0.5)), 2.0, (-4.0, 0, -2.0)).tolist() == [[0, 0, 1]]


def test_a_lesion_too_small_for_any_cell_is_not_lost() -> None:
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[3, 3, 3] = True
    assert cells_of(mask, np.eye(4), 4.0).tolist() == [[0, 0, 0]]


@given(seeds)
@settings(max_examples=15)
def test_cells_as_a_mask_are_the_same_cells(seed: int) -> None:
    cells = cells_of(blob(seed), scaled(1.1, 2.0, 0.7, origin=(-9.0, 3.0, 0.4)), 1.7)
    mask, affine = mask_of(cells, 1.7)
    np.testing.assert_array_equal(cells_of(mask, affine, 1.7), cells)
    assert mask.sum() == len(cells)
    found = np.array(centroid_mm(mask, affine)), cells.mean(0) * 1.7 + 0.85
    np.testing.assert_allclose(*found)


@given(seeds)
@settings(max_examples=15)
def test_overlaps_are_dice(seed: int) -> None:
    masks = [blob(seed + n) for n in range(5)]
    cells = [cells_of(mask, scaled(2, 2, 2), 2.0, (-1.0, -1.0, -1.0)) for mask in masks]
    found = overlaps(cells[:2], cells[2:])
    np.testing.assert_allclose(found, [[dice(a, b) for b in masks[2:]] for a in masks[:2]])
    assert overlaps(cells, cells).diagonal() == pytest.approx(1)


def test_a_copy_that_was_moved_overlaps_where_centroids_meet() -> None:
    mask = np.pad(blob(7), 8)
    moved = np.roll(mask, (5, -3, 2), (0, 1, 2))
    cells = [cells_of(m, np.eye(4), 2.0, centroid_mm(m, np.eye(4))) for m in (mask, moved)]
    assert overlaps(cells[:1], cells[1:])[0, 0] == 1
    where = [cells_of(m, np.eye(4), 2.0) for m in (mask, moved)]
    assert overlaps(where[:1], where[1:])[0, 0] < 0.6


def test_an_affine_that_leads_nowhere_is_refused() -> None:
    mask = np.ones((2, 2, 2), dtype=bool)
    with pytest.raises(DataError, match="check its affine"):
        cells_of(mask, scaled(1, 1, 1, origin=(1e9, 0.0, 0.0)), 1.0)
    with pytest.raises(DataError, match="spacing"):
        cells_of(mask, np.eye(4), 0.0)
    with pytest.raises(DataError, match="spacing"):
        shape_of(mask, np.diag([1.0, 0.0, 1.0, 1.0]))
