"""Windows: scanner units to [-1, 1] and back, blind to what the background is filled with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from latentsynth.data.windows import foreground, limits, median, normalise, restore
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


def head() -> tuple[np.ndarray, np.ndarray]:
    """A brain of 300 +- 40 in 12 % of the field of view, and a brighter lesion in it: voxels (0 outside) and brain."""
    rng = np.random.default_rng(0)
    brain = np.zeros((40, 40, 40), bool)
    brain[10:30, 10:30, 10:30] = True
    voxels = np.where(brain, rng.normal(300, 40, brain.shape), 0)
    voxels[14:19, 14:19, 14:19] = rng.normal(400, 20, (5, 5, 5))
    return voxels, brain


def standardised(voxels: np.ndarray, brain: np.ndarray) -> np.ndarray:
    return np.where(brain, (voxels - voxels[brain].mean()) / voxels[brain].std(), 0)


def sprinkled(voxels: np.ndarray, brain: np.ndarray, value: float, share: float = 0.001) -> np.ndarray:
    air = np.flatnonzero(~brain)
    count = int(share * voxels.size)
    out = voxels.copy()
    out.ravel()[np.random.default_rng(1).choice(air, count, replace=False)] = value
    return out


def ringing(voxels: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A shell of undershoot around the brain, and the vanishing traces that a spline leaves far from it."""
    shell = ndimage.binary_dilation(brain) & ~brain
    return np.where(shell, -12.0, np.where(brain, voxels, 1e-12 * np.random.default_rng(2).normal(size=voxels.shape)))


def in_padding(voxels: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A round field of view of 0 in a padding of another value, with steps of interpolation between the two."""
    i, j = np.indices(voxels.shape[:2]) - 19.5
    out = np.where((i**2 + j**2 < 19**2)[..., None], voxels, -2000.0)
    out[np.abs(np.hypot(i, j) - 19) < 0.3] = -1000.0
    return out


FILLED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean 0 over the brain, air left at 0": standardised,
    "the same in thousandths": lambda v, b: np.rint(1000 * standardised(v, b)).astype(np.int16),
    "the same with some noise of the format": lambda v, b: standardised(v, b) + 1e-9 * b[::-1],
    "a few voxels below air": lambda v, b: sprinkled(v, b, -5),
    "a few voxels far below air": lambda v, b: sprinkled(v, b, -900, 0.0005),
    "ringing around the brain": ringing,
    "padding below air": in_padding,
    "Hounsfield units in a padding": lambda v, b: in_padding(np.where(b, v - 300, -1000), b),
    "whole numbers without sign": lambda v, b: v.round().astype(np.uint16),
}


@pytest.mark.parametrize("filled", FILLED)
def test_the_window_is_the_tissues_own_whatever_lies_around_it(filled: str) -> None:
    voxels, brain = head()
    scan = FILLED[filled](voxels, brain)
    low, high = np.percentile(scan[brain], (1, 99))
    np.testing.assert_allclose(limits(MR, scan), (low, high), atol=0.03 * (high - low))
    assert (foreground(scan) == brain).mean() > 0.99


def test_all_of_a_scan_without_air_is_foreground() -> None:
    rng = np.random.default_rng(3)
    for scan in (rng.normal(300, 40, (30, 30, 30)), rng.integers(0, 12, (30, 30, 30), dtype=np.uint8)):
        smooth = ndimage.gaussian_filter(scan.astype(float), 2)
        assert foreground(scan).mean() > 0.9
        assert foreground(smooth).mean() > 0.99


@pytest.mark.parametrize("values", [[5.0], [0.0, 7.0]], ids=["one value", "one value beside the background"])
def test_an_image_without_contrast_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"scan_12.*remove this case"):
        limits(MR, np.resize(values, (4, 4, 4)), "scan_12")


def test_median_window_is_taken_end_by_end() -> None:
    assert median([(0.0, 10.0), (2.0, 90.0), (1.0, 20.0)]) == (1.0, 20.0)
    assert median([(0.0, 10.0), (2.0, 30.0)]) == (1.0, 20.0)
