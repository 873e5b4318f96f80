"""Feature spaces joined: one rate of false alarms for all of them, and what one of them sees is found."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.memorization.joint import join, joined
from latentsynth.evaluation.memorization.reference import ReferenceDistances
from latentsynth.evaluation.memorization.spaces import FeatureSpace
from latentsynth.extractors.networks import Extractor

WIDTH, SPACES = 12, 3


class Named(Extractor):
    """Half a volume as it is."""

    preprocessing = "none"

    def __init__(self, name: str):
        self.name = self.fingerprint = name

    def _features(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def described(rng: np.random.Generator, count: int, name: str) -> list[Features]:
    """The same people in unlike spaces, of unlike scale."""
    ids = tuple(f"{name}{n}" for n in range(count))
    return [Features(ids, ids, (10.0**n * rng.normal(size=(count, WIDTH))).astype(np.float32)) for n in range(SPACES)]


def reference(rng: np.random.Generator, calibration: int = 30) -> tuple[ReferenceDistances, list[Features]]:
    train = described(rng, 60, "t")
    space = join([FeatureSpace(Named(f"space{n}")) for n in range(SPACES)], train)
    return ReferenceDistances(space, joined(train), joined(described(rng, calibration, "c")), 0.05), train


def test_unseen_patients_are_flagged_at_the_level_by_all_spaces_together() -> None:
    rates = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found, _ = reference(rng)
        rates.append(found.measure(joined(described(rng, 30, "s"))).flagged.mean())
    assert np.mean(rates) <= 0.045  # floor(31 / 20) of 31 is .032; three spaces each at that level would be .09


def test_a_copy_that_one_space_sees_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    found, train = reference(rng)
    made = described(rng, SPACES, "s")
    for n, one in enumerate(made):  # each volume is a copy by another space
        one.values[n] = train[n].values[n + 5]
    measured = found.measure(joined(made))
    assert measured.flagged.all()
    assert measured.nearest.tolist() == [5, 6, 7]
    assert (measured.distances[:, 0] == 0).all()


def test_the_nearest_are_those_of_the_smallest_score_over_all_spaces() -> None:
    rng = np.random.default_rng(1)
    found, train = reference(rng)
    query = joined(described(rng, 4, "q")).values
    distance, row = found.space.search(query, joined(train).values, 60)
    assert all(sorted(one) == list(range(60)) for one in row.tolist())
    assert (np.diff(distance, axis=1) >= 0).all()
    first, first_row = found.space.search(query, joined(train).values, 3)
    np.testing.assert_allclose(first, distance[:, :3])
    np.testing.assert_array_equal(first_row, row[:, :3])


def test_the_joint_extractor_gives_the_rows_that_are_joined() -> None:
    space = join([FeatureSpace(Named(f"space{n}")) for n in range(2)], described(np.random.default_rng(0), 5, "t")[:2])
    image = torch.randn(1, 1, 2, 2, 3)
    assert torch.equal(space.extractor.features(image), image.flatten(1).repeat(1, 2))
