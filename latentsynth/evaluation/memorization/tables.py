"""The tables of a memorization report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.memorization.controls import text
from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.evaluation.memorization.measures import CALIBRATION, CONTROL, CopySearch, PatientGroups
from latentsynth.evaluation.memorization.reference import Measured
from latentsynth.metrics.membership import Membership
from latentsynth.results import Estimate, Table, TableCell

VERDICTS = ("volumes", "space", "n", "copy rate", "expected", "discoveries", "near-exact", "p of the set", "verdict")
_CLOSENESS = ("precision", "recall", "density", "coverage")


def everything(one: CopySearch, names: Sequence[str]) -> dict[str, Measured]:
    """The control patients and the synthetic sets, by name."""
    return {CONTROL: one.controls.control, **{name: one.sets[name] for name in names}}


def copies(searches: Sequence[CopySearch], names: Sequence[str]) -> list[dict[str, Any]]:
    """How many copies, of the control patients and every set, by every feature space; anything JSON can hold."""
    return [
        {
            "set": name,
            "space": one.space.name,
            "n": len(found.p),
            "rate": asdict(found.rate),
            "expected": found.expected,
            "calibrated": found.calibrated,
            "discoveries": int(found.discovered.sum()),
            "near_exact": int(found.near_exact.sum()),
            "nearer": float(one.measures[name].nearer),
            "copied": bool(found.copied),
            "verdict": one.verdict(name) if name != CONTROL else "FAILS" if found.copied else "passes",
        }
        for one in searches
        for name, found in everything(one, names).items()
    ]


@dataclass(frozen=True)
class NearExact:
    """A volume that is all but a training scan.

    Attributes:
        volumes: Name of its set, or what its patients are.
        case: Its id.
        twin: Id of the training case.
        space: The feature space that says so.
    """

    volumes: str
    case: str
    twin: str
    space: str


def near_exact_volumes(searches: Sequence[CopySearch], names: Sequence[str]) -> list[NearExact]:
    """All of them, of the synthetic sets first, by valid feature spaces.

    Held-out patients are named by any space that applies: it is they who may make one invalid.
    """
    valid = [one for one in searches if one.controls.valid]
    applicable = [one for one in searches if not one.space.doubt]
    found = [(name, one.reference.twins(one.sets[name]), one.space.name) for name in names for one in valid]
    found += [(CONTROL, one.reference.twins(one.controls.control), one.space.name) for one in applicable]
    found += [(CALIBRATION, one.reference.calibration_twins, one.space.name) for one in applicable]
    return [NearExact(name, case, twin, space) for name, twins, space in found for case, twin in twins.items()]


def near_exact(found: Sequence[NearExact]) -> Table | None:
    """The same, for people."""
    rows = [(one.volumes, one.case, one.twin, one.space) for one in found]
    return Table(
        "volumes that are all but training scans",
        ("volumes", "case", "training case", "by"),
        tuple(rows),
        "at less than half the median distance of unseen patients. Real patients among them may be the same person at another visit",
    ) if rows else None  # fmt: skip


def verdicts(facts: Mapping[str, Any], without: Collection[str] = ()) -> Table:
    """How many copies, for people.

    Args:
        facts: Of a memorization report; also of one that was read from its file.
        without: Sets that are left out.
    """
    rows = tuple(verdict_row(one) for one in facts["copies"] if one["set"] not in without)
    return Table("copies", VERDICTS, rows, verdicts_note(facts))


def verdict_row(one: Mapping[str, Any]) -> tuple[TableCell, ...]:
    """One of :func:`copies` under the columns :data:`VERDICTS`."""
    rate, expected = Estimate.of(one["rate"]), text(one["expected"]) if one["calibrated"] else None
    near = one["near_exact"], one["nearer"]
    return one["set"], one["space"], one["n"], rate, expected, one["discoveries"], *near, one["verdict"]


def verdicts_note(facts: Mapping[str, Any]) -> str:
    """What the numbers of :func:`verdicts` are."""
    level, patients = facts["level"], facts["calibration"]["patients"]
    least = min(1.0, 1 / (patients + 1) / level)
    joint = any(one["space"] == JOINT for one in facts["copies"])
    return (
        f"copy rate: share at p <= {level:g} by {patients} calibration patients, patients or masks weighing alike, with its exact "
        "95 % interval over them (Clopper and Pearson); expected: 95 % beta-binomial interval of that share for patients that nobody copied; discoveries: left by "
        f"Benjamini and Hochberg at a false discovery rate of {level:g}; with {patients} calibration patients there "
        f"are none before {least:.0%} of a set lie closer than all of them; near-exact: volumes at less than half the median "
        "distance of unseen patients; p of the set: rank test over patients of whether training patients lie nearer to it than "
        "held-out ones, times the number of feature spaces"
        + (
            f"; {JOINT}: the nearest by any of the other spaces, with one rate of false alarms for all of them"
            if joint
            else ""
        )
    )


def without_nearest(searches: Sequence[CopySearch], names: Sequence[str]) -> Table | None:
    """The copy rate by a null that relatives cannot shorten."""
    rows = [
        (name, one.space.name, found.rate.value, found.bound)
        for one in searches
        for name, found in everything(one, names).items()
        if np.isfinite(found.bound)
    ]
    return Table(
        "copy rate if calibration patients have a relative among the training patients",
        ("volumes", "space", "copy rate", "without each calibration patient's nearest"),
        tuple(rows),
        "a relative, or another scan of the same person, makes calibration distances too short and hides copies; leaving "
        "each one's nearest out makes them too long. Compare a set with the control patients in the same column",
    ) if rows else None  # fmt: skip


def matched(searches: Sequence[CopySearch], names: Sequence[str]) -> Table | None:
    """The mask-matched null."""
    rows = [
        (name, one.space.name, found.samples, found.null, found.rate, text(found.expected), found.control)
        for one in searches
        for name in names
        if (found := one.matched[name]) is not None
    ]
    return Table(
        "samples of training masks, against samples of unseen patients' masks",
        ("volumes", "space", "from training masks", "null", "copy rate", "expected", "control"),
        tuple(rows),
        "the distance of a sample to the patient whose mask it shows; the null are samples of calibration patients' masks, "
        "whose scans the generator never saw",
    ) if rows else None  # fmt: skip


def measures(searches: Sequence[CopySearch], names: Sequence[str]) -> Table:
    """What other papers report, beside control patients."""
    known = [key for key in _CLOSENESS if any(key in m.closeness for one in searches for m in one.measures.values())]
    rows: list[tuple[TableCell, ...]] = []
    for one in searches:
        for name in (CONTROL, *names):
            m = one.measures[name]
            near = [m.closeness.get(key) for key in known]
            rows.append((name, one.space.name, m.reproduced, m.ratio, m.authentic, m.data_copying, *near))
    return Table(
        "measures that are not calibrated: read each beside control patients, who copied nobody",
        ("volumes", "space", "training patients reproduced", "nearest / second < 1/3", "authentic", "C_T", *known),
        tuple(rows),
        "reproduced: share of training cases with a volume nearer than calibration patients come, at equal numbers; "
        "authentic: Alaa et al. 2022; C_T: Meehan et al. 2020, far below 0 for copies" + ("; the others against calibration patients" if known else ""),
    )  # fmt: skip


def published(searches: Sequence[CopySearch], names: Sequence[str]) -> Table | None:
    """The rule of 2024, where it was asked for."""
    rows: list[tuple[TableCell, ...]] = [
        (name, one.space.name, *one.published[name]) for one in searches for name in (CONTROL, *names) if one.published
    ]
    return Table(
        "the published rule of 2024, for comparison with the literature alone",
        ("volumes", "space", "threshold", "memorised", "its null", "copies", "its null"),
        tuple(rows),
        "Dar et al.: correlation above the 95th percentile of training cases with their nearest calibration case. Its null is "
        "what independent Gaussian features of the same numbers and covariance score (too low where there are more features than "
        "training cases): the rule is not calibrated",
    ) if rows else None  # fmt: skip


def members(found: Mapping[str, Membership]) -> Table | None:
    """Membership inference, where losses were given."""
    rows: list[tuple[TableCell, ...]] = []
    for name, one in found.items():
        caught = "not estimable" if one.true_positives is None else one.true_positives
        rows.append((name, Estimate(one.auc, one.low, one.high), caught))
    return Table(
        "membership inference by loss",
        ("model", "AUC", "found at 1 % false alarms"),
        tuple(rows),
        "0.5 tells members from others no better than chance; the last column needs 100 unseen patients",
    ) if rows else None  # fmt: skip


def from_patients(cohort: Cohort, groups: PatientGroups) -> tuple[int, int]:
    """How many volumes were made from masks of training patients, and of other patients."""
    trainers = {case.patient_id for case in groups.train.cases}
    own = sum(bool(trainers & set(case.parents)) for case in cohort.cases)
    return own, sum(bool(case.parents) for case in cohort.cases) - own


def masks(searches: CopySearch, samples: Sequence[Cohort], groups: PatientGroups) -> Table:
    """Copies of annotations."""
    of = {cohort.name: from_patients(cohort, groups) for cohort in samples}
    rows: list[tuple[TableCell, ...]] = []
    for name, found in everything(searches, list(of)).items():
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
        f"flagged: overlaps a training mask more than {1 - searches.reference.level:.0%} of unseen patients' masks do. "
        + searches.controls.sight,
    )
