"""How far the values of two sets of cases lie apart, beside what two halves of one set do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance

from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import interval, statistic_interval


def set_distance(
    real: np.ndarray,
    fake: np.ndarray,
    real_groups: Sequence[str],
    fake_groups: Sequence[str],
    rng: np.random.Generator,
    draws: int = 1000,
) -> tuple[float, float, float]:
    """Wasserstein-1 distance of two sets of numbers, patients weighing alike, with a 95 % interval over patients.

    Args:
        real: One number per case, ``(N,)``.
        fake: ``(M,)``.
        real_groups: Patient of each real case.
        fake_groups: Patient of each synthetic case.
        rng: Source of randomness.
        draws: Number of draws.

    Returns:
        Distance, low, high, in units of the values; the ends are not a number where either side has fewer than two
        patients. A distance is never negative, so resampling pushes it up: an interval above 0 is no sign of a
        difference by itself; compare with :func:`halves_distance`.

    Raises:
        DataError: A side is empty, holds what is not a number, or has not one patient per value.
    """
    for values, groups in ((real, real_groups), (fake, fake_groups)):
        _check(values, groups)

    def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.array([
            wasserstein_distance(real, fake, w, v) if w.any() and v.any() else np.nan
            for w, v in zip(first, second, strict=True)
        ])  # fmt: skip

    return statistic_interval(distances, (real_groups, fake_groups), rng, draws, bounds=(0, np.inf))


def halves_distance(
    values: np.ndarray, groups: Sequence[str], most: int, rng: np.random.Generator, draws: int = 400
) -> tuple[float, float, float]:
    """The same distance between random halves of the patients: what no generator can be expected to beat.

    Args:
        values: One number per case, ``(N,)``.
        groups: Patient of each case.
        most: Patients per half at most, where the set that is judged has fewer.
        rng: Source of randomness.
        draws: Number of random halves.

    Returns:
        Mean, and the ends of the central 95 %; not a number for fewer than four patients or ``most`` below 2.

    Raises:
        DataError: As :func:`set_distance`.
    """
    _check(values, groups)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    count = min(len(names) // 2, most)
    if count < 2:
        return float("nan"), float("nan"), float("nan")
    distances = []
    for _ in range(draws):
        place = rng.permutation(len(names))[index]  # of each case's patient in a random order
        first, second = place < count, (place >= count) & (place < 2 * count)
        distances.append(wasserstein_distance(values[first], values[second]))
    found = np.array(distances)
    return (float(found.mean()), *interval(found))


def _check(values: np.ndarray, groups: Sequence[str]) -> None:
    if len(values) != len(groups):
        raise DataError(f"{len(values)} values for {len(groups)} groups: give one patient per value")
    if not len(values) or not np.isfinite(values).all():
        raise DataError(f"{len(values)} values, expected at least one and all of them numbers: leave out the others")
