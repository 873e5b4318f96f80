"""Nearest neighbours: every pair in float64, the lower row of a tie, whatever the type, scale, place and memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from latentsynth.errors import DataError
from latentsynth.metrics.neighbours import nearest


def normal(rows: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, features))


def check(queries: np.ndarray, reference: np.ndarray, k: int, memory_mb: int = 256) -> None:
    distances, rows = nearest(queries, reference, k, memory_mb)
    every = cdist(queries.astype(np.float64), reference.astype(np.float64))
    expected = np.argsort(every, axis=1, kind="stable")[:, :k]
    assert (distances.dtype, rows.dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distances, np.take_along_axis(every, expected, 1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_brute_force_of_scikit_learn(dtype: type) -> None:
    for n, m, features, k in ((1, 1, 1, 1), (7, 17, 2, 3), (3, 600, 4, 600), (9, 40, 3000, 3)):
        queries, reference = normal(n, features).astype(dtype), normal(m, features, 1).astype(dtype)
        search = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="minkowski", p=2)
        theirs = search.fit(reference.astype(np.float64)).kneighbors(queries.astype(np.float64))
        distances, rows = nearest(queries, reference, k)
        np.testing.assert_allclose(distances, theirs[0], rtol=1e-9)
        np.testing.assert_array_equal(rows, theirs[1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_of_equal_distances_the_lower_row_comes_first(dtype: type) -> None:
    """Whole numbers tie often, and both sides measure them without rounding."""
    for n, m, features, k in ((7, 17, 2, 3), (20, 5000, 5, 1), (30, 511, 3, 40)):
        check(np.round(normal(n, features)).astype(dtype), np.round(normal(m, features, 1)).astype(dtype), k)
    few = normal(3, 6)
    check(few, np.repeat(few[:1], 2000, 0), 4)


def test_neighbours_far_closer_than_the_spread_and_far_from_the_origin() -> None:
    """Rows 1e-6 apart within a spread of 1, moved by 1000: products in place of differences would order them at random."""
    rng = np.random.default_rng(4)
    centres = normal(20, 16) + 1e3
    reference = rng.permutation((centres[:, None] + 1e-6 * np.arange(100)[:, None] * rng.random(16)).reshape(-1, 16))
    check(centres + 1e-6 * rng.uniform(-50, 150, (20, 1)) * rng.random(16), reference, 20)


def test_scales_that_float32_does_not_have() -> None:
    for scale in (1e-60, 1e60):
        check(normal(20, 5) * scale, normal(900, 5, 1) * scale, 3)


@pytest.mark.parametrize("k", [1, 60])
def test_memory_changes_nothing(k: int) -> None:
    queries, reference = normal(60, 256), normal(900, 256, 1)
    reference[700:900] = reference[:200]
    plenty = nearest(queries, reference, k)
    for a, b in zip(nearest(queries, reference, k, 1), plenty, strict=True):
        np.testing.assert_array_equal(a, b)
    check(queries, reference, k, 1)


MEASURE = """
import numpy as np
from pathlib import Path
from latentsynth.metrics.neighbours import nearest

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

queries = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
reference = np.random.default_rng(1).normal(size=(20000, 64)).astype(np.float32)
nearest(queries[:20], reference[:600])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
nearest(queries, reference, 1, 8)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_stays_near_its_bound() -> None:
    """All pairs at once would take 46 MiB, and a float64 copy of the reference 10."""
    used = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True).stdout
    assert float(used) < 14  # 8, and what the allocator keeps


def test_copies_have_distance_exactly_zero() -> None:
    for offset in (0, 1e6):
        reference = (normal(3000, 40) + offset).astype(np.float32)
        chosen = np.random.default_rng(1).permutation(3000)[:200]
        distances, rows = nearest(reference[chosen], reference)
        assert (distances == 0).all()
        np.testing.assert_array_equal(rows[:, 0], chosen)


def test_translation_changes_nothing() -> None:
    """By a shift that the sums represent exactly."""
    queries, reference = (np.round(normal(rows, 8, rows) * 1024) / 1024 for rows in (60, 2000))
    for a, b in zip(nearest(queries, reference, 5), nearest(queries - 2**20, reference - 2**20, 5), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("error")
def test_arrays_in_any_order_are_taken_and_left_alone() -> None:
    queries, reference = normal(20, 12)[::-1, ::2], np.asfortranarray(normal(700, 6, 1))
    reference.flags.writeable = False
    kept = queries.copy()
    check(queries, reference, 2)
    check(queries.astype(np.float32), reference[::-3], 2)
    np.testing.assert_array_equal(queries, kept)


GOOD = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("queries", "reference", "options", "message"),
    [
        (GOOD[0], GOOD, {}, r"query features have shape \(3,\), expected \(rows, features\): flatten"),
        (GOOD[:0], GOOD, {}, r"query features have shape \(0, 3\)"),
        (GOOD, GOOD[None], {}, r"reference features have shape \(1, 4, 3\)"),
        (GOOD, GOOD[:, :2], {}, "3 features in queries, 2 in the reference: use one extractor"),
        (GOOD, GOOD, {"k": 0}, "k is 0, expected 1 to 4, the rows of the reference: change k or add rows"),
        (GOOD, GOOD, {"k": 5}, "k is 5, expected 1 to 4"),
        (GOOD, GOOD, {"memory_mb": 0}, "working memory of 0 MiB, expected at least 1: give more"),
    ],
)
def test_refusals(queries: np.ndarray, reference: np.ndarray, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        nearest(queries, reference, **options)


@pytest.mark.parametrize("side", ["query", "reference"])
def test_refuses_values_it_cannot_measure(side: str) -> None:
    for value in (np.nan, np.inf, -np.inf, -1e151):
        bad = GOOD.copy()
        bad[2, 1] = value
        with pytest.raises(DataError, match=rf"{side} row 2 is not finite, or beyond 1e\+150: look at it, or change"):
            nearest(*((bad, GOOD) if side == "query" else (GOOD, bad)))
