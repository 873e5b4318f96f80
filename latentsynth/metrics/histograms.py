"""Intensity distributions of cohorts: one histogram per case, compared by the Wasserstein distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentsynth.metrics.bootstrap import statistic_interval

EDGES = np.linspace(-1, 1, 101)  # images live in [-1, 1]


def histogram(values: np.ndarray) -> np.ndarray:
    """Share of voxels per bin of :data:`EDGES`, shape ``(bins,)``; not a number where there is no voxel."""
    counts, _ = np.histogram(np.clip(values, -1, 1), EDGES)
    return counts / counts.sum() if counts.sum() else np.full(len(EDGES) - 1, np.nan)


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of binned distributions: the area between their cumulative curves.

    Args:
        a: Shares per bin, shape ``(..., bins)``.
        b: Same shape.

    Returns:
        Shape ``(...)``, in units of the intensities; exact up to half a bin.
    """
    return np.abs(np.cumsum(a, -1) - np.cumsum(b, -1)).sum(-1) * (EDGES[1] - EDGES[0])


def cohort_distance(
    real: np.ndarray,
    fake: np.ndarray,
    real_groups: Sequence[str],
    fake_groups: Sequence[str],
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """Wasserstein distance of two cohorts, patients weighing alike, with a 95 % interval over them.

    Args:
        real: One histogram per case, ``(N, bins)``.
        fake: ``(M, bins)``.
        real_groups: Patient of each row.
        fake_groups: Patient of each row.
        rng: Source of randomness.

    Returns:
        Distance, low, high. A distance is never negative, so resampling pushes it up: an interval above 0 is no sign
        of a difference by itself; compare with :func:`floor`.
    """

    def statistic(weights: np.ndarray, others: np.ndarray) -> np.ndarray:
        return wasserstein(weights @ real / weights.sum(1, keepdims=True), others @ fake / others.sum(1, keepdims=True))

    return statistic_interval(statistic, (real_groups, fake_groups), rng, bounds=(0, np.inf))


def floor(real: np.ndarray, groups: Sequence[str], rng: np.random.Generator, draws: int = 200) -> float:
    """Mean distance between two random halves of the real patients: what no generator can be expected to beat."""
    names = np.unique(np.asarray(groups))
    if len(names) < 4:
        return float("nan")
    distances = []
    for _ in range(draws):
        half = set(rng.permutation(names)[: len(names) // 2])
        first = np.array([group in half for group in groups])
        distances.append(wasserstein(real[first].mean(0), real[~first].mean(0)))
    return float(np.mean(distances))
