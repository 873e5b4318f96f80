"""The memorization study in tables, sentences and one figure: copies, fidelity and diversity along the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from latentsynth.config import MemorizationStudy
from latentsynth.experiments.memorization.arms import Arm
from latentsynth.experiments.memorization.curves import (
    Claim,
    Curve,
    Row,
    curves,
    deciding_space,
    judge,
    read_rows,
)
from latentsynth.plots import Line, panels
from latentsynth.results import Estimate, Picture, Result, Table, TableCell, write_csv

_CSV = ("model", "size", "seed", "stage", "images_seen", "cpu_seconds", "space", "valid", "copy_rate", "low", "high",
        "expected_high", "control_rate", "without_nearest", "control_without_nearest", "reproduced", "reproduced_control",
        "frechet", "frechet_floor", "similarity", "similarity_real", "membership_auc")  # fmt: skip


def summarise(config: MemorizationStudy, arms: Sequence[Arm], accelerator: Accelerator) -> Result:
    """Writes ``study.json``, ``study.csv`` and ``study.png`` from the measures of all cells.

    Raises:
        DataError: Measures of an older version.
    """
    folder = config.folder
    rows = [row for arm in arms for row in read_rows(folder, arm)]
    found = curves(rows)
    claims = judge(found, config.claims)
    result = Result(
        "study",
        "Does diffusion memorize more than a GAN?",
        {
            "sizes": list(config.sizes), "seeds": list(config.seeds), "minutes": config.minutes, "models": list(config.models),
            "space": deciding_space(rows), "claims": [_claim_facts(claim) for claim in claims],
            "copies_from": [_start_facts(curve) for curve in found],
        },
        (_along(found, rows, config.level), _starts(found), *([_claims(claims)] if claims else []), _controls(rows)),
        (Picture("study.png", "copy rate, Frechet distance and similarity between volumes, by CPU minutes of training"),),
        tuple(_sentences(found, claims)),
    )  # fmt: skip
    if accelerator.is_main_process:
        result.save(folder)
        write_csv(folder / "study.csv", _CSV, [[row.get(key) for key in _CSV] for row in rows])
        _figure(folder / "study.png", found, rows)
    accelerator.wait_for_everyone()
    return result


def _claim_facts(claim: Claim) -> dict[str, Any]:
    return {
        "more": claim.more.model, "less": claim.less.model, "size": claim.more.size,
        "difference": list(claim.apart), "verdict": claim.verdict,
    }  # fmt: skip


def _start_facts(curve: Curve) -> dict[str, Any]:
    start = curve.copies_from
    return {"model": curve.model, "size": curve.size, "cpu_seconds": start.seconds if start else None}


def _along(found: Sequence[Curve], rows: Sequence[Row], level: float) -> Table:
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    made = [
        (
            curve.model, curve.size, round(point.seconds / 60, 1), round(point.images),
            *(Estimate(*point.rates[s]) if s in point.rates else None for s in spaces),
            point.expected, *point.frechet, *point.similarity, point.membership,
        )
        for curve in found for point in curve.points
    ]  # fmt: skip
    return Table(
        "copies, fidelity and diversity while training",
        (
            "model", "patients", "CPU min", "images", *(f"copy rate, {s}" for s in spaces), "highest without copying",
            "Frechet", "floor", "MS-SSIM between volumes", "of real patients", "membership AUC",
        ),
        tuple(made),
        f"means over seeds; copy rate: share of volumes nearer to a training patient than {1 - level:.0%} of unseen patients are, with "
        "95 % intervals over masks and seeds (Clopper and Pearson; Zou and Donner 2008); highest without copying: upper end of the "
        "beta-binomial interval; Frechet distance to held-out patients by a random network: copies look best of all, so read it beside "
        "the copy rate",
    )  # fmt: skip


def _starts(found: Sequence[Curve]) -> Table:
    """When to stop."""
    made: list[tuple[TableCell, ...]] = []
    for curve in found:
        start = curve.copies_from
        before = curve.points[: curve.points.index(start)] if start else curve.points
        made.append(
            (
                curve.model,
                curve.size,
                before[-1].seconds / 60 if before else None,
                before[-1].images if before else None,
                before[-1].frechet[0] if before else None,
                start.seconds / 60 if start else None,
                start.rates[curve.space][0] if start else None,
            )
        )
    return Table(
        "stop before",
        (
            "model",
            "patients",
            "no copies at CPU min",
            "images",
            "Frechet there",
            "copies at CPU min",
            "copy rate there",
        ),
        tuple(made),
        "the last time of training at which no more volumes are copies than is expected without copying, and the first at which more are",
    )


def _claims(claims: Sequence[Claim]) -> Table:
    made = [
        (c.more.model, c.less.model, c.more.size, *(Estimate(*x.points[-1].rates[x.space]) for x in (c.more, c.less)),
         Estimate(*c.apart), c.verdict)
        for c in claims
    ]  # fmt: skip
    return Table(
        "which copies more, at equal compute",
        ("said to copy more", "than", "patients", "copy rate", "of the other", "difference", "verdict"),
        tuple(made),
        "at the end of training; 95 % interval of the difference of independent rates (Zou and Donner 2008)",
    )


def _controls(rows: Sequence[Row]) -> Table:
    """Controls of each subset: unseen patients, and positive controls; they do not depend on the model."""
    made: list[tuple[TableCell, ...]] = []
    seen = set()
    for row in sorted(rows, key=lambda row: str(row["space"])):
        key = row["space"], row["size"], row["seed"]
        if key in seen:
            continue
        seen.add(key)
        made.append(
            (
                *key,
                row["control_rate"],
                row["control_without_nearest"],
                *row["found"].values(),
                "yes" if row["valid"] else "NO",
            )
        )
    disguises = list(rows[0]["found"]) if rows else []
    return Table(
        "controls: unseen patients flagged, positive controls found",
        ("space", "patients", "seed", "unseen flagged", "same, calibrated without nearest", *disguises, "valid"),
        tuple(made),
        "the column without nearest leaves each calibration patient's nearest training patient out, as both sides of one person "
        "may be in this cohort",
    )  # fmt: skip


def _sentences(found: Sequence[Curve], claims: Sequence[Claim]) -> list[str]:
    lines = [_claim_sentence(claim) for claim in claims]
    for curve in found:
        start, end = curve.copies_from, curve.points[-1]
        if curve.space not in end.rates:
            lines.append(
                f"{curve.model} on {curve.size}: nothing can be said, the search by {curve.space} is not valid"
            )
        elif start is None:
            lines.append(
                f"{curve.model} on {curve.size} copies no more than is expected without copying in {end.seconds / 60:.3g} CPU minutes "
                f"({end.rates[curve.space][0]:.0%} at the end; up to {end.expected:.0%} are expected)"
            )
        else:
            lines.append(
                f"{curve.model} on {curve.size} copies from {start.seconds / 60:.3g} CPU minutes on ({start.rates[curve.space][0]:.0%}; "
                f"{end.rates[curve.space][0]:.0%} at the end): stop before"
            )
    return lines


def _claim_sentence(claim: Claim) -> str:
    (more, less), (value, low, high) = claim.at_equal_distance, claim.apart
    space = claim.more.space
    alike = " and ".join(f"{rate[0]:.0%}" if (rate := point.rates.get(space)) else "unknown" for point in (more, less))
    return (
        f"that {claim.more.model} copies more than {claim.less.model}, on {claim.more.size} patients, is {claim.verdict}: "
        f"{value:+.0%} [{low:+.0%}, {high:+.0%}] at the end of equal training; when each first came as near to real patients as the other "
        f"ever does (Frechet {more.frechet[0]:.3g} and {less.frechet[0]:.3g}), {alike} were copies"
    )


def _figure(path: Path, found: Sequence[Curve], rows: Sequence[Row]) -> None:
    """A panel per feature space and measure, by training time; a line per model and size."""
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    drawn: dict[str, list[Line]] = {}
    for space in spaces:
        lines = [_line(curve, [point.rates.get(space) for point in curve.points]) for curve in found]
        level = float(np.mean([row["expected_high"] for row in rows if row["space"] == space]))
        drawn[f"copy rate, {space}"] = [*lines, Line("highest without copying", [], [], level=level)]
    measures = {
        "Frechet distance": [[point.frechet for point in curve.points] for curve in found],
        "MS-SSIM between volumes": [[point.similarity for point in curve.points] for curve in found],
    }
    for title, values in measures.items():
        lines = [_line(curve, [(ours,) for ours, _ in of]) for curve, of in zip(found, values, strict=True)]
        level = float(np.mean([real for of in values for _, real in of]))
        drawn[title] = [*lines, Line("real patients", [], [], level=level)]
    panels(
        path,
        drawn,
        3,
        ["CPU minutes of training"] * len(drawn),
        "means over seeds, 95 % intervals over masks and seeds",
    )


def _line(curve: Curve, values: Sequence[tuple[float, ...] | None]) -> Line:
    """Points without a value are left out; those with ends get bars."""
    known = [(point.seconds / 60, value) for point, value in zip(curve.points, values, strict=True) if value]
    ends = [value[1:] for _, value in known if len(value) > 1]
    low, high = zip(*ends, strict=True) if ends else (None, None)
    return Line(f"{curve.model}, {curve.size}", [at for at, _ in known], [value[0] for _, value in known], low, high)
