"""How far the features of synthetic images lie from those of real ones: Frechet, kernel and neighbour distances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import interval


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
    real_weights: np.ndarray | None = None,
    fake_weights: np.ndarray | None = None,
) -> float:
    """Kernel distance: unbiased squared maximum mean discrepancy (Binkowski et al. 2018, eq. 4). May be below zero.

    Weights make it a bootstrap replicate: a row of weight 3 was drawn three times. Pairs of a row with itself, also
    with another copy of itself, are never counted, so that resampling adds no bias.

    Args:
        real: Features, shape ``(N, F)``.
        fake: Features, shape ``(M, F)``.
        real_weights: Whole numbers from 0, shape ``(N,)``; None counts every row once.
        fake_weights: Same for ``fake``, shape ``(M,)``.

    Raises:
        DataError: As :func:`frechet`; or weights of another shape, not whole, negative, or on fewer than 2 rows.
    """
    real, fake = _features(real, fake)
    w, v = _weights(real_weights, len(real), "real"), _weights(fake_weights, len(fake), "fake")
    cross = w @ kernel(real, fake) @ v / (w.sum() * v.sum())
    return float(_within(kernel(real, real), w) + _within(kernel(fake, fake), v) - 2 * cross)


def kid_interval(
    real: np.ndarray,
    fake: np.ndarray,
    real_groups: Sequence[str],
    fake_groups: Sequence[str],
    rng: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of :func:`kid` that resamples groups (patients), on both sides independently.

    As pairs of the same row are never counted in a replicate, so are pairs across two copies of the same group: rows
    of a patient that was drawn twice would otherwise count four times, and being alike, push every replicate up.
    A replicate that drew a single row over and over has no value and is left out.

    Args:
        real: Features, shape ``(N, F)``.
        fake: Features, shape ``(M, F)``.
        real_groups: The group of each real row, length N.
        fake_groups: The group of each synthetic row, length M.
        rng: Source of the draws.
        draws: Number of replicates.
        level: Share of replicates inside the interval, between 0 and 1.

    Returns:
        The lower and the upper end.

    Raises:
        DataError: As :func:`frechet`; or groups that do not fit the rows, or fewer than 2 of them.
    """
    real, fake = _features(real, fake)
    member, other = _membership(real_groups, len(real), "real"), _membership(fake_groups, len(fake), "fake")
    w, v = (rng.multinomial(g, np.full(g, 1 / g), draws).astype(float) for g in (member.shape[1], other.shape[1]))
    cross = ((w @ (member.T @ kernel(real, fake) @ other)) * v).sum(1) / ((w @ member.sum(0)) * (v @ other.sum(0)))
    values = _replicates(kernel(real, real), member, w) + _replicates(kernel(fake, fake), other, v) - 2 * cross
    return interval(values, level)


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
    real_radii, fake_radii = (np.partition(cdist(x, x), k, axis=1)[:, k] for x in (real, fake))
    distances = cdist(real, fake)
    inside = distances < real_radii[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((distances < fake_radii).any(1).mean()),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float(inside.any(1).mean()),
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


def _weights(weights: np.ndarray | None, rows: int, name: str) -> np.ndarray:
    if weights is None:
        return np.ones(rows)
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (rows,) or not (np.isfinite(w) & (w >= 0) & (w == np.round(w))).all() or (w > 0).sum() < 2:
        raise DataError(
            f"{name} weights of shape {w.shape} are not whole numbers from 0, one per row ({rows}), with 2 above 0: "
            "give how often each row was drawn"
        )
    return w


def _within(square: np.ndarray, w: np.ndarray) -> np.floating:
    """Weighted mean of a kernel over ordered pairs of different rows."""
    np.fill_diagonal(square, 0)
    return (w @ square @ w) / (w.sum() ** 2 - (w**2).sum())


def _membership(groups: Sequence[str], rows: int, name: str) -> np.ndarray:
    """One column per group with ones at its rows, shape ``(rows, G)``."""
    if len(groups) != rows:
        raise DataError(f"{len(groups)} {name} groups for {rows} rows of features: give one per row")
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"all {name} rows are of group {names[0]}, expected at least 2 groups: give more patients")
    return np.eye(len(names))[index]


def _replicates(square: np.ndarray, member: np.ndarray, w: np.ndarray) -> np.ndarray:
    """:func:`_within` of each draw of groups ``w`` (draws, G), no pair across two copies of a group; shape (draws,)."""
    np.fill_diagonal(square, 0)
    blocks, sizes = member.T @ square @ member, member.sum(0)
    own = np.diag(blocks).copy()
    np.fill_diagonal(blocks, 0)
    sums = ((w @ blocks) * w).sum(1) + w @ own
    pairs = (w @ sizes) ** 2 - w**2 @ sizes**2 + w @ (sizes * (sizes - 1))
    return np.divide(sums, pairs, out=np.full(len(w), np.nan), where=pairs > 0)
