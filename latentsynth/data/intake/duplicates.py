"""Scans of two patients that are all but the same scan: resaved, resampled, rescaled, with noise, turned or mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from scipy.stats import rankdata

from latentsynth.data import nifti
from latentsynth.progress import bar
from latentsynth.types import Case

_CELLS = 16  # per axis: what is alike at that resolution is alike whatever noise or resampling did to the voxels
_NEAR = (
    0.5  # of the median distance of a scan to the nearest one of another patient, as near-exact is defined of copies
)
_SAME = 0.2  # r = 0.98: below this distance two are near whatever the others are, as where every scan has a double
_FEW = 4  # scans; the mean of fewer is mostly the pair that is looked at
_TURNS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@dataclass(frozen=True)
class NearDuplicate:
    """Two cases of different patients with all but the same scan.

    Attributes:
        first: The one that stands first in the cohort.
        second: The other.
        correlation: Of what their scans differ in from the mean scan, at most 1.
    """

    first: Case
    second: Case
    correlation: float


def outline(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A scan on 16 x 16 x 16 cells of its own box, as ranks from 0 to 1, which no change of window, scale or gamma moves.

    Args:
        voxels: ``(I, J, K)``.
        affine: ``(4, 4)``; its orientation is used, its spacing is not.

    Returns:
        float32, ``(16, 16, 16)`` in RAS+.
    """
    array = nifti.canonical(voxels, affine)[0].astype(np.float32)
    for axis, length in enumerate(array.shape):
        array = np.moveaxis(np.tensordot(_averages(length), array, ([1], [axis])), 0, axis)
    return (rankdata(array) / array.size).astype(np.float32).reshape(array.shape)


def _averages(length: int) -> np.ndarray:
    """Row by row the shares of a line of voxels whose sum is the mean over one cell, ``(16, length)``."""
    edges, voxel = np.linspace(0, length, _CELLS + 1), np.arange(length)
    inside = np.minimum(edges[1:, None], voxel + 1) - np.maximum(edges[:-1, None], voxel)
    shares = np.clip(inside, 0, None)
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def near_duplicates(
    cases: Sequence[Case], outlines: Sequence[Sequence[np.ndarray | None]], progress: bool = True
) -> list[NearDuplicate]:
    """Pairs of cases of different patients, one channel of which is all but the same.

    Scans are compared in all 48 ways to turn and mirror one, by Pearson's correlation r of what is left of their outlines
    without the mean of all (from four scans on). Two are near if their distance, the square root of 2 (1 - r), is below half the median distance
    of a scan to the nearest one of another patient. A scan that was moved by more than a cell, cropped or padded is not found,
    nor is another visit of a patient: that is another scan.

    Args:
        cases: The cohort.
        outlines: :func:`outline` of each image of each case; None for one that shows nothing.
        progress: Show progress on standard error.

    Returns:
        The pairs, the nearest first.
    """
    best = np.full((len(cases), len(cases)), np.inf, np.float32)
    channels = range(max((len(one) for one in outlines), default=0))
    with bar("comparing scans", len(channels) * len(_TURNS), "turns", show=progress) as done:
        for channel in channels:
            rows = [n for n, one in enumerate(outlines) if channel < len(one) and one[channel] is not None]
            if len(rows) > 1:
                volumes = np.stack([np.asarray(outlines[n][channel]) for n in rows])
                found = best[np.ix_(rows, rows)]
                best[np.ix_(rows, rows)] = np.minimum(found, _distances(volumes, _patients(cases, rows)))
            done.advance(len(_TURNS))
    near = np.argwhere(np.triu(best < np.inf)).tolist()
    pairs = [NearDuplicate(cases[a], cases[b], 1 - float(best[a, b]) ** 2 / 2) for a, b in near]
    return sorted(pairs, key=lambda pair: -pair.correlation)


def _patients(cases: Sequence[Case], rows: Sequence[int]) -> np.ndarray:
    names = [cases[n].patient_id for n in rows]
    return np.unique(names, return_inverse=True)[1]


def _distances(volumes: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Of every pair ``(N, N)`` that is near; infinity for all others."""
    many = len(volumes) >= _FEW
    volumes = _alike(volumes, volumes.mean(0) if many else volumes[0])
    mean = volumes.mean(0) if many else np.zeros_like(volumes[0])
    rows = _unit(volumes - mean)
    r = np.full((len(volumes), len(volumes)), -1, np.float32)
    for turn in _TURNS:
        r = np.maximum(r, rows @ _unit(_turned(volumes, turn) - mean).T)
    distance = np.sqrt(2 * np.clip(1 - np.minimum(r, r.T), 0, None))  # both ways round
    distance[patients[:, None] == patients] = np.inf
    nearest = distance.min(1)
    usual = float(np.median(nearest[np.isfinite(nearest)])) if np.isfinite(nearest).any() else 0.0
    distance[distance >= max(_NEAR * usual, _SAME)] = np.inf
    return distance


def _alike(volumes: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Every volume turned as it is most like another one: mirrored strangers would be alike by being mirrored."""
    fit = np.stack([(_unit(_turned(volumes, turn)) @ _unit(like[None]).T)[:, 0] for turn in _TURNS])
    return np.stack([_turned(one[None], _TURNS[best])[0] for one, best in zip(volumes, fit.argmax(0), strict=True)])


def _turned(volumes: np.ndarray, turn: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    order, signs = turn
    return volumes.transpose(0, *(axis + 1 for axis in order))[:, :: signs[0], :: signs[1], :: signs[2]]


def _unit(volumes: np.ndarray) -> np.ndarray:
    """Rows ``(N, cells)`` of mean 0 and length 1; nought where a volume is flat."""
    flat = volumes.reshape(len(volumes), -1)
    flat = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(length, 1e-6), np.float32)
