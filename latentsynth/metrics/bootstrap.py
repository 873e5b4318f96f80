"""Intervals by resampling patients: cases of one patient are drawn together, since they are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from latentsynth.errors import DataError


def draw_groups(groups: Sequence[str], draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each bootstrap draw.

    Args:
        groups: The patient of each of N rows.
        draws: Number of draws.
        rng: Source of randomness.

    Returns:
        Whole numbers, shape ``(draws, N)``; rows of one patient have equal numbers.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, index]


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates, shape ``(draws,)``; those that are not a number are left out."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[str],
    rng: np.random.Generator,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean over rows with a percentile bootstrap interval over patients.

    Args:
        values: One per row; those that are not a number are left out.
        groups: The patient of each row.
        rng: Source of randomness.
        draws: Number of draws.
        level: Share of draws inside the interval.

    Returns:
        Mean, low, high; the ends are not a number for fewer than two patients.

    Raises:
        DataError: Values and groups differ in length.
    """
    numbers, kept_groups = _finite(values, groups)
    if not len(numbers):
        return float("nan"), float("nan"), float("nan")
    if len(set(kept_groups)) < 2:
        return float(numbers.mean()), float("nan"), float("nan")
    weights = draw_groups(kept_groups, draws, rng)
    return (float(numbers.mean()), *interval(weights @ numbers / weights.sum(1), level))


def ratio_interval(
    top: tuple[Sequence[float], Sequence[str]],
    bottom: tuple[Sequence[float], Sequence[str]],
    rng: np.random.Generator,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Ratio of two means, each given as (values, patients), with a bootstrap interval; paired where patients recur.

    Conventions as :func:`mean_interval`; the ends are not a number where either side has fewer than two patients.
    """

    (above, patients), (below, others) = _finite(*top), _finite(*bottom)
    if not len(above) or not len(below) or not below.mean():
        return float("nan"), float("nan"), float("nan")
    ratio = float(above.mean() / below.mean())
    if len(set(patients)) < 2 or len(set(others)) < 2:
        return ratio, float("nan"), float("nan")
    if set(patients) & set(others):
        # The same patients on both sides are drawn together: what makes one hard makes the other hard.
        weights = draw_groups([*patients, *others], draws, rng)
        first, second = weights[:, : len(above)], weights[:, len(above) :]
    else:
        first, second = draw_groups(patients, draws, rng), draw_groups(others, draws, rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = (first @ above / first.sum(1)) / (second @ below / second.sum(1))
    return (ratio, *interval(replicates, level))


def _finite(values: Sequence[float] | np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Values that are numbers, and their patients."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) != len(groups):
        raise DataError(f"{len(numbers)} values for {len(groups)} groups: give one patient per value")
    kept = np.isfinite(numbers)
    return numbers[kept], [group for group, keep in zip(groups, kept, strict=True) if keep]


def statistic_interval(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    groups: tuple[Sequence[str], Sequence[str]],
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of a statistic of two samples, given as a function of row weights ``(draws, N)`` and ``(draws, M)``."""
    return interval(statistic(draw_groups(groups[0], draws, rng), draw_groups(groups[1], draws, rng)), level)
