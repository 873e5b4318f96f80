"""The tables of a memorization report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.memorization.measures import CONTROL, Judged, Sides
from latentsynth.evaluation.memorization.trust import text
from latentsynth.evaluation.memorization.yardstick import Measured
from latentsynth.metrics.membership import Membership
from latentsynth.results import Cell, Estimate, Table

_CLOSENESS = ("precision", "recall", "density", "coverage")


def everything(one: Judged, names: Sequence[str]) -> dict[str, Measured]:
    """The control patients and the synthetic sets, by name."""
    return {CONTROL: one.trust.control, **{name: one.sets[name] for name in names}}


def verdicts(judged: Sequence[Judged], names: Sequence[str]) -> Table:
    """How many copies, by every ruler."""
    rows: list[tuple[Cell, ...]] = []
    for one in judged:
        for name, found in everything(one, names).items():
            word = one.verdict(name) if name != CONTROL else "FAILS" if found.copied else "passes"
            certain = int(found.discovered.sum())
            rows.append((name, one.ruler.name, len(found.p), found.rate, text(found.expected), certain, word))
    first = judged[0].yardstick
    least = min(1.0, 1 / (len(first.first) + 1) / first.level)
    return Table(
        "copies",
        ("volumes", "ruler", "n", "copy rate", "expected", "discoveries", "verdict"),
        tuple(rows),
        f"copy rate: share at p <= {first.level:g} by {len(first.first)} calibration patients, with its bootstrap interval over "
        "patients; expected: 95 % beta-binomial interval of that share for patients that nobody copied; discoveries: left by "
        f"Benjamini and Hochberg at a false discovery rate of {first.level:g}; with {len(first.first)} calibration patients there "
        f"are none before {least:.0%} of a set lie closer than all of them",
    )  # fmt: skip


def without_nearest(judged: Sequence[Judged], names: Sequence[str]) -> Table | None:
    """The copy rate by a null that relatives cannot shorten."""
    rows = [
        (name, one.ruler.name, found.rate.value, found.bound)
        for one in judged
        for name, found in everything(one, names).items()
        if np.isfinite(found.bound)
    ]
    return Table(
        "copy rate if calibration patients have a relative among the training patients",
        ("volumes", "ruler", "copy rate", "without each calibration patient's nearest"),
        tuple(rows),
        "a relative, or another scan of the same person, makes calibration distances too short and hides copies; leaving "
        "each one's nearest out makes them too long. Compare a set with the control patients in the same column",
    ) if rows else None  # fmt: skip


def matched(judged: Sequence[Judged], names: Sequence[str]) -> Table | None:
    """The mask-matched null."""
    rows = [
        (name, one.ruler.name, found.samples, found.null, found.rate, text(found.expected), found.control)
        for one in judged
        for name in names
        if (found := one.matched[name]) is not None
    ]
    return Table(
        "samples of training masks, against samples of unseen patients' masks",
        ("volumes", "ruler", "from training masks", "null", "copy rate", "expected", "control"),
        tuple(rows),
        "the distance of a sample to the patient whose mask it shows; the null are samples of calibration patients' masks, "
        "whose scans the generator never saw",
    ) if rows else None  # fmt: skip


def measures(judged: Sequence[Judged], names: Sequence[str]) -> Table:
    """What other papers report, beside control patients."""
    known = [key for key in _CLOSENESS if any(key in m.closeness for one in judged for m in one.measures.values())]
    rows: list[tuple[Cell, ...]] = []
    for one in judged:
        for name in (CONTROL, *names):
            m = one.measures[name]
            near = [m.closeness.get(key) for key in known]
            rows.append((name, one.ruler.name, m.reproduced, m.ratio, m.authentic, m.data_copying, *near))
    return Table(
        "measures that are not calibrated: read each beside control patients, who copied nobody",
        ("volumes", "ruler", "training patients reproduced", "nearest / second < 1/3", "authentic", "C_T", *known),
        tuple(rows),
        "reproduced: share of training cases with a volume nearer than calibration patients come, at equal numbers; "
        "authentic: Alaa et al. 2022; C_T: Meehan et al. 2020, far below 0 for copies" + ("; the others against calibration patients" if known else ""),
    )  # fmt: skip


def published(judged: Sequence[Judged], names: Sequence[str]) -> Table | None:
    """The rule of 2024, where it was asked for."""
    rows: list[tuple[Cell, ...]] = [
        (name, one.ruler.name, *one.published[name]) for one in judged for name in (CONTROL, *names) if one.published
    ]
    return Table(
        "the published rule of 2024, for comparison with the literature alone",
        ("volumes", "ruler", "threshold", "memorised", "its null", "copies", "its null"),
        tuple(rows),
        "Dar et al.: correlation above the 95th percentile of training cases with their nearest calibration case. Its null is "
        "what independent Gaussian features of the same numbers and covariance score (too low where there are more features than "
        "training cases): the rule is not calibrated",
    ) if rows else None  # fmt: skip


def members(found: Mapping[str, Membership]) -> Table | None:
    """Membership inference, where losses were given."""
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.items():
        caught = "not estimable" if one.true_positives is None else one.true_positives
        rows.append((name, Estimate(one.auc, one.low, one.high), caught))
    return Table(
        "membership inference by loss",
        ("model", "AUC", "found at 1 % false alarms"),
        tuple(rows),
        "0.5 tells members from others no better than chance; the last column needs 100 unseen patients",
    ) if rows else None  # fmt: skip


def lent(cohort: Cohort, sides: Sides) -> tuple[int, int]:
    """How many volumes were made from masks of training patients, and of other patients."""
    trainers = {case.patient_id for case in sides.train.cases}
    own = sum(bool(trainers & set(case.parents)) for case in cohort.cases)
    return own, sum(bool(case.parents) for case in cohort.cases) - own


def masks(judged: Judged, samples: Sequence[Cohort], sides: Sides) -> Table:
    """Copies of annotations."""
    of = {cohort.name: lent(cohort, sides) for cohort in samples}
    rows: list[tuple[Cell, ...]] = []
    for name, found in everything(judged, list(of)).items():
        equal = int((found.distances[:, 0] == 0).sum())
        rows.append((name, len(found.p), found.rate, text(found.expected), equal, *of.get(name, (0, 0))))
    return Table(
        "masks are patients too",
        (
            "volumes",
            "n",
            "masks flagged",
            "expected",
            "equal to a training mask",
            "of a training patient",
            "of another patient",
        ),
        tuple(rows),
        f"flagged: overlaps a training mask more than {1 - judged.yardstick.level:.0%} of unseen patients' masks do. "
        + judged.trust.sight,
    )
