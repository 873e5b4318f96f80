"""How far the features of synthetic images lie from those of real ones: Frechet, kernel and neighbour distances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import statistic_interval


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared Frechet distance of Gaussian fits (Heusel et al. 2017, eq. 6).

    ``|mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)`` with covariances over N - 1. The last trace is the nuclear
    norm of ``A B^T / sqrt((n1 - 1) (n2 - 1))`` for centred rows A and B, so no ``F x F`` matrix is ever formed and
    fewer rows than features are no trouble: the value is exact where a matrix square root would be singular. It is
    still biased upward by few rows; compare only values over the same numbers of rows.

    Args:
        real: Features, shape ``(N, F)``.
        fake: Features, shape ``(M, F)``.

    Returns:
        Zero or more, in squared units of the features.

    Raises:
        DataError: Feature counts differ, fewer than 2 rows, or values that are not finite.
    """
    real, fake = _features(real, fake)
    shift = real.mean(0) - fake.mean(0)
    a = (real - real.mean(0)) / np.sqrt(len(real) - 1)
    b = (fake - fake.mean(0)) / np.sqrt(len(fake) - 1)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * root))


def frechet_without(
    real: np.ndarray, fake: np.ndarray, between: np.ndarray, w: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """:func:`frechet` of some of the rows, many times, by their inner products.

    Args:
        real: Products of real rows, shape ``(N, N)``.
        fake: Of synthetic rows, ``(M, M)``.
        between: Of real with synthetic rows, ``(N, M)``.
        w: Which real rows are there, 1 or 0, ``(draws, N)``.
        v: Which synthetic rows, ``(draws, M)``.

    Returns:
        Shape ``(draws,)``; not a number where fewer than 2 rows of a side are there.
    """
    n, m = w.sum(1), v.sum(1)
    few = (n < 2) | (m < 2)
    n, m = (np.where(few, 2.0, count) for count in (n, m))
    shift, spread = np.zeros(len(w)), np.zeros(len(w))
    for square, there, count in ((real, w, n), (fake, v, m)):
        length = ((there @ square) * there).sum(1) / count**2  # of the mean, squared
        shift += length
        spread += (there @ np.diag(square) - count * length) / (count - 1)
    to_fake, to_real = v @ between.T / m[:, None], w @ between / n[:, None]  # products with the other side's mean
    means = (to_fake * w).sum(1) / n
    centred = between - to_fake[:, :, None] - to_real[:, None] + means[:, None, None]
    centred *= (w / np.sqrt(n - 1)[:, None])[:, :, None] * (v / np.sqrt(m - 1)[:, None])[:, None]
    found = shift - 2 * means + spread - 2 * np.linalg.svd(centred, compute_uv=False).sum(1)
    return np.where(few, np.nan, np.maximum(found, 0))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The polynomial kernel ``(x . y / F + 1)^3`` (Binkowski et al. 2018, section 4).

    Args:
        a: Features, shape ``(N, F)``.
        b: Features, shape ``(M, F)``.

    Returns:
        Shape ``(N, M)``.
    """
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid(
    real: np.ndarray,
    fake: np.ndarray,
    real_groups: Sequence[str] | None = None,
    fake_groups: Sequence[str] | None = None,
) -> float:
    """Kernel distance: unbiased squared maximum mean discrepancy (Binkowski et al. 2018, eq. 4). May be below zero.

    The unbiased estimate is a mean of :func:`kernel` over pairs of independent rows. Rows of one group (a patient, or a
    mask that several samples were made from) are not independent: they make no pair, nor does a sample with the real
    patient whose mask it shows. Groups weigh alike, however many rows they have::

        mean_{g != h} k(real_g, real_h) + mean_{g != h} k(fake_g, fake_h) - 2 mean_{g != h} k(real_g, fake_h)

    with ``k`` of two groups the mean over pairs of their rows.

    Args:
        real: Features, shape ``(N, F)``.
        fake: Features, shape ``(M, F)``.
        real_groups: The group of each real row, length N; None makes every row one of its own.
        fake_groups: Same for ``fake``, length M; a name that is a real group too is the same patient.

    Raises:
        DataError: As :func:`frechet`; or groups that do not fit the rows, or fewer than 2 of them.
    """
    statistic, sides = _kid(real, fake, real_groups, fake_groups)
    return float(statistic(*(np.ones((1, len(side))) for side in sides))[0])


def kid_interval(
    real: np.ndarray,
    fake: np.ndarray,
    real_groups: Sequence[str],
    fake_groups: Sequence[str],
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """:func:`kid` with its interval over groups (:func:`latentsynth.metrics.bootstrap.statistic_interval`).

    A group that was drawn twice makes no pair with its own copy, so that resampling adds no bias. A replicate that drew
    a single group over and over has no value and is left out.

    Args:
        real: Features, shape ``(N, F)``.
        fake: Features, shape ``(M, F)``.
        real_groups: The group of each real row, length N.
        fake_groups: The group of each synthetic row, length M; groups of both sides are drawn together.
        rng: Source of the draws.
        draws: Number of replicates.
        level: Share of the interval, between 0 and 1.

    Returns:
        Value, low, high.

    Raises:
        DataError: As :func:`kid`.
    """
    return statistic_interval(*_kid(real, fake, real_groups, fake_groups), rng, draws, level)


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkaanniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et al. 2020).

    The ball of a row reaches to its ``k``-th nearest neighbour on its own side, the row itself not counted; its
    surface lies outside.

    Args:
        real: Features, shape ``(N, F)``.
        fake: Features, shape ``(M, F)``.
        k: Which neighbour, from 1.

    Returns:
        ``precision``: share of synthetic rows in some real ball; ``recall``: share of real rows in some synthetic
        ball; ``density``: real balls around a synthetic row, over ``k``; ``coverage``: share of real balls that hold
        a synthetic row. All in [0, 1] but density, which may be larger.

    Raises:
        DataError: As :func:`frechet`; or ``k`` below 1, or fewer than ``k + 1`` rows.
    """
    if k < 1:
        raise DataError(f"neighbour {k} does not exist: give k of at least 1")
    real, fake = _features(real, fake, k + 1)
    ones = np.ones((1, len(real))), np.ones((1, len(fake)))
    found = prdc_without(cdist(real, real), cdist(fake, fake), cdist(real, fake), k, *ones)
    return {name: float(value[0]) for name, value in found.items()}


def prdc_without(
    real: np.ndarray, fake: np.ndarray, between: np.ndarray, k: int, w: np.ndarray, v: np.ndarray
) -> dict[str, np.ndarray]:
    """:func:`prdc` of some of the rows, many times, by their distances.

    Args:
        real: Between real rows, shape ``(N, N)``.
        fake: Between synthetic rows, ``(M, M)``.
        between: From real to synthetic rows, ``(N, M)``.
        k: Which neighbour, from 1.
        w: Which real rows are there, 1 or 0, ``(draws, N)``.
        v: Which synthetic rows, ``(draws, M)``.

    Returns:
        Shape ``(draws,)`` each; not a number where no more than ``k`` rows of a side are there.
    """
    n, m = w.sum(1), v.sum(1)
    few = (n <= k) | (m <= k)
    # A row that is not there is nobody's neighbour, has no ball, and lies in none.
    reach, other = (
        np.where(there > 0, np.partition(np.where(there[:, None] > 0, square, np.inf), min(k, len(square) - 1), axis=2)[:, :, min(k, len(square) - 1)], 0)
        for square, there in ((real, w), (fake, v))
    )  # fmt: skip
    inside = (between < reach[:, :, None]) & (v[:, None] > 0)
    covered = (between < other[:, None]) & (w[:, :, None] > 0)
    n, m = (np.where(few, np.nan, count) for count in (n, m))
    return {
        "precision": inside.any(1).sum(1) / m,
        "recall": covered.any(2).sum(1) / n,
        "density": inside.sum((1, 2)) / (k * m),
        "coverage": inside.any(2).sum(1) / n,
    }


def _features(real: np.ndarray, fake: np.ndarray, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, checked."""
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    for name, x in (("real", real), ("fake", fake)):
        if x.ndim != 2 or x.shape[1] < 1:
            raise DataError(f"{name} features have shape {x.shape}, expected (rows, features): flatten them per image")
        if len(x) < rows:
            raise DataError(f"{len(x)} rows of {name} features, expected at least {rows}: give more images")
        if not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x).all(1))
            raise DataError(
                f"{name} features are not finite in {len(bad)} rows (first: row {bad[0]}): "
                "look at that image, or use another extractor"
            )
    if real.shape[1] != fake.shape[1]:
        raise DataError(
            f"real rows have {real.shape[1]} features, fake rows {fake.shape[1]}: use one extractor for both"
        )
    return real, fake


def _kid(
    real: np.ndarray, fake: np.ndarray, real_groups: Sequence[str] | None, fake_groups: Sequence[str] | None
) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], tuple[list[str], list[str]]]:
    """:func:`kid` by how often each group is there, ``(draws, G)`` and ``(draws, H)``; and the names of the groups."""
    real, fake = _features(real, fake)
    names, member = _membership(real_groups, len(real), "real")
    others, other = _membership(fake_groups, len(fake), "fake")
    within, beside = (m.T @ kernel(x, x) @ m for x, m in ((real, member), (fake, other)))
    for square in (within, beside):
        np.fill_diagonal(square, 0)
    apart = (np.array(names)[:, None] != np.array(others)).astype(float)
    between = member.T @ kernel(real, fake) @ other * apart

    def statistic(w: np.ndarray, v: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            inside, outside = (
                ((x @ square) * x).sum(1) / (x.sum(1) ** 2 - (x**2).sum(1)) for x, square in ((w, within), (v, beside))
            )
            return np.asarray(inside + outside - 2 * ((w @ between) * v).sum(1) / ((w @ apart) * v).sum(1))

    return statistic, (names, others)


def _membership(groups: Sequence[str] | None, rows: int, name: str) -> tuple[list[str], np.ndarray]:
    """The groups, and one column for each that averages its rows, shape ``(rows, G)``."""
    if groups is None:
        return [f"{name} row {n}" for n in range(rows)], np.eye(rows)
    if len(groups) != rows:
        raise DataError(f"{len(groups)} {name} groups for {rows} rows of features: give one per row")
    names, index, counts = np.unique(np.asarray(list(groups)), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise DataError(f"all {name} rows are of group {names[0]}, expected at least 2 groups: give more patients")
    return list(names), np.eye(len(names))[index] / counts
