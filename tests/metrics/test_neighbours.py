"""Nearest neighbours against scipy's distances of every pair, also on data whose order float32 products get wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from latentsynth.errors import DataError
from latentsynth.metrics.neighbours import _Space, nearest


def normal(rows: int, features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, features))


def check(queries: np.ndarray, reference: np.ndarray, k: int, memory_mb: int = 256) -> None:
    distances, rows = nearest(queries, reference, k, memory_mb)
    every = cdist(queries.astype(np.float64), reference.astype(np.float64))
    expected = np.argsort(every, axis=1, kind="stable")[:, :k]
    assert (distances.dtype, rows.dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(distances, np.take_along_axis(every, expected, 1), rtol=1e-12, atol=0)


SHAPES = [  # N, M, F, k
    (1, 1, 1, 1),
    (1, 5, 3, 5),
    (7, 16, 2, 16),
    (7, 17, 2, 3),
    (3, 600, 4, 600),
    (30, 511, 8, 2),
    (30, 513, 8, 1),
    (20, 5000, 5, 1),
    (20, 12000, 5, 4),  # so many that the limit comes from tiles
    (1100, 700, 12, 5),  # more than one chunk of queries
    (9, 40, 3000, 3),
]


@pytest.mark.parametrize(("n", "m", "features", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_measuring_every_pair(n: int, m: int, features: int, k: int, dtype: type) -> None:
    check(normal(n, features).astype(dtype), normal(m, features, 1).astype(dtype), k)


@pytest.mark.parametrize(("n", "m", "features", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64])
def test_of_equal_distances_the_lower_row_comes_first(n: int, m: int, features: int, k: int, dtype: type) -> None:
    """Whole numbers tie often, and both sides measure them without rounding."""
    check(np.round(normal(n, features)).astype(dtype), np.round(normal(m, features, 1)).astype(dtype), k)


@pytest.mark.parametrize("k", [1, 4])
def test_duplicates_of_few_rows(k: int) -> None:
    few = normal(3, 6)
    check(few[[0, 1, 2, 0, 1]], few[np.random.default_rng(2).integers(0, 3, 3000)], k)
    check(few, np.repeat(few[:1], 2000, 0), k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 7])
def test_far_from_the_origin(dtype: type, k: int) -> None:
    queries, reference = normal(50, 9) + 1e6, normal(800, 9, 1) + 1e6
    check(queries.astype(dtype), reference.astype(dtype), k)


@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_neighbours_far_closer_than_the_spread(k: int, offset: float) -> None:
    """Rows 1e-6 apart within a spread of 1: float32 products alone would order them at random."""
    rng = np.random.default_rng(4)
    centres = normal(20, 16) + offset
    reference = rng.permutation((centres[:, None] + 1e-6 * np.arange(100)[:, None] * rng.random(16)).reshape(-1, 16))
    queries = centres + 1e-6 * rng.uniform(-50, 150, (20, 1)) * rng.random(16)
    check(queries, reference, k)


@pytest.mark.parametrize("scale", [1e-60, 1e-25, 1e25, 1e60])
def test_scales_that_float32_does_not_have(scale: float) -> None:
    check(normal(20, 5) * scale, normal(900, 5, 1) * scale, 3)


@pytest.mark.parametrize("far", [1e3, 1e12, 1e50])
def test_outliers_on_either_side(far: float) -> None:
    """They spoil the scale and the rounding of the other rows, but not the result."""
    queries, reference = normal(30, 5), normal(900, 5, 1)
    reference[17] *= far
    check(queries, reference, 3)
    distances, rows = nearest(np.vstack([queries, far * queries[:1]]), reference)
    np.testing.assert_array_equal(rows[:30], nearest(queries, reference)[1])
    assert distances[30, 0] == pytest.approx(cdist(far * queries[:1], reference).min(), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 60])
@pytest.mark.parametrize("whole", [False, True])
def test_memory_changes_nothing(k: int, whole: bool) -> None:
    queries, reference = normal(60, 256), normal(900, 256, 1)
    reference[700:900] = reference[:200]
    if whole:
        queries, reference = np.round(queries[:, :3]).repeat(80, 1), np.round(reference[:, :3]).repeat(80, 1)
    plenty = nearest(queries, reference, k)
    for memory_mb in (1, 3):
        for a, b in zip(nearest(queries, reference, k, memory_mb), plenty, strict=True):
            np.testing.assert_array_equal(a, b)
    check(queries, reference, k, 1)


MEASURE = """
import numpy as np
from pathlib import Path
from latentsynth.metrics.neighbours import nearest

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

queries = np.random.default_rng(0).normal(size=(300, 64))
reference = {reference}
nearest(queries[:20], reference[:600])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
nearest(queries, reference, 1, 16)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("reference", ["np.random.default_rng(1).normal(size=(20000, 64))", "np.ones((20000, 64))"])
def test_memory_stays_near_its_bound(reference: str) -> None:
    """Measuring every pair at once would take 46 MiB; of equal rows every pair is measured."""
    code = MEASURE.format(reference=reference)
    used = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(used) < 24  # 16, and what the allocator keeps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1e6])
def test_copies_have_distance_exactly_zero(dtype: type, offset: float) -> None:
    reference = (normal(3000, 40) + offset).astype(dtype)
    chosen = np.random.default_rng(1).permutation(3000)[:200]
    distances, rows = nearest(reference[chosen], reference)
    assert (distances == 0).all()
    np.testing.assert_array_equal(rows[:, 0], chosen)


def test_translation_changes_nothing() -> None:
    """By a shift that the sums represent exactly."""
    queries, reference = (np.round(normal(rows, 8, rows) * 1024) / 1024 for rows in (60, 2000))
    for a, b in zip(nearest(queries, reference, 5), nearest(queries - 2**20, reference - 2**20, 5), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("features", [1, 7, 300])
@pytest.mark.parametrize("kind", ["normal", "clusters", "wide", "far"])
def test_products_are_lower_bounds(features: int, kind: str) -> None:
    """And never lower than the slack that the search allows for."""
    queries, reference = normal(40, features), normal(300, features, 1)
    if kind == "clusters":
        reference = np.sign(reference[:, :1]) + 1e-5 * reference
    elif kind == "wide":
        reference *= 10 ** np.random.default_rng(2).uniform(-20, 5, (300, 1))
    elif kind == "far":
        queries *= 1e7
    space = _Space(queries, reference, 2**28, "cpu")
    (q, q_norm), (r, r_norm) = space.vectors(queries, False), space.vectors(reference, True)
    x, y = ((rows - space.centre).astype(np.longdouble) * space.scale for rows in (queries, reference))
    true = (y**2).sum(1) - 2 * x @ y.T
    slack = 2 * space.share * (2 * q_norm + r_norm.T) * r_norm.T + 2 * space.tiny
    bound = (q @ r.T).numpy()
    assert (bound <= true).all()
    assert (true <= bound + slack.numpy()).all()


def test_a_program_that_allows_less_than_float32() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            check(normal(40, 32), normal(900, 32, 1), 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.filterwarnings("error")
def test_arrays_that_torch_would_not_take() -> None:
    queries, reference = normal(20, 12)[::-1, ::2], np.asfortranarray(normal(700, 6, 1))
    reference.flags.writeable = False
    kept = queries.copy()
    check(queries, reference, 2)
    check(queries, reference[::-3], 2)
    np.testing.assert_array_equal(queries, kept)


GOOD = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("queries", "reference", "options", "message"),
    [
        (GOOD[0], GOOD, {}, r"query features have shape \(3,\), expected \(rows, features\): flatten"),
        (GOOD, GOOD[None], {}, r"reference features have shape \(1, 4, 3\)"),
        (GOOD[:0], GOOD, {}, r"query features have shape \(0, 3\)"),
        (GOOD, GOOD[:, :2], {}, "3 features in queries, 2 in the reference: use one extractor"),
        (GOOD, GOOD, {"k": 0}, "k is 0, expected 1 to 4, the rows of the reference: change k or add rows"),
        (GOOD, GOOD, {"k": 5}, "k is 5, expected 1 to 4"),
        (GOOD, GOOD, {"memory_mb": 0}, "working memory of 0 MiB, expected at least 1: give more"),
    ],
)
def test_refusals(queries: np.ndarray, reference: np.ndarray, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        nearest(queries, reference, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e151])
@pytest.mark.parametrize("side", ["query", "reference"])
def test_refuses_values_it_cannot_measure(value: float, side: str) -> None:
    bad = GOOD.copy()
    bad[2, 1] = value
    with pytest.raises(DataError, match=rf"{side} row 2 is not finite, or beyond 1e\+150: look at it, or change"):
        nearest(*((bad, GOOD) if side == "query" else (GOOD, bad)))
