"""Membership inference against scikit-learn and bootstraps of patients written out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from latentsynth.errors import DataError
from latentsynth.metrics.membership import LEAST_NON_MEMBERS, Membership, membership


def names(prefix: str, count: int, times: int = 1) -> list[str]:
    return [f"{prefix}{n:04d}" for n in range(count) for _ in range(times)]


def measure(members: np.ndarray, others: np.ndarray, times: int = 1, draws: int = 1000) -> Membership:
    """With ``times`` cases of each patient."""
    sides = [(side, names(prefix, len(side) // times, times)) for prefix, side in (("m", members), ("n", others))]
    return membership(sides[0][0], sides[1][0], sides[0][1], sides[1][1], np.random.default_rng(0), draws)


def values(found: Membership) -> tuple[float, float, float]:
    return found.auc, found.low, found.high


@pytest.mark.parametrize("digits", [0, 6])
def test_auc_counts_pairs(digits: int) -> None:
    """Whole numbers tie, and ties count half."""
    rng = np.random.default_rng(1)
    members, others = np.round(rng.normal(size=30), digits), np.round(rng.normal(0.5, 1, 23), digits)
    found = measure(members, others)
    truth = roc_auc_score(np.repeat([0, 1], [30, 23]), np.concatenate([members, others]))
    assert found.auc == pytest.approx(truth, rel=1e-12)
    assert found.low < found.auc < found.high
    assert measure(others, members).auc == pytest.approx(1 - found.auc)
    assert measure(members**3, others**3) == found  # any increasing function of the loss says the same


def test_auc_when_nothing_or_everything_is_told() -> None:
    low, high = np.linspace(0, 1, 120), np.linspace(2, 3, 150)
    for members, others, auc, found in ((low, high, 1, 1), (high, low, 0, 0), (0 * low, 0 * high, 0.5, 0)):
        got = measure(members, others)
        assert (*values(got), got.true_positives) == pytest.approx((auc, auc, auc, found))


def test_cases_of_a_patient_are_averaged_whatever_their_order() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(size=(15, 4)), rng.normal(0.4, 1, (12, 4))
    once = measure(members.mean(1), others.mean(1))
    assert values(measure(members.ravel(), others.ravel(), 4)) == pytest.approx(values(once))
    order = rng.permutation(60)
    shuffled = membership(
        members.ravel()[order], others.ravel(), [names("m", 15, 4)[n] for n in order], names("n", 12, 4),
        np.random.default_rng(0),
    )  # fmt: skip
    assert values(shuffled) == pytest.approx(values(once))


def test_duplicated_volumes_do_not_narrow_the_interval() -> None:
    """As a bootstrap of rows would: its interval, written out, is about a third as wide."""
    rng = np.random.default_rng(3)
    members, others = rng.normal(size=20), rng.normal(0.4, 1, 20)
    once, tenfold = measure(members, others), measure(members.repeat(10), others.repeat(10), 10)
    assert values(tenfold) == pytest.approx(values(once))
    rows = [
        np.mean(rng.choice(members.repeat(10), 200)[:, None] < rng.choice(others.repeat(10), 200)) for _ in range(400)
    ]
    assert np.ptp(np.quantile(rows, [0.025, 0.975])) < 0.5 * (once.high - once.low)


def test_interval_agrees_with_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(4)
    members, others = rng.normal(size=25), rng.normal(0.6, 1, 18)
    drawn = [np.mean(rng.choice(members, 25)[:, None] < rng.choice(others, 18)) for _ in range(4000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = measure(members, others, draws=4000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_interval_covers_one_half_when_losses_tell_nothing() -> None:
    """Nominally 95 of 100 repeats; at least 86 (binomial, p < 0.001)."""
    rng = np.random.default_rng(5)
    found = [measure(rng.normal(size=40), rng.normal(size=30), draws=300) for _ in range(100)]
    assert sum(one.low <= 0.5 <= one.high for one in found) >= 86


@pytest.mark.parametrize("count", [100, 150, 299, 1000])
def test_true_positives_at_one_percent_of_false_ones(count: int) -> None:
    """The best threshold that lets at most 1 % of non-members through, tried one after another."""
    rng = np.random.default_rng(6)
    members, others = rng.normal(-1.5, 1, 80), rng.normal(size=count)
    thresholds = [*np.concatenate([members, others]), np.inf]
    best = max((members < t).mean() for t in thresholds if (others < t).mean() <= 0.01)
    assert measure(members, others).true_positives == pytest.approx(best)
    assert 0 < best < 1


def test_true_positives_need_enough_patients() -> None:
    """Patients, not cases: 99 of two scans each are too few."""
    rng = np.random.default_rng(7)
    assert LEAST_NON_MEMBERS == 100
    assert measure(rng.normal(size=40), rng.normal(size=99)).true_positives is None
    assert measure(rng.normal(size=40), rng.normal(size=198), 2).true_positives is None
    assert measure(rng.normal(size=40), rng.normal(size=200), 2).true_positives is not None


def test_what_cannot_be_compared_is_refused() -> None:
    losses, rng = np.arange(3.0), np.random.default_rng(0)
    for bad, patients in ((np.array([0, np.nan, 1]), "abc"), (losses, "ab"), (losses[:, None], "abc")):
        with pytest.raises(DataError, match="of members: give one finite loss each"):
            membership(bad, losses, list(patients), list("xyz"), rng)
    with pytest.raises(DataError, match="1 patients among non-members: give at least 2"):
        membership(losses, losses, list("abc"), list("xxx"), rng)
    with pytest.raises(DataError, match="patient c is member and non-member"):
        membership(losses, losses, list("abc"), list("cde"), rng)
