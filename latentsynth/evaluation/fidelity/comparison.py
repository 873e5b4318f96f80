"""Sets of features against real ones, each beside what two halves of the real ones score at the same number of cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latentsynth.evaluation.cohorts import rng
from latentsynth.evaluation.features import Features
from latentsynth.extractors.networks import Extractor
from latentsynth.metrics.distribution import frechet, kid, kid_interval, prdc
from latentsynth.results import Estimate, Table, TableCell

FLOOR = "floor: other half of real"
_SPLITS = 20  # random halves of the real patients that scores are averaged over
_NEIGHBOURS = 5  # Naeem et al. 2020


class FidelityScores:
    """Scores of every synthetic set by one extractor.

    Attributes:
        rows: One per set, the floor first: name and the numbers of :attr:`columns`.
        at: Number of cases that the scores are computed at.
        growth: Frechet distance by number of cases, for each set.
    """

    columns = ("cases", "frechet", "frechet_all", "frechet_raw", "kid", "kid_low", "kid_high", "precision", "recall", "density", "coverage")  # fmt: skip

    def __init__(
        self, at: int, neighbours: int, rows: list[tuple[TableCell, ...]], growth: dict[str, dict[int, float]]
    ):
        self.at, self.neighbours, self.rows, self.growth = at, neighbours, rows, growth

    @property
    def frechet(self) -> dict[str, float]:
        """By set, the Frechet distance at equal numbers of cases, the floor first."""
        return {str(name): float(numbers[1]) for name, *numbers in self.rows}  # type: ignore[arg-type]

    def table(self, one: Extractor) -> Table:
        """The scores, for people."""
        rows = [
            (
                name, cases, near, everything,
                Estimate(kid_, low, high) if isinstance(kid_, float) and isinstance(low, float) and isinstance(high, float) else None,
                *neighbours,
            )
            for name, cases, near, everything, _, kid_, low, high, *neighbours in self.rows
        ]  # fmt: skip
        return Table(
            f"fidelity by {one.name}",
            ("volumes", "n", f"Frechet, n = {self.at}", "Frechet, all", "KID, all", "precision", "recall", "density", "coverage"),
            tuple(rows),
            f"extractor {one.fingerprint}. Features are centred and scaled by the real ones: a Frechet distance of 1 is all "
            f"the variance of the real set. Frechet at n, precision, recall, density and coverage (k = {self.neighbours}) at "
            f"n = {self.at} cases a side, mean over {_SPLITS} random halves of the real patients; compare with the floor. KID: "
            "unbiased, 95 % bootstrap interval over patients",
        )  # fmt: skip

    def bias(self, one: Extractor) -> Table:
        """How the Frechet distance grows as sets shrink."""
        counts = sorted({count for row in self.growth.values() for count in row})
        rows = [(name, *(row.get(count) for count in counts), extrapolated(row)) for name, row in self.growth.items()]
        return Table(
            f"Frechet distance by number of cases, {one.name}",
            ("volumes", *(f"n = {count}" for count in counts), "n to infinity"),
            tuple(rows),
            "cases a side; the last column extrapolates a line in 1/n (Chong and Forsyth 2020) and is rough",
        )


def compare(real: Features, samples: dict[str, Features]) -> FidelityScores:
    """Scores of some synthetic sets against a real one; see the module's first lines."""
    scaled, unit = _scaled(real, samples)
    patients = np.unique(real.patients)
    draws = rng()
    halves = []
    for _ in range(_SPLITS):
        chosen = set(draws.permutation(patients)[: len(patients) // 2])
        first = np.flatnonzero([patient in chosen for patient in real.patients])
        second = np.flatnonzero([patient not in chosen for patient in real.patients])
        halves.append((first, second))
    at = min(min(len(a), len(b)) for a, b in halves)
    at = min([at, *(len(one.ids) for one in samples.values())])
    neighbours = max(1, min(_NEIGHBOURS, at // 4))  # of a handful of cases, five are everybody
    whole = scaled[None]
    rows: list[tuple[TableCell, ...]] = []
    growth: dict[str, dict[int, float]] = {}
    width = whole.values.shape[1]
    for name in (None, *samples):
        near, closeness = [], []
        for first, second in halves:
            a = whole.values[draws.permutation(first)[:at]]
            if name is None:
                b = whole.values[draws.permutation(second)[:at]]
            else:
                b = scaled[name].values[spread(scaled[name].patients, at, draws)]
            near.append(frechet(a, b) / width)
            if at > neighbours:
                closeness.append(prdc(a, b, neighbours))
        keys = ("precision", "recall", "density", "coverage")
        means = [float(np.mean([row[key] for row in closeness])) if closeness else float("nan") for key in keys]
        if name is None:
            rows.append((FLOOR, len(real.ids), float(np.mean(near)), None, None, None, None, None, *means))
        else:
            fake = scaled[name]
            everything = frechet(whole.values, fake.values) / width
            interval = (float("nan"), float("nan"))
            if len(set(fake.patients)) > 1:  # one patient's volumes say nothing of others
                interval = kid_interval(whole.values, fake.values, whole.patients, fake.patients, rng())
            raw = everything * width * unit**2
            distance = kid(whole.values, fake.values)
            rows.append((name, len(fake.ids), float(np.mean(near)), everything, raw, distance, *interval, *means))
        growth[name or FLOOR] = _growth(whole, None if name is None else scaled[name], halves, at, draws)
    return FidelityScores(at, neighbours, rows, growth)


def _scaled(real: Features, samples: dict[str, Features]) -> tuple[dict[str | None, Features], float]:
    """Features moved to the mean of the real ones and scaled so that these have unit variance on average."""
    middle = real.values.astype(np.float64).mean(0)
    unit = float(np.sqrt(((real.values - middle) ** 2).mean())) or 1.0
    sets: dict[str | None, Features] = {None: real}
    sets.update(samples)
    return {k: Features(f.ids, f.patients, (f.values - middle) / unit) for k, f in sets.items()}, unit


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
