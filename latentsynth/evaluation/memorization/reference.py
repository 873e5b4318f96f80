"""The calibrated distance: distances to a training set, calibrated by real patients that no generator saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.memorization.spaces import FeatureSpace
from latentsynth.metrics.conformal import discoveries, flagged_interval, least_calibration, p_values
from latentsynth.metrics.copying import Search, copy_rate
from latentsynth.results import Estimate

_NEAR = 0.5  # of the median distance of unseen patients, below which a volume is near-exact


@dataclass(frozen=True)
class Measured:
    """A set of volumes against one training set, by one feature space.

    Attributes:
        features: The set.
        distances: To the nearest training patient and to the second-nearest, shape ``(N, 2)``.
        nearest: Row of the training set that is nearest, ``(N,)``.
        p: Conformal p-values, ``(N,)``.
        near_exact: Which are all but training scans, ``(N,)``; see :class:`ReferenceDistances`.
        flagged: Which lie nearer to the training set than all but a ``level`` share of unseen patients, or are near-exact,
            ``(N,)``.
        discovered: Which remain at a false discovery rate of ``level`` over the set (Benjamini and Hochberg), or are
            near-exact, ``(N,)``.
        rate: Copy rate: share flagged, patients weighing alike, with its exact interval over them.
        expected: Interval of that share for independent patients.
        calibrated: Whether there are calibration patients enough for a p-value to reach the level.
        bound: Copy rate with calibration distances to the second-nearest patient; see :class:`ReferenceDistances`.
    """

    features: Features
    distances: np.ndarray
    nearest: np.ndarray
    p: np.ndarray
    near_exact: np.ndarray
    flagged: np.ndarray
    discovered: np.ndarray
    rate: Estimate
    expected: tuple[float, float]
    calibrated: bool
    bound: float

    @property
    def copied(self) -> bool:
        """Whether more are flagged than independent patients would be, or any is all but a training scan."""
        return self.rate.value > self.expected[1] or bool(self.near_exact.any())

    @property
    def mute(self) -> bool:
        """Whether so few independent volumes, or calibration patients, say nothing of a set without near-exact volumes."""
        return not self.copied and (not self.calibrated or self.expected[1] >= 1)


@dataclass(frozen=True)
class Matched:
    """Samples of training masks against the patients of these masks; see :meth:`ReferenceDistances.matched`.

    Attributes:
        samples: How many were made from a training patient's mask.
        null: Calibration patients from whose masks samples were made too.
        rate: Share that lie nearer to their mask's patient than all but a ``level`` share of the null.
        control: The same share of samples made from control patients' masks; not a number without any.
        expected: Interval of that share without copying.
        rows: Which rows of the set were tested, and their p-values.
    """

    samples: int
    null: int
    rate: float
    control: float
    expected: tuple[float, float]
    rows: tuple[np.ndarray, np.ndarray]


class ReferenceDistances:
    """Nearest distances of calibration patients to one training set; made anew for every training set.

    A nearest distance shrinks as the training set grows, without any copying, so a threshold holds for one set alone.

    Where a relative of a calibration patient, or the other side of one, may be among the training cases, its distance
    is too short and hides copies. ``second`` leaves each calibration patient's nearest training patient out: a null
    that is too long, so that the truth lies between the two.

    A volume is near-exact where it lies at less than half the median of these distances, in spaces whose distances may be
    compared so. The mean of all patients, which copies nobody, lies at about 0.71 of the distance between two of them, and the
    mean of two patients at 0.5 of it. With too few calibration patients for the level no p-value can reach it, and near-exact
    volumes alone are flagged.

    Args:
        space: The distance.
        train: Features of the training cases.
        calibration: Features of held-out patients, one case each.
        level: Level of the p-values.
    """

    def __init__(self, space: FeatureSpace, train: Features, calibration: Features, level: float):
        self.space, self.train, self.calibration, self.level = space, train, calibration, level
        distances, rows = nearest_patients(space.search, calibration.values, train)
        self.first, self.second = distances[:, 0], distances[:, 1]
        self.enough = len(self.first) >= least_calibration(level)
        self.near = _NEAR * float(np.median(self.first)) if space.proportional else space.same
        self.calibration_twins = self._twins(calibration, self._near_exact(distances[:, 0]), rows)

    def measure(self, sample: Features) -> Measured:
        """A set of volumes against the training set."""
        distances, row = nearest_patients(self.space.search, sample.values, self.train)
        p = p_values(distances[:, 0], self.first)
        near_exact = self._near_exact(distances[:, 0])
        flagged = self._low(p) | near_exact
        bound = float("nan")
        if np.isfinite(self.second).all():
            bound = copy_rate(self._low(p_values(distances[:, 0], self.second)) | near_exact, sample.patients)[0]
        independent = len(set(sample.patients))  # volumes of one mask are no independent draws
        return Measured(
            sample,
            distances,
            row,
            p,
            near_exact,
            flagged,
            discoveries(p, self.level) | near_exact,
            Estimate(*copy_rate(flagged, sample.patients)),
            flagged_interval(len(self.first), independent, self.level) if self.enough else (0.0, 0.0),
            self.enough,
            bound,
        )

    def twins(self, found: Measured) -> dict[str, str]:
        """Near-exact volumes, by id, and the training case that each is."""
        return self._twins(found.features, found.near_exact, found.nearest)

    def _twins(self, features: Features, near_exact: np.ndarray, rows: np.ndarray) -> dict[str, str]:
        return {features.ids[n]: self.train.ids[rows[n]] for n in np.flatnonzero(near_exact)}

    def flags(self, values: np.ndarray) -> np.ndarray:
        """Which rows ``(N, F)`` are flagged, ``(N,)``."""
        distances = self.space.search(values, self.train.values, 1)[0][:, 0]
        return np.asarray(self._low(p_values(distances, self.first)) | self._near_exact(distances))

    def _near_exact(self, distances: np.ndarray) -> np.ndarray:
        """Nobody, where the space finds no distance between patients."""
        return (distances <= self.near) & (self.near > 0)

    def _low(self, p: np.ndarray) -> np.ndarray:
        return np.asarray(p <= self.level * (1 + 1e-12))  # 0.05 must hold for 1/20

    def matched(
        self, sample: Features, parents: Sequence[str], calibration: Features, control: Features
    ) -> Matched | None:
        """The mask-matched null: is a sample nearer to the patient of its mask than an unseen patient's would be?

        A sample made from a training patient's mask resembles that patient without any copying, by the mask alone.
        Samples that the same generator made from masks of calibration patients, whose scans it never saw, resemble
        those patients for the same reason and no other. So distances from sample to mask's patient are compared.

        Args:
            sample: The set.
            parents: Whose mask each was made from, "" where that is unknown or not one patient.
            calibration: Features of all cases of the calibration patients: a sample may show any of them.
            control: Of all cases of the control patients.

        Returns:
            None where no sample was made from a training mask, or too few from calibration masks for the level.
        """
        theirs = [self._to_parent(sample, parents, people) for people in (self.train, calibration, control)]
        (rows, distances), null, checks = (
            theirs[0],
            self._one_each(theirs[1], parents),
            self._one_each(theirs[2], parents),
        )
        if not len(rows) or len(null) < least_calibration(self.level):
            return None
        p = p_values(distances, null)
        control_rate = float(self._low(p_values(checks, null)).mean()) if len(checks) else float("nan")
        people = [parents[n] for n in rows]
        return Matched(
            len(rows), len(null), copy_rate(self._low(p), people)[0], control_rate,
            flagged_interval(len(null), len(set(people)), self.level), (rows, p),
        )  # fmt: skip

    def _to_parent(self, sample: Features, parents: Sequence[str], people: Features) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose mask came from one of these patients, and their distances to that patient."""
        home: dict[str, list[int]] = {}
        for n, patient in enumerate(people.patients):
            home.setdefault(patient, []).append(n)
        rows = [n for n, parent in enumerate(parents) if parent in home]
        found = [self.space.search(sample.values[n : n + 1], people.values[home[parents[n]]], 1)[0][0, 0] for n in rows]
        return np.array(rows, dtype=int), np.array(found)

    @staticmethod
    def _one_each(found: tuple[np.ndarray, np.ndarray], parents: Sequence[str]) -> np.ndarray:
        """The first distance of each patient: several samples of one mask are no independent draws."""
        first: dict[str, float] = {}
        for n, distance in zip(*found, strict=True):
            first.setdefault(parents[n], distance)
        return np.array(list(first.values()))


def nearest_patients(search: Search, queries: np.ndarray, train: Features) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the nearest and second-nearest training *patient* ``(N, 2)``, and the nearest row ``(N,)``.

    The second is not a number where there is one patient alone.
    """
    _, person = np.unique(np.asarray(train.patients), return_inverse=True)
    most = int(np.bincount(person).max())  # cases of one patient
    distances, rows = search(queries, train.values, min(most + 1, len(person)))
    other = person[rows] != person[rows[:, :1]]
    second = np.where(other.any(1), distances[np.arange(len(rows)), other.argmax(1)], np.nan)
    return np.stack([distances[:, 0], second], 1), rows[:, 0]


def one_per_patient(found: Features) -> Features:
    """One case of each patient: patients, not volumes, are the unit."""
    return found[first_cases(found)]


def first_cases(found: Features) -> list[int]:
    """Row of each patient's first case by id."""
    first: dict[str, int] = {}
    for n in sorted(range(len(found.ids)), key=lambda n: found.ids[n]):
        first.setdefault(found.patients[n], n)
    return sorted(first.values())
