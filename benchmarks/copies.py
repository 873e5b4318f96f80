"""The search for copies: seconds a volume by each feature space, beside that of voxels, in one run.

`python benchmarks/copies.py [--samples 1000] [--patients 200] [--size 48] [--queries 8]`. A few queries are timed against all
patients and the rest follows, since each query costs the same; searches take turns, and the median of three counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from latentsynth.metrics.copying import Search
from latentsynth.metrics.neighbours import nearest
from latentsynth.metrics.parts import detail, nearest_by_parts
from latentsynth.metrics.registration import describe, nearest_by_registration
from latentsynth.metrics.structural import nearest_by_ssim

REPEATS = 3


def volumes(count: int, size: int) -> np.ndarray:
    """Anatomy that all share and texture of one's own, ``(N, 1, size, size, size)``."""
    rng = np.random.default_rng(0)
    where = np.linspace(-1, 1, size)
    shared = np.exp(-3 * sum(axis**2 for axis in np.meshgrid(where, where, where, indexing="ij")))
    made = [shared + 0.3 * ndimage.gaussian_filter(rng.normal(size=(size,) * 3), 1) for _ in range(count)]
    return np.clip(np.stack(made)[:, None] - 0.5, -1, 1).astype(np.float32)


def contestants(images: np.ndarray) -> dict[str, tuple[np.ndarray, Search]]:
    """By feature space, the rows of all images and the search among them."""
    shape = images.shape[1:]
    smooth, fine = (np.stack([of(image) for image in images]) for of in (describe, detail))

    def shaped(search: Callable[..., tuple[np.ndarray, np.ndarray]], of: tuple[int, ...]) -> Search:
        return lambda queries, reference, k: search(queries, reference, k, of)

    flat = images.reshape(len(images), -1)
    return {
        "voxels": (flat, lambda queries, reference, k: nearest(queries, reference, k)),
        "ssim": (flat, shaped(nearest_by_ssim, shape)),
        "registered": (smooth.reshape(len(images), -1), shaped(nearest_by_registration, smooth.shape[1:])),
        "parts": (fine.reshape(len(images), -1), shaped(nearest_by_parts, fine.shape[1:])),
    }


def main() -> None:
    """Prints a line per feature space."""
    parser = argparse.ArgumentParser()
    for name, default in (("samples", 1000), ("patients", 200), ("size", 48), ("queries", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    images = volumes(asked.queries + asked.patients, asked.size)
    searches = contestants(images)
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(REPEATS):
        for name, (rows, search) in searches.items():
            start = time.perf_counter()
            search(rows[: asked.queries], rows[asked.queries :], 2)
            seconds[name].append((time.perf_counter() - start) / asked.queries)
    least = statistics.median(seconds["voxels"])
    print(f"{asked.samples} samples against {asked.patients} patients, {asked.size} voxels a side")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(
            f"{name:12s} {middle:8.3f} s a volume [{min(times):.3f}, {max(times):.3f}], {middle / least:8.0f} x voxels, "
            f"{asked.samples * middle / 60:6.1f} min for all"
        )


if __name__ == "__main__":
    main()
