"""Conformal p-values, discoveries and the null of the flagged share, against loops, exact fractions and simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from latentsynth.errors import DataError
from latentsynth.metrics.conformal import discoveries, flagged_interval, least_calibration, p_values, smallest_rank


@pytest.mark.parametrize("digits", [1, 8])
def test_p_values_count_calibration_distances_that_are_not_longer(digits: int) -> None:
    """With one digit most distances tie, and ties count against."""
    rng = np.random.default_rng(0)
    queries, calibration = np.round(rng.normal(size=300), digits), np.round(rng.normal(size=40), digits)
    expected = [(1 + sum(c <= q for c in calibration)) / 41 for q in queries]
    np.testing.assert_array_equal(p_values(queries, calibration), expected)
    np.testing.assert_array_equal(p_values(queries, calibration[::-1]), expected)
    np.testing.assert_array_equal(p_values(np.exp(3 * queries), np.exp(3 * calibration)), expected)  # ranks alone count


def test_p_values_at_the_ends() -> None:
    np.testing.assert_allclose(p_values(np.array([-1.0, 0, 0.5, 1, 9]), np.array([0.0, 1, 1])), [0.25, 0.5, 0.5, 1, 1])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [19, 32])
def test_p_values_of_exchangeable_cases_are_superuniform(n: int, ties: bool) -> None:
    """P(p <= a) <= a at every possible a, within 4 standard errors; without ties equal to it."""
    rng = np.random.default_rng(1)
    drawn = rng.standard_cauchy(size=(20000, n + 1))
    drawn = np.round(drawn) if ties else drawn
    p = np.array([p_values(row[:1], row[1:])[0] for row in drawn])
    levels = np.arange(1, n + 2) / (n + 1)
    np.testing.assert_allclose(p * (n + 1), np.round(p * (n + 1)), atol=1e-9)
    reached = (p[:, None] <= levels + 1e-12).mean(0)
    error = 4 * np.sqrt(levels * (1 - levels) / len(p)) + 1e-12
    assert (reached <= levels + error).all()
    if not ties:
        assert (reached >= levels - error).all()


def step_up(p: np.ndarray, rate: float) -> np.ndarray:
    """Benjamini and Hochberg (1995), eq. 1, with fractions: the largest k with p_(k) <= k q / m."""
    found = [Fraction(float(value)).limit_denominator(10**6) for value in p]
    bound = Fraction(rate).limit_denominator(10**6)
    largest = max((k for k, value in enumerate(sorted(found), 1) if value <= k * bound / len(found)), default=0)
    return np.array([largest > 0 and value <= sorted(found)[largest - 1] for value in found])


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_discoveries_equal_the_step_up_procedure(rate: float) -> None:
    """On multiples of 1 / (n + 1), where p-values lie on the line itself."""
    rng = np.random.default_rng(2)
    counts = set()
    for _ in range(200):
        n, m = rng.integers(19, 120), rng.integers(1, 60)
        p = rng.integers(1, (n + 1) // rng.integers(1, 12) + 1, m) / (n + 1)
        expected = step_up(p, rate)
        np.testing.assert_array_equal(discoveries(p, rate), expected)
        counts.add((expected.any(), expected.all()))
    assert counts == {(False, False), (True, False), (True, True)}


def test_discoveries_on_the_line() -> None:
    """20 patients in 20 at 1/20 each: sorted p-values reach the rate with the last alone."""
    assert discoveries(np.full(20, 1 / 20), 0.05).all()
    assert not discoveries(np.array([2 / 20, 1.0]), 0.05).any()
    assert discoveries(np.array([1 / 40, 1.0]), 0.05).tolist() == [True, False]


def test_false_discoveries_stay_below_the_rate() -> None:
    """Half of 60 queries are copies; all share one calibration set."""
    rng = np.random.default_rng(3)
    wrong, power = [], []
    for _ in range(500):
        calibration, queries = rng.normal(size=200), rng.normal(size=60)
        queries[:30] -= 4
        found = discoveries(p_values(queries, calibration), 0.2)
        wrong.append(found[30:].sum() / max(found.sum(), 1))
        power.append(found[:30].mean())
    assert np.mean(wrong) < 0.2 * 0.5 + 4 * np.std(wrong) / np.sqrt(500)  # half of the hypotheses are true
    assert np.mean(power) > 0.9


@pytest.mark.parametrize(
    ("calibration", "queries", "ends"), [(20, 20, (0.0, 0.2)), (60, 60, (0.0, 0.15)), (19, 1, (0.0, 1.0))]
)
def test_flagged_interval_by_heart(calibration: int, queries: int, ends: tuple[float, float]) -> None:
    assert flagged_interval(calibration, queries, 0.05) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("calibration", "queries", "level"),
    [(20, 20, 0.05), (60, 60, 0.05), (226, 904, 0.05), (25, 1000, 0.05), (9, 40, 0.3)],
)
@pytest.mark.parametrize("coverage", [0.95, 0.5])
def test_flagged_interval_equals_simulation(calibration: int, queries: int, level: float, coverage: float) -> None:
    """No tail holds more than its half, and one query less on either end would make it do so."""
    rng = np.random.default_rng(4)
    draws = [p_values(rng.random(queries), rng.random(calibration)) <= level + 1e-12 for _ in range(6000)]
    counts = np.sum(draws, axis=1)
    low, high = (round(end * queries) for end in flagged_interval(calibration, queries, level, coverage))
    tail = (1 - coverage) / 2
    error = 4 * np.sqrt(tail * (1 - tail) / len(counts))
    assert (counts < low).mean() <= tail + error
    assert (counts > high).mean() <= tail + error
    assert (counts <= low).mean() >= tail - error
    assert (counts >= high).mean() >= tail - error


@pytest.mark.parametrize("level", ["0.01", "0.05", "0.07", "0.1", "0.2", "0.3"])
def test_smallest_rank_is_exact_and_its_advice_works(level: str) -> None:
    exact, refused = Fraction(level), 0
    for n in range(1, 320):
        expected = math.floor(exact * (n + 1))
        if expected:
            assert smallest_rank(n, float(level)) == expected
            reachable = np.arange(1, n + 2) / (n + 1) <= float(level) * (1 + 1e-12)
            assert reachable.sum() == expected
            continue
        refused += 1
        with pytest.raises(DataError, match=f"{n} calibration patients cannot give a p-value") as caught:
            smallest_rank(n, float(level))
        needed = int(str(caught.value).split("hold back at least ")[1].split()[0])
        assert smallest_rank(needed, float(level)) == 1 > math.floor(exact * needed)
        assert smallest_rank(n, float(str(caught.value).rsplit(" ", 1)[1])) >= 1 or n == 1
    assert refused == math.ceil(1 / exact) - 2


def test_what_has_no_value_is_refused() -> None:
    some = np.ones(3)
    for calibration in (np.ones(0), np.array([1, np.nan]), np.ones((2, 2))):
        with pytest.raises(DataError, match="give one distance per calibration patient"):
            p_values(some, calibration)
    with pytest.raises(DataError, match="some distance is not a number"):
        p_values(np.array([np.nan]), some)
    with pytest.raises(DataError, match="0 queries have no share"):
        flagged_interval(20, 0, 0.05)
    for level in (0.0, 1.0, 5.0, float("nan")):
        with pytest.raises(DataError, match="is no probability"):
            flagged_interval(20, 20, level)


@pytest.mark.parametrize("level", [0.01, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.9])
def test_the_fewest_calibration_patients_are_just_enough(level: float) -> None:
    least = least_calibration(level)
    assert smallest_rank(max(least, 1), level) >= 1
    if least:
        with pytest.raises(DataError, match=f"hold back at least {least} for"):
            smallest_rank(least - 1, level)
