"""Radiomic features of a region: intensities, shape and texture in three dimensions, as the IBSI defines them.

Definitions and four-letter codes: Zwanenburg et al. 2020, Radiology 295:328 (reference manual, arXiv:1612.07003).
Texture is that of the whole volume: one matrix over all 13 directions (3D, merged), neighbours at Chebyshev distance 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics.surfaces import Mask, check_masks, check_spacing

LEVELS = 32  # grey levels of the window [-1, 1]
FEWEST = 8  # voxels of a region that has texture
_DIRECTIONS = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]  # 13, one of each pair

Matrix = np.ndarray  # a texture matrix of shares or counts, (grey levels, grey levels or run lengths or sizes)


def radiomics(image: np.ndarray, region: Mask, spacing_mm: Sequence[float], shape: bool = True) -> dict[str, float]:
    """All features of a region.

    Intensities are those of the window, and for texture cut into :data:`LEVELS` bins of equal width over the whole
    window (IBSI's fixed bin size), so that numbers of different volumes compare.

    Args:
        image: Windowed intensities in [-1, 1], shape ``(C, I, J, K)``.
        region: Boolean, ``(I, J, K)``.
        spacing_mm: Size of a voxel along I, J and K in mm.
        shape: Also describe the form of the region.

    Returns:
        By name (``"channel 0, glcm contrast"``), every one finite.

    Raises:
        DataError: Fewer than :data:`FEWEST` voxels, or arrays that do not fit together.
    """
    check_masks(region)
    check_spacing(spacing_mm)
    if image.ndim != 4 or image.shape[1:] != region.shape:
        raise DataError(f"an image of shape {image.shape} and a region of shape {region.shape}: give (C, I, J, K) and (I, J, K)")  # fmt: skip
    voxels = int(np.count_nonzero(region))
    if voxels < FEWEST:
        raise DataError(f"a region of {voxels} voxels has no texture: at least {FEWEST}")
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    inside = region[box]
    found = {f"shape {name}": value for name, value in morphology(inside, spacing_mm).items()} if shape else {}
    for c, channel in enumerate(image[(slice(None), *box)]):
        levels = grey_levels(channel, inside)
        parts = {
            "": intensities(channel[inside]),
            "histogram ": histogram(levels[inside]),
            "glcm ": cooccurrence(cooccurrences(levels)),
            "glrlm ": runs(run_lengths(levels), voxels),
            "glszm ": zones(zone_sizes(levels), voxels),
        }
        found.update(
            (f"channel {c}, {kind}{name}", value) for kind, one in parts.items() for name, value in one.items()
        )
    return found


def grey_levels(channel: np.ndarray, region: Mask) -> np.ndarray:
    """Whole numbers from 1 to :data:`LEVELS`, 0 outside the region, ``(I, J, K)``."""
    bins = np.floor((np.clip(channel, -1, 1) + 1) / 2 * LEVELS).astype(np.int64)
    return np.where(region, np.minimum(bins, LEVELS - 1) + 1, 0)


def intensities(values: np.ndarray) -> dict[str, float]:
    """Statistics of the intensities ``(n,)`` of a region."""
    x = np.asarray(values, np.float64)
    mean, variance = x.mean(), x.var()
    z = (x - mean) / np.sqrt(variance) if variance > 1e-12 else np.zeros(len(x))
    p10, p25, median, p75, p90 = np.percentile(x, [10, 25, 50, 75, 90])
    middle = x[(x >= p10) & (x <= p90)]
    return {
        "mean": float(mean),  # Q4LE
        "variance": float(variance),  # ECT3
        "skewness": float((z**3).mean()),  # KE2A; 0 where nothing varies
        "excess kurtosis": float((z**4).mean() - 3) if z.any() else 0.0,  # IPH6
        "median": float(median),  # Y12H
        "10th percentile": float(p10),  # QG58
        "90th percentile": float(p90),  # 8DWT
        "interquartile range": float(p75 - p25),  # SALO
        "mean absolute deviation": float(np.abs(x - mean).mean()),  # 4FUA
        "robust mean absolute deviation": float(np.abs(middle - middle.mean()).mean()),  # 1128
    }


def histogram(levels: np.ndarray) -> dict[str, float]:
    """Statistics of the grey levels ``(n,)`` of a region."""
    p = np.bincount(levels)[1:] / len(levels)
    return {"entropy": _entropy(p), "uniformity": float((p**2).sum())}  # TLU2, BJ5W


def morphology(region: Mask, spacing_mm: Sequence[float]) -> dict[str, float]:
    """The form of a region; axes are those of an ellipsoid with its voxel centres' principal moments."""
    points = np.argwhere(region) * np.asarray(spacing_mm, dtype=np.float64)
    moments = np.linalg.eigvalsh(np.cov(points.T)).clip(0)
    least, minor, major = 4 * np.sqrt(moments)
    return {
        "volume, ml": float(len(points) * np.prod(spacing_mm) / 1000),  # YEKZ, by voxel counting
        "major axis, mm": float(major),  # TDIC
        "minor axis, mm": float(minor),  # P9VJ
        "least axis, mm": float(least),  # 7J51
        "elongation": float(minor / major),  # Q3CK
        "flatness": float(least / major),  # N17B
    }


def cooccurrences(levels: np.ndarray) -> Matrix:
    """Grey level co-occurrence matrix (LFYI): shares of neighbours' levels, symmetric, ``(levels, levels)``."""
    count = int(levels.max())
    flat, steps = _flat(levels)
    found = np.zeros((count + 1) ** 2, np.int64)
    for step in steps:
        found += np.bincount(flat[:-step] * (count + 1) + flat[step:], minlength=len(found))
    pairs = found.reshape(count + 1, count + 1)[1:, 1:]
    pairs = pairs + pairs.T
    return pairs / max(pairs.sum(), 1)


def cooccurrence(p: Matrix) -> dict[str, float]:
    """Features of a co-occurrence matrix of shares."""
    i, j = np.meshgrid(*(np.arange(1.0, n + 1) for n in p.shape), indexing="ij")
    margin = p.sum(1)
    mean = (i * p).sum()
    variance = ((i - mean) ** 2 * p).sum()
    apart = np.abs(i - j)
    difference = np.bincount(apart.astype(int).ravel(), p.ravel())
    total = np.bincount((i + j).astype(int).ravel(), p.ravel())
    average = (apart * p).sum()
    product = margin[:, None] * margin
    joint, alone = _entropy(p), _entropy(margin)
    with np.errstate(divide="ignore"):
        crossed = -(p * np.log2(np.where(product > 0, product, 1))).sum()
    return {
        "joint maximum": float(p.max()),  # GYBY
        "joint variance": float(variance),  # UR99
        "joint entropy": joint,  # TU9B
        "difference average": float(average),  # TF7R
        "difference variance": float(((apart - average) ** 2 * p).sum()),  # D3YU
        "difference entropy": _entropy(difference),  # NTRS
        "sum entropy": _entropy(total),  # P6QZ
        "angular second moment": float((p**2).sum()),  # 8ZQL
        "contrast": float((apart**2 * p).sum()),  # ACUI
        "inverse difference": float((p / (1 + apart)).sum()),  # IB1Z
        "correlation": float(((i - mean) * (j - mean) * p).sum() / variance) if variance > 0 else 1.0,  # NI2N
        "cluster shade": float(((i + j - 2 * mean) ** 3 * p).sum()),  # 7NFM
        "information correlation 1": float((joint - crossed) / alone) if alone > 0 else 0.0,  # R8DG
    }


def run_lengths(levels: np.ndarray) -> Matrix:
    """Grey level run length matrix (TP0I): how many runs of each level and length, ``(levels, lengths)``."""
    flat, steps = _flat(levels)
    shape = int(levels.max()) + 1, max(levels.shape) + 2
    found = np.zeros(shape[0] * shape[1], np.int64)
    for step in steps:
        # Every step-th voxel from each start, one after another: voxels of the frame end all runs.
        rows = -(-len(flat) // step)
        apart = np.pad(flat, (0, rows * step - len(flat))).reshape(rows, step).T
        line = np.pad(apart, ((0, 0), (0, 1))).ravel()
        changes = np.flatnonzero(line[1:] != line[:-1]) + 1
        starts, ends = changes[line[changes] > 0], changes[line[changes - 1] > 0]
        found += np.bincount(line[starts] * shape[1] + ends - starts, minlength=len(found))
    return found.reshape(shape)[1:, 1:-1]


def runs(counts: Matrix, voxels: int) -> dict[str, float]:
    """Features of a run length matrix of a region of so many voxels."""
    found = _emphases(counts)
    return {
        "short run emphasis": found["small"],  # 22OV
        "long run emphasis": found["large"],  # W4KF
        "low grey level run emphasis": found["low"],  # V3SW
        "high grey level run emphasis": found["high"],  # G3QZ
        "grey level non-uniformity, normalised": found["levels"],  # OVBL
        "run length non-uniformity, normalised": found["sizes"],  # IC23
        "run percentage": float(counts.sum() / (voxels * len(_DIRECTIONS))),  # 9ZK5
        "grey level variance": found["level variance"],  # 8CE5
        "run length variance": found["size variance"],  # SXLW
        "run entropy": found["entropy"],  # HJ9O
    }


def zone_sizes(levels: np.ndarray) -> Matrix:
    """Grey level size zone matrix (9SAK) in two columns per zone: its level and its number of voxels, ``(zones, 2)``."""
    zones_ = []
    for level in np.unique(levels[levels > 0]):
        labels, count = ndimage.label(levels == level, structure=np.ones((3, 3, 3)))
        zones_.append(np.stack([np.full(count, level), np.bincount(labels.ravel())[1:]], 1))
    return np.concatenate(zones_)


def zones(found: Matrix, voxels: int) -> dict[str, float]:
    """Features of the zones ``(zones, 2)`` of a region of so many voxels."""
    sizes, column = np.unique(found[:, 1], return_inverse=True)
    counts = np.zeros((int(found[:, 0].max()), len(sizes)))
    np.add.at(counts, (found[:, 0] - 1, column), 1)
    measured = _emphases(counts, sizes)
    return {
        "small zone emphasis": measured["small"],  # P001
        "low grey level zone emphasis": measured["low"],  # XMSY
        "high grey level zone emphasis": measured["high"],  # 5GN9
        "grey level non-uniformity, normalised": measured["levels"],  # Y1RO
        "zone size non-uniformity, normalised": measured["sizes"],  # VB3A
        "zone percentage": float(len(found) / voxels),  # P30P
        "grey level variance": measured["level variance"],  # BYLV
        "zone size entropy": measured["entropy"],  # GU8N
    }


def _flat(levels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Levels in a frame of zeros, as one row, and how far along it the neighbour lies in each of the 13 directions."""
    framed = np.pad(levels, 1)
    along = np.array([framed.shape[1] * framed.shape[2], framed.shape[2], 1])
    return framed.ravel(), [int(along @ step) for step in _DIRECTIONS]


def _emphases(counts: Matrix, sizes: np.ndarray | None = None) -> dict[str, float]:
    """What run length and size zone matrices have in common; ``sizes`` of the columns, from 1 if None."""
    p = counts / counts.sum()
    i = np.arange(1.0, len(p) + 1)
    j = np.arange(1.0, p.shape[1] + 1) if sizes is None else sizes.astype(np.float64)
    of_level, of_size = p.sum(1), p.sum(0)
    return {
        "small": float((of_size / j**2).sum()),
        "large": float((of_size * j**2).sum()),
        "low": float((of_level / i**2).sum()),
        "high": float((of_level * i**2).sum()),
        "levels": float((of_level**2).sum()),
        "sizes": float((of_size**2).sum()),
        "level variance": float((of_level * (i - of_level @ i) ** 2).sum()),
        "size variance": float((of_size * (j - of_size @ j) ** 2).sum()),
        "entropy": _entropy(p),
    }


def _entropy(p: np.ndarray) -> float:
    """In bits."""
    held = p[p > 0]
    return float(-(held * np.log2(held)).sum())
