"""Radiomic features against the reference values of the IBSI's digital phantom, loops, and images of known texture."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from latentsynth.errors import DataError
from latentsynth.metrics.radiomics import (
    LEVELS,
    cooccurrence,
    cooccurrences,
    grey_levels,
    histogram,
    intensities,
    morphology,
    radiomics,
    run_lengths,
    runs,
    zone_sizes,
    zones,
)

# The digital phantom (https://github.com/theibsi/data_sets, CC BY 4.0), slices along z of rows along y; 0 lies outside.
PHANTOM = np.array([
    [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
    [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
    [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
    [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
])  # fmt: skip
# Its reference values for 3D texture with one matrix over all directions, as the reference manual prints them.
REFERENCE = {
    "mean": "2.15", "variance": "3.05", "skewness": "1.08", "excess kurtosis": "-0.355", "median": "1",
    "10th percentile": "1", "90th percentile": "4", "interquartile range": "3", "mean absolute deviation": "1.55",
    "robust mean absolute deviation": "1.11", "histogram entropy": "1.27", "histogram uniformity": "0.512",
    "shape volume, ml": "0.592", "shape major axis, mm": "11.4", "shape minor axis, mm": "9.31",
    "shape least axis, mm": "8.54", "shape elongation": "0.816", "shape flatness": "0.749",
    "glcm joint maximum": "0.509", "glcm joint variance": "3.13", "glcm joint entropy": "2.57",
    "glcm difference average": "1.38", "glcm difference variance": "3.21", "glcm difference entropy": "1.64",
    "glcm sum entropy": "2.11", "glcm angular second moment": "0.291", "glcm contrast": "5.12",
    "glcm inverse difference": "0.688", "glcm correlation": "0.183", "glcm cluster shade": "17.4",
    "glcm information correlation 1": "-0.0288",
    "glrlm short run emphasis": "0.729", "glrlm long run emphasis": "2.76", "glrlm low grey level run emphasis": "0.607",
    "glrlm high grey level run emphasis": "9.64", "glrlm grey level non-uniformity, normalised": "0.43",
    "glrlm run length non-uniformity, normalised": "0.501", "glrlm run percentage": "0.68",
    "glrlm grey level variance": "3.48", "glrlm run length variance": "0.598", "glrlm run entropy": "2.62",
    "glszm small zone emphasis": "0.255", "glszm low grey level zone emphasis": "0.253",
    "glszm high grey level zone emphasis": "15.6", "glszm grey level non-uniformity, normalised": "0.28",
    "glszm zone size non-uniformity, normalised": "0.2", "glszm zone percentage": "0.0676",
    "glszm grey level variance": "2.64", "glszm zone size entropy": "2.32",
}  # fmt: skip


def measured() -> dict[str, float]:
    inside = PHANTOM > 0
    count = np.count_nonzero(inside)
    parts = {
        "": intensities(PHANTOM[inside]),
        "histogram ": histogram(PHANTOM[inside]),
        "shape ": morphology(inside, (2, 2, 2)),
        "glcm ": cooccurrence(cooccurrences(PHANTOM)),
        "glrlm ": runs(run_lengths(PHANTOM), count),
        "glszm ": zones(zone_sizes(PHANTOM), count),
    }
    return {f"{kind}{name}": value for kind, one in parts.items() for name, value in one.items()}


FOUND = measured()


def test_every_feature_has_a_reference_value() -> None:
    assert set(FOUND) == set(REFERENCE)
    whole = radiomics(2 * (PHANTOM[None] - 0.5) / LEVELS - 1, PHANTOM > 0, (2, 2, 2))
    assert {name.removeprefix("channel 0, ") for name in whole} == set(REFERENCE)
    for name in REFERENCE:
        if name.startswith(("histogram", "shape", "gl")):  # levels are cut so that they come out as they are
            assert whole[name if name.startswith("shape") else f"channel 0, {name}"] == pytest.approx(FOUND[name])


@pytest.mark.parametrize("name", REFERENCE)
def test_the_digital_phantom_has_its_reference_values(name: str) -> None:
    """To the digits that are printed."""
    printed = REFERENCE[name]
    digits = len(printed.partition(".")[2])
    assert FOUND[name] == pytest.approx(float(printed), abs=0.5 * 10**-digits + 1e-9)


DIRECTIONS = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]


def test_matrices_are_what_loops_count() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(1, 4, (4, 5, 6)) * (rng.random((4, 5, 6)) < 0.8)

    def at(place: tuple[int, ...]) -> int:
        held = all(0 <= n < size for n, size in zip(place, levels.shape, strict=True))
        return int(levels[place]) if held else 0

    pairs, lengths = np.zeros((3, 3)), np.zeros((3, 6))
    for step in DIRECTIONS:
        for place in np.ndindex(*levels.shape):
            ahead = tuple(np.add(place, step))
            if at(place) and at(ahead):
                pairs[at(place) - 1, at(ahead) - 1] += 1
                pairs[at(ahead) - 1, at(place) - 1] += 1
            if at(place) and at(tuple(np.subtract(place, step))) != at(place):
                length = 1
                while at(tuple(np.add(place, np.multiply(step, length)))) == at(place):
                    length += 1
                lengths[at(place) - 1, length - 1] += 1
    np.testing.assert_allclose(cooccurrences(levels), pairs / pairs.sum())
    np.testing.assert_array_equal(run_lengths(levels), lengths)


def test_a_checkerboard() -> None:
    """Neighbours differ in the directions that move along an odd number of axes."""
    board = np.indices((12, 12, 12)).sum(0) % 2 + 1
    odd = [step for step in DIRECTIONS if sum(map(abs, step)) % 2]
    kept = [math.prod(12 - abs(n) for n in step) for step in DIRECTIONS]
    differ = sum(math.prod(12 - abs(n) for n in step) for step in odd) / sum(kept)
    found = cooccurrence(cooccurrences(board))
    assert found["contrast"] == pytest.approx(differ)
    assert found["inverse difference"] == pytest.approx(1 - differ / 2)
    assert zones(zone_sizes(board), 12**3)["zone percentage"] == pytest.approx(2 / 12**3)  # corners connect each colour


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0])
def test_a_constant_region_is_finite(value: float) -> None:
    region = np.zeros((6, 7, 8), bool)
    region[1:4, 2:5, 3:6] = True
    found = radiomics(np.full((2, 6, 7, 8), value, np.float32), region, (1, 2, 3))
    assert np.isfinite(list(found.values())).all()
    assert found["channel 1, mean"] == pytest.approx(value)
    assert found["channel 1, glcm joint maximum"] == 1
    assert found["channel 1, glrlm long run emphasis"] > 1


def test_a_box_has_the_moments_of_its_voxels() -> None:
    region = np.pad(np.ones((4, 6, 10), bool), 3)
    found = morphology(region, (1.0, 2.0, 0.5))
    sides = sorted(4 * step * math.sqrt((n**2 - 1) / 12 * 240 / 239) for n, step in ((4, 1.0), (6, 2.0), (10, 0.5)))
    assert [found["least axis, mm"], found["minor axis, mm"], found["major axis, mm"]] == pytest.approx(sides)
    assert found["volume, ml"] == pytest.approx(240 / 1000)


def test_turning_and_mirroring_change_nothing() -> None:
    rng = np.random.default_rng(1)
    image, region = rng.uniform(-1, 1, (1, 7, 8, 9)), rng.random((7, 8, 9)) < 0.7
    once = radiomics(image, region, (1, 1, 1))
    turned = radiomics(image[:, ::-1].transpose(0, 3, 1, 2), region[::-1].transpose(2, 0, 1), (1, 1, 1))
    assert turned == pytest.approx(once)


def test_what_lies_outside_does_not_count() -> None:
    rng = np.random.default_rng(2)
    image, region = rng.uniform(-1, 1, (1, 9, 9, 9)), np.zeros((9, 9, 9), bool)
    region[2:7, 3:8, 1:6] = True
    other = np.where(region, image, rng.uniform(-1, 1, image.shape))
    assert radiomics(other, region, (1, 1, 1)) == radiomics(image, region, (1, 1, 1))


def test_grey_levels_cover_the_window() -> None:
    levels = grey_levels(np.array([[[-3.0, -1.0, -1 + 2 / LEVELS, 0.0, 0.999, 1.0, 7.0]]]), np.ones((1, 1, 7), bool))
    assert levels.ravel().tolist() == [1, 1, 2, LEVELS // 2 + 1, LEVELS, LEVELS, LEVELS]


def test_a_region_without_texture_is_refused() -> None:
    region = np.zeros((4, 4, 4), bool)
    region[0, 0] = True
    with pytest.raises(DataError, match="a region of 4 voxels has no texture"):
        radiomics(np.zeros((1, 4, 4, 4)), region, (1, 1, 1))
    with pytest.raises(DataError, match="an image of shape"):
        radiomics(np.zeros((1, 4, 4, 5)), np.ones((4, 4, 4), bool), (1, 1, 1))
