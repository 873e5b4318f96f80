"""How many lesions training cases have, and how large they are: smoothed empirical distributions to draw from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.placement import window_of
from latentsynth.metrics.lesions import components

_LEAST_BANDWIDTH = 0.1  # of log volume, where all training volumes are alike


@dataclass(frozen=True)
class Sizes:
    """How many lesions training cases have, and how large they are.

    Attributes:
        total_ml: Lesion volume of each case, ``(N,)``.
        counts: Lesions of each case, ``(N,)``.
        piece_ml: Volume of every lesion of every case.
        piece_labels: Label value of each of them.
    """

    total_ml: np.ndarray
    counts: np.ndarray
    piece_ml: np.ndarray
    piece_labels: np.ndarray

    @classmethod
    def fit(cls, maps: Sequence[LabelMap], lesions: Sequence[int], min_piece_ml: float) -> Sizes:
        """Counts and measures the lesions of maps; pieces below the least volume only if a case has no other."""
        total, counts, sizes, values = [], [], [], []
        for made in maps:
            found = [(made.voxel_ml * voxels, value) for value in lesions for voxels in _voxels(made, value)]
            found = [piece for piece in found if piece[0] >= min_piece_ml] or [max(found)]
            total.append(made.volume_ml(lesions))
            counts.append(len(found))
            sizes += [size for size, _ in found]
            values += [value for _, value in found]
        return cls(np.array(total), np.array(counts), np.array(sizes), np.array(values))

    def draw_total_ml(self, rng: np.random.Generator) -> float:
        """A total volume from the smoothed distribution of log volumes."""
        return float(np.exp(_smoothed(rng, np.log(self.total_ml), 1)[0]))

    def draw_shares(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Which share of the total each of so many lesions has, largest first; they differ as training lesions do."""
        drawn = np.exp(_smoothed(rng, np.log(self.piece_ml), count))
        return np.asarray(np.sort(drawn / drawn.sum())[::-1])


def _voxels(made: LabelMap, value: int) -> list[int]:
    mask = made.of([value])
    if not mask.any():
        return []
    pieces, _ = components(mask[window_of(mask)])
    return [int(n) for n in np.bincount(pieces.ravel())[1:]]


def _smoothed(rng: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    """Draws from a Gaussian kernel density estimate; Silverman's bandwidth."""
    bandwidth = max(_LEAST_BANDWIDTH, 1.06 * float(values.std()) * len(values) ** -0.2)
    return np.asarray(values[rng.integers(len(values), size=count)] + bandwidth * rng.standard_normal(count))
