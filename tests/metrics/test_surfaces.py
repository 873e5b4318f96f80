"""Overlap and surface scores against closed forms, symmetries and DeepMind's surface-distance package."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics.surfaces import Mask, dice, surface_scores, volume_ml

SPACINGS = [(1.0, 1.0, 1.0), (0.5, 0.8, 2.5), (3.0, 0.7, 0.7), (0.4, 5.0, 1.0)]
seeds = st.integers(0, 2**32 - 1)
spacings = st.tuples(*[st.floats(0.3, 5.0)] * 3)


def blob(seed: int, shape: tuple[int, int, int] = (14, 17, 20), quantile: float = 0.85) -> Mask:
    """Smooth blobs, some of which touch the border."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return field > np.quantile(field, quantile)


def ball(radius_mm: float, spacing: tuple[float, float, float], reach_mm: float) -> Mask:
    """A ball in the middle of a grid that reaches so far to every side."""
    axes = [np.arange(-math.ceil(reach_mm / step), math.ceil(reach_mm / step) + 1) * step for step in spacing]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


def plate(first: int, thickness: int = 3) -> Mask:
    mask = np.zeros((20, 12, 12), dtype=bool)
    mask[first : first + thickness, 1:11, 1:11] = True
    return mask


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("gap", [4.0, 7.0])
def test_concentric_balls_are_as_far_apart_as_their_radii(spacing: tuple[float, float, float], gap: float) -> None:
    """To a voxel's longest side in HD95; no two points can be closer than the gap less a voxel's diagonal."""
    inner, outer = ball(9, spacing, 9 + gap + 6), ball(9 + gap, spacing, 9 + gap + 6)
    assert abs(surface_scores(inner, outer, spacing, 1.0).hd95_mm - gap) <= max(spacing)
    assert surface_scores(inner, outer, spacing, gap + max(spacing)).surface_dice == 1
    closest = gap - math.hypot(*spacing)
    assert closest < 0 or surface_scores(inner, outer, spacing, closest).surface_dice == 0


@pytest.mark.parametrize("spacing", [*SPACINGS, (0.1, 0.7, 0.3)])
@pytest.mark.parametrize("shift", [3, 5, 9])
def test_a_shifted_plate_is_off_by_the_shift(spacing: tuple[float, float, float], shift: int) -> None:
    """Exact, for no way is shorter than the straight one. Two of the four faces are off by the thickness less."""
    distance = shift * spacing[0]
    near, far = plate(2), plate(2 + shift)
    assert surface_scores(near, far, spacing, 1.0).hd95_mm == pytest.approx(distance, rel=1e-12)
    assert surface_scores(near, far, spacing, distance).surface_dice == 1  # a tie, whatever the rounding
    assert 0.4 < surface_scores(near, far, spacing, distance * 0.999).surface_dice < 0.95
    if shift > 3:  # the plates do not touch
        assert surface_scores(near, far, spacing, (shift - 3) * spacing[0] * 0.999).surface_dice == 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 4.0), (4.0, 1.0, 0.5)])
def test_surface_dice_weighs_by_area(spacing: tuple[float, float, float]) -> None:
    """Both masks have a plate across the first axis, one a second across the second axis. To 0.04 for their rims."""
    one = np.zeros((100, 100, 80), dtype=bool)
    one[4, 2:42, 2:78] = True
    both = one.copy()
    both[50:90, 70, 2:78] = True
    shared, extra = spacing[1] * spacing[2], spacing[0] * spacing[2]
    expected = 4 * shared / (4 * shared + 2 * extra)  # a plate has two sides
    assert surface_scores(one, both, spacing, 1.0).surface_dice == pytest.approx(expected, abs=0.04)


def test_hd95_leaves_out_a_twentieth_of_the_area_and_no_more() -> None:
    """A far speck is an outlier next to a large body, and counts next to a small one."""
    speck = np.zeros((40, 30, 30), dtype=bool)
    speck[36, 10, 10] = True
    for size, outlier in ((12, True), (2, False)):
        body = np.zeros_like(speck)
        body[2 : 2 + size, 5 : 5 + size, 5 : 5 + size] = True
        score = surface_scores(body, body | speck, (1, 1, 1), 1.0)
        assert (score.hd95_mm == 0) == outlier
        assert score.surface_dice < 1


def test_hd95_is_the_worse_direction() -> None:
    """All of the small body lies on the large one, but not the other way round."""
    small, large = np.zeros((2, 30, 12, 12), dtype=bool)
    small[2:6, 2:10, 2:10] = large[2:6, 2:10, 2:10] = True
    large[20:24, 2:10, 2:10] = True
    for pair in ((small, large), (large, small)):
        assert surface_scores(*pair, (1, 1, 1), 1.0).hd95_mm == 18  # the far face, at 24, from the one at 6


def test_hd95_takes_the_percentile_of_each_direction_not_of_both_together() -> None:
    """The far piece is 7 % of the one surface, but 3 % of the two."""
    one = np.zeros((60, 34, 34), dtype=bool)
    one[2:32, 2:32, 2:32] = True
    both = one.copy()
    both[50:58, 2:10, 2:10] = True
    assert surface_scores(one, both, (1, 1, 1), 1.0).hd95_mm >= 18
    assert surface_scores(both, one, (1, 1, 1), 1.0).hd95_mm >= 18


@given(seed=seeds, spacing=spacings, tolerance=st.floats(0.0, 6.0), share=st.sampled_from([0.03, 0.15, 0.5]))
@settings(max_examples=30)
def test_agrees_with_the_surface_distance_package(
    seed: int, spacing: tuple[float, float, float], tolerance: float, share: float
) -> None:
    """Same surface elements, so surface Dice to single precision of the areas and HD95 to rounding."""
    reference_package = pytest.importorskip("surface_distance")
    a, b = blob(seed), blob(seed + 1, quantile=1 - share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package is of 2018
        distances = reference_package.compute_surface_distances(a, b, spacing)
    expected_dice = reference_package.compute_surface_dice_at_tolerance(distances, tolerance)
    expected_hd95 = reference_package.compute_robust_hausdorff(distances, 95)
    score = surface_scores(a, b, spacing, tolerance)
    assert score.surface_dice == pytest.approx(expected_dice, abs=1e-6)
    assert score.hd95_mm == pytest.approx(expected_hd95, rel=1e-9)


@given(seed=seeds, spacing=spacings)
@settings(max_examples=15)
def test_scores_do_not_depend_on_the_order_of_axes_or_of_masks(seed: int, spacing: tuple[float, float, float]) -> None:
    a, b = blob(seed), blob(seed + 1)
    score = surface_scores(a, b, spacing, 1.5)
    for axes in itertools.permutations(range(3)):
        turned = tuple(spacing[axis] for axis in axes)
        other = surface_scores(b.transpose(axes), a.transpose(axes), turned, 1.5)
        assert other.surface_dice == pytest.approx(score.surface_dice, abs=1e-6)
        assert other.hd95_mm == pytest.approx(score.hd95_mm, rel=1e-9)
    flipped = surface_scores(a[::-1, :, ::-1], b[::-1, :, ::-1], spacing, 1.5)
    assert flipped.hd95_mm == pytest.approx(score.hd95_mm, rel=1e-9)


@given(seed=seeds, pad=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3))
@settings(max_examples=15)
def test_background_around_the_masks_does_not_count(seed: int, pad: list[tuple[int, int]]) -> None:
    """Nor does its lack: the blobs touch the border of the image before they are padded."""
    a, b = blob(seed), blob(seed + 1)
    score = surface_scores(a, b, (0.7, 1.1, 3.0), 2.0)
    wider = surface_scores(np.pad(a, pad), np.pad(b, pad), (0.7, 1.1, 3.0), 2.0)
    assert wider.surface_dice == pytest.approx(score.surface_dice, abs=1e-6)
    assert wider.hd95_mm == pytest.approx(score.hd95_mm, rel=1e-9)


@given(seed=seeds, spacing=spacings, factor=st.floats(0.2, 5.0))
@settings(max_examples=15)
def test_spacing_scales_the_distance(seed: int, spacing: tuple[float, float, float], factor: float) -> None:
    a, b = blob(seed), blob(seed + 1)
    larger = tuple(factor * step for step in spacing)
    score, scaled = surface_scores(a, b, spacing, 2.0), surface_scores(a, b, larger, 2.0 * factor)
    assert scaled.hd95_mm == pytest.approx(factor * score.hd95_mm, rel=1e-9)
    assert scaled.surface_dice == pytest.approx(score.surface_dice, abs=1e-6)
    assert volume_ml(a, larger) == pytest.approx(factor**3 * volume_ml(a, spacing))


@given(seed=seeds)
@settings(max_examples=10)
def test_surface_dice_rises_with_the_tolerance_to_one(seed: int) -> None:
    a, b = blob(seed), blob(seed + 1)
    scores = [surface_scores(a, b, (1.0, 0.6, 2.0), tolerance) for tolerance in (0, 0.5, 1, 2, 4, 8, 99)]
    rises = [score.surface_dice for score in scores]
    assert rises == sorted(rises)
    assert rises[0] < 0.9
    assert rises[-1] == 1
    within = surface_scores(a, b, (1.0, 0.6, 2.0), scores[0].hd95_mm).surface_dice
    assert within >= 0.95 - 1e-6  # what the percentile means


@given(seed=seeds)
@settings(max_examples=10)
def test_equal_masks_agree_and_others_do_not(seed: int) -> None:
    a = blob(seed)
    score = surface_scores(a, a.copy(), (1.0, 0.6, 2.0), 0.0)
    assert (score.surface_dice, score.hd95_mm, score.empty, dice(a, a)) == (1.0, 0.0, "", 1.0)
    moved = np.roll(np.pad(a, 3), 3, axis=0)
    worse = surface_scores(np.pad(a, 3), moved, (1.0, 0.6, 2.0), 0.0)
    assert worse.surface_dice < 0.9
    assert worse.hd95_mm > 0


def test_a_swapped_spacing_shows() -> None:
    """A planted fault: the axes of the spacing in the order of the file rather than that of the mask."""
    near, far = plate(2), plate(8)
    right, wrong = (surface_scores(near, far, spacing, 4.0) for spacing in ((0.5, 1.0, 2.0), (2.0, 1.0, 0.5)))
    assert (right.hd95_mm, wrong.hd95_mm) == (3.0, 12.0)
    assert right.surface_dice == 1 > wrong.surface_dice


@pytest.mark.parametrize(
    ("reference", "predicted", "empty"), [(0, 0, "both"), (0, 1, "reference"), (1, 0, "predicted"), (1, 1, "")]
)
def test_conventions_for_empty_masks(reference: int, predicted: int, empty: str) -> None:
    masks = np.zeros((2, 10, 20, 30), dtype=bool)
    masks[0, 4, 4, 4], masks[1, 4, 4, 4] = reference, predicted
    score = surface_scores(*masks, (2.0, 0.5, 1.0), 1.0)
    perfect = reference == predicted
    assert score.empty == empty
    assert score.surface_dice == dice(*masks) == perfect
    diagonal = math.sqrt(20**2 + 10**2 + 30**2)  # of the whole image, not of the cropped one
    assert score.hd95_mm == pytest.approx(0 if perfect else diagonal)


@given(seed=seeds, spacing=spacings)
@settings(max_examples=10)
def test_no_distance_exceeds_that_of_an_empty_mask(seed: int, spacing: tuple[float, float, float]) -> None:
    corners = np.zeros((2, 5, 6, 7), dtype=bool)
    corners[0, 0, 0, 0] = corners[1, -1, -1, -1] = True
    worst = surface_scores(corners[0], np.zeros_like(corners[0]), spacing, 1.0).hd95_mm
    assert surface_scores(*corners, spacing, 1.0).hd95_mm <= worst


def test_dice_by_hand_and_symmetric() -> None:
    a, b = np.zeros((2, 4, 4, 4), dtype=bool)
    a[0], b[0, :2], b[1, 0, 0] = True, True, True  # 16, 9, 8 in common
    assert dice(a, b) == dice(b, a) == pytest.approx(16 / 25)


@given(seed=seeds)
@settings(max_examples=10)
def test_dice_is_between_zero_and_one_and_zero_only_without_overlap(seed: int) -> None:
    a, b = blob(seed), blob(seed + 1)
    assume((a & b).any())
    assert 0 < dice(a, b) < 1
    assert dice(a, ~a) == 0


def test_volume_by_hand() -> None:
    assert volume_ml(plate(0), (0.5, 2.0, 3.0)) == pytest.approx(300 * 3 / 1000)
    assert volume_ml(np.zeros((4, 4, 4), dtype=bool), (1, 1, 1)) == 0


def test_volume_of_a_ball() -> None:
    assert volume_ml(ball(20, (0.8, 0.5, 1.0), 22), (0.8, 0.5, 1.0)) == pytest.approx(4 / 3 * math.pi * 8, rel=0.01)


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 1, 1), (1, 0, 1), (1, 1, -2), (1, math.nan, 1), (1, math.inf, 1)])
def test_a_spacing_that_is_none_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match=r"spacing is .* expected three positive numbers .* header"):
        surface_scores(plate(1), plate(2), spacing, 1.0)
    with pytest.raises(DataError, match="spacing"):
        volume_ml(plate(1), spacing)


def test_masks_that_do_not_fit_are_refused() -> None:
    flat, label_map = plate(1)[0], plate(1).astype(np.uint8)
    for score in (dice, lambda a, b: surface_scores(a, b, (1, 1, 1), 1.0)):
        with pytest.raises(DataError, match=r"shape \(12, 12\), expected three axes"):
            score(flat, flat)
        with pytest.raises(DataError, match=r"\(20, 12, 12\) and \(19, 12, 12\), expected the same"):
            score(plate(1), plate(1)[1:])
        with pytest.raises(DataError, match="type uint8, expected bool"):
            score(plate(1), label_map)
    with pytest.raises(DataError, match="three axes"):
        volume_ml(flat, (1, 1, 1))


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(DataError, match="tolerance"):
        surface_scores(plate(1), plate(2), (1, 1, 1), tolerance)


def test_normal_use_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surface_scores(plate(1), plate(2), (1, 2, 3), 1.0)
