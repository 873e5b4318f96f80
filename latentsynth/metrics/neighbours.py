"""Exact nearest neighbours of feature rows, in blocks of bounded memory, on a CPU or a CUDA device.

A float32 matrix product finds the candidates and float64 settles them. The product yields, for every pair of a query
and a reference row, a proven lower bound of their squared distance; of each group of reference rows only the lowest is
kept. The ``k`` lowest groups also give an upper bound of the ``k``-th distance, and a group whose lower bound lies
above it holds no neighbour. All rows of the other groups are measured in float64, from differences, which leaves no
room for the cancellation that ``|q|^2 + |r|^2 - 2 q.r`` suffers between close rows.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import torch

from latentsynth.errors import DataError

_GROUP = 16  # reference rows that share one lower bound: more means fewer bounds to look at, but more rows to measure
_TILE, _CHUNK = 512, 1024  # most reference rows and queries of one product: 2 MB, which stay in a CPU's cache
_LARGEST = 1e150  # the squares of larger values overflow


def nearest(
    queries: np.ndarray, reference: np.ndarray, k: int = 1, memory_mb: int = 256, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference rows of every query by Euclidean distance.

    The result is that of measuring every pair in float64, whatever the data, and does not depend on ``memory_mb``; a
    copy of a query has distance exactly 0. What depends on the data is the time. Rows that float32 may not tell apart
    are all measured: those of squared distances that differ by less than about ``F * 5e-7`` times the square of their
    distance from the reference mean. Many duplicates of a query's neighbour, or tight clusters far apart, therefore
    cost more, in the worst case as much as measuring every pair.

    Args:
        queries: Features, shape ``(N, F)``.
        reference: Features, shape ``(M, F)``.
        k: Number of neighbours, from 1 to M.
        memory_mb: Working memory beyond inputs and results, in MiB; less makes it slower. 16 rows always fit. Inputs
            that are neither float16, float32 nor float64 are copied as float64 on top.
        device: Where torch computes, ``"cpu"`` or a CUDA device.

    Returns:
        Distances in the units of the features, float64, shape ``(N, k)``, ascending; and the rows of the reference
        they belong to, int64, shape ``(N, k)``. Of equal distances the lower row comes first.

    Raises:
        DataError: Arrays that are not two-dimensional, are empty or differ in features; values that are not finite
            or beyond 1e150; ``k`` below 1 or above M; ``memory_mb`` below 1.
    """
    if memory_mb < 1:
        raise DataError(f"working memory of {memory_mb} MiB, expected at least 1: give more")
    budget = int(memory_mb * 2**20)
    queries, reference = _checked(queries, "query", budget), _checked(reference, "reference", budget)
    features = reference.shape[1]
    if queries.shape[1] != features:
        raise DataError(f"{queries.shape[1]} features in queries, {features} in the reference: use one extractor")
    if not 1 <= k <= len(reference):
        raise DataError(f"k is {k}, expected 1 to {len(reference)}, the rows of the reference: change k or add rows")

    space = _Space(queries, reference, budget, device)
    copied = 0 if torch.device(device).type == "cpu" else reference.itemsize
    fit = budget // 4 // ((features + 2) * 4 + features * copied)
    tile = min(_TILE, _up(fit - _GROUP + 1, _GROUP), _up(len(reference), _GROUP))
    slab_rows = min(max(tile, fit // tile * tile), _up(len(reference), tile))
    # A query takes its features in several types, its products, k results being sorted, and per group a bound, whether
    # it is low enough, and if so two indices. A pair takes 16 reference rows in two types and as many results.
    chunk = min(_CHUNK, max(1, budget // 2 // (features * 32 + tile * 4 + k * 100 + slab_rows // _GROUP * 21)))
    pairs = max(1, budget // 4 // (_GROUP * (features * (8 + reference.itemsize) + 100)))

    distances, rows = np.full((len(queries), k), np.inf), np.full((len(queries), k), len(reference))
    with _plain_float32(device):
        for first in range(0, len(reference), slab_rows):
            slab = _Slab(reference[first : first + slab_rows], tile, space)
            for start in range(0, len(queries), chunk):
                part = slice(start, start + chunk)
                for query, distance, row in slab.candidates(queries[part], k, pairs):
                    _merge(distances[part], rows[part], query, distance, row + first)
    return distances, rows


class _Space:
    """How rows become float32 vectors whose product is a lower bound of ``|r|^2 - 2 q.r``, centred and scaled.

    With u = 2^-24 and B = 2 |q| |r| + |r|^2, rounding q, r and |r|^2 to float32 costs at most 4 u B, and a product of
    F + 2 terms in any order (F + 2) u B, to first order in u (Higham 2002, section 3.1). ``share`` times B covers both
    and the higher orders, ``tiny`` whatever underflows. One more column subtracts them within the same product.
    """

    def __init__(self, queries: np.ndarray, reference: np.ndarray, budget: int, device: str):
        self.budget, self.device, n = budget, device, (reference.shape[1] + 8) * 2.0**-24
        self.share, self.tiny = n / (1 - 2 * n), reference.shape[1] * 2.0**-120
        self.centre = sum(part.sum(0) for _, part in _parts(reference, budget)) / len(reference)
        parts = itertools.chain(_parts(queries, budget), _parts(reference, budget))
        reach = max(float(np.abs(part - self.centre).max()) for _, part in parts)
        # A power of two scales without rounding; all centred values end up within [-1, 1].
        self.scale = float(np.ldexp(1.0, min(1000, -int(np.frexp(reach)[1]))))

    def vectors(self, x: np.ndarray, reference: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of rows on one side, float32, shape ``(N, F + 2)``; and their norms, float64, shape ``(N, 1)``."""
        x = (x.astype(np.float64) - self.centre) * self.scale
        norm = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
        mine = [x, norm**2 * (1 - self.share) - self.tiny, norm]
        vectors = np.hstack(mine if reference else [-2 * x, norm**0, -2 * self.share * norm]).astype(np.float32)
        return torch.from_numpy(vectors).to(self.device), torch.from_numpy(norm).to(self.device)


class _Slab:
    """Some reference rows in memory. Row ``i * width + j`` of a tile belongs to its group ``j``."""

    def __init__(self, reference: np.ndarray, tile: int, space: _Space):
        self.space, self.tile, self.width, self.raw = space, tile, tile // _GROUP, _tensor(reference, space.device)
        filled = _up(len(reference), tile)
        self.vectors = torch.zeros(filled, reference.shape[1] + 2, dtype=torch.float32, device=space.device)
        self.vectors[len(reference) :, -2] = torch.inf  # rows that only fill the last tile are far from everything
        norms = torch.zeros(filled, 1, dtype=torch.float64, device=space.device)
        for here, part in _parts(reference, space.budget):
            self.vectors[here], norms[here] = space.vectors(part, reference=True)
        self.members = torch.arange(_GROUP, device=space.device) * self.width
        self.radii = norms.view(-1, _GROUP, self.width).amax(1).flatten()  # the largest norm of each group

    def candidates(self, queries: np.ndarray, k: int, pairs: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Queries, distances and rows, flat, of some (query, group) pairs at a time; all neighbours are among them."""
        vectors, norms = self.space.vectors(queries, reference=False)
        exact = _tensor(queries, self.space.device).double()
        low = vectors.new_empty(len(vectors), len(self.radii))
        product = vectors.new_empty(len(vectors), self.tile)
        for tile, out in zip(self.vectors.split(self.tile), low.split(self.width, 1), strict=True):
            torch.mm(vectors, tile.T, out=product)
            torch.amin(product.view(-1, _GROUP, self.width), 1, out=out)
        # Where there are many tiles, their bounds make a limit almost as good, much sooner.
        each = self.width if len(self.radii) >= 4 * k * self.width else 1
        radii, inf = self.radii.view(-1, each).amax(1), low.new_tensor(torch.inf)
        lowest, group = low.view(len(low), -1, each).amin(2).topk(min(k, len(radii)), largest=False)
        slack = self.space.share * (2 * norms + radii[group]) * radii[group] + self.space.tiny
        limit = (lowest + 2 * slack).amax(1, keepdim=True).float().nextafter(inf)  # never rounded down
        limit = limit if k <= len(radii) else limit.fill_(torch.inf)
        # The limit as a distance, lest all be sorted; its slack is far above the rounding of float64.
        reach = (limit + norms**2 * (1 + 1e-9)).clamp(min=0).sqrt() / self.space.scale * (1 + 1e-9)
        for part in (low <= limit).nonzero().split(pairs):
            query, group = part.unbind(1)
            row = (group // self.width * self.tile + group % self.width)[:, None] + self.members
            near = self.raw.index_select(0, row.flatten().clamp(max=len(self.raw) - 1)).double().view(*row.shape, -1)
            distance = torch.cdist(exact[query][:, None], near, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
            keep = (row < len(self.raw)) & (distance <= reach[query])
            query, distance, row = query[:, None].expand_as(row)[keep], distance[keep], row[keep]
            yield query.cpu().numpy(), distance.cpu().numpy(), row.cpu().numpy()


def _merge(distances: np.ndarray, rows: np.ndarray, query: np.ndarray, distance: np.ndarray, row: np.ndarray) -> None:
    """Keeps the k best of each query, in place; of equal distances the lower row. ``query`` is ascending."""
    some = np.arange(query[0], query[-1] + 1) if len(query) else query
    k = distances.shape[1]
    query = np.concatenate([some.repeat(k), query])
    distance, row = np.concatenate([distances[some].ravel(), distance]), np.concatenate([rows[some].ravel(), row])
    order = np.lexsort((row, distance, query))
    best = order[np.searchsorted(query[order], some)[:, None] + np.arange(k)]
    distances[some], rows[some] = distance[best], row[best]


@contextlib.contextmanager
def _plain_float32(device: str) -> Iterator[None]:
    """The bounds hold for float32, not for TF32 or bfloat16, which a program may have allowed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _checked(x: np.ndarray, name: str, budget: int) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"{name} features have shape {x.shape}, expected (rows, features): flatten them per image")
    x = x if x.dtype in (np.float16, np.float32, np.float64) else x.astype(np.float64)
    for here, part in _parts(x, budget):
        good = (np.abs(part) <= _LARGEST).all(1)  # false for NaN, too
        if not good.all():
            row = here.start + int(np.argmin(good))
            raise DataError(f"{name} row {row} is not finite, or beyond {_LARGEST:g}: look at it, or change extractor")
    return x


def _parts(x: np.ndarray, budget: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows as float64 and where they stand, few enough for a handful of copies."""
    step = max(1, budget // 256 // x.shape[1])
    for start in range(0, len(x), step):
        part = x[start : start + step].astype(np.float64)
        yield slice(start, start + len(part)), part


def _tensor(x: np.ndarray, device: str) -> torch.Tensor:
    with warnings.catch_warnings():  # the tensor may share memory with a read-only array; nothing writes to it
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)


def _up(n: int, multiple: int) -> int:
    return max(1, -(-n // multiple)) * multiple
