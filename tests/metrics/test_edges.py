"""Gradients across borders: closed forms on balls and ramps, and planted seams that must show."""

from __future__ import annotations

import numpy as np
import pytest

from latentsynth.errors import DataError
from latentsynth.metrics.edges import border_gradient, signed_distance

SPACING = (1.0, 1.5, 2.0)
SHAPE = (48, 34, 26)


def radius() -> np.ndarray:
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(SHAPE, SPACING, strict=True)]
    return np.sqrt(sum(x**2 for x in np.meshgrid(*axes, indexing="ij")))


def test_a_balls_distance_is_its_radius() -> None:
    r = radius()
    found = signed_distance(r <= 14, SPACING)
    assert np.abs(found - (r - 14)).max() < max(SPACING)
    assert np.array_equal(found < 0, r <= 14)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_borders_distance_is_exact_along_every_axis(axis: int) -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[tuple(slice(0, 4) if a == axis else slice(None) for a in range(3))] = True
    spacing = (1.0, 2.0, 5.0)
    found = np.moveaxis(signed_distance(mask, spacing), axis, 0)[:, 5, 5]
    np.testing.assert_allclose(found, (np.arange(10) - 3.5) * spacing[axis], atol=1e-6)


def test_a_radial_ramp_has_its_slope_everywhere_and_a_tilted_plane_less() -> None:
    r = radius()
    ends = [-6, -3, 3, 6]
    np.testing.assert_allclose(border_gradient(0.3 * r, r <= 14, SPACING, ends), 0.3, rtol=0.05)
    # |cos| of the angle to the normal is 1/2 on average over a sphere.
    plane = np.broadcast_to(np.arange(SHAPE[0])[:, None, None] * 1.0, SHAPE)
    np.testing.assert_allclose(border_gradient(plane, r <= 14, SPACING, ends), 0.5, atol=0.06)


def test_a_step_shows_at_the_border_and_a_seam_where_it_is() -> None:
    r = radius()
    ends = [-7, -5, -1.5, 1.5, 5, 7]
    step = border_gradient((r <= 10).astype(float), r <= 10, SPACING, ends)
    assert step.argmax() == 2
    assert step[[0, 4]].max() < 0.02
    seam = border_gradient((r <= 16).astype(float), r <= 10, SPACING, ends)  # 6 mm outside
    assert seam.argmax() == 4


def test_it_is_the_same_in_any_axis_order_and_for_a_negative() -> None:
    r = radius()
    rng = np.random.default_rng(0)
    image = rng.standard_normal(SHAPE)
    ends = [-4, -2, 2, 4]
    found = border_gradient(image, r <= 12, SPACING, ends)
    turned = border_gradient(image.transpose(2, 0, 1), (r <= 12).transpose(2, 0, 1), (2.0, 1.0, 1.5), ends)
    np.testing.assert_allclose(turned, found, rtol=2e-3)  # of equally near voxels another one may be taken
    np.testing.assert_allclose(border_gradient(-image[::-1], (r <= 12)[::-1], SPACING, ends), found, rtol=2e-3)


def test_without_a_border_there_is_no_answer() -> None:
    for mask in (np.zeros(SHAPE, bool), np.ones(SHAPE, bool)):
        with pytest.raises(DataError, match="has no border"):
            signed_distance(mask, SPACING)
    assert np.isnan(border_gradient(radius(), radius() <= 3, SPACING, [-90, -80])).all()
