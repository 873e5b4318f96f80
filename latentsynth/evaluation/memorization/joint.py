"""Several feature spaces as one: a copy is near in whichever of them sees through its disguise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.memorization.reference import nearest_patients
from latentsynth.evaluation.memorization.spaces import FeatureSpace
from latentsynth.extractors.networks import Extractor
from latentsynth.metrics.copying import Search
from latentsynth.metrics.neighbours import nearest_distinct
from latentsynth.provenance import fingerprint

JOINT = "joint"
_NARROWEST = 0.01  # of log distances: training patients that are all equally far apart have no spread to divide by
_QUARTILES = 1.349  # standard deviations between the quartiles of a normal law


class Joined(Extractor):
    """The features of several spaces, one after the other.

    Args:
        extractors: Of the spaces.
    """

    name = JOINT

    def __init__(self, extractors: Sequence[Extractor]):
        self.extractors = tuple(extractors)
        self.preprocessing = "; ".join(f"{one.name}: {one.preprocessing}" for one in extractors)
        self.fingerprint = fingerprint([JOINT, *(one.fingerprint for one in extractors)])

    def _features(self, image: Tensor) -> Tensor:
        return torch.cat([one.features(image) for one in self.extractors], 1)


@dataclass(frozen=True)
class _Scale:
    """What distances of one space are compared with: those of training patients to their nearest other one."""

    search: Search
    middle: float
    spread: float

    def standardised(self, distances: np.ndarray) -> np.ndarray:
        """Robust z-scores of log distances: copies, whose distance is nearly nought, are far below all others."""
        with np.errstate(divide="ignore"):
            return np.asarray((np.log(distances) - self.middle) / self.spread)


def join(spaces: Sequence[FeatureSpace], train: Sequence[Features]) -> FeatureSpace:
    """One feature space of several, by the maximum statistic (Westfall and Young 1993).

    Distances of each space are put on one scale, that of training patients among themselves, and the smallest of a pair counts.
    Calibration and control patients and samples have not set that scale, so p-values by calibration patients hold for all spaces at
    once, without a division of the level.

    Args:
        spaces: At least one; those that do not apply to these volumes should be left out.
        train: Features of the training cases by each of them.
    """
    scales = [_scale(space, found) for space, found in zip(spaces, train, strict=True)]
    ends = np.cumsum([0, *(found.values.shape[1] for found in train)])
    columns = [slice(first, last) for first, last in pairwise(ends)]

    def search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = [one.search(queries[:, part], reference[:, part], k) for one, part in zip(scales, columns, strict=True)]
        scores = np.concatenate(
            [one.standardised(distance) for one, (distance, _) in zip(scales, found, strict=True)], 1
        )
        rows = np.concatenate([row for _, row in found], 1)
        nearest = [nearest_distinct(*pair, k) for pair in zip(scores, rows, strict=True)]
        # Above the middle the distance grows like the score, below it falls to nought.
        return np.logaddexp(0, np.stack([score for score, _ in nearest])), np.stack([row for _, row in nearest])

    unit = "standard deviations of training patients' log distances, softened to stay above nought"
    return FeatureSpace(Joined([one.extractor for one in spaces]), search, unit, wide=True)


def joined(features: Sequence[Features]) -> Features:
    """Features of one cohort by each of the spaces, one after the other."""
    return replace(features[0], values=np.concatenate([one.values for one in features], 1))


def _scale(space: FeatureSpace, train: Features) -> _Scale:
    others = nearest_patients(space.search, train.values, train)[0][:, 1]
    known = np.log(others[others > 0])  # not a number where there is one patient alone
    if not len(known):
        return _Scale(space.search, 0.0, 1.0)
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
    return _Scale(space.search, float(middle), max(float(high - low) / _QUARTILES, _NARROWEST))
