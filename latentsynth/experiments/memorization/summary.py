"""The memorization study in one table and one figure: copy rate, fidelity and diversity by size and by training time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from latentsynth.config import MemorizationStudy
from latentsynth.errors import DataError
from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.evaluation.memorization.measures import CONTROL
from latentsynth.experiments.memorization.arms import HELDOUT, SAMPLES, Arm
from latentsynth.files import read_json
from latentsynth.plots import Line, panels
from latentsynth.results import Estimate, Picture, Result, Table, TableCell, write_csv

_CSV = ("model", "size", "seed", "overtrained", "stage", "images_seen", "cpu_seconds", "space", "valid", "copy_rate", "low", "high",
        "expected_high", "control_rate", "without_nearest", "control_without_nearest", "reproduced", "reproduced_control",
        "frechet", "frechet_floor", "similarity", "similarity_real", "membership_auc")  # fmt: skip


def summarise(config: MemorizationStudy, arms: Sequence[Arm], accelerator: Accelerator) -> Result:
    """Writes ``study.json``, ``study.csv`` and ``study.png`` from the measures of all cells.

    Raises:
        DataError: Measures of an older version.
    """
    folder = config.folder
    rows = [row for arm in arms for row in _rows(folder, arm)]
    found = dict.fromkeys(row["space"] for row in rows)
    spaces = sorted(found, key=lambda space: space == JOINT)  # last: not every cell need have it
    result = Result(
        "study",
        "Does diffusion memorize more than a GAN?",
        {"sizes": list(config.sizes), "seeds": list(config.seeds), "minutes": config.minutes, "models": list(config.models)},
        (_copies(rows, spaces, config.level), _controls(rows, spaces), _looks(rows)),
        (Picture("study.png", "copy rate, fidelity and diversity by training patients (at the end of training) and by CPU seconds"),),
        tuple(_sentences(rows, spaces)),
    )  # fmt: skip
    if accelerator.is_main_process:
        result.save(folder)
        write_csv(folder / "study.csv", _CSV, [[row.get(key) for key in _CSV] for row in rows])
        _figure(folder / "study.png", rows, spaces)
    accelerator.wait_for_everyone()
    return result


def _rows(folder: Path, arm: Arm) -> list[dict[str, Any]]:
    """One row per stage and feature space of an arm, in the order of training."""
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
                "model": arm.model, "size": arm.size, "seed": arm.seed, "overtrained": bool(arm.overtrained),
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


def _last(rows: Sequence[dict[str, Any]], **facts: Any) -> list[dict[str, Any]]:
    """The rows of the last stage of each arm that has these facts."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        if all(row[key] == value for key, value in facts.items()):
            chosen[row["model"], row["size"], row["seed"], row["overtrained"], row["space"]] = row
    return list(chosen.values())


def _copies(rows: Sequence[dict[str, Any]], spaces: Sequence[str], level: float) -> Table:
    made: list[tuple[TableCell, ...]] = []
    for row in _last(rows, space=spaces[0]):
        same = {
            r["space"]: r
            for r in _last(rows, model=row["model"], size=row["size"], seed=row["seed"], overtrained=row["overtrained"])
        }
        name = f"{row['model']}, overtrained" if row["overtrained"] else row["model"]
        rates = [Estimate(same[r]["copy_rate"], same[r]["low"], same[r]["high"]) if r in same else None for r in spaces]
        made.append(
            (
                name,
                row["size"],
                row["seed"],
                row["images_seen"],
                round(row["cpu_seconds"]),
                *rates,
                f"0% to {row['expected_high']:.0%}",
                row["membership_auc"],
            )
        )
    return Table(
        "copy rate at the end of training",
        ("model", "patients", "seed", "images", "CPU s", *(f"by {r}" for r in spaces), "expected", "membership AUC"),
        tuple(made),
        f"share of volumes nearer to a training patient than {1 - level:.0%} of unseen patients are, with exact intervals over masks; "
        "expected: 95 % interval of that share without copying",
    )  # fmt: skip


def _controls(rows: Sequence[dict[str, Any]], spaces: Sequence[str]) -> Table:
    """Controls of each subset: unseen patients, and positive controls; they do not depend on the model."""
    made: list[tuple[TableCell, ...]] = []
    seen = set()
    for space in spaces:
        for row in _last(rows, space=space):
            key = space, row["size"], row["seed"]
            if key in seen:
                continue
            seen.add(key)
            made.append(
                (
                    space,
                    row["size"],
                    row["seed"],
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


def _looks(rows: Sequence[dict[str, Any]]) -> Table:
    first = rows[0]["space"] if rows else ""
    made: list[tuple[TableCell, ...]] = [
        (f"{r['model']}, overtrained" if r["overtrained"] else r["model"], r["size"], r["seed"], r["frechet"], r["frechet_floor"], r["similarity"], r["similarity_real"])
        for r in _last(rows, space=first)
    ]  # fmt: skip
    return Table(
        "fidelity and diversity at the end of training",
        (
            "model",
            "patients",
            "seed",
            "Frechet, random network",
            "floor",
            "MS-SSIM between volumes",
            "of real patients",
        ),
        tuple(made),
        "against the held-out patients; copies look best of all, so read these beside the copy rate",
    )


def _sentences(rows: Sequence[dict[str, Any]], spaces: Sequence[str]) -> list[str]:
    lines = []
    for space in spaces:
        for row in _last(rows, space=space, overtrained=True):
            caught = row["valid"] and row["copy_rate"] > row["expected_high"]
            verb = "is caught" if caught else "is NOT caught"
            lines.append(f"the overtrained {row['model']} {verb} by {space}: copy rate {row['copy_rate']:.0%}")
        last = _last(rows, space=space, overtrained=False)
        for model in dict.fromkeys(row["model"] for row in last):
            every = [row for row in last if row["model"] == model]
            mine = [row for row in every if row["valid"]]
            doubt = f"; {space} is not valid in {len(every) - len(mine)} others" if len(mine) < len(every) else ""
            if not mine:
                lines.append(f"{model} by {space}: nothing can be said, {space} is not valid in any run")
                continue
            above = sum(row["copy_rate"] > row["expected_high"] for row in mine)
            rates = ", ".join(
                f"{size}: {np.mean([r['copy_rate'] for r in mine if r['size'] == size]):.0%}"
                for size in dict.fromkeys(r["size"] for r in mine)
            )
            lines.append(
                f"{model} by {space}: {above} of {len(mine)} runs above what is expected without copying (mean copy rate by size, {rates}){doubt}"
            )
    return lines


def _figure(path: Path, rows: Sequence[dict[str, Any]], spaces: Sequence[str]) -> None:
    """Top row by size, bottom row by training time: copy rate by every feature space, Frechet distance, similarity."""
    measures = [
        *((f"copy rate by {r}", "copy_rate", r) for r in spaces),
        ("Frechet distance", "frechet", spaces[0]),
        ("MS-SSIM between volumes", "similarity", spaces[0]),
    ]
    drawn: dict[str, list[Line]] = {}
    real = {"frechet": "frechet_floor", "similarity": "similarity_real", "copy_rate": "expected_high"}
    for by_time in (False, True):
        for title, key, space in measures:
            lines = _lines(rows, key, space, by_time)
            bound = [row[real[key]] for row in rows if row["space"] == space]
            name = "highest without copying" if key == "copy_rate" else "real patients"
            lines.append(Line(name, [], [], None, None, level=float(np.mean(bound))))
            drawn[f"{title}, by {'CPU seconds' if by_time else 'training patients'}"] = lines
    panels(
        path,
        drawn,
        len(measures),
        ["training patients"] * len(measures) + ["CPU seconds of training"] * len(measures),
        "mean over seeds; bars: lowest and highest seed",
    )


def _lines(rows: Sequence[dict[str, Any]], key: str, space: str, by_time: bool) -> list[Line]:
    mine = [row for row in rows if row["space"] == space]
    lines = []
    if by_time:
        groups = dict.fromkeys((r["model"], r["size"], r["overtrained"]) for r in mine)
        for model, size, overtrained in groups:
            part = [r for r in mine if (r["model"], r["size"], r["overtrained"]) == (model, size, overtrained)]
            stages = list(dict.fromkeys(r["stage"] for r in part))
            name = f"{model}, {size}" + (" overtrained" if overtrained else "")
            lines.append(_line(name, [[r for r in part if r["stage"] == s] for s in stages], key, "cpu_seconds"))
        return lines
    last = _last(mine, overtrained=False)
    for model in dict.fromkeys(r["model"] for r in last):
        part = [r for r in last if r["model"] == model]
        sizes = list(dict.fromkeys(r["size"] for r in part))
        lines.append(
            _line(model, [[r for r in part if r["size"] == s] for s in sizes], key, None, [str(s) for s in sizes])
        )
    return lines


def _line(
    name: str, groups: Sequence[list[dict[str, Any]]], key: str, x: str | None, ticks: Sequence[str] = ()
) -> Line:
    values = [[row[key] for row in group] for group in groups]
    where = [float(np.mean([row[x] for row in group])) if x else float(n) for n, group in enumerate(groups)]
    return Line(
        name,
        where,
        [float(np.mean(v)) for v in values],
        [min(v) for v in values],
        [max(v) for v in values],
        ticks=ticks,
    )
