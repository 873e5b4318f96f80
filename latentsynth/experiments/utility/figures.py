"""Pictures of a utility study: curves over real patients, over the dose, over the share of real ones; examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from latentsynth.config import ArmConfig, UtilityStudy
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.experiments.utility.jobs import Job, PatientScores
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.metrics.bootstrap import mean_interval
from latentsynth.plots import Line
from latentsynth.segmentation import Segmenter

Drawing = tuple[str, str, str, dict[str, list[Line]]]  # file, caption, label of the x axis, lines by panel


def curves(config: UtilityStudy, scores: PatientScores) -> list[Drawing]:
    """What can be drawn as curves: by real patients always; by dose and by share of real ones where arms vary these."""
    bars = "means over seeds and test patients; bars: 95 % intervals over patients"
    drawn: list[Drawing] = [
        (
            "utility.png",
            f"Dice by real patients of the subset, for every arm: {bars}",
            "real patients",
            _by_size(config, scores),
        )
    ]
    dose = _series(config, scores, lambda arm: arm.dose if arm.real == 1 else None)
    if dose:
        drawn.append(
            (
                "utility_dose.png",
                f"Dice by synthetic volumes added per real patient: {bars}",
                "synthetic per real",
                dose,
            )
        )
    share = _series(config, scores, lambda arm: arm.real if abs(arm.real + arm.dose - 1) < 1e-6 else None)
    if share:
        drawn.append(
            ("utility_replacement.png", f"Dice as real volumes are replaced by synthetic ones, their number fixed: {bars}", "share of real volumes", share)
        )  # fmt: skip
    return drawn


def _by_size(config: UtilityStudy, scores: PatientScores) -> dict[str, list[Line]]:
    """A panel per segmenter: a line per arm; arms of one size are points."""
    drawn = {}
    for segmenter in config.segmenters:
        drawn[segmenter] = [
            _line(arm, {float(n): scores[segmenter, size, arm]["dice"] for n, size in enumerate(config.sizes) if (segmenter, size, arm) in scores},
                  {float(n): str(size) for n, size in enumerate(config.sizes)})
            for arm in config.arms
        ]  # fmt: skip
    return drawn


def _series(
    config: UtilityStudy, scores: PatientScores, x_of: Callable[[ArmConfig], float | None]
) -> dict[str, list[Line]]:
    """A panel per segmenter and size: a line per kind of arm that differs in x alone, with the real-only arm at its end."""
    drawn: dict[str, list[Line]] = {}
    for segmenter in config.segmenters:
        for size in config.sizes:
            kinds: dict[str, dict[float, dict[str, float]]] = {}
            for name, arm in config.arms_of(size).items():
                x = x_of(arm)
                if x is None or arm.model is None or arm.bridge or (segmenter, size, name) not in scores:
                    continue
                kind = f"{arm.model}{'' if arm.masks == 'own' else f', {arm.masks}'}{', augmented' if arm.augment else ''}{_filters(arm)}"
                kinds.setdefault(kind, _anchor(config, scores, segmenter, size, arm, x_of))[x] = scores[
                    segmenter, size, name
                ]["dice"]
            lines = [_line(kind, points) for kind, points in kinds.items() if len(points) > 2]
            if lines:
                drawn[f"{segmenter}, {size} patients"] = lines
    return drawn


def _anchor(
    config: UtilityStudy, scores: PatientScores, segmenter: str, size: int | str, like: ArmConfig, x_of: Callable[[ArmConfig], float | None]
) -> dict[float, dict[str, float]]:  # fmt: skip
    """The arm of all real patients and no synthetic ones, where there is one with the same augmentation."""
    for name, arm in config.arms_of(size).items():
        x = x_of(arm)
        if x is not None and arm.model is None and arm.augment == like.augment and (segmenter, size, name) in scores:
            return {x: scores[segmenter, size, name]["dice"]}
    return {}


def _filters(arm: ArmConfig) -> str:
    return (", no copies" if arm.drop.copies else "") + (
        f", agreement {arm.drop.agreement:g}" if arm.drop.agreement else ""
    )


def _line(name: str, points: Mapping[float, Mapping[str, float]], ticks: Mapping[float, str] | None = None) -> Line:
    places = sorted(points)
    means = [mean_interval(list(points[x].values()), list(points[x]), rng()) for x in places]
    value, low, high = zip(*means, strict=True) if means else ((), (), ())
    return Line(name, places, value, low, high, ticks=[ticks[x] for x in places] if ticks else ())


def shown(config: UtilityStudy, jobs: Sequence[Job], scores: PatientScores, cohort: Cohort) -> Cohort:
    """The test patients (of the first fold) that the baseline segments worst, middling and best, at the smallest size."""
    baseline = scores[jobs[0].segmenter, jobs[0].size, config.baseline]["dice"]
    order = sorted(dict.fromkeys(cohort.patients), key=lambda patient: baseline[patient])
    chosen = list(dict.fromkeys(order[int(share * (len(order) - 1))] for share in (0, 0.5, 1)))
    cases = tuple(next(case for case in cohort.cases if case.patient_id == patient) for patient in chosen)
    return replace(cohort, name="examples", cases=cases)


def examples(
    path: Path, folder: Path, jobs: Sequence[Job], scores: PatientScores, chosen: Cohort, cache: VolumeCache
) -> None:
    """A row per test patient, a tile per arm, with the first seed."""
    first = jobs[0]
    models = {
        job.arm: Segmenter.from_pretrained(folder / "cells" / job.name / "run")
        for job in jobs
        if (job.segmenter, job.size, job.seed, job.fold) == (first.segmenter, first.size, first.seed, first.fold)
    }
    rows = []
    for n, patient in enumerate(chosen.patients):
        volume = cache.volume(n)
        tiles = [Tile(f"{patient}, annotated", volume.image, volume.mask)]
        for arm, model in models.items():
            dice = scores[first.segmenter, first.size, arm]["dice"][patient]
            tiles.append(Tile(f"{arm}, Dice {dice:.2f}", volume.image, model.on_grid(volume.image)))
        rows.append(tiles)
    title = f"{first.segmenter}, {first.size} patients, seed {first.seed}"
    legend = Legend(cache.recipe.grid.spacing_mm, chosen.manifest.channels, chosen.manifest.labels.names)
    contact_sheet(path, rows, legend, title)
