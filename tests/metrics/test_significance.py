"""Paired tests and ranks against scipy, closed forms, published tables and planted effects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import PermutationMethod, friedmanchisquare, ttest_1samp, wilcoxon

from latentsynth.errors import DataError
from latentsynth.metrics.significance import (
    Paired,
    Verdict,
    critical_difference,
    crossed_interval,
    crossed_p,
    holm,
    paired,
    rank_models,
    verdict,
)

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
    found = paired(arm, reference, 0.01)
    assert found.p == pytest.approx(wilcoxon(arm, reference).pvalue)
    ranks = np.argsort(np.argsort(np.abs(arm - reference))) + 1
    assert found.smallest_p == pytest.approx(2 / 2**9)
    assert found.effect == pytest.approx((ranks * np.sign(arm - reference)).sum() / ranks.sum())


def test_no_test_of_few_patients_can_be_significant() -> None:
    reference = scores(5)
    found = paired(reference + np.arange(0.1, 0.6, 0.1), reference, 0.01)
    assert found.p == found.smallest_p == pytest.approx(2 / 2**5)
    assert found.effect == 1
    assert verdict(found, found.p, found.p_mean) == "no evidence"


def test_ties_do_not_make_small_samples_significant() -> None:
    """The normal approximation would give five equal gains p = 0.025."""
    for gains in ([0.1] * 5, [0.1, 0.1, 0.2, 0.2, 0.3]):
        found = paired(np.array(gains), np.zeros(5), 0.001)
        assert found.p == found.smallest_p == pytest.approx(2 / 2**5)
    mixed = np.array([1.0, 1.0, 2.0, -1.0, 3.0, -2.0])
    every = PermutationMethod(n_resamples=2**6)  # all assignments of signs
    assert paired(mixed, np.zeros(6), 0.001).p == pytest.approx(wilcoxon(mixed, method=every).pvalue, rel=1e-12)


def test_exchanging_the_arms_changes_the_sign_alone() -> None:
    one, other = paired(scores(), scores(seed=1), 0.01), paired(scores(seed=1), scores(), 0.01)
    assert (one.difference, one.effect) == (pytest.approx(-other.difference), pytest.approx(-other.effect))
    assert (one.low, one.high) == (pytest.approx(-other.high), pytest.approx(-other.low))
    assert one.p == pytest.approx(other.p)


def test_equal_arms_are_equivalent_and_nothing_is_claimed() -> None:
    found = paired(scores(), scores(), 0.01)
    assert (found.difference, found.p, found.effect) == (0, 1, 0)
    assert verdict(found, found.p, found.p_mean) == "equivalent"


@pytest.mark.parametrize(
    ("shift", "noise", "margin", "word"),
    [
        (0.05, 0.02, 0.01, "gain"),
        (-0.05, 0.02, 0.01, "harm"),
        (0.002, 0.002, 0.01, "higher, within the margin"),  # significant, and too small to matter
        (0.0, 0.002, 0.01, "equivalent"),
        (0.0, 0.2, 0.01, "no evidence"),  # too noisy to say that there is none
    ],
)
def test_planted_effects_get_their_word(shift: float, noise: float, margin: float, word: str) -> None:
    reference = scores(40)
    found = paired(reference + shift + noise * rng(2).standard_normal(40), reference, margin)
    assert verdict(found, found.p, found.p_mean) == word


def test_few_rescued_patients_do_not_make_up_for_many_that_fell() -> None:
    """24 of 27 worse and 3 rescued: the mean rises, the ranks fall."""
    difference = np.array([*np.linspace(-0.03, -0.01, 24), 0.4, 0.5, 0.6])
    for sign in (1, -1):
        found = paired(sign * difference, np.zeros(27), 0.01)
        assert np.sign(found.difference) == sign == -np.sign(found.effect)
        assert found.p < 0.05
        assert verdict(found, found.p, found.p_mean) == Verdict.MIXED
        assert verdict(replace(found, low=sign * 0.01, high=sign * 0.1), found.p, found.p_mean) == Verdict.MIXED


def test_a_small_difference_is_said_to_be_one() -> None:
    found = Paired(30, -0.005, -0.009, -0.002, 0.03, 0.01, 1e-8, -0.5, True, (-0.005,))
    assert verdict(found, found.p, found.p_mean) == verdict(found, 1.0, 1.0) == Verdict.LOWER
    assert verdict(replace(found, equivalent=False), found.p, found.p_mean) == Verdict.HARM
    assert verdict(replace(found, equivalent=False), found.p, found.p_mean, higher_is_better=False) == Verdict.GAIN
    assert verdict(replace(found, equivalent=False), 0.06, 0.01) == Verdict.NO_EVIDENCE
    assert verdict(replace(found, high=0.001), found.p, 0.06) == Verdict.MIXED  # ranks alone
    assert verdict(replace(found, high=0.001), 0.06, 0.06) == Verdict.EQUIVALENT


def test_seeds_that_disagree_make_no_gain() -> None:
    """Every patient gains on average over seeds; one seed of three did it all."""
    shifts = np.array([[0.3], [-0.02], [-0.02]])
    arm = shifts + 0.01 * rng().standard_normal((3, 40))
    found = paired(arm, np.zeros((3, 40)), 0.01)
    assert found.signs == "+--"
    assert found.by_seed == pytest.approx(arm.mean(1))
    assert found.patients == 40
    assert found.p < 1e-6
    assert verdict(found, found.p, found.p_mean) == Verdict.MIXED
    alike = paired(arm - shifts + 0.05, np.zeros((3, 40)), 0.01)
    assert (alike.signs, verdict(alike, alike.p, alike.p_mean)) == ("+++", Verdict.GAIN)


def test_the_interval_is_that_of_one_seed_or_of_what_varies() -> None:
    values = rng().standard_normal(12)
    exact = ttest_1samp(values, 0).confidence_interval()
    assert crossed_interval(values[None]) == pytest.approx((exact.low, exact.high))
    assert crossed_interval(np.tile(values, (4, 1))) == pytest.approx((exact.low, exact.high))  # seeds that repeat one
    assert crossed_p(values[None]) == pytest.approx(ttest_1samp(values, 0).pvalue)
    seeds = rng(1).standard_normal((5, 1))
    assert crossed_interval(np.tile(seeds, (1, 12))) == pytest.approx(
        tuple(ttest_1samp(seeds[:, 0], 0).confidence_interval())
    )


TRIES = 250


def test_the_p_of_the_mean_is_where_its_interval_ends_at_zero() -> None:
    values = 0.4 + rng(2).standard_normal((3, 15))
    p = crossed_p(values)
    assert 0.01 < p < 1
    assert min(np.abs(crossed_interval(values, 1 - p))) == pytest.approx(0, abs=1e-9)
    assert crossed_p(-values) == pytest.approx(p)
    assert (crossed_p(np.zeros((2, 4))), crossed_p(np.ones((2, 4)))) == (1.0, 1e-12)


NULLS = {
    "normal": lambda draw, shape: draw.standard_normal(shape),
    "heavy tails": lambda draw, shape: draw.standard_t(3, shape),
    "equal steps": lambda draw, shape: draw.integers(-2, 3, shape).astype(float),
}


@pytest.mark.parametrize(("seeds", "patients", "of_seeds"), [(1, 6, 0), (1, 27, 0), (2, 20, 0.3), (3, 30, 1)])
@pytest.mark.parametrize("kind", list(NULLS))
def test_false_alarms_keep_their_level(seeds: int, patients: int, of_seeds: float, kind: str) -> None:
    """No difference over all seeds and patients, whatever the margin: at most 5 % name a direction."""
    draw, noise = rng(seeds * patients), NULLS[kind]
    named = {margin: 0 for margin in (1e-9, 1e9)}
    for _ in range(TRIES):
        trainings = of_seeds * draw.standard_normal((seeds, 1))
        difference = trainings + noise(draw, (1, patients)) + noise(draw, (seeds, patients))
        for margin in named:
            found = paired(difference, np.zeros((seeds, patients)), margin)
            named[margin] += verdict(found, found.p, found.p_mean) in (
                Verdict.GAIN,
                Verdict.HARM,
                Verdict.HIGHER,
                Verdict.LOWER,
            )
    assert max(named.values()) / TRIES <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / TRIES), named


def test_a_family_of_nulls_keeps_its_level() -> None:
    """Six arms like the baseline that they share: at most 5 % of studies name any gain or harm."""
    draw, tries, studies = rng(5), 200, 0
    for _ in range(tries):
        scores = (
            draw.standard_normal((1, 1, 20)) + 0.3 * draw.standard_normal((7, 3, 1)) + draw.standard_normal((7, 3, 20))
        )
        found = [paired(arm, scores[0], 1e-9) for arm in scores[1:]]
        adjusted = zip(holm([one.p for one in found]), holm([one.p_mean for one in found]), strict=True)
        words = [verdict(one, *both) for one, both in zip(found, adjusted, strict=True)]
        studies += any(word in (Verdict.GAIN, Verdict.HARM) for word in words)
    assert studies / tries <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / tries)


def test_a_planted_gain_is_found_in_most_studies() -> None:
    """Caution has its price, and this is its bound: 1.5 standard deviations at three seeds and 20 patients."""
    draw = rng(6)
    differences = [0.5 + 0.05 * draw.standard_normal((3, 1)) + 0.33 * draw.standard_normal((3, 20)) for _ in range(100)]
    found = [paired(one, np.zeros((3, 20)), 0.01) for one in differences]
    assert np.mean([verdict(one, one.p, one.p_mean) == Verdict.GAIN for one in found]) > 0.8


def test_seeds_that_are_only_averaged_would_not_keep_it() -> None:
    """The fault that the interval over seeds and patients mends: patients alone find differences between trainings."""
    draw = rng()
    differences = [0.3 * draw.standard_normal((3, 1)) + 0.7 * draw.standard_normal((3, 40)) for _ in range(300)]
    averaged = [paired(one.mean(0), np.zeros(40), 1e-9) for one in differences]
    assert np.mean([verdict(one, one.p, one.p_mean) in (Verdict.GAIN, Verdict.HARM) for one in averaged]) > 0.15
    crossed = [paired(one, np.zeros((3, 40)), 1e-9) for one in differences]
    assert np.mean(
        [verdict(one, one.p, one.p_mean) in (Verdict.GAIN, Verdict.HARM) for one in crossed]
    ) < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)


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
            paired(arm, reference, 0.01)


def test_a_wide_interval_is_never_equivalent() -> None:
    found = paired(np.array([0.2, -0.2] * 5), np.zeros(10), 0.01)
    assert isinstance(found, Paired)
    assert found.low < -0.01
    assert found.high > 0.01
    assert not found.equivalent
