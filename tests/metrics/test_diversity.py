"""Multi-scale similarity against a version written out with scipy, and pairs that never join a patient."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric
from scipy import ndimage
from torch import Tensor

from latentsynth.errors import DataError
from latentsynth.metrics.diversity import mean_similarity, ms_ssim, ms_ssim_scales, random_pairs

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def images(count: int = 2, channels: int = 1, shape: tuple[int, ...] = (16, 16, 16), seed: int = 0) -> Tensor:
    """Smooth images in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5, 1.5), mode="wrap")
    return torch.from_numpy(smooth / np.abs(smooth).max()).float()


def noisy(like: Tensor, strength: float) -> Tensor:
    return (like + strength * torch.randn(like.shape, generator=torch.Generator().manual_seed(9))).clamp(-1, 1)


def filtered(x: np.ndarray, size: int) -> np.ndarray:
    """Gaussian window of deviation 1.5, only where it lies inside."""
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / 1.5) ** 2)
    for axis in range(3):
        x = ndimage.correlate1d(x, taps / taps.sum(), axis=axis)
    rim = slice(size // 2, -(size // 2))
    return x[rim, rim, rim]


def reference(a: np.ndarray, b: np.ndarray, weights: tuple[float, ...], size: int) -> float:
    """Wang et al. 2003, eq. 7, of one channel: contrast-structure on every scale, luminance on the last."""
    product = 1.0
    for scale, weight in enumerate(weights):
        ma, mb = filtered(a, size), filtered(b, size)
        va, vb = filtered(a * a, size) - ma**2, filtered(b * b, size) - mb**2
        term = (2 * (filtered(a * b, size) - ma * mb) + 0.06**2) / (va + vb + 0.06**2)
        if scale == len(weights) - 1:
            term = term * (2 * ma * mb + 0.02**2) / (ma**2 + mb**2 + 0.02**2)
        product *= max(term.mean(), 0) ** weight
        if scale == len(weights) - 1:
            break
        a, b = (x.reshape(*[n for s in x.shape for n in (s // 2, 2)]).mean((1, 3, 5)) for x in (a, b))
    return product


@pytest.mark.parametrize(
    ("shape", "size", "scales"),
    [
        ((16, 16, 16), 3, 3),
        ((20, 40, 40), 5, 3),
        ((28, 28, 28), 7, 3),
        ((128, 62, 128), 7, 3),
        ((64, 64, 64), 7, 4),
        ((111, 160, 160), 7, 4),
        ((112, 160, 160), 7, 5),
        ((512, 512, 512), 7, 5),
    ],
)
def test_scales_that_a_shape_allows(shape: tuple[int, ...], size: int, scales: int) -> None:
    weights, got = ms_ssim_scales(shape)
    assert got == size
    assert weights == pytest.approx(np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales]))


def test_every_shape_from_16_works_and_smaller_ones_are_refused() -> None:
    for edge in range(16, 40):
        a = images(2, 1, (edge, 16 + edge % 7, 40))
        assert torch.isfinite(ms_ssim(a[:1], a[1:])).all()
    with pytest.raises(DataError, match=r"\(16, 15, 16\) is too small .* at least 16 voxels"):
        ms_ssim(images(1, 1, (16, 15, 16)), images(1, 1, (16, 15, 16)))


@pytest.mark.parametrize("shape", [(16, 16, 16), (28, 32, 36), (64, 64, 64)])
def test_ms_ssim_is_the_product_over_scales(shape: tuple[int, int, int]) -> None:
    a = images(1, 1, shape)
    b = noisy(0.8 * a + 0.1, 0.3)
    expected = reference(1 + a[0, 0].double().numpy(), 1 + b[0, 0].double().numpy(), *ms_ssim_scales(shape))
    assert 0.2 < expected < 0.9
    assert ms_ssim(a, b).item() == pytest.approx(expected, abs=1e-3)


def test_ms_ssim_is_monai_at_its_own_settings() -> None:
    """On [0, 1], where all five scales fit; MONAI's own window of 11 would ask for 176 voxels, so the window is ours."""
    a = images(1, 1, (112, 112, 112))
    b = noisy(a, 0.2)
    monai = MultiScaleSSIMMetric(spatial_dims=3, kernel_size=7)((a + 1) / 2, (b + 1) / 2)
    # The standard weights sum to 1.0001, ours to 1.
    assert ms_ssim(a, b).item() == pytest.approx(monai.item(), abs=2e-4)


def test_ms_ssim_does_not_turn_on_the_sign_of_a_small_mean() -> None:
    a = images()
    low, high = (a - a.mean() + shift for shift in (-0.02, 0.02))
    assert (ms_ssim(low, high) > 0.99).all()


def test_ms_ssim_of_equal_images_is_one_symmetric_and_falls_with_noise() -> None:
    a = images(3, 2, (20, 24, 20))
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(3))
    scores = [ms_ssim(a, noisy(a, strength)) for strength in (0.05, 0.2, 0.6)]
    assert (scores[0] > scores[1] + 0.02).all()
    assert (scores[1] > scores[2] + 0.02).all()
    torch.testing.assert_close(ms_ssim(noisy(a, 0.2), a), scores[1])


def test_ms_ssim_is_per_case() -> None:
    a, b = images(3, 2), images(3, 2, seed=1)
    b[1] = a[1]
    got = ms_ssim(a, b)
    assert got[1].item() == pytest.approx(1)
    assert (got[[0, 2]] < 0.9).all()
    torch.testing.assert_close(got, torch.cat([ms_ssim(a[n : n + 1], b[n : n + 1]) for n in range(3)]))


def test_pairs_never_join_a_patient_and_never_repeat() -> None:
    groups = ["a", "a", "b", "c", "b", "a", "d"]
    for seed in range(50):
        pairs = random_pairs(groups, 10, np.random.default_rng(seed))
        assert len(set(pairs)) == len(pairs) == 10
        assert all(i < j and groups[i] != groups[j] for i, j in pairs)


def test_pairs_are_all_there_are_when_there_are_fewer() -> None:
    groups = ["a", "a", "b", "c"]
    everything = {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    for count in (5, 6, 100):
        pairs = random_pairs(groups, count, np.random.default_rng(0))
        assert (len(pairs), set(pairs)) == (5, everything)
    assert random_pairs(["a", "a"], 3, np.random.default_rng(0)) == []
    assert all(type(n) is int for pair in random_pairs(groups, 2, np.random.default_rng(0)) for n in pair)


def test_every_pair_is_equally_likely() -> None:
    """3000 draws of 2 of 5 pairs: 1200 each, within 4 deviations (27)."""
    rng = np.random.default_rng(0)
    counts = Counter(pair for _ in range(3000) for pair in random_pairs(["a", "a", "b", "c"], 2, rng))
    assert len(counts) == 5
    assert all(abs(n - 1200) < 4 * 27 for n in counts.values())


def test_pairs_depend_on_the_generator_alone() -> None:
    groups = [str(n) for n in range(30)]
    first, again, other = (random_pairs(groups, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_similarity_of_pairs_in_their_order() -> None:
    a = images(4)
    a[3] = a[0]
    ticks: list[int] = []
    got = mean_similarity(a.__getitem__, [(0, 1), (0, 3), (1, 2)], lambda: ticks.append(1))
    expected = [ms_ssim(a[i : i + 1], a[j : j + 1]).item() for i, j in ((0, 1), (0, 3), (1, 2))]
    assert got.dtype == np.float64
    assert got.tolist() == pytest.approx(expected)
    assert got[1] == pytest.approx(1)
    assert len(ticks) == 3
    assert mean_similarity(a.__getitem__, []).shape == (0,)


def test_a_set_of_near_copies_is_less_diverse() -> None:
    spread = images(5)
    alike = noisy(spread[:1].expand(5, -1, -1, -1, -1), 0.1)
    pairs = random_pairs([str(n) for n in range(5)], 10, np.random.default_rng(0))
    assert mean_similarity(alike.__getitem__, pairs).mean() > mean_similarity(spread.__getitem__, pairs).mean() + 0.2
