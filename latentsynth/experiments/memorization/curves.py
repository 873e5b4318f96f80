"""What the measures of a memorization study say: copy rates along the training of each model, and which copies more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latentsynth.errors import DataError
from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.evaluation.memorization.measures import CONTROL
from latentsynth.experiments.memorization.arms import HELDOUT, SAMPLES, Arm
from latentsynth.files import read_json
from latentsynth.metrics.rates import Rate, difference, mean_rate

Row = dict[str, Any]
Verdict = Literal["confirmed", "contradicted", "undecided"]


@dataclass(frozen=True)
class Point:
    """One model at one time of its training, over seeds.

    Attributes:
        seconds: CPU seconds of training, mean.
        images: Images seen, mean.
        rates: Copy rate by feature space, mean over seeds with its interval; without spaces that are not valid.
        expected: The highest rate that is expected without copying, mean.
        frechet: Frechet distance to held-out patients, mean; its floor beside it.
        similarity: Mean MS-SSIM between volumes; that of real patients beside it.
        membership: AUC of membership inference, mean; None for models without a loss of a case.
    """

    seconds: float
    images: float
    rates: dict[str, Rate]
    expected: float
    frechet: tuple[float, float]
    similarity: tuple[float, float]
    membership: float | None


@dataclass(frozen=True)
class Curve:
    """One model, trained on subsets of one size.

    Attributes:
        model: Its name.
        size: Training patients, or "all".
        space: The feature space whose copy rate decides.
        points: In the order of training.
    """

    model: str
    size: int | str
    space: str
    points: tuple[Point, ...]

    @property
    def copies_from(self) -> Point | None:
        """The first point at which more volumes are copies than is expected without copying; None where there is none."""
        return next((p for p in self.points if self.space in p.rates and p.rates[self.space][0] > p.expected), None)


@dataclass(frozen=True)
class Claim:
    """That one model copies more than another, at the end of equal training on as many patients.

    Attributes:
        more: The curve that is said to lie higher.
        less: The other.
        apart: Difference of their copy rates at the end, with its interval.
    """

    more: Curve
    less: Curve
    apart: Rate

    @property
    def verdict(self) -> Verdict:
        """Whether the interval lies on one side of zero."""
        _, low, high = self.apart
        return "confirmed" if low > 0 else "contradicted" if high < 0 else "undecided"

    @property
    def at_equal_distance(self) -> tuple[Point, Point]:
        """The ends of both at a like Frechet distance: of the one that ends nearer to real patients, the first point that
        is as near as the other ever comes."""
        ends = [min(curve.points, key=lambda p: p.frechet[0]) for curve in (self.more, self.less)]
        reach = max(end.frechet[0] for end in ends)
        first, second = (next(p for p in curve.points if p.frechet[0] <= reach) for curve in (self.more, self.less))
        return first, second


def read_rows(folder: Path, arm: Arm) -> list[Row]:
    """One row per stage and feature space of an arm, in the order of training.

    Raises:
        DataError: Measures of an older version.
    """
    rows = []
    for file in sorted(
        (folder / "cells" / f"measure-{arm.name}").glob("*/measures.json"), key=lambda f: float(f.parent.name)
    ):
        found = read_json(file, finite=False)  # a rate of nothing is NaN
        auc = found["membership"]["auc"][0] if found["membership"] else None
        for one in found["spaces"].values():
            if "kind" not in one:
                raise DataError(f"{file} is of an older version: remove {file.parent.parent} to measure anew")
            rows.append({
                "model": arm.model, "size": arm.size, "seed": arm.seed,
                "stage": float(file.parent.name), **found["cost"], "space": one["kind"], "valid": one["valid"],
                "copy_rate": one["copy_rate"][0], "low": one["copy_rate"][1], "high": one["copy_rate"][2],
                "expected_high": one["expected"][1], "control_rate": one["control_rate"],
                "without_nearest": one["without_nearest"][SAMPLES], "control_without_nearest": one["without_nearest"]["control"],
                "reproduced": one["reproduced"][SAMPLES], "reproduced_control": one["reproduced"][CONTROL],
                "found": one["found"],
                "frechet": found["fidelity"]["frechet"], "frechet_floor": found["fidelity"]["floor"],
                "similarity": found["similarity"][SAMPLES], "similarity_real": found["similarity"][HELDOUT],
                "membership_auc": auc,
            })  # fmt: skip
    return rows


def deciding_space(rows: Sequence[Row]) -> str:
    """The joint one, where every measurement has it; else the first that was asked for."""
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    measured = {(row["model"], row["size"], row["seed"], row["stage"]) for row in rows}
    joint = [row for row in rows if row["space"] == JOINT]
    return JOINT if len(joint) == len(measured) else next(space for space in spaces if space != JOINT)


def curves(rows: Sequence[Row]) -> list[Curve]:
    """All models and sizes, in the order in which they stand."""
    space = deciding_space(rows)
    made = []
    for model, size in dict.fromkeys((row["model"], row["size"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["size"]) == (model, size)]
        stages = sorted({row["stage"] for row in mine})
        made.append(
            Curve(model, size, space, tuple(_point([r for r in mine if r["stage"] == s], space) for s in stages))
        )
    return made


def _point(rows: Sequence[Row], space: str) -> Point:
    """Of one stage, all seeds and spaces."""
    valid: dict[str, list[Rate]] = {}
    for row in rows:
        if row["valid"]:
            valid.setdefault(row["space"], []).append((row["copy_rate"], row["low"], row["high"]))
    here = [row for row in rows if row["space"] == space]

    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in here]))

    return Point(
        mean("cpu_seconds"),
        mean("images_seen"),
        {name: mean_rate(rates) for name, rates in valid.items()},
        mean("expected_high"),
        (mean("frechet"), mean("frechet_floor")),
        (mean("similarity"), mean("similarity_real")),
        None if here[0]["membership_auc"] is None else mean("membership_auc"),
    )


def judge(found: Sequence[Curve], claims: Sequence[tuple[str, str]]) -> list[Claim]:
    """The claims at every size at which both models were measured by a valid search."""
    made = []
    for more, less in claims:
        for size in dict.fromkeys(curve.size for curve in found):
            pair = [next((c for c in found if (c.model, c.size) == (m, size)), None) for m in (more, less)]
            ends = [curve.points[-1].rates.get(curve.space) if curve else None for curve in pair]
            if pair[0] and pair[1] and ends[0] and ends[1]:
                made.append(Claim(pair[0], pair[1], difference(ends[0], ends[1])))
    return made
