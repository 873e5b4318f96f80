"""Cases as moving pictures: windowed, turned the same way, brought to one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from latentsynth.animations import sequence, walk
from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.figures import Legend, Tile
from latentsynth.viewer.collection import Entry

_WINDOW = (0.5, 99.5)  # percentiles shown from black to white


def moving_picture(path: Path, entries: Sequence[Entry], over: Literal["slices", "cases"]) -> Path:
    """Writes a GIF or WebP of the first channel of some cases.

    Args:
        path: Where to write.
        entries: The cases, of one voxel spacing; smaller ones lie in the middle of a black field.
        over: ``"slices"`` walks through all of them side by side, ``"cases"`` shows one after another.

    Raises:
        DataError: Spacings differ, a file cannot be read, or another ending than .gif or .webp.
    """
    read = [_read(entry) for entry in entries]
    spacings = {tuple(np.round(spacing, 3)) for _, _, spacing in read}
    if len(spacings) != 1:
        raise DataError(f"voxels of {' and '.join(map(str, sorted(spacings)))} mm: show cases of one spacing together")
    shape = np.max([image.shape for image, _, _ in read], axis=0)
    tiles = [
        Tile(entry.name, _padded(image, shape, -1.0)[None], None if mask is None else _padded(mask, shape, 0))
        for entry, (image, mask, _) in zip(entries, read, strict=True)
    ]
    legend = Legend(read[0][2])
    return walk(path, tiles, legend) if over == "slices" else sequence(path, tiles, legend)


def _read(entry: Entry) -> tuple[np.ndarray, np.ndarray | None, tuple[float, ...]]:
    """First channel in [-1, 1], label indices, and spacing, axes to the right, anterior and superior."""
    values, affine = nifti.read(entry.images[0])
    low, high = np.percentile(values, _WINDOW)
    image = np.clip((values - low) / max(high - low, 1e-6) * 2 - 1, -1, 1)
    turned, spacing = nifti.canonical(image.astype(np.float32), affine)
    if entry.mask is None:
        return turned, None, spacing
    found, _ = nifti.canonical(*nifti.read_labels(entry.mask))
    return turned, np.searchsorted([value for value, _ in entry.labels], found).astype(np.uint8), spacing


def _padded(values: np.ndarray, shape: np.ndarray, fill: float) -> np.ndarray:
    missing = shape - values.shape
    return np.pad(values, [(n // 2, n - n // 2) for n in missing], constant_values=fill)
