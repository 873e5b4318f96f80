"""Is one model better than another? Paired tests over patients, corrected for their number, and ranks over data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import draw_groups, interval

Verdict = Literal["gain", "harm", "equivalent", "no evidence"]
FEWEST_DATASETS = 5
_DRAWS = 2000  # of the bootstrap
_EXACT = 50  # patients up to which the null distribution is enumerated


@dataclass(frozen=True)
class Paired:
    """One arm against the reference, paired by patient.

    Attributes:
        patients: How many are paired.
        difference: Mean of arm minus reference.
        low: Of its 95 % bootstrap interval over patients.
        high: Of the same.
        p: Two-sided Wilcoxon signed-rank test.
        smallest_p: What ``p`` would be if every patient had changed in one direction: no smaller one can be attained.
        effect: Matched-pairs rank-biserial correlation, from -1 to 1 (Kerby 2014): favourable minus unfavourable share of
            the rank sum.
        equivalent: Whether the 90 % interval lies within the margin (two one-sided tests at 5 %; Schuirmann 1987).
    """

    patients: int
    difference: float
    low: float
    high: float
    p: float
    smallest_p: float
    effect: float
    equivalent: bool


def paired(arm: np.ndarray, reference: np.ndarray, margin: float, rng: np.random.Generator) -> Paired:
    """Compares two arms on the same patients.

    Args:
        arm: One score per patient, averaged over seeds, shape ``(N,)``.
        reference: Of the same patients in the same order, ``(N,)``.
        margin: Largest mean difference that counts as none, in units of the score.
        rng: Source of the bootstrap.

    Raises:
        DataError: Arrays of other lengths, fewer than two patients, or scores that are not numbers.
    """
    arm, reference = np.asarray(arm, np.float64), np.asarray(reference, np.float64)
    if arm.shape != reference.shape or arm.ndim != 1 or len(arm) < 2:
        raise DataError(
            f"scores of shape {arm.shape} and {reference.shape} are no pairs: give one per patient, two at least"
        )
    difference = arm - reference
    if not np.isfinite(difference).all():
        raise DataError("some scores are not numbers: replace missing ones by the worst case first")
    names = [str(n) for n in range(len(difference))]
    weights = draw_groups(names, _DRAWS, rng)
    means = weights @ difference / weights.sum(1)
    low, high = interval(means)
    inner_low, inner_high = interval(means, 0.9)
    changed = difference[difference != 0]
    return Paired(
        len(difference), float(difference.mean()), low, high, _wilcoxon(changed), _wilcoxon(np.arange(1.0, len(difference) + 1)),
        _rank_biserial(changed), -margin < inner_low and inner_high < margin,
    )  # fmt: skip


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values (Holm 1979) that hold the chance of any false rejection, in the order given."""
    values = np.asarray(p, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def verdict(found: Paired, adjusted: float, level: float = 0.05) -> Verdict:
    """In a word: equivalent where that was shown, else gain or harm where that is significant, else no evidence.

    A gain within the margin may be significant and is yet too small to matter; it is called equivalent.
    """
    if found.equivalent:
        return "equivalent"
    if adjusted <= level:
        return "gain" if found.difference > 0 else "harm"
    return "no evidence"


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
    ways = np.ones(1)  # probability of every rank sum of gains, gain after gain
    for rank in ranks:
        ways = (np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))) / 2
    apart = np.abs(np.arange(len(ways)) - ranks.sum() / 2)
    return float(ways[apart >= abs(ranks[changed > 0].sum() - ranks.sum() / 2) - 1e-9].sum())


def _rank_biserial(changed: np.ndarray) -> float:
    if not len(changed):
        return 0.0
    ranks = rankdata(np.abs(changed))
    return float((ranks * np.sign(changed)).sum() / ranks.sum())
