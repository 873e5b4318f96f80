"""Band power, kurtosis and traces of cells: closed forms on waves and noise, air without influence, voxels of any shape."""

from __future__ import annotations

from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest
from planted_sharpness import CELL, cells
from scipy import ndimage

from latentsynth.metrics.band_power import band_power, bands, body, detail_slope, octaves

ISOTROPIC = (1.0, 1.0, 1.0)
SHAPE = (36, 40, 32)
EVERYWHERE = np.ones(SHAPE, dtype=bool)
NOISE = np.random.default_rng(0).normal(0, 0.3, SHAPE)
BALL = sum((n - m) ** 2 for n, m in zip(np.indices(SHAPE), (18, 20, 16), strict=True)) < 11**2


def powers(channel: np.ndarray, spacing: tuple[float, float, float] = ISOTROPIC) -> np.ndarray:
    return np.array(band_power(channel, np.ones(channel.shape, bool), spacing, octaves(spacing)).power)


def test_octaves_end_at_nyquist_and_reach_the_coarsest_axis() -> None:
    assert octaves((2.0, 2.0, 2.0)) == pytest.approx((1 / 8, 1 / 16, 1 / 32))
    edges = octaves((0.5, 0.5, 6.0))
    assert edges[0] == pytest.approx(0.5)
    assert edges[-1] < 1 / 12  # its Nyquist frequency
    assert all(later == pytest.approx(earlier / 2) for earlier, later in pairwise(edges))


@pytest.mark.parametrize(("wavelength", "band"), [(2.5, 0), (5.5, 1), (11.0, 2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_wave_has_its_power_in_its_band(wavelength: float, band: int, axis: int) -> None:
    """Whatever the voxels: along the axis, of 1 mm there and 2 mm elsewhere, half the squared amplitude at most."""
    spacing = tuple(1.0 if n == axis else 2.0 for n in range(3))
    shape = tuple(64 if n == axis else 24 for n in range(3))
    wave = 0.4 * np.cos(2 * np.pi * np.indices(shape)[axis] / wavelength)
    found = powers(wave, spacing)  # type: ignore[arg-type]
    assert found.argmax() == band
    assert 0.2 < found[band] / 0.08 <= 1


def test_bands_add_up() -> None:
    edges = octaves(ISOTROPIC)
    rest = NOISE - sum(bands(NOISE, EVERYWHERE, ISOTROPIC, edges))
    assert rest.std() < 0.1 * NOISE.std()  # nothing but what is below the last
    fewer = NOISE - sum(bands(NOISE, EVERYWHERE, ISOTROPIC, edges[:1]))
    np.testing.assert_allclose(sum(bands(NOISE, EVERYWHERE, ISOTROPIC, edges)[1:]), fewer - rest, atol=1e-12)


def test_what_lies_outside_has_no_influence() -> None:
    first = band_power(NOISE, BALL, ISOTROPIC, octaves(ISOTROPIC), (CELL,) * 3)
    other = band_power(np.where(BALL, NOISE, -1), BALL, ISOTROPIC, octaves(ISOTROPIC), (CELL,) * 3)
    assert astuple(first) == astuple(other)


def test_contrast_changes_power_alone_and_brightness_nothing() -> None:
    one, other = (band_power(x, BALL, ISOTROPIC, octaves(ISOTROPIC), (CELL,) * 3) for x in (NOISE, 0.5 * NOISE + 0.2))
    np.testing.assert_allclose(np.array(other.power) * 4, one.power, rtol=1e-9)
    np.testing.assert_allclose(
        [*other.kurtosis, other.seams, other.pattern], [*one.kurtosis, one.seams, one.pattern], rtol=1e-6
    )


def test_blur_along_any_axis_lowers_power() -> None:
    for spacing in (ISOTROPIC, (0.7, 0.7, 5.0)):
        for axis in range(3):
            shares = powers(ndimage.gaussian_filter1d(NOISE, 1, axis), spacing) / powers(NOISE, spacing)
            assert shares.min() < 0.6


def test_noise_has_the_kurtosis_of_a_normal_distribution_and_edges_have_more() -> None:
    found = band_power(NOISE, EVERYWHERE, ISOTROPIC, octaves(ISOTROPIC))
    np.testing.assert_allclose(found.kurtosis, 3, atol=0.4)
    assert found.kurtosis[0] == pytest.approx(3, abs=0.1)
    sparse = np.where(np.random.default_rng(1).random(SHAPE) < 0.02, 1.0, 0.0)
    # A difference is +-1 with probability 2 p (1 - p), else 0: its kurtosis is the inverse.
    assert band_power(sparse, EVERYWHERE, ISOTROPIC, octaves(ISOTROPIC)).kurtosis[0] == pytest.approx(
        1 / 0.0392, rel=0.1
    )


@pytest.mark.parametrize("period", [4.0, 6.0, 16 / 3])
def test_noise_has_no_traces_of_cells(period: float) -> None:
    found = [
        band_power(
            np.random.default_rng(n).normal(size=SHAPE), EVERYWHERE, ISOTROPIC, octaves(ISOTROPIC), (period,) * 3
        )
        for n in range(16)
    ]
    assert np.mean([np.log(one.seams) for one in found]) == pytest.approx(0, abs=0.7)  # three standard errors
    assert np.mean([one.pattern for one in found]) == pytest.approx(1, abs=0.25)


def test_cells_are_seen_at_their_period_alone() -> None:
    smooth = ndimage.gaussian_filter(NOISE, 2)
    blocks = smooth + 0.3 * cells(NOISE)  # steps of any size, at the borders of cells
    wave = np.cos(2 * np.pi * np.indices(SHAPE) / CELL)
    checkered = NOISE + 0.1 * wave[0] * wave[1] * wave[2]  # one pattern in every cell

    def of(channel: np.ndarray, period: float) -> tuple[float, float]:
        found = band_power(channel, EVERYWHERE, ISOTROPIC, octaves(ISOTROPIC), (period,) * 3)
        return found.seams, found.pattern

    assert of(blocks, CELL)[0] > 50 > 10 > of(smooth, CELL)[0]
    assert of(checkered, CELL)[1] > 5 > 2 > of(NOISE, CELL)[1]
    assert of(blocks, 5)[0] < 10
    assert of(checkered, 5)[1] < 2


def test_periods_that_the_volume_cannot_show_are_left_out() -> None:
    found = band_power(NOISE, EVERYWHERE, ISOTROPIC, octaves(ISOTROPIC), (1.5, 2.0, 20.0))
    assert np.isnan([found.seams, found.pattern]).all()
    assert np.isfinite(band_power(NOISE, EVERYWHERE, ISOTROPIC, octaves(ISOTROPIC), (1.5, 4.0, 20.0)).seams)


@pytest.mark.parametrize("air", [0.0, 0.08])
def test_the_body_is_all_but_air_and_what_borders_on_it(air: float) -> None:
    """Air of MR is noise above 0."""
    rng = np.random.default_rng(2)
    dark = -1 + np.abs(rng.normal(0, air, SHAPE))
    channel = np.where(BALL, 0.2 + 0.1 * NOISE, dark)
    channel[16:20, 18:22, 14:18] = -1  # a hole is inside
    channel[:3, :3, :3] = dark[:3, :3, :3]
    channel[2, 2, 28] = 0.5  # a speck is not
    found = body(channel)
    assert not (found & ~BALL).any()
    assert found[ndimage.binary_erosion(BALL, iterations=5)].all()
    assert found[17, 19, 15]
    assert not found[2, 2, 28]


def test_a_crop_is_body_up_to_its_ends_and_air_has_none() -> None:
    assert body(0.3 * NOISE).all()
    nothing = np.full(SHAPE, -1.0)
    assert not body(nothing).any()
    assert band_power(nothing, body(nothing), ISOTROPIC, octaves(ISOTROPIC)).power == (0, 0, 0)


def test_detail_kept_is_a_slope() -> None:
    image = ndimage.gaussian_filter(NOISE, 0.6)[None]
    rng = np.random.default_rng(3)
    noise = rng.normal(0, image.std(), image.shape)
    for share in (1.0, 0.4, 0.0):
        assert detail_slope(image, share * image, ISOTROPIC) == pytest.approx(share)
        # Noise of any power that has nothing to do with the original neither raises nor lowers it.
        assert detail_slope(image, share * image + noise, ISOTROPIC) == pytest.approx(share, abs=0.05)
    blurred = ndimage.gaussian_filter(image, (0, 1, 1, 1))
    assert detail_slope(image, blurred, ISOTROPIC) < 0.4
    assert detail_slope(image, blurred + noise, ISOTROPIC) < 0.4
    assert np.isnan(detail_slope(np.full((1, *SHAPE), 0.3), image, ISOTROPIC))
