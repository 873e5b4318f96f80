"""Frechet distance through the n x n identity against MONAI's matrix square root: time ratio and agreement, in one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import FIDMetric

from latentsynth.metrics.distribution import frechet


def main() -> None:
    """Prints one line per size."""
    warnings.simplefilter("ignore")  # MONAI calls scipy's sqrtm in an old way
    rng = np.random.default_rng(0)
    for n, f in ((100, 128), (100, 512), (300, 512)):
        a, b = rng.normal(size=(n, f)), rng.normal(0.2, 1.1, size=(n, f))
        ours, took = best_of(lambda a=a, b=b: frechet(a, b))
        theirs, took_monai = best_of(lambda a=a, b=b: float(FIDMetric()(torch.from_numpy(b), torch.from_numpy(a))))
        print(
            f"n={n} F={f}: {took_monai / took:.0f} times faster than MONAI, "
            f"relative difference {abs(ours / theirs - 1):.1e}"
        )


def best_of(compute: Callable[[], float], times: int = 3) -> tuple[float, float]:
    """Its value and the shortest of some times, in seconds."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        value = compute()
        took.append(time.perf_counter() - began)
    return value, min(took)


if __name__ == "__main__":
    main()
