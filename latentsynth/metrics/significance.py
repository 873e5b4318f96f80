"""Is one model better than another? Paired tests over patients and seeds, corrected for their number; ranks over data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

from latentsynth.errors import DataError

FEWEST_DATASETS = 5
FEWEST_SEEDS = 3  # fewer cannot show how much trainings vary
_SMALLEST_P = 1e-12  # that is told apart from 0
_EXACT = 50  # patients up to which the null distribution is enumerated


class Verdict(StrEnum):
    """What may be said of one arm beside another."""

    GAIN = "gain"
    HARM = "harm"
    HIGHER = "higher, within the margin"
    LOWER = "lower, within the margin"
    EQUIVALENT = "equivalent"
    MIXED = "mixed"
    NO_EVIDENCE = "no evidence"


@dataclass(frozen=True)
class Paired:
    """One arm against another, paired by patient and seed.

    Attributes:
        patients: How many are paired.
        difference: Mean of arm minus reference.
        low: Of its 95 % interval over patients and seeds (:func:`crossed_interval`).
        high: Of the same.
        p: Two-sided Wilcoxon signed-rank test over patients, seeds averaged first.
        p_mean: Two-sided test of the mean over patients and seeds (:func:`crossed_p`).
        smallest_p: What ``p`` would be if every patient had changed in one direction: no smaller one can be attained.
        effect: Matched-pairs rank-biserial correlation, from -1 to 1 (Kerby 2014): share of the rank sum of patients
            whose score rose minus that of patients whose score fell.
        equivalent: Whether the 90 % interval lies within the margin (two one-sided tests at 5 %; Schuirmann 1987).
        by_seed: Mean difference of every seed.
    """

    patients: int
    difference: float
    low: float
    high: float
    p: float
    p_mean: float
    smallest_p: float
    effect: float
    equivalent: bool
    by_seed: tuple[float, ...]

    @property
    def signs(self) -> str:
        """``+``, ``-`` or ``0`` for every seed."""
        return "".join("+" if one > 0 else "-" if one < 0 else "0" for one in self.by_seed)


def paired(arm: np.ndarray, reference: np.ndarray, margin: float) -> Paired:
    """Compares two arms on the same patients.

    Args:
        arm: A score for every seed and patient, shape ``(S, N)``; or, of one seed, ``(N,)``.
        reference: Of the same seeds and patients in the same order, same shape.
        margin: Largest mean difference that counts as none, in units of the score.

    Raises:
        DataError: Arrays of other lengths, fewer than two patients, or scores that are not numbers.
    """
    arm, reference = np.atleast_2d(np.asarray(arm, np.float64)), np.atleast_2d(np.asarray(reference, np.float64))
    if arm.shape != reference.shape or arm.ndim != 2 or not len(arm) or arm.shape[1] < 2:
        raise DataError(
            f"scores of shape {arm.shape} and {reference.shape} are no pairs: give one per seed and patient, of two "
            "patients at least"
        )
    difference = arm - reference
    if not np.isfinite(difference).all():
        raise DataError("some scores are not numbers: replace missing ones by the worst case first")
    low, high = crossed_interval(difference)
    inner_low, inner_high = crossed_interval(difference, 0.9)
    of_patients = difference.mean(0)
    changed = of_patients[of_patients != 0]
    patients = len(of_patients)
    return Paired(
        patients, float(difference.mean()), low, high, _wilcoxon(changed), crossed_p(difference), _smallest_p(patients),
        _rank_biserial(changed), -margin < inner_low and inner_high < margin, tuple(difference.mean(1).tolist()),
    )  # fmt: skip


def crossed_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean over seeds and patients, both of which were drawn: another study would have others.

    Seeds x patients is the design of readers x cases in diagnostic studies: the mean squares of a two-way analysis of
    variance give the variance of the mean as that of seeds and what is left, plus that of patients (Hillis et al. 2008,
    Academic Radiology 15:647). Each of the two is given the quantile of Student's t of its own degrees of freedom, and
    squares of half-widths are added, since approximate common degrees of freedom let 7 to 12 % of nulls pass at two and
    three seeds. One seed leaves the ordinary interval of the mean over patients.

    Resampling both with replacement lets up to 24 % pass: draws of three seeds show two thirds of their variance.

    Args:
        values: Shape ``(S, N)``.
        level: Share of studies whose interval holds the true mean.
    """
    half, mean = _half_width(*_mean_squares(values), (1 - level) / 2), values.mean()
    return float(mean - half), float(mean + half)


def crossed_p(values: np.ndarray) -> float:
    """Two-sided p of a mean of 0: one minus the level at which :func:`crossed_interval` of ``(S, N)`` ends at 0."""
    mean, variances = abs(values.mean()), _mean_squares(values)
    if not mean:
        return 1.0
    if mean >= _half_width(*variances, _SMALLEST_P / 2):
        return _SMALLEST_P
    return float(brentq(lambda p: _half_width(*variances, p / 2) - mean, _SMALLEST_P, 1.0, xtol=1e-15, rtol=1e-10))


def _mean_squares(values: np.ndarray) -> tuple[tuple[float, int], tuple[float, int]]:
    """Of seeds with what is left, and of patients without it: their parts of the variance of the mean, degrees of freedom."""
    seeds, patients = values.shape
    mean, by_patient, by_seed = values.mean(), values.mean(0), values.mean(1)
    of_patients = seeds * by_patient.var(ddof=1)
    if seeds == 1:
        return (0.0, 1), (of_patients / values.size, patients - 1)
    rest = values - by_patient - by_seed[:, None] + mean
    of_patients -= (rest**2).sum() / ((seeds - 1) * (patients - 1))
    of_seeds = patients * by_seed.var(ddof=1)
    return (of_seeds / values.size, seeds - 1), (max(of_patients, 0.0) / values.size, patients - 1)


def _half_width(seeds: tuple[float, int], patients: tuple[float, int], tail: float) -> float:
    return float(np.sqrt(sum(variance * stdtrit(degrees, tail) ** 2 for variance, degrees in (seeds, patients))))


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values (Holm 1979) that hold the chance of any false rejection, in the order given."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def verdict(found: Paired, ranks: float, mean: float, higher_is_better: bool = True, level: float = 0.05) -> Verdict:
    """What the ranks of patients, the mean and its interval say together.

    A gain or harm is named where all name it: both tests are significant, the interval leaves out 0, and mean and effect
    have its sign. Within the margin it is neither, and there the interval suffices, since no more is claimed than a small
    difference. Ranks and interval that contradict each other, or significant ranks beside an interval that holds 0, are
    mixed: many patients fell a little and a few rose much, or seeds disagree.

    Args:
        found: The comparison.
        ranks: Its ``p``, corrected for the number of comparisons (:func:`holm`).
        mean: Its ``p_mean``, corrected likewise.
        higher_is_better: Of the score.
        level: Of significance.
    """
    by_interval = 1 if found.low > 0 else -1 if found.high < 0 else 0
    agreed = by_interval and np.sign(found.effect) == np.sign(found.difference) == by_interval
    if agreed and found.equivalent:
        return Verdict.HIGHER if by_interval > 0 else Verdict.LOWER
    if agreed and max(ranks, mean) <= level:
        return Verdict.GAIN if (by_interval > 0) == higher_is_better else Verdict.HARM
    if not agreed and (by_interval or ranks <= level):
        return Verdict.MIXED
    return Verdict.EQUIVALENT if found.equivalent else Verdict.NO_EVIDENCE


@dataclass(frozen=True)
class Ranks:
    """Models over data sets (Demsar 2006).

    Attributes:
        mean: Mean rank of each model, 1 being the best.
        p: Friedman's test that they are all alike.
        critical_difference: Two models differ if their mean ranks differ by more (Nemenyi).
    """

    mean: np.ndarray
    p: float
    critical_difference: float


def rank_models(scores: np.ndarray, level: float = 0.05) -> Ranks:
    """Ranks models over data sets; patients are no data sets.

    Args:
        scores: Higher is better, shape ``(datasets, models)``.
        level: Of the critical difference.

    Raises:
        DataError: Fewer than five data sets or three models.
    """
    datasets, models = scores.shape
    if datasets < FEWEST_DATASETS or models < 3:
        raise DataError(
            f"{models} models on {datasets} data sets cannot be ranked: at least 3 on {FEWEST_DATASETS}; compare two arms "
            "over patients instead"
        )
    mean = rankdata(-scores, axis=1).mean(0)
    return Ranks(mean, float(friedmanchisquare(*scores.T).pvalue), critical_difference(models, datasets, level))


def critical_difference(models: int, datasets: int, level: float = 0.05) -> float:
    """``q sqrt(k (k + 1) / (6 N))`` with q the studentized range over the root of 2 (Demsar 2006, section 3.2.2)."""
    quantile = studentized_range.ppf(1 - level, models, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(models * (models + 1) / (6 * datasets)))


def _wilcoxon(changed: np.ndarray) -> float:
    """Two-sided p of differences without zeros; 1 where nothing changed.

    For few patients over all assignments of signs, with ties as they are: the normal approximation that libraries use where
    there are ties gives five equal gains p = 0.025, and 2 / 2^5 is the truth.
    """
    # By hand, since no method of scipy.stats.wilcoxon is exact for ties among more than about 20 patients: "exact" knows
    # no ties, and a PermutationMethod goes through 2^N assignments or draws some, which is another p every time.
    if not len(changed):
        return 1.0
    if len(changed) > _EXACT:
        return float(wilcoxon(changed, method="approx").pvalue)
    ranks = np.rint(2 * rankdata(np.abs(changed))).astype(int)  # twice, so that ranks of ties are whole
    ways = np.zeros(ranks.sum() + 1)  # probability of every rank sum of gains, gain after gain
    ways[0] = 1
    for rank in ranks:
        ways[rank:], ways[:rank] = (ways[rank:] + ways[:-rank]) / 2, ways[:rank] / 2
    apart = np.abs(np.arange(len(ways)) - ranks.sum() / 2)
    return float(ways[apart >= abs(ranks[changed > 0].sum() - ranks.sum() / 2) - 1e-9].sum())


@cache
def _smallest_p(patients: int) -> float:
    return _wilcoxon(np.arange(1.0, patients + 1))


def _rank_biserial(changed: np.ndarray) -> float:
    if not len(changed):
        return 0.0
    ranks = rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())
