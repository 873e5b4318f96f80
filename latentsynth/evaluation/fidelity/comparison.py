"""Sets of features against real ones, each beside what two halves of the real ones score at the same number of cases."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from scipy.spatial.distance import cdist

from latentsynth.evaluation.cohorts import rng
from latentsynth.evaluation.features import Features
from latentsynth.metrics.bootstrap import SHARE, UNBOUNDED, Bounds, jackknife_interval, samples_apart
from latentsynth.metrics.distribution import frechet, frechet_without, kid_interval, prdc_without
from latentsynth.results import Estimate, Table, TableCell

FLOOR = "floor: other half of real"
_SPLITS = 20  # random halves of the real patients that scores are averaged over
_NEIGHBOURS = 5  # Naeem et al. 2020
_PARTS = 50  # at most, that patients of a sample are left out in: one by one where there are no more patients
_CELLS = 10_000_000  # of the arrays that are held at once
_MEASURES = ("frechet", "precision", "recall", "density", "coverage")  # at equal numbers of cases
_BOUNDS: dict[str, Bounds] = {"frechet": (0, np.inf), "density": (0, np.inf)}  # the others are shares


@dataclass(frozen=True)
class SetScores:
    """One set of volumes against the real ones.

    Attributes:
        name: Of the set; :data:`FLOOR` for the real ones among themselves.
        patients: How many patients, or masks that samples were made from, the set stands on.
        cases: How many volumes.
        frechet: Frechet distance at the common number of cases, over the number of features.
        frechet_all: Of all cases, which is less biased and has no floor; None for the floor.
        frechet_raw: The same times the number of features and in squared units of the features.
        kid: Kernel distance of all cases; None for the floor, which is 0.
        precision: At the common number of cases, as are the next three.
        recall: See :func:`latentsynth.metrics.distribution.prdc`.
        density: As well.
        coverage: As well.
    """

    name: str
    patients: int
    cases: int
    frechet: Estimate
    frechet_all: float | None
    frechet_raw: float | None
    kid: Estimate | None
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


@dataclass(frozen=True)
class Difference:
    """How a set scores beyond another one, by the same patients: with intervals of the differences.

    Attributes:
        name: Of the set.
        other: What is taken off: the floor, or another set.
        frechet: Difference of the Frechet distances at the common number of cases.
        precision: And of the others.
        recall: See :class:`SetScores`.
        density: As well.
        coverage: As well.
    """

    name: str
    other: str
    frechet: Estimate
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


@dataclass(frozen=True)
class FidelityScores:
    """Scores of every synthetic set by one extractor.

    Attributes:
        at: Number of cases that the scores are computed at.
        neighbours: Which neighbour the balls of precision and recall reach to.
        rows: One per set, the floor first.
        differences: Every set beyond the floor, then beyond every set before it.
        growth: Frechet distance by number of cases, for each set.
    """

    at: int
    neighbours: int
    rows: tuple[SetScores, ...]
    differences: tuple[Difference, ...]
    growth: dict[str, dict[int, float]]

    @property
    def frechet(self) -> dict[str, float]:
        """By set, the Frechet distance at equal numbers of cases, the floor first."""
        return {row.name: row.frechet.value for row in self.rows}

    def table(self, name: str, fingerprint: str, unit: str) -> Table:
        """The scores, for people.

        Args:
            name: What the features are.
            fingerprint: Of what made them.
            unit: What the Frechet distance is measured in.
        """
        return Table(
            f"fidelity by {name}",
            ("volumes", "patients or masks", "n", f"Frechet, n = {self.at}", "Frechet, all", "KID, all", "precision", "recall", "density", "coverage"),
            tuple(
                (row.name, row.patients, row.cases, row.frechet, row.frechet_all, row.kid, row.precision, row.recall, row.density, row.coverage)
                for row in self.rows
            ),
            f"extractor {fingerprint}. {unit} Frechet at n, precision, recall, density and coverage (k = {self.neighbours}) at "
            f"n = {self.at} cases a side, mean over {_SPLITS} random halves of the real patients; compare with the floor. KID: "
            "unbiased, 0 where nothing differs, without pairs of one patient or mask. In brackets 95 % intervals over patients "
            "and masks: jackknife; for KID bootstrap from 15 on",
        )  # fmt: skip

    def comparisons(self, name: str) -> Table:
        """The differences, for people."""
        return Table(
            f"differences by {name}",
            ("volumes", "minus", f"Frechet, n = {self.at}", "precision", "recall", "density", "coverage"),
            tuple(tuple(getattr(one, field.name) for field in fields(one)) for one in self.differences),
            "95 % intervals of the difference, the same patients and masks left out on both sides: an interval that holds 0 "
            "shows no difference",
        )

    def bias(self, name: str) -> Table:
        """How the Frechet distance grows as sets shrink."""
        counts = sorted({count for row in self.growth.values() for count in row})
        rows = [(who, *(row.get(count) for count in counts), extrapolated(row)) for who, row in self.growth.items()]
        return Table(
            f"Frechet distance by number of cases, {name}",
            ("volumes", *(f"n = {count}" for count in counts), "n to infinity"),
            tuple(rows),
            "cases a side; the last column extrapolates a line in 1/n (Chong and Forsyth 2020) and is rough",
        )


def csv_columns() -> tuple[str, ...]:
    """Names of the columns of :func:`csv_row`."""
    named = [(field.name, "Estimate" in str(field.type)) for field in fields(SetScores)][1:]
    wide = ((name, f"{name}_low", f"{name}_high") if estimate else (name,) for name, estimate in named)
    return ("volumes", *itertools.chain(*wide))


def csv_row(row: SetScores) -> tuple[TableCell, ...]:
    """The numbers of a set, estimates as value, low and high."""
    cells: list[TableCell] = []
    for field in fields(row):
        value = getattr(row, field.name)
        if "Estimate" in str(field.type):
            cells += [None] * 3 if value is None else list(astuple(value))
        else:
            cells.append(value)
    return tuple(cells)


class _Pair:
    """Rows of one random half of the real patients and as many of another set; measures them, also without some rows."""

    def __init__(self, real: Features, other: Features, k: int):
        self.sides, self.k = (real, other), k
        x, y = (side.values.astype(np.float64) for side in self.sides)
        self.width = x.shape[1]
        self.products = x @ x.T, y @ y.T, x @ y.T
        self.distances = cdist(x, x), cdist(y, y), cdist(x, y)
        self.patients = frozenset((*real.patients, *other.patients))

    def without(self, parts: Sequence[frozenset[str]]) -> np.ndarray:
        """The numbers of :data:`_MEASURES` without the rows of each part of the patients, ``(parts, measures)``."""
        most = max(1, _CELLS // self.distances[2].size)
        if len(parts) > most:
            return np.concatenate([self.without(parts[n : n + most]) for n in range(0, len(parts), most)])
        w, v = (np.array([[float(who not in part) for who in side.patients] for part in parts]) for side in self.sides)
        near = prdc_without(*self.distances, self.k, w, v)
        far = frechet_without(*self.products, w, v) / self.width
        return np.stack([far, *(near[name] for name in _MEASURES[1:])], 1)


class _Resampled:
    """Measures of every set with everybody, and without each part of the patients of each independent sample.

    A bootstrap would hold rows twice, which shrinks a covariance and empties the balls of nearest neighbours; so patients
    are left out instead. All sets lose them at once, so differences between sets have intervals of their own.
    """

    def __init__(self, real: Features, pairs: Mapping[str, Sequence[_Pair]], sides: Sequence[Sequence[str]]):
        draws = rng()
        samples = []
        for names in samples_apart((real.patients, *sides)):
            order = draws.permutation(np.array(names))
            samples.append([frozenset(part) for part in np.array_split(order, min(_PARTS, len(order)))])
        self.whole = {name: np.mean([pair.without([frozenset()])[0] for pair in of], 0) for name, of in pairs.items()}
        self.left_out = {name: [_left_out(of, sample) for sample in samples] for name, of in pairs.items()}
        people = {name: frozenset().union(*(pair.patients for pair in of)) for name, of in pairs.items()}
        self.involved = {
            name: {n for n, sample in enumerate(samples) if any(part & those for part in sample)}
            for name, those in people.items()
        }

    def estimates(self, name: str, other: str | None = None) -> dict[str, Estimate]:
        """By measure, the number of a set, or its difference from that of another one."""
        value, involved, left_out = self.whole[name], self.involved[name], self.left_out[name]
        if other is not None:
            value, involved = value - self.whole[other], involved | self.involved[other]
            left_out = [mine - theirs for mine, theirs in zip(left_out, self.left_out[other], strict=True)]
        left_out = [one for n, one in enumerate(left_out) if n in involved]
        found = {}
        for n, measure in enumerate(_MEASURES):
            bounds = _BOUNDS.get(measure, SHARE) if other is None else UNBOUNDED
            ends = jackknife_interval(float(value[n]), [one[:, n] for one in left_out], bounds=bounds)
            found[measure] = Estimate(float(value[n]), *ends)
        return found


def _left_out(pairs: Sequence[_Pair], parts: Sequence[frozenset[str]]) -> np.ndarray:
    """Mean measures over the pairs without each part of the patients, ``(parts, measures)``."""
    found = []
    for pair in pairs:
        touched = [bool(part & pair.patients) for part in parts]
        changed = iter(pair.without([frozenset(), *(part for part, hit in zip(parts, touched, strict=True) if hit)]))
        whole = next(changed)
        found.append([next(changed) if hit else whole for hit in touched])
    return np.mean(found, 0)


def compare(real: Features, samples: Mapping[str, Features], each: bool = False) -> FidelityScores:
    """Scores of some synthetic sets against a real one; see the module's first lines.

    Args:
        real: Features of real cases.
        samples: Of synthetic sets, by their names.
        each: Scale every feature by its own deviation among the real cases, for features of many units; features that do
            not vary there are left out. Else all by one number.
    """
    whole, scaled, unit = _scaled(real, samples, each)
    patients = np.unique(whole.patients)
    draws = rng()
    halves = []
    for _ in range(_SPLITS):
        chosen = set(draws.permutation(patients)[: len(patients) // 2])
        first = np.flatnonzero([patient in chosen for patient in whole.patients])
        second = np.flatnonzero([patient not in chosen for patient in whole.patients])
        halves.append((first, second))
    at = min(min(len(a), len(b)) for a, b in halves)
    at = min([at, *(len(one.ids) for one in samples.values())])
    k = max(1, min(_NEIGHBOURS, at // 4))  # of a handful of cases, five are everybody
    pairs: dict[str, list[_Pair]] = {FLOOR: [], **{name: [] for name in scaled}}
    for first, second in halves:
        mine, rest = (whole[rows][spread(whole[rows].patients, at, draws)] for rows in (first, second))
        pairs[FLOOR].append(_Pair(mine, rest, k))
        for name, fake in scaled.items():
            pairs[name].append(_Pair(mine, fake[spread(fake.patients, at, draws)], k))
    found = _Resampled(whole, pairs, [fake.patients for fake in scaled.values()])
    rows = [SetScores(FLOOR, len(patients), len(real.ids), frechet_all=None, frechet_raw=None, kid=None, **found.estimates(FLOOR))]  # fmt: skip
    for name, fake in scaled.items():
        everything = frechet(whole.values, fake.values)
        rows.append(SetScores(
            name, len(set(fake.patients)), len(fake.ids), frechet_all=everything / whole.values.shape[1],
            frechet_raw=everything * unit**2, kid=_kid(whole, fake), **found.estimates(name),
        ))  # fmt: skip
    pairings = [(name, other) for n, name in enumerate(scaled) for other in (FLOOR, *list(scaled)[:n])]
    differences = tuple(Difference(name, other, **found.estimates(name, other)) for name, other in pairings)
    growth = {FLOOR: _growth(whole, None, halves, at, draws)}
    growth.update((name, _growth(whole, fake, halves, at, draws)) for name, fake in scaled.items())
    return FidelityScores(at, k, tuple(rows), differences, growth)


def _kid(real: Features, fake: Features) -> Estimate | None:
    """None where all are of one patient or mask, which says nothing of others."""
    if len(set(fake.patients)) < 2:
        return None
    return Estimate(*kid_interval(real.values, fake.values, real.patients, fake.patients, rng()))


def _scaled(real: Features, samples: Mapping[str, Features], each: bool) -> tuple[Features, dict[str, Features], float]:
    """Features moved to the mean of the real ones and scaled so that these have unit variance, on average or each.

    Returns:
        The real ones, the others, and what they were divided by; 1 where each feature was divided by its own.
    """
    values = real.values.astype(np.float64)
    middle, deviation = values.mean(0), values.std(0)
    unit = float(np.sqrt((deviation**2).mean())) or 1.0
    kept, by = np.ones(len(middle), bool), np.full(len(middle), unit)
    if each:
        kept = deviation > 1e-9 * np.maximum(np.abs(middle), 1)
        kept = kept if kept.any() else ~kept
        by, unit = np.where(kept, deviation, 1), 1.0

    def moved(one: Features) -> Features:
        return Features(one.ids, one.patients, ((one.values - middle) / by)[:, kept])

    return moved(real), {name: moved(one) for name, one in samples.items()}, unit


def spread(patients: Sequence[str], count: int, draws: np.random.Generator) -> np.ndarray:
    """Random rows, of as many different patients as there are."""
    order = draws.permutation(len(patients))
    turns: dict[str, int] = {}
    rank = []
    for n in order:
        turns[patients[n]] = turns.get(patients[n], 0) + 1
        rank.append(turns[patients[n]])
    return order[np.argsort(rank, kind="stable")][:count]


def _growth(
    real: Features,
    fake: Features | None,
    halves: Sequence[tuple[np.ndarray, np.ndarray]],
    at: int,
    draws: np.random.Generator,
) -> dict[int, float]:
    """Frechet distance at a quarter, half and all of the cases; against the other half of the real ones for None."""
    most = at if fake is None else min(len(real.ids), len(fake.ids))
    found = {}
    for count in sorted({min(max(most // part, 3), most) for part in (4, 2, 1)}):
        values = []
        for first, second in halves:
            if fake is None:
                a, b = (real[rows][spread(real[rows].patients, count, draws)].values for rows in (first, second))
            else:
                a = real.values[spread(real.patients, count, draws)]
                b = fake.values[spread(fake.patients, count, draws)]
            values.append(frechet(a, b) / real.values.shape[1])
        found[count] = float(np.mean(values))
    return found


def extrapolated(growth: dict[int, float]) -> float:
    """Intercept of a line through the distances over 1/n."""
    if len(growth) < 2:
        return float("nan")
    counts, values = np.array(list(growth), dtype=float), np.array(list(growth.values()))
    return float(np.polyfit(1 / counts, values, 1)[1])


def principal(sets: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All sets on the first two principal components of the first one, ``(N, 2)`` each."""
    first = next(iter(sets.values()))
    middle = first.mean(0)
    _, _, axes = np.linalg.svd(first - middle, full_matrices=False)
    plane = np.zeros((first.shape[1], 2))  # a single feature has one axis alone
    plane[:, : len(axes[:2])] = axes[:2].T
    return {name: (values - middle) @ plane for name, values in sets.items()}
