"""Windows: scanner units to [-1, 1] and back, blind to what the background is filled with."""

from __future__ import annotations

import numpy as np
import pytest

from latentsynth.data.windows import limits, median, normalise, restore
from latentsynth.errors import DataError
from latentsynth.types import Window

MR = Window("percentile", 1, 99)


@pytest.fixture
def scan() -> np.ndarray:
    """Tissue of many intensities in an empty field of view."""
    voxels = np.zeros((12, 12, 12), np.float32)
    voxels[3:9, 3:9, 3:9] = np.random.default_rng(0).gamma(4, 100, (6, 6, 6)) + 20
    return voxels


@pytest.mark.parametrize("between", [(-160.0, 240.0), (0.0, 1.0), (13.5, 4000.0)])
def test_round_trip_is_exact_inside_the_window(between: tuple[float, float]) -> None:
    low, high = between
    image = np.random.default_rng(1).uniform(low, high, 1000)
    np.testing.assert_allclose(restore(normalise(image, between), between), image, atol=1e-6 * (high - low))
    assert normalise(np.array(between), between).tolist() == [-1, 1]
    assert normalise(np.array([low - 1, high + 1]), between).tolist() == [-1, 1]  # clipped, not folded


def test_normalising_keeps_the_order_of_intensities(scan: np.ndarray) -> None:
    values = np.sort(scan.ravel())
    out = normalise(values, limits(MR, scan))
    assert (np.diff(out) >= 0).all()
    assert out.min() == -1
    assert out.max() == 1


def test_integers_are_not_wrapped() -> None:
    image = np.array([-32768, -160, 40, 240, 32767], np.int16)
    np.testing.assert_allclose(normalise(image, (-160, 240)), [-1, -1, 0, 1, 1], atol=1e-6)


def test_percentiles_are_those_of_the_foreground(scan: np.ndarray) -> None:
    assert limits(MR, scan) == pytest.approx(tuple(np.percentile(scan[scan > 0], (1, 99))))


@pytest.mark.parametrize("fill", [0.0, -1024.0])
def test_background_does_not_move_percentiles(scan: np.ndarray, fill: float) -> None:
    scan = np.where(scan == 0, np.float32(fill), scan)
    padded = np.pad(scan, 20, constant_values=fill)
    assert limits(MR, padded) == limits(MR, scan)


def test_percentile_windows_follow_the_units_of_the_scan(scan: np.ndarray) -> None:
    there = normalise(scan, limits(MR, scan))
    np.testing.assert_allclose(normalise(scan * 7 + 100, limits(MR, scan * 7 + 100)), there, atol=1e-4)


def test_fixed_windows_ignore_the_scan(scan: np.ndarray) -> None:
    window = Window("fixed", -160, 240)
    assert limits(window, scan) == limits(window, scan * 100) == limits(window, np.zeros((2, 2, 2))) == (-160, 240)


@pytest.mark.parametrize("values", [[5.0], [0.0, 7.0]], ids=["one value", "one value beside the background"])
def test_an_image_without_contrast_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"scan_12.*remove this case"):
        limits(MR, np.resize(values, (4, 4, 4)), "scan_12")


def test_median_window_is_taken_end_by_end() -> None:
    assert median([(0.0, 10.0), (2.0, 90.0), (1.0, 20.0)]) == (1.0, 20.0)
    assert median([(0.0, 10.0), (2.0, 30.0)]) == (1.0, 20.0)
