"""Distances of feature sets against closed forms, brute force, MONAI and the prdc package."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric
from scipy.spatial.distance import cdist
from scipy.stats import norm, t

from latentsynth.errors import DataError
from latentsynth.metrics.distribution import frechet, frechet_without, kernel, kid, kid_interval, prdc, prdc_without


def normal(rows: int, features: int, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).normal(size=(rows, features))


def exact(rows: int, mean: np.ndarray, deviation: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose sample mean and sample covariance are exactly these (the covariance diagonal)."""
    noise = normal(rows, len(mean), seed)
    columns, _ = np.linalg.qr(noise - noise.mean(0))
    return mean + columns * np.sqrt(rows - 1) * deviation


@pytest.mark.parametrize("rows", [(40, 40), (12, 90)])
def test_frechet_of_diagonal_gaussians(rows: tuple[int, int]) -> None:
    """``|m1 - m2|^2 + sum (s1 - s2)^2``, which needs the N - 1."""
    rng = np.random.default_rng(3)
    m1, m2, s1, s2 = rng.normal(size=6), rng.normal(size=6), rng.uniform(0.5, 2, 6), rng.uniform(0.5, 2, 6)
    expected = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet(exact(rows[0], m1, s1, 0), exact(rows[1], m2, s2, 1)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rows", "features"), [(200, 8), (60, 20), (30, 300)])
def test_frechet_is_zero_for_equal_sets_and_symmetric(rows: int, features: int) -> None:
    a, b = normal(rows, features), normal(rows + 5, features, 1, 0.3, 1.4)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-9 * features)
    assert frechet(a, a[::-1]) >= 0
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


@pytest.mark.parametrize(("rows", "features"), [(100, 6), (15, 40)])
def test_frechet_does_not_change_when_both_sets_are_turned(rows: int, features: int) -> None:
    a, b = normal(rows, features) * np.linspace(0.1, 2, features), normal(rows, features, 1, 0.2)
    turn, _ = np.linalg.qr(normal(features, features, 2))
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-9)
    assert abs(frechet(a @ turn, b) / frechet(a, b) - 1) > 0.01  # turning one of them counts


@pytest.mark.filterwarnings("ignore:The `disp` argument")  # MONAI's call of scipy
@pytest.mark.parametrize(("rows", "features"), [(300, 12), (100, 64), (40, 128)])
def test_frechet_agrees_with_monai(rows: int, features: int) -> None:
    """Also with fewer rows than features, where MONAI takes the root of a singular matrix."""
    mix = normal(features, features, 5) / np.sqrt(features)
    a, b = normal(rows, features), normal(rows + 7, features, 1, 0.2, 1.3) @ mix
    monai = FIDMetric()(torch.from_numpy(b), torch.from_numpy(a)).item()
    assert frechet(a, b) == pytest.approx(monai, rel=1e-3)


def test_kernel_by_hand() -> None:
    got = kernel(np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([[3.0, 1.0]]))
    np.testing.assert_allclose(got, [[(5 / 2 + 1) ** 3], [(-1 / 2 + 1) ** 3]])


def brute_kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Binkowski et al. 2018, eq. 4, term by term."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    within = [np.mean([k(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (real, fake)]
    return float(within[0] + within[1] - 2 * np.mean([k(x, y) for x in real for y in fake]))


def test_kid_is_the_sum_over_pairs() -> None:
    real, fake = normal(7, 4), normal(9, 4, 1, 0.5)
    assert kid(real, fake) == pytest.approx(brute_kid(real, fake))
    assert kid(real, fake, list("abcdefg"), list("ABCDEFGHI")) == pytest.approx(kid(real, fake))
    assert kid(fake, real) == pytest.approx(kid(real, fake))


def group_kid(real: np.ndarray, fake: np.ndarray, groups: Sequence[str], others: Sequence[str]) -> float:
    """Pairs of rows of different groups, written out; a group counts as one, however many rows it has."""

    def mean(x: np.ndarray, y: np.ndarray, names: Sequence[str], theirs: Sequence[str]) -> float:
        pairs = [(g, h) for g, h in itertools.product(dict.fromkeys(names), dict.fromkeys(theirs)) if g != h]
        rows = [(x[[n == g for n in names]], y[[n == h for n in theirs]]) for g, h in pairs]
        return float(np.mean([kernel(*pair).mean() for pair in rows]))

    within = mean(real, real, groups, groups) + mean(fake, fake, others, others)
    return within - 2 * mean(real, fake, groups, others)


def test_kid_counts_pairs_of_different_groups_alone() -> None:
    real, fake = normal(7, 4), normal(9, 4, 1, 0.5)
    for groups, others in (("aabbbcd", "xxyyyyzzz"), ("aabbbcd", "ddbbyyyzx"), ("abcdefg", "aabbccdde")):
        expected = group_kid(real, fake, groups, others)
        assert kid(real, fake, groups, others) == pytest.approx(expected)
        assert kid_interval(real, fake, groups, others, np.random.default_rng(0))[0] == pytest.approx(expected)


@pytest.mark.parametrize("shared", [False, True])
def test_kid_of_several_samples_of_a_mask_is_unbiased(shared: bool) -> None:
    """Four samples a mask, alike but for noise, of masks of unseen patients or of the real ones: the mean over 1500
    nulls is 0 within 4 standard errors. Samples taken for independent raise it, shared patients lower it."""
    rng = np.random.default_rng(2)
    names = [str(n) for n in range(12)]
    fakes = names_of(names if shared else [f"mask {name}" for name in names], 4)
    got, naive = [], []
    for _ in range(1500):
        masks, theirs = rng.normal(0, 0.8, (2, 12, 2))
        real = masks + rng.normal(0, 0.6, (12, 2))
        fake = np.repeat(masks if shared else theirs, 4, 0) + rng.normal(0, 0.6, (48, 2))
        got.append(kid(real, fake, names, fakes))
        naive.append(kid(real, fake))
    error = np.std(got) / np.sqrt(len(got))
    assert abs(np.mean(got)) < 4 * error
    assert abs(np.mean(naive)) > 4 * error


def true_kid(shift: float) -> float:
    """Of N(0, 1) against N(shift, 1): the binomial sum over squared differences of moments."""
    return 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_kid_is_unbiased(shift: float) -> None:
    """Over 4000 draws of 12 against 8 rows the mean lies within 4 standard errors of the truth."""
    rng = np.random.default_rng(0)
    got = np.array([kid(rng.normal(size=(12, 1)), rng.normal(shift, 1, (8, 1))) for _ in range(4000)])
    error = got.std() / np.sqrt(len(got))
    assert error < 0.15  # with rows paired with themselves, the mean would be about 4 too high
    assert abs(got.mean() - true_kid(shift)) < 4 * error
    assert (got < 0).any()


def brute_interval(real: np.ndarray, fake: np.ndarray, groups: tuple[np.ndarray, np.ndarray], draws: int) -> np.ndarray:
    """Groups drawn with replacement, written out; no pair of a group with itself, nor with a copy of its own."""
    rng = np.random.default_rng(77)
    values = []
    for _ in range(draws):
        sides, within = [], []
        for rows, names in zip((real, fake), groups, strict=True):
            unique = np.unique(names)
            chosen = rng.choice(unique, len(unique))
            index = np.concatenate([np.flatnonzero(names == name) for name in chosen])
            allowed = names[index][:, None] != names[index]
            sides.append(rows[index])
            within.append(kernel(rows[index], rows[index])[allowed].mean() if allowed.any() else np.nan)
        values.append(within[0] + within[1] - 2 * kernel(*sides).mean())
    return np.array(values)


@pytest.mark.parametrize("size", [1, 3])
def test_interval_agrees_with_a_bootstrap_written_out(size: int) -> None:
    """Patients of ``size`` alike rows each: ends within 10 percent of the width, from 2000 and 4000 draws."""
    centres = np.repeat(normal(17, 3), size, axis=0)
    real, fake = centres + normal(17 * size, 3, 2, 0, 0.2), normal(16 * size, 3, 3, 0.4)
    groups = np.repeat([f"p{n}" for n in range(17)], size), np.repeat([f"q{n}" for n in range(16)], size)
    values = brute_interval(real, fake, groups, 2000)
    tail = norm.cdf(np.sqrt(16 / 15) * t.ppf(0.1, 15))  # widened as Student's t is
    low, high = np.nanquantile(values, [tail, 1 - tail])
    got = kid_interval(real, fake, *(g.tolist() for g in groups), np.random.default_rng(5), 4000, 0.8)[1:]
    np.testing.assert_allclose(got, (low, high), atol=0.1 * (high - low))


def test_interval_covers_the_truth() -> None:
    """60 repeats of 40 against 40 rows: nominally 95 percent; at least 85 (binomial, p < 0.01)."""
    rng = np.random.default_rng(0)
    names, others = ([f"{side}{n}" for n in range(40)] for side in "pq")
    hits = 0
    for _ in range(60):
        real, fake = rng.normal(size=(40, 1)), rng.normal(0.8, 1, (40, 1))
        _, low, high = kid_interval(real, fake, names, others, rng, draws=300)
        hits += low <= true_kid(0.8) <= high
        narrow = kid_interval(real, fake, names, others, rng, draws=300, level=0.5)[1:]
        assert low < narrow[0] < narrow[1] < high
    assert hits >= 51


def test_interval_resamples_patients_not_rows() -> None:
    """Ten copies of each patient tell no more than one: the interval must not shrink."""
    real, fake = normal(12, 2), normal(12, 2, 1, 0.6)
    names = [f"p{n}" for n in range(12)]
    once = kid_interval(real, fake, names, names, np.random.default_rng(0))
    many = np.repeat(real, 10, 0), np.repeat(fake, 10, 0), names_of(names, 10), names_of(names, 10)
    assert kid_interval(*many, np.random.default_rng(0)) == pytest.approx(once)


def names_of(names: list[str], times: int) -> list[str]:
    return [name for name in names for _ in range(times)]


def test_two_patients_have_a_distance_and_no_interval() -> None:
    value, low, high = kid_interval(normal(2, 3), normal(2, 3, 1), ["a", "b"], ["c", "d"], np.random.default_rng(0))
    assert value == pytest.approx(kid(normal(2, 3), normal(2, 3, 1)))
    assert np.isnan([low, high]).all()  # without one of them, nobody is left to pair


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("real_rows", "fake_rows", "features"), [(20, 20, 2), (50, 31, 8), (9, 60, 64)])
def test_prdc_equals_the_package(real_rows: int, fake_rows: int, features: int, k: int) -> None:
    reference = pytest.importorskip("prdc").compute_prdc
    real, fake = normal(real_rows, features), normal(fake_rows, features, 1, 0.4, 0.8)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = reference(real, fake, nearest_k=k)
    got = prdc(real, fake, k)
    assert got == {name: pytest.approx(float(value), abs=1e-12) for name, value in expected.items()}
    assert len({*got.values()}) > 1


def test_prdc_of_identical_sets_is_one() -> None:
    """Density too: a row lies in its own ball and, as the surface is outside, each ball holds k - 1 others."""
    a = normal(30, 4)
    assert prdc(a, a[::-1], 4) == pytest.approx({"precision": 1, "recall": 1, "density": 1, "coverage": 1})


def test_prdc_by_hand() -> None:
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [0.9], [9.0]])
    # Real radii for k = 1 are 1, 1, 2; 0.5 lies in two balls, 0.9 in three? |0.9 - 3| = 2.1, so in two; 9 in none.
    # Synthetic radii are 0.4, 0.4, 8.1: no real row is within 0.4 of 0.5, 1 is of 0.9, 1 and 3 lie within 8.1 of 9.
    expected = {"precision": 2 / 3, "recall": 2 / 3, "density": 4 / 3, "coverage": 2 / 3}
    assert prdc(real, fake, 1) == pytest.approx(expected)


def test_prdc_tells_collapse_from_spread() -> None:
    real = normal(60, 3)
    collapsed, spread = prdc(real, normal(60, 3, 1, 0, 0.05)), prdc(real, normal(60, 3, 1, 0, 4.0))
    assert collapsed["precision"] > 0.95 > 0.3 > collapsed["recall"]
    assert spread["recall"] > 0.8 > 0.4 > spread["precision"]


def test_some_of_the_rows_by_their_products_and_distances() -> None:
    real, fake = normal(14, 5), normal(12, 5, 1, 0.4)
    rng = np.random.default_rng(4)
    w, v = (rng.random((20, 14)) < 0.6).astype(float), (rng.random((20, 12)) < 0.6).astype(float)
    w[0], v[1] = np.eye(14)[3], np.eye(12)[5]
    far = frechet_without(real @ real.T, fake @ fake.T, real @ fake.T, w, v)
    near = prdc_without(cdist(real, real), cdist(fake, fake), cdist(real, fake), 2, w, v)
    assert np.isnan(far[:2]).all()
    for n in range(20):
        rows = real[w[n] > 0], fake[v[n] > 0]
        if n > 1:
            assert far[n] == pytest.approx(frechet(*rows))
        expected = prdc(*rows, 2) if min(map(len, rows)) > 2 else dict.fromkeys(near, np.nan)
        assert {name: value[n] for name, value in near.items()} == pytest.approx(expected, nan_ok=True)


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "frechet": frechet,
    "kid": kid,
    "interval": lambda a, b: kid_interval(
        a, b, [str(n) for n in range(len(a))], [str(n) for n in range(len(b))], np.random.default_rng(0), 10
    ),
    "prdc": lambda a, b: prdc(a, b, 1),
}
HOLE = normal(6, 3)
HOLE[4, 1] = np.nan


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (normal(6, 4), "real rows have 3 features, fake rows 4"),
        (normal(1, 3), "1 rows of fake features, expected at least 2"),
        (HOLE, r"not finite in 1 rows \(first: row 4\)"),
        (np.full((6, 3), np.inf), "not finite in 6 rows"),
        (normal(6, 3)[None], r"shape \(1, 6, 3\), expected \(rows, features\)"),
    ],
)
def test_impossible_features_are_refused(score: str, fake: np.ndarray, message: str) -> None:
    SCORES[score](normal(6, 3), normal(6, 3, 1))
    with pytest.raises(DataError, match=message):
        SCORES[score](normal(6, 3), fake)


def test_impossible_settings_are_refused() -> None:
    a, rng = normal(5, 3), np.random.default_rng(0)
    assert set(prdc(a, a, 4)) == {"precision", "recall", "density", "coverage"}
    with pytest.raises(DataError, match="5 rows of real features, expected at least 6"):
        prdc(a, a, 5)
    with pytest.raises(DataError, match="k of at least 1"):
        prdc(a, a, 0)
    with pytest.raises(DataError, match="4 real groups for 5 rows"):
        kid_interval(a, a, list("abcd"), list("abcde"), rng)
    with pytest.raises(DataError, match="all fake rows are of group a"):
        kid_interval(a, a, list("abcde"), list("aaaaa"), rng)
