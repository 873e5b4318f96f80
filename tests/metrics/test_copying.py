"""Measures of copying: closed forms, loops, invariances, and what they say of copies and of independent rows."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from latentsynth.errors import DataError
from latentsynth.metrics.copying import (
    authentic,
    copy_rate,
    data_copying,
    nearer_to_training,
    nearest_ratio,
    published,
    published_null,
    reproduced,
)
from latentsynth.metrics.neighbours import nearest

SETTINGS = [(904, 226, 904), (100, 25, 1000)]  # train, calibration, samples


def normal(rows: int, features: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, features))


def jittered(rows: np.ndarray, count: int, size: float = 0.05) -> np.ndarray:
    rng = np.random.default_rng(9)
    return rows[rng.integers(0, len(rows), count)] + size * rng.normal(size=(count, rows.shape[1]))


def test_the_copy_rate_of_one_case_a_patient_is_clopper_and_pearsons() -> None:
    for flags in (0, 3, 24):
        found = copy_rate(np.arange(24) < flags, [str(n) for n in range(24)])
        expected = binomtest(flags, 24).proportion_ci()
        assert found == pytest.approx((flags / 24, expected.low, expected.high))
    nothing = copy_rate(np.zeros(30, bool), [str(n % 6) for n in range(30)])
    assert nothing == pytest.approx((0, 0, 1 - 0.025 ** (1 / 6)))  # patients count, not their cases


def test_patients_of_many_cases_weigh_no_more_in_the_copy_rate() -> None:
    flags = np.array([True] * 9 + [False] * 2)
    assert copy_rate(flags, list("aaaaaaaaabc"))[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("rate", [0.03, 0.2])
def test_the_copy_rate_is_covered_however_alike_the_cases_of_a_patient(rate: float) -> None:
    """12 patients of 5 cases, from independent to all alike: at least 95 % of 400 sets."""
    rng, people = np.random.default_rng(3), [str(n % 12) for n in range(60)]
    for alike in (0.05, 0.5, 0.95):
        spread = (1 - alike) / alike
        chances = rng.beta(rate * spread, (1 - rate) * spread, (400, 12))
        found = [copy_rate(rng.random(60) < np.tile(one, 5), people) for one in chances]
        assert np.mean([low <= rate <= high for _, low, high in found]) >= 0.95


def test_reproduced_without_draws_is_a_count() -> None:
    """At equal numbers nothing is drawn: rows nearer to a sample than the quantile, in any order of the samples."""
    train, calibration, samples = normal(70, 5), normal(30, 5, 1), normal(30, 5, 2)
    limit = np.quantile(cdist(train, calibration).min(1), 0.2)
    expected = cdist(train, samples).min(1) < limit
    assert 0 < expected.mean() < 1
    for order in (samples, samples[::-1]):
        got = reproduced(train, calibration, order, 0.2)
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_reproduced_is_the_mean_over_draws() -> None:
    """A training row with h of N samples within the limit is missed by n draws with probability C(N-h, n)/C(N, n)."""
    train, calibration, samples = normal(60, 3), normal(10, 3, 1), normal(40, 3, 2)
    limit = np.quantile(cdist(train, calibration).min(1), 0.3)
    near = (cdist(train, samples) < limit).sum(1)
    missed = np.prod([np.clip(40 - near - i, 0, None) / (40 - i) for i in range(10)], axis=0)
    got = reproduced(train, calibration, samples, 0.3)
    np.testing.assert_allclose(got, 1 - missed, atol=1e-9)
    assert len({*near.tolist()}) > 3
    rng = np.random.default_rng(0)
    drawn = [cdist(train, samples[rng.permutation(40)[:10]]).min(1) < limit for _ in range(2000)]
    np.testing.assert_allclose(np.mean(drawn, axis=0), got, atol=4 * 0.5 / np.sqrt(2000))


def test_reproduced_does_not_depend_on_where_duplicates_stand() -> None:
    train, calibration, samples = normal(80, 6), normal(20, 6, 1), normal(30, 6, 2)
    orders = (samples.repeat(4, 0), np.tile(samples, (4, 1)))
    found = [reproduced(train, calibration, s, 0.2) for s in orders]
    np.testing.assert_allclose(*found, atol=1e-9)
    assert found[0].max() > 0.1


@pytest.mark.parametrize("sizes", SETTINGS)
def test_reproduced_of_independent_samples_is_near_the_level(sizes: tuple[int, int, int]) -> None:
    """More samples must not help: the mean over 8 seeds stays within a half of 0.05."""
    found = []
    for seed in range(8):
        train, calibration, samples = (normal(n, 32, 3 * seed + i) for i, n in enumerate(sizes))
        found.append(reproduced(train, calibration, samples).mean())
    assert np.mean(found) == pytest.approx(0.05, abs=0.025)


def test_reproduced_finds_the_copied_half() -> None:
    train, calibration = normal(100), normal(50, 32, 1)
    got = reproduced(train, calibration, jittered(train[:50], 400))
    assert got[:50].mean() > 0.4  # 50 of 400 drawn hit about 1 - exp(-1) of 50 rows
    assert got[50:].mean() < 0.1


def naive_published(train: np.ndarray, validation: np.ndarray, samples: np.ndarray) -> tuple[float, float, float]:
    def r(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1])

    threshold = np.percentile([max(r(t, v) for v in validation) for t in train], 95)
    memorised = np.mean([max(r(t, s) for s in samples) > threshold for t in train])
    copies = np.mean([max(r(s, t) for t in train) > threshold for s in samples])
    return float(threshold), float(memorised), float(copies)


@pytest.mark.parametrize("features", [3, 16])
def test_published_equals_correlations_one_by_one(features: int) -> None:
    """Rows of any mean and scale: correlation ignores both."""
    sets = [normal(n, features, n) * np.linspace(0.1, 50, n)[:, None] + n for n in (40, 12, 60)]
    sets[2][:5] = 3 * sets[0][:5] - 7
    found = published(*sets)
    assert (found.threshold, found.memorised, found.copies) == pytest.approx(naive_published(*sets))
    assert found.copies >= 5 / 60


@pytest.mark.parametrize(
    ("sizes", "memorised", "copies"), [(SETTINGS[0], (0.15, 0.3), (0.15, 0.3)), (SETTINGS[1], (0.7, 1.0), (0.1, 0.4))]
)
def test_published_is_not_calibrated(
    sizes: tuple[int, int, int], memorised: tuple[float, float], copies: tuple[float, float]
) -> None:
    """A sixth to nine tenths of independent Gaussian rows are memorised, not 5 %; its null by simulation says so."""
    sets = [[normal(n, 32, 100 * seed + i) for i, n in enumerate(sizes)] for seed in range(5)]
    found = [published(*three) for three in sets]
    null = published_null(sets[0][0], *sizes[1:], np.random.default_rng(0), 10)
    for name, (low, high) in (("memorised", memorised), ("copies", copies)):
        mean = np.mean([getattr(one, name) for one in found])
        assert low < mean < high
        assert getattr(null, name) == pytest.approx(mean, abs=0.1)
    assert null.threshold == pytest.approx(np.mean([one.threshold for one in found]), abs=0.08)


def test_published_finds_exact_copies() -> None:
    train, validation = normal(60), normal(20, 32, 1)
    found = published(train, validation, train)
    assert (found.memorised, found.copies) == (1, 1)
    with pytest.raises(DataError, match="rows of one feature have no correlation"):
        published(train[:, :1], validation[:, :1], train[:, :1])


def test_published_null_has_the_covariance_of_the_training_rows() -> None:
    """On few directions rows crowd together, and the null must know: isotropic rows would correlate far less."""
    train = normal(100, 4) @ normal(4, 64, 1) + normal(1, 64, 2)
    crowded, spread = (published_null(rows, 25, 100, np.random.default_rng(0), 3) for rows in (train, normal(100, 64)))
    assert crowded.threshold > 0.95 > 0.6 > spread.threshold


def test_nearest_ratio_by_hand() -> None:
    distances = np.array([[0.0, 2, 9], [1, 3, 3], [2, 2, 5], [0, 0, 1]])
    np.testing.assert_allclose(nearest_ratio(distances), [0, 1 / 3, 1, 1])
    np.testing.assert_allclose(nearest_ratio(7 * distances), nearest_ratio(distances))


@pytest.mark.parametrize(("rows", "features"), [((50, 70), 2), ((30, 200), 40)])
def test_authentic_equals_a_loop(rows: tuple[int, int], features: int) -> None:
    train, samples = normal(rows[0], features), normal(rows[1], features, 1)
    samples[:3] = train[:3]
    expected = []
    for sample in samples:
        to = np.linalg.norm(train - sample, axis=1)
        home = int(to.argmin())
        others = np.linalg.norm(np.delete(train, home, 0) - train[home], axis=1)
        expected.append(to[home] > others.min())
    got = authentic(train, samples)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(authentic(train, samples, own=nearest(train, train, 2)[0][:, 1]), expected)
    assert not got[:3].any()
    assert 0.2 < got.mean() < 1


@pytest.mark.parametrize("cells", [1, 3])
def test_data_copying_tells_copies_from_strangers_and_from_failures(cells: int) -> None:
    score = partial(data_copying, cells=cells)
    train, test = normal(300, 8), normal(150, 8, 1)
    sets = {"copies": jittered(train, 200), "apart": normal(200, 8, 2), "far": normal(200, 8, 3) * 3}
    found = {name: score(train, test, rows, np.random.default_rng(0)) for name, rows in sets.items()}
    assert found["copies"] < -8
    assert abs(found["apart"]) < 2.5
    assert found["far"] > 6


def test_data_copying_of_independent_rows_is_a_standard_score() -> None:
    """Given the training rows the distances are exchangeable: mean 0 and deviation 1 over 200 draws."""
    rng = np.random.default_rng(5)
    train = normal(40, 3)
    found = [data_copying(train, rng.normal(size=(30, 3)), rng.normal(size=(50, 3)), rng, 1) for _ in range(200)]
    assert abs(np.mean(found)) < 4 / np.sqrt(200)
    assert 0.8 < np.std(found) < 1.2


def test_data_copying_by_hand() -> None:
    """One cell: z of U, U the pairs in which the sample is farther, ties half (Mann and Whitney 1947)."""
    train, test, samples = normal(20, 2), normal(9, 2, 1), normal(14, 2, 2)
    samples[:4] = test[:4]
    p, q = (cdist(x, train).min(1) for x in (test, samples))
    u = ((q[:, None] > p) + 0.5 * (q[:, None] == p)).sum()
    expected = (u - 9 * 14 / 2) / np.sqrt(9 * 14 * 24 / 12)
    assert data_copying(train, test, samples, np.random.default_rng(0), 1) == pytest.approx(expected)
    assert expected != 0


def test_data_copying_is_the_mean_of_its_cells_by_test_rows() -> None:
    """Two clusters far apart: copies of one, strangers to the other, and the second holds three times the test rows."""
    here, there = normal(80, 4), normal(80, 4, 1) + 60
    train, test = np.concatenate([here, there]), np.concatenate([normal(20, 4, 2), normal(60, 4, 3) + 60])
    samples = np.concatenate([jittered(here, 30), normal(25, 4, 4) + 60])
    rng = np.random.default_rng(0)
    parts = data_copying(here, test[:20], samples[:30], rng, 1), data_copying(there, test[20:], samples[30:], rng, 1)
    assert data_copying(train, test, samples, rng, 2) == pytest.approx(0.25 * parts[0] + 0.75 * parts[1])
    assert parts[0] < -4 < -2.5 < parts[1]
    assert data_copying(train, test, samples[:32], rng, 2) == pytest.approx(parts[0])  # 2 rows are too few to count
    assert np.isnan(data_copying(train, test, samples[:7], rng, 2))


def test_the_set_is_tested_exactly_by_ranks_of_patients() -> None:
    """Of all ways to call five of ten patients trained, one alone puts them before all others."""
    low, high = np.arange(5.0), np.arange(5.0, 10.0)
    assert nearer_to_training(low, high) == pytest.approx(1 / math.comb(10, 5))
    assert nearer_to_training(high, low) == 1


def test_a_set_that_knows_nobody_passes_at_the_rate_asked_for_and_one_that_does_fails() -> None:
    """Samples about half-way to training patients: no single one is near-exact, and yet the set tells whom it was made of."""
    independent, learnt = [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        train, heldout, made = (rng.normal(size=(n, 20)) for n in (26, 12, 15))
        for samples, found in ((made, independent), ((made + train[:15]) / 2**0.5, learnt)):
            near = [cdist(people, samples).min(1) for people in (train, heldout)]
            found.append(nearer_to_training(*near))
    assert np.mean(np.array(independent) <= 0.05) <= 0.09  # binomial, p = 0.01 to fail
    assert np.mean(np.array(learnt) <= 0.05) > 0.6


@pytest.mark.parametrize(("train", "heldout"), [(0, 3), (3, 0)])
def test_nobody_cannot_be_compared(train: int, heldout: int) -> None:
    with pytest.raises(DataError, match="give one of each"):
        nearer_to_training(np.zeros(train), np.zeros(heldout))
