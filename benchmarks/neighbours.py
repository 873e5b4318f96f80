"""Exact nearest neighbours beside scikit-learn and faiss: time, memory, and agreement with float64, in one run.

`python benchmarks/neighbours.py [--rows 2000] [--features 512] [--threads 2]`. Each contestant finds the nearest of
as many reference rows for every query, the same float32 data for all, in a process of its own. The ratios are what
matters, the seconds are this machine's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONTESTANTS = {"ours": "latentsynth", "scikit-learn": "sklearn", "faiss": "faiss"}
CHECKED = 200  # rows checked in float64
Search = Callable[[np.ndarray, np.ndarray], np.ndarray]


def data(kind: str, rows: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and reference: independent normal rows, or far from the origin with reference rows close together."""
    rng = np.random.default_rng(0)
    queries, reference = (rng.standard_normal((rows, features), dtype=np.float32) for _ in range(2))
    if kind == "hard":
        queries += 100
        reference = queries[rng.integers(0, rows, rows)] + 1e-2 * reference
    return queries, reference


def searcher(name: str, threads: int) -> Search:
    """Its search for the rows of the nearest neighbours, everything imported."""
    if name == "ours":
        from latentsynth.metrics.neighbours import nearest

        return lambda queries, reference: nearest(queries, reference)[1][:, 0]
    if name == "scikit-learn":
        from sklearn.neighbors import NearestNeighbors

        def search(queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
            return NearestNeighbors(n_neighbors=1, algorithm="brute").fit(reference).kneighbors(queries)[1][:, 0]

        return search
    import faiss

    faiss.omp_set_num_threads(threads)

    def index(queries: np.ndarray, reference: np.ndarray) -> np.ndarray:
        flat = faiss.IndexFlatL2(reference.shape[1])
        flat.add(reference)
        return flat.search(queries, 1)[1][:, 0]

    return index


def contest(name: str, kind: str, rows: int, features: int, threads: int) -> dict[str, float]:
    """Seconds, MiB of peak memory above the inputs, and the share of checked rows that float64 confirms."""
    search = searcher(name, threads)
    queries, reference = data(kind, rows, features)
    search(queries[:512], reference[:2048])  # starts threads, loads what is loaded late
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of imports and of making the data
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    found = search(queries, reference)
    took = time.perf_counter() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) / 2**10
    sample = np.random.default_rng(1).choice(rows, min(CHECKED, rows), replace=False)
    wide = reference.astype(np.float64)
    right = [np.square(wide - queries[row]).sum(1).argmin() == found[row] for row in sample]
    return {"seconds": took, "peak": peak, "right": float(np.mean(right))}


def main() -> None:
    """Prints a table for each kind of data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--rows", 2000), ("--features", 512), ("--threads", 2)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--kinds", nargs="+", choices=("normal", "hard"), default=["normal", "hard"])
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(contest(*args.contestant, args.rows, args.features, args.threads)))
        return
    missing = [name for name, module in CONTESTANTS.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"without {' and '.join(missing)}: pip install scikit-learn faiss-cpu")
    # Settings of OpenBLAS on this machine would slow numpy's and the others' products.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    environment |= {f"{library}_NUM_THREADS": str(args.threads) for library in ("OMP", "OPENBLAS", "MKL")}
    sizes = [f"--{key}={getattr(args, key)}" for key in ("rows", "features", "threads")]
    for kind in args.kinds:
        print(f"\n{kind}: {args.rows} queries and reference rows, {args.features} features, {args.threads} threads")
        print(f"{'':<14}{'seconds':>9}{'/ ours':>8}{'peak MiB':>10}{'/ ours':>8}{f'right of {CHECKED}':>14}")
        ours: dict[str, float] = {}
        for name in (name for name in CONTESTANTS if name not in missing):
            command = [sys.executable, __file__, *sizes, "--contestant", name, kind]
            got = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            )
            ours = ours or got
            ratios = [got[key] / ours[key] for key in ("seconds", "peak")]
            print(
                f"{name:<14}{got['seconds']:>9.2f}{ratios[0]:>8.2f}{got['peak']:>10.0f}{ratios[1]:>8.2f}"
                f"{got['right'] * min(CHECKED, args.rows):>14.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
