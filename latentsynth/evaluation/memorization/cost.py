"""How long a search for copies takes, before it begins: a few pairs are searched, and the rest follows from their number."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import starmap

import numpy as np

from latentsynth.evaluation.memorization.positive_controls import DISGUISES, MOST_COPIES
from latentsynth.metrics.parts import detail, nearest_by_parts
from latentsynth.metrics.registration import describe, nearest_by_registration
from latentsynth.workers import cores

_SLOW = {"registered": (describe, nearest_by_registration), "parts": (detail, nearest_by_parts)}
_QUERIES, _REFERENCE = 2, 32  # volumes that are searched to know what a pair costs
_ONCE_S = 20.0  # reading, writing and the quick searches


@dataclass(frozen=True)
class SearchCost:
    """Seconds of a search, by the number of synthetic volumes.

    Attributes:
        fixed_s: Without any.
        per_volume_s: Of each.
    """

    fixed_s: float
    per_volume_s: float

    def seconds(self, volumes: int) -> float:
        """Of so many volumes."""
        return self.fixed_s + self.per_volume_s * volumes


def search_cost(spaces: Sequence[str], shape: Sequence[int], train: int, heldout: int) -> SearchCost:
    """What a search by these feature spaces costs on all cores of this machine.

    Args:
        spaces: Names, as in :data:`latentsynth.evaluation.memorization.evaluate.DEFAULT`.
        shape: Of volumes, ``(C, I, J, K)``.
        train: Training cases.
        heldout: Held-out cases.
    """
    each, pair = map(sum, zip(*starmap(_measured, ((one, tuple(shape)) for one in spaces)), strict=True))
    controls = (1 + len(DISGUISES)) * MOST_COPIES
    people = train + heldout
    # Training cases among themselves, held-out ones and positive controls with them, and everybody with the control set.
    pairs = (people + controls) * train + people * heldout / 2
    fixed = pairs * pair + (people + controls) * each
    return SearchCost(_ONCE_S + fixed / cores(), ((train + people) * pair + each) / cores())


@cache
def _measured(space: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of describing a volume, and of comparing a pair, on one core."""
    if space not in _SLOW:
        return 0.0, 0.0
    of, search = _SLOW[space]
    volumes = np.random.default_rng(0).uniform(-1, 1, (_QUERIES + 1, *shape)).astype(np.float32)
    each = _seconds(lambda: of(volumes[0]))
    described = np.stack([of(volume) for volume in volumes])
    queries = described[:_QUERIES].reshape(_QUERIES, -1)
    reference = np.resize(described, (_REFERENCE, queries.shape[1]))  # the same ones over and over
    took = _seconds(lambda: search(queries, reference, 2, described.shape[1:]))
    return each, took / _QUERIES / _REFERENCE


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
