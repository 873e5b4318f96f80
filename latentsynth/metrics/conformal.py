"""How unusual is a distance, given distances of cases that nobody could have copied? Conformal p-values and their null."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import betabinom, false_discovery_control

from latentsynth.errors import DataError


def p_values(distances: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values (Vovk et al. 2005; Bates et al. 2023, eq. 1): ``(1 + #{d_cal <= d}) / (n + 1)``.

    Small where a distance is shorter than almost all calibration distances. If query and calibration cases are
    exchangeable, ``P(p <= a) <= a`` for every level ``a``, whatever the distribution of distances.

    Args:
        distances: Of the queries, shape ``(N,)``.
        calibration: Of independent cases, one per patient, to the same training set, shape ``(n,)``.

    Returns:
        Shape ``(N,)``, multiples of ``1 / (n + 1)``.

    Raises:
        DataError: No calibration distance, or one that is not a number.
    """
    ordered = np.sort(np.asarray(calibration, dtype=np.float64))
    queries = np.asarray(distances, dtype=np.float64)
    if ordered.ndim != 1 or not len(ordered) or np.isnan(ordered).any() or np.isnan(queries).any():
        raise DataError(
            f"calibration distances of shape {ordered.shape} are empty, or some distance is not a number: give one "
            "distance per calibration patient"
        )
    return (1 + np.searchsorted(ordered, queries, side="right")) / (len(ordered) + 1)


def discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """Which hypotheses Benjamini and Hochberg (1995) reject at a false discovery rate, shape ``(N,)``.

    Conformal p-values that share one calibration set are positively dependent, under which the rate still holds
    (Bates et al. 2023, theorem 2).

    Args:
        p: p-values, shape ``(N,)``.
        rate: False discovery rate, between 0 and 1.
    """
    # The adjusted value of an exact tie may come out above the rate by one unit in the last place.
    return np.asarray(false_discovery_control(np.asarray(p, dtype=np.float64), method="bh") <= rate * (1 + 1e-12))


def flagged_interval(calibration: int, queries: int, level: float, coverage: float = 0.95) -> tuple[float, float]:
    """Central interval of the share of exchangeable queries that get ``p <= level``.

    With ``k = floor(level (n + 1))`` the probability of a flag, given the calibration cases, is the k-th smallest of n
    uniform values, ``Beta(k, n + 1 - k)``; the number of flags among the queries is beta-binomial.

    Args:
        calibration: Number n of calibration patients.
        queries: Number of independent queries.
        level: Level of the p-values.
        coverage: Probability inside the interval.

    Returns:
        Lowest and highest share, as fractions.

    Raises:
        DataError: So few calibration patients that no p-value can reach the level, or no query.
    """
    rank = smallest_rank(calibration, level)
    if queries < 1:
        raise DataError(f"{queries} queries have no share: give at least one")
    law = betabinom(queries, rank, calibration + 1 - rank)
    low, high = law.ppf((1 - coverage) / 2), law.ppf((1 + coverage) / 2)
    return float(low / queries), float(high / queries)


def smallest_rank(calibration: int, level: float) -> int:
    """How many of the ``calibration + 1`` possible p-values lie at or below the level.

    Raises:
        DataError: None does, or the level is no probability.
    """
    check_level(level)
    rank = math.floor(level * (calibration + 1) * (1 + 1e-12))
    if rank < 1:
        needed = least_calibration(level)
        raise DataError(
            f"{calibration} calibration patients cannot give a p-value of {level:g} (the smallest is "
            f"1/{calibration + 1}): hold back at least {needed} for calibration and as many for control"
            + (f", or raise the level to {math.ceil(100 / (calibration + 1)) / 100:g}" if calibration else "")
        )
    return rank


def check_level(level: float) -> None:
    """Refuses what is no level.

    Raises:
        DataError: It does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise DataError(f"level {level} is no probability: give one between 0 and 1, for example 0.05")


def least_calibration(level: float) -> int:
    """The fewest calibration patients of which a p-value can reach the level."""
    return math.ceil(1 / level * (1 - 1e-12)) - 1
