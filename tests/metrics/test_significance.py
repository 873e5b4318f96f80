"""Paired tests and ranks against scipy, closed forms, published tables and planted effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import PermutationMethod, friedmanchisquare, wilcoxon

from latentsynth.errors import DataError
from latentsynth.metrics.significance import Paired, critical_difference, holm, paired, rank_models, verdict

# Demsar 2006, table 5 (a): critical values of the two-tailed Nemenyi test, for 2 to 10 models.
Q = {
    0.05: [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164],
    0.10: [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920],
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scores(patients: int = 30, seed: int = 0) -> np.ndarray:
    return rng(seed).uniform(0.5, 0.9, patients)


def test_p_and_effect_are_those_of_the_signed_ranks() -> None:
    reference, arm = scores(9), scores(9, 1)
    found = paired(arm, reference, 0.01, rng())
    assert found.p == pytest.approx(wilcoxon(arm, reference).pvalue)
    ranks = np.argsort(np.argsort(np.abs(arm - reference))) + 1
    assert found.smallest_p == pytest.approx(2 / 2**9)
    assert found.effect == pytest.approx((ranks * np.sign(arm - reference)).sum() / ranks.sum())


def test_no_test_of_few_patients_can_be_significant() -> None:
    reference = scores(5)
    found = paired(reference + np.arange(0.1, 0.6, 0.1), reference, 0.01, rng())
    assert found.p == found.smallest_p == pytest.approx(2 / 2**5)
    assert found.effect == 1
    assert verdict(found, found.p) == "no evidence"


def test_ties_do_not_make_small_samples_significant() -> None:
    """The normal approximation would give five equal gains p = 0.025."""
    for gains in ([0.1] * 5, [0.1, 0.1, 0.2, 0.2, 0.3]):
        found = paired(np.array(gains), np.zeros(5), 0.001, rng())
        assert found.p == found.smallest_p == pytest.approx(2 / 2**5)
    mixed = np.array([1.0, 1.0, 2.0, -1.0, 3.0, -2.0])
    every = PermutationMethod(n_resamples=2**6)  # all assignments of signs
    assert paired(mixed, np.zeros(6), 0.001, rng()).p == pytest.approx(wilcoxon(mixed, method=every).pvalue, rel=1e-12)


def test_exchanging_the_arms_changes_the_sign_alone() -> None:
    one, other = paired(scores(), scores(seed=1), 0.01, rng()), paired(scores(seed=1), scores(), 0.01, rng())
    assert (one.difference, one.effect) == (pytest.approx(-other.difference), pytest.approx(-other.effect))
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert one.p == pytest.approx(other.p)


def test_equal_arms_are_equivalent_and_nothing_is_claimed() -> None:
    found = paired(scores(), scores(), 0.01, rng())
    assert (found.difference, found.p, found.effect) == (0, 1, 0)
    assert verdict(found, found.p) == "equivalent"


@pytest.mark.parametrize(
    ("shift", "noise", "margin", "word"),
    [
        (0.05, 0.02, 0.01, "gain"),
        (-0.05, 0.02, 0.01, "harm"),
        (0.002, 0.002, 0.01, "equivalent"),  # significant, and too small to matter
        (0.0, 0.2, 0.01, "no evidence"),  # too noisy to say that there is none
    ],
)
def test_planted_effects_get_their_word(shift: float, noise: float, margin: float, word: str) -> None:
    reference = scores(40)
    found = paired(reference + shift + noise * rng(2).standard_normal(40), reference, margin, rng())
    assert verdict(found, found.p) == word


def test_false_alarms_keep_their_level() -> None:
    """No difference at all: at most about 5 % of gains and harms, at a margin that nothing fits in."""
    words = []
    for seed in range(300):
        difference = rng(seed).standard_normal(25)
        found = paired(difference, np.zeros(25), 1e-9, rng(seed))
        words.append(verdict(found, found.p))
    assert np.mean([word in ("gain", "harm") for word in words]) < 0.08


def test_holm_is_the_step_down_procedure() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])  # Holm 1979, section 3, by hand
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    many = rng().uniform(size=12) ** 3
    for level in (0.01, 0.05, 0.2):
        rejected, order = np.zeros(12, bool), np.argsort(many)
        for n, row in enumerate(order):
            if many[row] > level / (12 - n):
                break
            rejected[row] = True
        np.testing.assert_array_equal(holm(many) <= level, rejected)
    np.testing.assert_array_equal(holm(many[::-1]), holm(many)[::-1])


@pytest.mark.parametrize("level", list(Q))
def test_critical_values_are_the_published_ones(level: float) -> None:
    for models, value in enumerate(Q[level], start=2):
        q = critical_difference(models, 7, level) / np.sqrt(models * (models + 1) / 42)
        assert q == pytest.approx(value, abs=1.5e-3)


@pytest.mark.parametrize(("models", "datasets", "value"), [(5, 6, 2.49), (5, 10, 1.93), (8, 18, 2.47), (26, 18, 9.38)])
def test_critical_differences_of_published_designs(models: int, datasets: int, value: float) -> None:
    assert critical_difference(models, datasets) == pytest.approx(value, abs=0.006)


def test_ranks_follow_the_scores() -> None:
    data = rng().uniform(size=(8, 4))
    data[:, 2] += 2
    data[:, 0] -= 2
    found = rank_models(data)
    assert (found.mean[2], found.mean[0]) == (1, 4)
    assert found.mean.sum() == pytest.approx(10)
    assert found.p == pytest.approx(friedmanchisquare(*data.T).pvalue)
    with pytest.raises(DataError, match="at least 3 on 5"):
        rank_models(data[:4])
    with pytest.raises(DataError, match="at least 3 on 5"):
        rank_models(data[:, :2])


def test_what_is_no_pair_is_refused() -> None:
    for arm, reference in ((scores(3), scores(4)), (scores(1), scores(1)), (np.full(3, np.nan), scores(3))):
        with pytest.raises(DataError):
            paired(arm, reference, 0.01, rng())


def test_a_wide_interval_is_never_equivalent() -> None:
    found = paired(np.array([0.2, -0.2] * 5), np.zeros(10), 0.01, rng())
    assert isinstance(found, Paired)
    assert found.low < -0.01
    assert found.high > 0.01
    assert not found.equivalent
