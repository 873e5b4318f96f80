"""Nearest neighbours by structure: SSIM against scikit-image and the library's own, Dice against counting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from latentsynth.errors import DataError
from latentsynth.metrics import structural
from latentsynth.metrics.reconstruction import ssim
from latentsynth.metrics.structural import nearest_by_dice, nearest_by_ssim


def volumes(count: int, shape: Sequence[int], seed: int = 0, alike: float = 0.6) -> np.ndarray:
    """Smooth volumes in [-1, 1] that share some of their content, as rows."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(count, *shape)), (0, 0, 1.5, 1.5, 1.5))
    common = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=shape), (0, 1.5, 1.5, 1.5))
    mixed = alike * common + (1 - alike) * noise
    return np.clip(mixed / mixed.std() / 2, -1, 1).astype(np.float32).reshape(count, -1)


def by_skimage(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> float:
    """The default of scikit-image at every second voxel whose window of 7 lies inside."""
    means = []
    for x, y in zip(a.reshape(shape), b.reshape(shape), strict=True):
        x, y = ((1 + one.astype(float)) / 2 for one in (x, y))
        _, full = structural_similarity(x, y, win_size=7, data_range=1.0, full=True)
        means.append(full[3:-3:2, 3:-3:2, 3:-3:2].mean())
    return float(np.mean(means))


@pytest.mark.parametrize("shape", [(1, 12, 13, 14), (2, 9, 8, 11)])
def test_ssim_equals_scikit_image_on_all_pairs(shape: tuple[int, int, int, int]) -> None:
    queries, reference = volumes(5, shape), volumes(6, shape, 1)
    every = np.array([[1 - by_skimage(q, r, shape) for r in reference] for q in queries])
    distances, rows = nearest_by_ssim(queries, reference, 6, shape)
    np.testing.assert_array_equal(rows, every.argsort(1))
    np.testing.assert_allclose(distances, np.sort(every, 1), atol=2e-5)
    assert np.ptp(every) > 0.05
    first, row = nearest_by_ssim(queries, reference, 2, shape)
    np.testing.assert_array_equal(first, distances[:, :2])
    np.testing.assert_array_equal(row, rows[:, :2])


def test_ssim_ranks_pairs_as_the_library_does_elsewhere() -> None:
    """Which takes a Gaussian window: other numbers, but the same order as more and more of a stranger is mixed in."""
    shape = (1, 20, 20, 20)
    queries, strangers = volumes(3, shape, 2), volumes(30, shape, 3).reshape(3, 10, -1)
    for query, stranger in zip(queries, strangers, strict=True):
        share = np.linspace(0, 1, 10)[:, None]
        reference = (1 - share) * query + share * stranger
        images = torch.from_numpy(reference.astype(np.float32)).view(-1, *shape)
        own = 1 - ssim(torch.from_numpy(query).view(1, *shape).expand_as(images), images).numpy()
        distances, rows = nearest_by_ssim(query[None], reference, 10, shape)
        assert stats.spearmanr(distances[0], own[rows[0]]).statistic > 0.95
        assert rows[0, 0] == own.argmin() == 0
        assert distances[0, 0] == pytest.approx(0, abs=1e-6)
        assert distances[0, -1] > 0.3


def test_axes_shorter_than_the_window_are_taken_whole() -> None:
    """One window along the short axis, with the unbiased covariances of its voxels."""
    shape = (1, 3, 12, 12)
    queries, reference = 0.1 * volumes(3, shape), 0.1 * volumes(4, shape, 1)  # faint, so that the bias shows
    x, y = (a.astype(float).reshape(-1, *shape[1:]) for a in (queries[:1], reference[:1]))
    top = []
    for i in range(0, 6, 2):
        for j in range(0, 6, 2):
            a, b = (v[0, :, i : i + 7, j : j + 7].ravel() for v in (x, y))
            (va, c), (_, vb) = np.cov(a, b)
            ma, mb = 1 + a.mean(), 1 + b.mean()
            c1, c2 = 0.02**2, 0.06**2
            top.append((2 * ma * mb + c1) * (2 * c + c2) / (ma**2 + mb**2 + c1) / (va + vb + c2))
    assert nearest_by_ssim(queries[:1], reference[:1], 1, shape)[0][0, 0] == pytest.approx(1 - np.mean(top), abs=2e-5)


def test_a_volume_is_not_near_its_negative() -> None:
    """Whose luminance from the middle of the window is the same: a bright one scored 0.9 where values were in [-1, 1]."""
    shape = (1, 12, 12, 12)
    bright = (0.7 + 0.3 * volumes(3, shape)).astype(np.float32)
    distances, _ = nearest_by_ssim(bright, -bright, 3, shape)
    assert distances.min() > 0.9


def test_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 8, 8, 8)
    queries, reference = volumes(4, shape), volumes(9, shape, 1)
    labels = [(rows > 0.3).astype(np.uint8) for rows in (queries, reference)]
    before = nearest_by_ssim(queries, reference, 9, shape), nearest_by_dice(*labels, 9)
    monkeypatch.setattr(structural, "_CHUNK", 512 * 2)
    after = nearest_by_ssim(queries, reference, 9, shape), nearest_by_dice(*labels, 9)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=1e-6)
        np.testing.assert_array_equal(one[1], other[1])


def naive_dice(a: np.ndarray, b: np.ndarray) -> float:
    sizes = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * sum(x == y != 0 for x, y in zip(a.tolist(), b.tolist(), strict=True)) / sizes if sizes else 1.0


def test_dice_counts_voxels_of_equal_label() -> None:
    rng = np.random.default_rng(0)
    queries, reference = (rng.choice(4, (n, 60), p=[0.5, 0.2, 0.2, 0.1]).astype(np.float32) for n in (7, 9))
    queries[0], reference[3], reference[5] = 0, 0, queries[2]
    every = np.array([[1 - naive_dice(q, r) for r in reference] for q in queries])
    distances, rows = nearest_by_dice(queries, reference, 9)
    np.testing.assert_allclose(distances, np.sort(every, 1), atol=1e-12)
    np.testing.assert_array_equal(rows, np.argsort(every, 1, kind="stable"))  # the lower row first
    assert distances[0, 0] == distances[2, 0] == 0  # exactly, as reports count these
    assert (rows[0, 0], rows[2, 0], distances[0, 1]) == (3, 5, 1)


def test_dice_of_boxes() -> None:
    """Boxes of 4 x 4 x 4 of which a half, a quarter and nothing overlap; another label never does."""
    box = np.zeros((8, 8, 8), np.uint8)
    box[:4, :4, :4] = 1
    moved = [np.roll(box, step, axis=(0, 1)[: len(step)]) for step in ((2,), (2, 2), (4,))]
    reference = np.stack([*moved, 2 * box, box]).reshape(5, -1)
    distances, rows = nearest_by_dice(box.reshape(1, -1), reference, 5)
    np.testing.assert_array_equal(distances, [[0, 0.5, 0.75, 1, 1]])
    np.testing.assert_array_equal(rows, [[4, 0, 1, 2, 3]])


def test_what_cannot_be_compared_is_refused() -> None:
    rows = np.zeros((3, 512), np.float32)
    for bad in (rows[0], rows[:, :64]):
        with pytest.raises(DataError, match="not rows of equal length"):
            nearest_by_ssim(rows, bad, 1, (1, 8, 8, 8))
        with pytest.raises(DataError, match="not rows of equal length"):
            nearest_by_dice(bad, rows, 1)
    for k in (0, 4):
        with pytest.raises(DataError, match=f"{k} neighbours among 3 volumes do not exist"):
            nearest_by_ssim(rows, rows, k, (1, 8, 8, 8))
        with pytest.raises(DataError, match=f"{k} neighbours among 3 volumes do not exist"):
            nearest_by_dice(rows, rows, k)
