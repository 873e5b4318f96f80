"""Volumes per second of trained generators, beside the first one: `python benchmarks/sampling.py RUN [RUN ...]`.

One thread, one batch of four masks each, in one process; latent diffusion at the settings of its checkpoint.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import torch

from latentsynth.synthesizers import load_synthesizer
from latentsynth.types import Condition

_BATCH, _REPEATS = 4, 3


def seconds_per_volume(run: Path) -> float:
    """Median CPU seconds of one volume."""
    model = load_synthesizer(run)
    mask = torch.zeros(_BATCH, len(model.domain.labels), *model.grid.shape)
    i, j, k = (n // 2 for n in model.grid.shape)
    mask[:, 0] = 1
    mask[:, 0, i - 4 : i + 4, j - 4 : j + 4, k - 4 : k + 4] = 0
    mask[:, 1, i - 4 : i + 4, j - 4 : j + 4, k - 4 : k + 4] = 1
    took = []
    for repeat in range(_REPEATS + 1):
        began = time.process_time()
        model.generate(None if model.makes_masks else Condition(mask), range(repeat, repeat + _BATCH))
        took.append((time.process_time() - began) / _BATCH)
    return median(took[1:])  # the first warms up


def main(runs: list[Path]) -> None:
    """Prints a table."""
    if not runs:
        raise SystemExit(__doc__)
    torch.set_num_threads(1)
    first = None
    print(f"{'run':<45}{'volumes / CPU second':>22}{'ratio to the first':>20}")
    for run in runs:
        speed = 1 / seconds_per_volume(run)
        first = first or speed
        print(f"{run!s:<45}{speed:>22.2f}{speed / first:>20.2f}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
