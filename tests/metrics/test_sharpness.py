"""Detail of noise, of smooth images, and of blurred ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from latentsynth.metrics.sharpness import detail

NOISE = np.random.default_rng(0).normal(size=(1, 32, 30, 28))


def brute(channel: np.ndarray) -> float:
    """Every inner voxel minus the mean of its six neighbours, one by one."""
    found = []
    for i, j, k in np.ndindex(*(n - 2 for n in channel.shape)):
        i, j, k = i + 1, j + 1, k + 1
        near = (
            channel[i - 1, j, k] + channel[i + 1, j, k] + channel[i, j - 1, k] + channel[i, j + 1, k]
            + channel[i, j, k - 1] + channel[i, j, k + 1]
        ) / 6  # fmt: skip
        found.append(float(channel[i, j, k] - near))
    return float(np.sqrt(np.mean(np.square(found))) / channel.std())


def test_white_noise_has_the_root_of_seven_sixths() -> None:
    assert detail(NOISE) == pytest.approx(np.sqrt(7 / 6), rel=0.01)


def test_it_is_the_sum_over_voxels() -> None:
    image = ndimage.gaussian_filter(NOISE, (0, 1.0, 0.4, 0.0))[:, :9, :8, :7]
    assert detail(image) == pytest.approx(brute(image[0]))


@pytest.mark.parametrize("value", [0.0, -1.0, 0.1, -0.7])
def test_a_constant_image_has_none(value: float) -> None:
    assert detail(np.full((2, 20, 20, 20), value, np.float32)) == 0


def test_a_linear_image_has_none() -> None:
    i, j, k = np.meshgrid(*(np.arange(n) for n in (12, 14, 16)), indexing="ij")
    assert detail((0.01 * i + 0.03 * j - 0.02 * k)[None]) == pytest.approx(0, abs=1e-12)
    assert detail((0.01 * i**2 + 0.03 * j)[None]) > 0.005  # a curve has some


def test_blur_lowers_it_step_by_step() -> None:
    values = [detail(ndimage.gaussian_filter(NOISE[0], deviation)[None]) for deviation in (0.0, 0.5, 0.7, 1.0, 2.0)]
    assert all(later < 0.9 * earlier for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blur_along_one_axis_is_seen(axis: int) -> None:
    assert detail(ndimage.gaussian_filter1d(NOISE[0], 1.0, axis)[None]) < 0.95 * detail(NOISE)


@pytest.mark.parametrize(("contrast", "brightness"), [(0.1, 0.0), (-3.0, 0.0), (1.0, 5.0), (0.2, -0.6)])
def test_contrast_and_brightness_do_not_count(contrast: float, brightness: float) -> None:
    assert detail(contrast * NOISE + brightness) == pytest.approx(detail(NOISE), rel=1e-9)


def test_turning_and_mirroring_do_not_count() -> None:
    image = ndimage.gaussian_filter(NOISE[0], (0.3, 0.8, 0.5))
    assert detail(image.transpose(2, 0, 1)[None]) == pytest.approx(detail(image[None]))
    assert detail(image[::-1, :, ::-1][None]) == pytest.approx(detail(image[None]))


def test_channels_are_averaged_each_with_its_own_deviation() -> None:
    smooth = ndimage.gaussian_filter(NOISE[0], 1.0)
    both = detail(np.stack([100 * NOISE[0], smooth]))
    assert both == pytest.approx((detail(NOISE) + detail(smooth[None])) / 2)


def test_the_rim_has_no_neighbours_and_is_left_out() -> None:
    """Neighbours do not reach around the edge of the volume."""
    ramp = np.linspace(-1, 1, 16)[:, None, None] * np.ones((1, 16, 16))
    assert detail(ramp[None]) == pytest.approx(0, abs=1e-12)
