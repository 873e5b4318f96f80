"""Do painted lesions end as real ones do? The intensity's change across the border, beside that of real lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, check_names, generator_saw, other_spacing, rng
from latentsynth.evaluation.features import volumes
from latentsynth.metrics.bootstrap import mean_interval
from latentsynth.metrics.edges import border_gradient
from latentsynth.metrics.wasserstein import halves_distance, set_distance
from latentsynth.plots import Line, panels
from latentsynth.results import Estimate, Picture, Result, Table, TableCell, close_results, open_results
from latentsynth.types import Framing, Grid

KIND = "edges"
_PICTURE = "edges.png"
_BINS = 13
_BORDER = _BINS // 2  # the middle bin


def evaluate_edges(
    real: Cohort,
    samples: Sequence[Cohort],
    grid: Grid,
    framing: Framing,
    out: Path,
    accelerator: Accelerator,
    cache: Path = Path("runs/cache"),
) -> Result:
    """Compares the gradient across lesion borders.

    Args:
        real: Real annotated patients.
        samples: Synthetic cohorts, painted into scans or whole.
        grid: On which volumes are compared.
        framing: Where it is laid.
        out: Folder for ``edges.json`` and the picture.
        accelerator: The processes that share the cases.
        cache: Where preprocessed volumes are kept.

    Raises:
        DataError: No case of a cohort has a lesion on the grid, or a cohort has other channels or labels.
    """
    cohorts = (real, *samples)
    check_names(cohorts)
    labels = real.manifest.labels
    for cohort in samples:
        if (cohort.manifest.channels, cohort.manifest.labels.values) != (real.manifest.channels, labels.values):
            raise DataError(f"{cohort.name} has other channels or labels than {real.name}: compare like with like")
    step = max(grid.spacing_mm)
    # Voxels beside the border lie half a step from it, on both sides: a little more, and the middle bin holds them.
    ends = [float((n - _BINS / 2) * step * (1 + 1e-3)) for n in range(_BINS + 1)]
    lesions = [n for n, value in enumerate(labels.values) if value in labels.lesions(framing)]
    profiles = {
        cohort.name: _profiles(volumes(cohort, grid, framing, labels, cache, accelerator, masks=True), cohort, lesions, ends)
        for cohort in cohorts
    }  # fmt: skip
    notes = tuple(
        note for cohort in samples for told in (generator_saw, other_spacing) for note in told(real.cases, cohort)
    )
    result = Result(
        KIND,
        "Do painted lesions end as real ones do?",
        {"grid": asdict(grid), "bins_mm": ends, "cases": {c.name: len(c.cases) for c in cohorts}},
        (_table(real, samples, profiles, step),),
        (Picture(_PICTURE, "mean size of the intensity's derivative across the lesion's border, by distance from it; negative is inside. Bars: 95 % intervals over patients"),),
        notes,
        splits=real.splits,
    )  # fmt: skip
    if accelerator.is_main_process:
        open_results(out)
        result.save(out)
        _draw(out / _PICTURE, cohorts, profiles, ends)
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def _profiles(
    cache: VolumeCache, cohort: Cohort, lesions: Sequence[int], ends: Sequence[float]
) -> tuple[np.ndarray, list[str]]:
    """Of every case with a lesion, a profile per channel ``(N, C, bins)``; and whose they are."""
    found, patients = [], []
    for n, patient in enumerate(cohort.patients):
        volume = cache.volume(n)
        assert volume.mask is not None
        lesion = np.isin(volume.mask, lesions)
        if lesion.any() and not lesion.all():
            spacing = cache.recipe.grid.spacing_mm
            profile = [border_gradient(channel, lesion, spacing, ends) for channel in volume.image]
            if np.isfinite([row[_BORDER] for row in profile]).all():  # a lesion of a voxel or two has no direction
                found.append(profile)
                patients.append(patient)
    if not found:
        raise DataError(f"no case of {cohort.name} has a lesion on the grid: give annotated cases")
    return np.array(found), patients


def _table(
    real: Cohort, samples: Sequence[Cohort], profiles: Mapping[str, tuple[np.ndarray, list[str]]], step: float
) -> Table:
    rows: list[tuple[TableCell, ...]] = []
    truth, whose = profiles[real.name]
    for c, channel in enumerate(real.manifest.channels):
        floor = halves_distance(truth[:, c, _BORDER], whose, len(whose), rng())
        for cohort in (real, *samples):
            values, patients = profiles[cohort.name]
            border = values[:, c, _BORDER]
            away = None
            if cohort is not real:
                away = Estimate(*set_distance(truth[:, c, _BORDER], border, whose, patients, rng()))
            contrast = border / np.nanmean(values[:, c, [0, -1]], axis=1)
            rows.append((channel, cohort.name, len(border), Estimate(*mean_interval(border, patients, rng())),
                         Estimate(*mean_interval(contrast, patients, rng())), away, Estimate(*floor) if away else None))  # fmt: skip
    return Table(
        "gradient across the border",
        ("channel", "volumes", "n", "at the border", "over that far away", f"distance to {real.name}", "floor"),
        tuple(rows),
        f"mean size of the derivative across the border within {step / 2:.3g} mm of it, in windows of 2 per mm; over that at the "
        "ends of the picture's axis: above 1 the border shows. Wasserstein distance between cases with its 95 % bootstrap "
        "interval; floor: between random halves of the real patients",
    )


def _draw(
    path: Path, cohorts: Sequence[Cohort], profiles: Mapping[str, tuple[np.ndarray, list[str]]], ends: Sequence[float]
) -> None:
    middles = [(a + b) / 2 for a, b in pairwise(ends)]
    drawn: dict[str, list[Line]] = {}
    for c, channel in enumerate(cohorts[0].manifest.channels):
        drawn[channel] = []
        for cohort in cohorts:
            values, patients = profiles[cohort.name]
            rows = []
            for n, x in enumerate(middles):
                column = values[:, c, n]
                kept = np.isfinite(column)
                if kept.any():
                    names = [patient for patient, keep in zip(patients, kept, strict=True) if keep]
                    rows.append((x, *mean_interval(column[kept], names, rng())))
            x_, value, low, high = zip(*rows, strict=True)
            drawn[channel].append(Line(cohort.name, x_, value, low, high))
    panels(path, drawn, len(drawn), ["mm from the border"] * len(drawn), "change across the border, per mm")
