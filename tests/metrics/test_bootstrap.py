"""Intervals over patients against scipy, against the truth, and against copies of themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import (
    draw_groups,
    interval,
    mean_interval,
    ratio_interval,
    samples_apart,
    statistic_interval,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def named(count: int, times: int = 1) -> list[str]:
    """``count`` patients of ``times`` rows each, a patient's rows beside each other."""
    return [f"p{n}" for n in range(count) for _ in range(times)]


def test_rows_of_a_patient_are_drawn_together() -> None:
    groups = ["b", "a", "b", "c", "a", "b"]
    weights = draw_groups(groups, 500, rng())
    for name in "abc":
        columns = weights[:, [n for n, group in enumerate(groups) if group == name]]
        assert (columns == columns[:, :1]).all()
    first = [groups.index(name) for name in "abc"]
    assert (weights[:, first].sum(1) == 3).all()  # as many patients as there are, drawn with replacement
    assert len(np.unique(weights[:, first], axis=0)) == 10  # every way to draw 3 of 3


def test_every_patient_is_drawn_equally_often_however_many_rows_it_has() -> None:
    weights = draw_groups(["a"] * 9 + ["b"], 20_000, rng())
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.03)
    np.testing.assert_allclose((weights[:, 9] == 0).mean(), 0.25, atol=0.02)  # both draws fall on the other


def test_the_interval_holds_the_middle_of_the_replicates() -> None:
    low, high = interval(np.arange(101.0)[::-1], 0.9)
    assert (low, high) == (pytest.approx(5), pytest.approx(95))
    holes = np.concatenate([np.arange(101.0), [np.nan, np.inf, -np.inf]])
    assert interval(holes, 0.9) == (low, high)
    assert all(math.isnan(end) for end in interval(np.full(3, np.nan)))


def widened(level: float, patients: int) -> float:
    """The level at which percentiles of normal means give Student's t interval (Hesterberg 2015)."""
    quantile = stats.t.ppf((1 + level) / 2, patients - 1) * math.sqrt(patients / (patients - 1))
    return float(1 - 2 * stats.norm.sf(quantile))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_one_row_per_patient_is_the_ordinary_bootstrap(level: float) -> None:
    values = rng(4).gamma(1.5, size=30)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", confidence_level=widened(level, 30), rng=rng(1)
    ).confidence_interval
    mean, low, high = mean_interval(values, named(30), rng(2), 20_000, level)
    assert mean == pytest.approx(values.mean())
    width = reference.high - reference.low
    assert (low, high) == (
        pytest.approx(reference.low, abs=0.03 * width),
        pytest.approx(reference.high, abs=0.03 * width),
    )


def test_the_interval_covers_the_truth() -> None:
    """200 cohorts of 40 patients with 3 alike rows: nominally 95 percent.

    At least 178 hits (89 percent) in case of luck; resampling rows instead of patients covers about 3 of 4.
    """
    draws, hits, naive = rng(7), 0, 0
    for _ in range(200):
        patients = draws.normal(2.0, 1.0, 40)
        rows = np.repeat(patients, 3) + draws.normal(0, 0.1, 120)
        _, low, high = mean_interval(rows, named(40, 3), draws, 400)
        hits += low <= 2.0 <= high
        _, low, high = mean_interval(rows, named(120), draws, 400)
        naive += low <= 2.0 <= high
    assert 178 <= hits <= 199
    assert naive < 165


SKEWED: dict[str, tuple[Callable[[np.random.Generator], np.ndarray], float]] = {
    "exponential": (lambda draws: draws.exponential(size=6), 1.0),
    "log-normal": (lambda draws: draws.lognormal(0, 0.7, 6), math.exp(0.245)),
    "Dice": (lambda draws: draws.beta(8, 2, 6), 0.8),
}


@pytest.mark.parametrize("name", SKEWED)
def test_six_patients_are_covered(name: str) -> None:
    """600 cohorts of six: 87 to 92 percent of nominal 95, with 3 for luck; percentiles get 79 to 83."""
    draw, truth = SKEWED[name]
    draws, hits, percentiles = rng(11), 0, 0
    for _ in range(600):
        values = draw(draws)
        _, low, high = mean_interval(values, named(6), draws, 200)
        hits += low <= truth <= high
        low, high = interval(values[draws.integers(0, 6, (200, 6))].mean(1))
        percentiles += low <= truth <= high
    assert hits >= 0.84 * 600
    assert percentiles <= hits - 0.04 * 600


@pytest.mark.parametrize("count", [2, 6, 14])
def test_few_patients_get_students_interval(count: int) -> None:
    values = rng(count).gamma(2, size=count)
    expected = stats.t.interval(0.9, count - 1, values.mean(), stats.sem(values))
    _, low, high = mean_interval(np.repeat(values, 3), named(count, 3), rng(), level=0.9)
    assert (low, high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    _, low, high = mean_interval(values, named(count), rng(), level=0.9, bounds=(values.min(), values.mean()))
    assert values.min() <= low <= high == pytest.approx(values.mean())


def test_few_patients_on_two_sides_get_welchs_interval() -> None:
    """And where they are the same patients, the paired one."""
    a, b = rng(1).normal(size=7), rng(2).normal(1, 3, 9)

    def difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.asarray(left @ a / left.sum(1) - right @ b[: right.shape[1]] / right.sum(1))

    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert statistic_interval(difference, (named(7), others(9)), rng())[1:] == pytest.approx((welch.low, welch.high))
    pairs = stats.ttest_rel(a, b[:7]).confidence_interval()
    assert statistic_interval(difference, (named(7), named(7)), rng())[1:] == pytest.approx((pairs.low, pairs.high))


def test_every_patient_weighs_alike() -> None:
    values, groups = [1.0] * 9 + [3.0, 8.0], ["a"] * 9 + ["b", "c"]
    assert mean_interval(values, groups, rng()) == pytest.approx(mean_interval([1.0, 3.0, 8.0], list("abc"), rng()))
    assert ratio_interval((values, groups), (values, groups), rng())[0] == 1
    assert ratio_interval((values, groups), ([2.0, 4.0], ["x", "y"]), rng())[0] == pytest.approx(4 / 3)


def test_sides_with_a_patient_in_common_are_one_sample() -> None:
    assert samples_apart((["a", "b"], ["c", "d"], ["d", "b", "e"])) == [["a", "b", "c", "d", "e"]]
    assert samples_apart((["a", "b", "a"], ["c"])) == [["a", "b"], ["c"]]


def test_copies_of_every_row_tell_nothing_new() -> None:
    values, groups = (
        np.tile(rng(3).normal(size=8), 3) + rng(4).normal(0, 0.1, 24),
        ["abcdefgh"[n % 8] for n in range(24)],
    )
    once = mean_interval(values, groups, rng(5))
    twice = mean_interval(np.repeat(values, 2), [group for group in groups for _ in "12"], rng(5))
    assert twice == pytest.approx(once, abs=1e-12)
    apart = mean_interval(np.repeat(values, 2), named(48), rng(5))
    assert apart[2] - apart[1] < 0.6 * (once[2] - once[1])  # copies taken for patients would shrink it


def test_the_order_of_the_rows_does_not_matter() -> None:
    values, groups, order = rng(3).normal(size=12), named(4, 3), rng(9).permutation(12)
    mixed = mean_interval(values[order], [groups[n] for n in order], rng(5))
    assert mixed == pytest.approx(mean_interval(values, groups, rng(5)), abs=1e-12)


def test_the_mean_is_moved_and_scaled_with_the_values() -> None:
    values, groups = rng(3).normal(size=12), named(6, 2)
    once = np.array(mean_interval(values, groups, rng(5)))
    np.testing.assert_allclose(mean_interval(3 * values + 7, groups, rng(5)), 3 * once + 7)


def test_what_is_not_a_number_is_left_out() -> None:
    values, groups = [1.0, np.nan, 3.0, np.inf, 8.0], ["a", "b", "c", "d", "e"]
    assert mean_interval(values, groups, rng(1)) == mean_interval([1.0, 3.0, 8.0], ["a", "c", "e"], rng(1))


@pytest.mark.parametrize(
    ("values", "groups", "mean"),
    [([1.0, 3.0], ["a", "a"], 2.0), ([1.0, np.nan], ["a", "b"], 1.0), ([np.nan], ["a"], np.nan), ([], [], np.nan)],
)
def test_one_patient_has_a_mean_but_no_interval(values: list[float], groups: list[str], mean: float) -> None:
    got, low, high = mean_interval(values, groups, rng())
    assert got == pytest.approx(mean, nan_ok=True)
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_value_without_a_patient_is_refused() -> None:
    with pytest.raises(DataError, match="3 values for 2 groups"):
        mean_interval([1.0, 2.0, 3.0], ["a", "b"], rng())


def others(patients: int, each: int = 1) -> list[str]:
    """Patients whom :func:`named` does not name."""
    return [f"other {name}" for name in named(patients, each)]


def test_the_ratio_agrees_with_a_bootstrap_of_two_samples() -> None:
    above, below = rng(1).normal(3, 1, 25), rng(2).normal(5, 1, 35)
    reference = stats.bootstrap(
        (above, below), lambda a, b, axis: a.mean(axis) / b.mean(axis), n_resamples=20_000, method="percentile", rng=rng(3),
        confidence_level=widened(0.95, 25),
    ).confidence_interval  # fmt: skip
    ratio, low, high = ratio_interval((above, named(25)), (below, others(35)), rng(4), 20_000)
    assert ratio == pytest.approx(above.mean() / below.mean())
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.03 * width)
    assert high == pytest.approx(reference.high, abs=0.03 * width)


def test_the_ratio_of_values_that_do_not_vary_is_sure() -> None:
    sure = ratio_interval(([2.0] * 4, named(2, 2)), ([4.0] * 3, named(3)), rng())
    assert sure == pytest.approx((0.5, 0.5, 0.5))


def test_the_ratio_resamples_patients() -> None:
    values = rng(1).normal(3, 1, 10)
    once = ratio_interval((values, named(10)), (values, others(10)), rng(0))
    many = np.repeat(values, 10)
    tenfold = ratio_interval((many, named(10, 10)), (many, others(10, 10)), rng(0))
    assert once[1] < 0.95
    assert tenfold == pytest.approx(once, abs=1e-12)


def test_the_ratio_pairs_patients_that_recur() -> None:
    """A model that loses a tenth of every patient's score loses a tenth, however much patients differ."""
    values = rng(1).normal(3, 1, 10)
    paired = ratio_interval((0.9 * values, named(10)), (values, named(10)), rng(0))
    assert paired == pytest.approx((0.9, 0.9, 0.9))
    apart = ratio_interval((0.9 * values, named(10)), (values, others(10)), rng(0))
    assert apart[2] - apart[1] > 0.1


def test_the_ratio_to_nothing_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in ratio_interval(([1.0, 2.0], ["a", "b"]), ([0.0], ["c"]), rng()))
    few = ratio_interval(([1.0, 2.0], ["a", "b"]), ([0.0, 3.0], ["c", "d"]), rng())
    assert few[0] == 1
    assert np.isnan(few[1:]).all()  # without the three there is no ratio
    values = np.zeros(20)
    values[:3] = 1
    ratio, low, high = ratio_interval((values + 1, named(20)), (values, others(20)), rng())
    assert 0 < low < ratio < high < math.inf  # draws of nothing but zeros are left out


def test_a_statistic_gets_weights_of_both_samples() -> None:
    a, b = rng(1).normal(size=20), rng(2).normal(1, 1, 30)

    def difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        assert left.shape[1:] == (20,)
        assert right.shape[1:] == (30,)
        return np.asarray(left @ a / left.sum(1) - right @ b / right.sum(1))

    _, low, high = statistic_interval(difference, (named(20), others(30)), rng(3), 20_000)
    reference = stats.bootstrap(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=20_000, method="percentile", rng=rng(5),
        confidence_level=widened(0.95, 20),
    ).confidence_interval  # fmt: skip
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.03 * width)
    assert high == pytest.approx(reference.high, abs=0.03 * width)
