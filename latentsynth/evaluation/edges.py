"""Do painted lesions end as real ones do, and is what was painted as sharp as the scan around it? Beside real lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.exchange.hosts import Blend
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, check_names, generator_saw, other_spacing, rng
from latentsynth.evaluation.features import volumes
from latentsynth.files import read_json
from latentsynth.metrics.band_power import bands, body, octaves
from latentsynth.metrics.bootstrap import mean_interval
from latentsynth.metrics.edges import border_gradient, signed_distance
from latentsynth.metrics.wasserstein import halves_distance, set_distance
from latentsynth.plots import Line, panels
from latentsynth.results import Estimate, Picture, Result, Table, TableCell, close_results, open_results
from latentsynth.types import Framing, Grid

KIND = "edges"
_PICTURE = "edges.png"
_BINS = 13
_BORDER = _BINS // 2  # the bin of the border itself
_FEWEST = 27  # voxels whose detail has a power


@dataclass(frozen=True)
class Measured:
    """What was measured on the lesions of one cohort.

    Attributes:
        profiles: Gradient by distance from the border, ``(N, C, bins)``.
        detail: Power of the finest octave within the lesion over that around it, ``(N, C)``; not a number for a tiny lesion.
        patients: Whose they are.
    """

    profiles: np.ndarray
    detail: np.ndarray
    patients: list[str]


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
    blends = [blend for blend in map(_blend, samples) if blend is not None]
    outer = max([blend.end_mm for blend in blends], default=0.0)  # the picture reaches past where the scans begin
    bins = max(_BINS, _BORDER + 3 + ceil(outer / step))
    # Voxels beside the border lie half a step from it, on both sides: a little more, and one bin holds them.
    ends = [float((n - _BINS / 2) * step * (1 + 1e-3)) for n in range(bins + 1)]
    lesions = [n for n, value in enumerate(labels.values) if value in labels.lesions(framing)]
    measured = {
        cohort.name: _measured(volumes(cohort, grid, framing, labels, cache, accelerator, masks=True), cohort, lesions, ends)
        for cohort in cohorts
    }  # fmt: skip
    notes = tuple(
        note for cohort in samples for told in (generator_saw, other_spacing) for note in told(real.cases, cohort)
    )
    result = Result(
        KIND,
        "Do painted lesions end as real ones do?",
        {"grid": asdict(grid), "bins_mm": ends, "cases": {c.name: len(c.cases) for c in cohorts}},
        (_table(real, samples, measured, step), *_seams(real, samples, measured, ends, blends), _detail(real, samples, measured)),
        (Picture(_PICTURE, "mean size of the intensity's derivative across the lesion's border, by distance from it; negative is inside. Bars: 95 % intervals over patients"),),
        notes,
        splits=real.splits,
    )  # fmt: skip
    if accelerator.is_main_process:
        open_results(out)
        result.save(out)
        _draw(out / _PICTURE, cohorts, measured, ends)
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def _blend(cohort: Cohort) -> Blend | None:
    """How the volumes of a cohort were blended into scans; None where they were not."""
    first = cohort.cases[0]
    file = first.images[0].parent.parent / "sidecars" / f"{first.case_id}.json"
    found = read_json(file).get("blend") if file.is_file() else None
    return Blend(float(found["whole_mm"]), float(found["end_mm"])) if isinstance(found, dict) else None


def _measured(cache: VolumeCache, cohort: Cohort, lesions: Sequence[int], ends: Sequence[float]) -> Measured:
    """Measures every case with a lesion."""
    found, detail, patients = [], [], []
    for n, patient in enumerate(cohort.patients):
        volume = cache.volume(n)
        assert volume.mask is not None
        lesion = np.isin(volume.mask, lesions)
        if lesion.any() and not lesion.all():
            spacing = cache.recipe.grid.spacing_mm
            profile = [border_gradient(channel, lesion, spacing, ends) for channel in volume.image]
            if np.isfinite([row[_BORDER] for row in profile]).all():  # a lesion of a voxel or two has no direction
                found.append(profile)
                around = ~lesion & (signed_distance(lesion, spacing) < ends[-1])
                detail.append([_detail_within(channel, lesion, around, spacing) for channel in volume.image])
                patients.append(patient)
    if not found:
        raise DataError(f"no case of {cohort.name} has a lesion on the grid: give annotated cases")
    return Measured(np.array(found), np.array(detail), patients)


def _detail_within(channel: np.ndarray, lesion: np.ndarray, around: np.ndarray, spacing: Sequence[float]) -> float:
    """Power of the finest octave in a lesion over that in the part of the body around it."""
    inside = body(channel) | lesion
    around = inside & around
    if min(lesion.sum(), around.sum()) < _FEWEST:
        return float("nan")
    power = bands(channel, inside, spacing, octaves(spacing)[:1])[0] ** 2
    return float(power[lesion].mean() / max(power[around].mean(), 1e-12))


def _table(real: Cohort, samples: Sequence[Cohort], measured: Mapping[str, Measured], step: float) -> Table:
    rows: list[tuple[TableCell, ...]] = []
    truth, whose = measured[real.name].profiles, measured[real.name].patients
    for c, channel in enumerate(real.manifest.channels):
        floor = halves_distance(truth[:, c, _BORDER], whose, len(whose), rng())
        for cohort in (real, *samples):
            values, patients = measured[cohort.name].profiles, measured[cohort.name].patients
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


def _seams(
    real: Cohort,
    samples: Sequence[Cohort],
    measured: Mapping[str, Measured],
    ends: Sequence[float],
    blends: Sequence[Blend],
) -> list[Table]:
    """The gradient where what was generated ends, beside real patients' at the same distance; nothing if nothing was blended."""
    if not blends:
        return []
    blend = blends[0]
    bins = sorted({int(np.digitize(mm, ends)) - 1 for mm in (blend.whole_mm, blend.end_mm)} - {_BORDER})
    rows: list[tuple[TableCell, ...]] = []
    for c, channel in enumerate(real.manifest.channels):
        for cohort in (real, *samples):
            made = measured[cohort.name]
            kept = np.isfinite(made.profiles[:, c, bins]).any(axis=1)
            if kept.any():
                at = np.nanmean(made.profiles[kept][:, c, bins], axis=1)
                value = Estimate(*mean_interval(at, _kept(made.patients, kept), rng()))
                rows.append((channel, cohort.name, len(at), value))
    return [
        Table(
            "gradient where the scan begins",
            ("channel", "volumes", "n", "per mm"),
            tuple(rows),
            f"mean size of the derivative {blend.whole_mm:.3g} and {blend.end_mm:.3g} mm from the lesion, where what was generated "
            "begins and ceases to give way to the scan, in windows of 2 per mm; more than in real patients is a seam",
        )
    ]


def _detail(real: Cohort, samples: Sequence[Cohort], measured: Mapping[str, Measured]) -> Table:
    rows: list[tuple[TableCell, ...]] = []
    for c, channel in enumerate(real.manifest.channels):
        for cohort in (real, *samples):
            made = measured[cohort.name]
            share = made.detail[:, c]
            kept = np.isfinite(share) & (share > 0)
            value: TableCell = None
            if kept.any():
                mean = mean_interval(np.log(share[kept]), _kept(made.patients, kept), rng())
                value = Estimate(*(float(np.exp(end)) for end in mean))
            rows.append((channel, cohort.name, int(kept.sum()), value))
    return Table(
        "finest detail within the lesion over around it",
        ("channel", "volumes", "n", "power ratio"),
        tuple(rows),
        "power of the finest octave, geometric mean over cases; less than in real patients: what was painted is blurred beside its "
        "surroundings",
    )


def _kept(patients: Sequence[str], kept: np.ndarray) -> list[str]:
    """Those of the patients where ``kept``, boolean ``(N,)``, is True."""
    return [patient for patient, keep in zip(patients, kept, strict=True) if keep]


def _draw(path: Path, cohorts: Sequence[Cohort], measured: Mapping[str, Measured], ends: Sequence[float]) -> None:
    middles = [(a + b) / 2 for a, b in pairwise(ends)]
    drawn: dict[str, list[Line]] = {}
    for c, channel in enumerate(cohorts[0].manifest.channels):
        drawn[channel] = []
        for cohort in cohorts:
            values, patients = measured[cohort.name].profiles, measured[cohort.name].patients
            rows = []
            for n, x in enumerate(middles):
                column = values[:, c, n]
                kept = np.isfinite(column)
                if kept.any():
                    rows.append((x, *mean_interval(column[kept], _kept(patients, kept), rng())))
            x_, value, low, high = zip(*rows, strict=True)
            drawn[channel].append(Line(cohort.name, x_, value, low, high))
    panels(path, drawn, len(drawn), ["mm from the border"] * len(drawn), "change across the border, per mm")
