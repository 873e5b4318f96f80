"""Exact nearest neighbours of feature rows: every pair measured in float64, in blocks of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from latentsynth.errors import DataError

_LARGEST = np.float64(1e150)  # the squares of larger values overflow


def nearest(
    queries: np.ndarray, reference: np.ndarray, k: int = 1, memory_mb: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference rows of every query by Euclidean distance.

    The result does not depend on ``memory_mb``; a copy of a query has distance exactly 0, since distances come from
    differences and not from products.

    Args:
        queries: Features, shape ``(N, F)``.
        reference: Features, shape ``(M, F)``.
        k: Number of neighbours, from 1 to M.
        memory_mb: Working memory beyond inputs and results, in MiB; less makes it slower. One query, its M distances and
            one reference row always fit. Inputs that are neither float16, float32 nor float64 are copied as float64 on
            top.

    Returns:
        Distances in the units of the features, float64, shape ``(N, k)``, ascending; and the rows of the reference
        they belong to, int64, shape ``(N, k)``. Of equal distances the lower row comes first.

    Raises:
        DataError: Arrays that are not two-dimensional, are empty or differ in features; values that are not finite
            or beyond 1e150; ``k`` below 1 or above M; ``memory_mb`` below 1.
    """
    if memory_mb < 1:
        raise DataError(f"working memory of {memory_mb} MiB, expected at least 1: give more")
    queries, reference = _checked(queries, "query"), _checked(reference, "reference")
    features = reference.shape[1]
    if queries.shape[1] != features:
        raise DataError(f"{queries.shape[1]} features in queries, {features} in the reference: use one extractor")
    if not 1 <= k <= len(reference):
        raise DataError(f"k is {k}, expected 1 to {len(reference)}, the rows of the reference: change k or add rows")

    budget = memory_mb * 2**20
    # A query takes its features as float64, and its distances with their order and the workspace of the sort.
    some = max(1, budget // 2 // (features * 8 + len(reference) * 24))
    block = max(1, budget // 4 // (features * 8))
    distances, rows = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), some):
        part = slice(start, start + some)
        asked = queries[part].astype(np.float64)
        every = np.empty((len(asked), len(reference)))
        for first in range(0, len(reference), block):
            every[:, first : first + block] = cdist(asked, reference[first : first + block])
        rows[part] = np.argsort(every, axis=1, kind="stable")[:, :k]
        distances[part] = np.take_along_axis(every, rows[part], 1)
    return distances, rows


def _checked(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"{name} features have shape {x.shape}, expected (rows, features): flatten them per image")
    x = x if x.dtype in (np.float16, np.float32, np.float64) else x.astype(np.float64)
    good = np.maximum(x.max(1), -x.min(1)) <= _LARGEST  # false for NaN, too
    if not good.all():
        row = int(np.argmin(good))
        raise DataError(f"{name} row {row} is not finite, or beyond {_LARGEST:g}: look at it, or change extractor")
    return x


def nearest_distinct(distances: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of one query, each once, of several lists of neighbours.

    The k nearest of all are among the k nearest of some list, so lists of k suffice.

    Args:
        distances: Of all lists, shape ``(L,)``.
        rows: The row that each belongs to.
        k: How many.
    """
    order = np.argsort(distances, kind="stable")
    _, first = np.unique(rows[order], return_index=True)
    kept = order[np.sort(first)[:k]]
    return distances[kept], rows[kept]


def check_count(k: int, reference: np.ndarray) -> None:
    """Refuses a number of neighbours that there are not.

    Raises:
        DataError: With both numbers.
    """
    if not 1 <= k <= len(reference):
        raise DataError(f"{k} neighbours among {len(reference)} volumes do not exist: give 1 to {len(reference)}")


def check_volumes(queries: np.ndarray, reference: np.ndarray, k: int, shape: Sequence[int]) -> None:
    """Refuses rows that are not volumes of a shape, and a number of neighbours that there are not.

    Raises:
        DataError: With the shapes, or the numbers.
    """
    if queries.shape[1:] != reference.shape[1:] or queries.shape[1] != math.prod(shape):
        raise DataError(f"rows of shape {queries.shape} and {reference.shape} are not volumes of shape {tuple(shape)}")
    check_count(k, reference)
