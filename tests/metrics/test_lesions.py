"""Lesions that were found, false alarms and volumes, by hand and by what must not change them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics.lesions import components, lesion_scores, volume_error
from latentsynth.metrics.surfaces import Mask, volume_ml
from latentsynth.phantom.cohort import phantom

SPACING = (0.5, 1.0, 4.0)
seeds = st.integers(0, 2**32 - 1)


def empty() -> Mask:
    return np.zeros((12, 30, 12), dtype=bool)


def rod(length: int, row: int = 2, start: int = 2) -> Mask:
    """A lesion of so many voxels in a row."""
    mask = empty()
    mask[row, start : start + length, 2] = True
    return mask


def blob(seed: int, quantile: float = 0.85) -> Mask:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(14, 17, 20)), 1.0)
    return field > np.quantile(field, quantile)


@pytest.mark.parametrize("step", [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)])
def test_voxels_that_share_a_corner_are_one_component(step: tuple[int, int, int]) -> None:
    mask = np.zeros((7, 7, 7), dtype=bool)
    mask[3, 3, 3] = mask[tuple(3 + x for x in step)] = True
    assert components(mask)[1] == 1
    mask[tuple(3 + x for x in step)] = False
    mask[tuple(3 + 2 * x for x in step)] = True
    assert components(mask)[1] == 2


def test_components_are_numbered_from_one_and_cover_the_mask() -> None:
    mask = rod(3) | rod(4, row=6) | rod(2, start=20)
    labels, count = components(mask)
    assert count == 3
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(labels > 0, mask)
    assert sorted(np.bincount(labels.ravel())[1:]) == [2, 3, 4]


@pytest.mark.parametrize(
    ("length", "hit", "min_iou", "found"),
    [(10, 1, 0.1, True), (20, 1, 0.1, False), (10, 0, 0.1, False), (20, 2, 0.1, True), (10, 4, 0.5, False),
     (10, 5, 0.5, True), (10, 9, 1.0, False), (10, 10, 1.0, True), (25, 7, 0.28, True)],
)  # fmt: skip
def test_a_lesion_is_found_from_the_least_overlap_on(length: int, hit: int, min_iou: float, found: bool) -> None:
    """With ties found: in floating point 0.28 x 25 is above 7."""
    score = lesion_scores(rod(length), rod(hit), SPACING, min_iou)
    assert (score.lesions, score.found, score.lesion_found) == (1, int(found), (found,))
    assert score.recall == found
    assert score.false_positives == int(hit > 0 and not found)


def test_the_least_overlap_is_a_tenth_unless_told() -> None:
    assert [lesion_scores(rod(20), rod(hit), SPACING).found for hit in (1, 2)] == [0, 1]
    assert [lesion_scores(rod(hit), rod(20), SPACING).found for hit in (1, 2)] == [0, 1]


def test_one_component_finds_one_lesion_and_one_lesion_is_found_by_one_component() -> None:
    flood = np.ones_like(empty())
    two = rod(8) | rod(8, start=14)
    assert lesion_scores(two, flood, SPACING).found == 0
    bridge = lesion_scores(two, rod(20), SPACING)
    assert (bridge.found, bridge.lesions, bridge.false_positives) == (1, 2, 0)
    assert (bridge.recall, bridge.precision, bridge.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    pieces = lesion_scores(rod(20), two, SPACING)
    assert (pieces.found, pieces.lesions, pieces.false_positives) == (1, 1, 1)
    assert (pieces.recall, pieces.precision, pieces.f1) == (1.0, 0.5, pytest.approx(2 / 3))


def test_the_best_pairs_are_made_not_the_first() -> None:
    """The long component overlaps both lesions, and the short one the first alone."""
    lesions = rod(10) | rod(10, start=14)
    both = lesion_scores(lesions, rod(3) | rod(18, start=6), SPACING)
    assert (both.lesion_found, both.false_positives) == ((True, True), 0)


def test_a_mixed_case_by_hand() -> None:
    """Three lesions of 4, 8 and 10 voxels in the order of the array; two found, and two false alarms."""
    reference = rod(4, row=1) | rod(8, row=5) | rod(10, row=9)
    predicted = rod(2, row=1) | rod(1, row=9) | rod(3, row=1, start=20) | rod(1, row=5, start=20)
    score = lesion_scores(reference, predicted, SPACING)
    assert score.lesion_found == (True, False, True)
    assert score.lesion_ml == pytest.approx((0.008, 0.016, 0.020))  # 2 mm³ a voxel
    assert score.lesion_mm == pytest.approx(tuple((6 * 2 * n / np.pi) ** (1 / 3) for n in (4, 8, 10)))
    assert (score.found, score.lesions, score.false_positives) == (2, 3, 2)
    assert (score.recall, score.precision, score.f1) == (pytest.approx(2 / 3), 0.5, pytest.approx(4 / 7))


def test_a_neighbour_without_overlap_is_a_false_positive() -> None:
    assert lesion_scores(rod(3), rod(3, row=3), SPACING).false_positives == 1


def test_empty_masks() -> None:
    nothing = lesion_scores(empty(), empty(), SPACING)
    assert (nothing.found, nothing.lesions, nothing.false_positives) == (0, 0, 0)
    assert nothing.lesion_ml == nothing.lesion_found == ()
    assert all(math.isnan(one) for one in (nothing.recall, nothing.precision, nothing.f1))
    alarm = lesion_scores(empty(), rod(3) | rod(3, row=6), SPACING)
    assert (alarm.lesions, alarm.false_positives) == (0, 2)
    assert math.isnan(alarm.recall)
    assert (alarm.precision, alarm.f1) == (0, 0)
    missed = lesion_scores(rod(3), empty(), SPACING)
    assert (missed.found, missed.lesions, missed.false_positives, missed.recall) == (0, 1, 0, 0.0)
    assert math.isnan(missed.precision)
    assert missed.f1 == 0


@given(seed=seeds)
@settings(max_examples=25)
def test_lesions_add_up_and_axes_do_not_matter(seed: int) -> None:
    reference, predicted = blob(seed), blob(seed + 1, 0.95)
    score = lesion_scores(reference, predicted, SPACING)
    assert sum(score.lesion_ml) == pytest.approx(volume_ml(reference, SPACING))
    assert len(score.lesion_ml) == len(score.lesion_found) == score.lesions
    assert sum(score.lesion_found) == score.found
    turned = lesion_scores(reference.transpose(2, 0, 1), predicted.transpose(2, 0, 1), (4.0, 0.5, 1.0))
    assert sorted(zip(turned.lesion_ml, turned.lesion_found, strict=True)) == sorted(
        zip(score.lesion_ml, score.lesion_found, strict=True)
    )
    assert turned.false_positives == score.false_positives
    itself = lesion_scores(reference, reference, SPACING, 1.0)
    assert (itself.recall, itself.false_positives) == (1.0, 0)


@given(seed=seeds)
@settings(max_examples=25)
def test_a_false_positive_of_one_is_a_lesion_missed_by_the_other(seed: int) -> None:
    """Matching knows no sides: what one finds by itself is what the other misses, and F1 is the same."""
    a, b = blob(seed, 0.95), blob(seed + 1, 0.95)
    forth, back = lesion_scores(a, b, SPACING, 0.05), lesion_scores(b, a, SPACING, 0.05)
    assert forth.found == back.found
    assert forth.false_positives == back.lesions - back.found
    assert back.false_positives == forth.lesions - forth.found
    assert (forth.f1, forth.recall) == (back.f1, back.precision)


@pytest.fixture(scope="module")
def many() -> list[Mask]:
    """Masks of phantoms with up to 20 lesions."""
    return [phantom(0, case, (32, 32, 32), (6.0, 6.0, 6.0), 1, (1, 20))[1] == 3 for case in range(6)]


def test_lesions_that_are_left_out_of_many_are_those_that_are_missed(many: list[Mask]) -> None:
    for n, mask in enumerate(many):
        pieces, count = components(mask)
        lost = np.random.default_rng(n).random(count) < 0.4
        score = lesion_scores(mask, mask & ~np.isin(pieces, 1 + np.flatnonzero(lost)), (6.0, 6.0, 6.0))
        assert score.lesion_found == tuple((~lost).tolist())
        assert score.false_positives == 0
        back = lesion_scores(mask & ~np.isin(pieces, 1 + np.flatnonzero(lost)), mask, (6.0, 6.0, 6.0))
        assert back.false_positives == lost.sum()
    assert max(components(mask)[1] for mask in many) > 8


def test_one_blob_over_many_lesions_finds_one_at_most(many: list[Mask]) -> None:
    for mask in many:
        for grown in (np.ones_like(mask), ndimage.binary_dilation(mask, iterations=9)):
            assert lesion_scores(mask, grown, (6.0, 6.0, 6.0)).found <= components(grown)[1] == 1


def test_volume_error_is_predicted_minus_reference() -> None:
    assert volume_error(rod(10), rod(15), SPACING) == pytest.approx((0.01, 0.5))
    assert volume_error(rod(10), rod(5), SPACING) == pytest.approx((-0.01, -0.5))
    assert volume_error(rod(10), rod(10, row=7), SPACING) == (0.0, 0.0)
    assert volume_error(rod(10), empty(), SPACING) == pytest.approx((-0.02, -1.0))


def test_volume_error_has_no_share_of_an_empty_reference() -> None:
    error, relative = volume_error(empty(), rod(10), SPACING)
    assert error == pytest.approx(0.02)
    assert math.isnan(relative)
    assert math.isnan(volume_error(empty(), empty(), SPACING)[1])


@pytest.mark.parametrize("min_iou", [0.0, -0.1, 1.1, math.nan])
def test_an_overlap_that_is_none_is_refused(min_iou: float) -> None:
    with pytest.raises(DataError, match=r"min_iou is .* above 0 and at most 1"):
        lesion_scores(rod(3), rod(3), SPACING, min_iou)


def test_masks_and_spacings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="three axes"):
        components(rod(3)[2])
    for score in (lesion_scores, volume_error):
        with pytest.raises(DataError, match="expected the same"):
            score(rod(3), rod(3)[1:], SPACING)
        with pytest.raises(DataError, match="type int64, expected bool"):
            score(rod(3), rod(3).astype(np.int64), SPACING)
        with pytest.raises(DataError, match="three positive numbers"):
            score(rod(3), rod(3), (1.0, 1.0))
