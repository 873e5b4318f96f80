"""What a comparison of masks leaves to look at: its tables, plain sentences and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.evaluation.features import Features
from latentsynth.evaluation.fidelity.comparison import FidelityScores, compare
from latentsynth.evaluation.memorization.controls import text
from latentsynth.evaluation.memorization.reference import Measured
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.write import sheet_grid, tile
from latentsynth.metrics.shapes import cells_of, mask_of
from latentsynth.metrics.wasserstein import halves_distance, set_distance
from latentsynth.plots import histograms
from latentsynth.results import Estimate, Picture, Table, TableCell, write_csv
from latentsynth.types import Labels

_DIFFERS = "DIFFERS"
_POOR = 0.5  # share of the floor's recall or coverage below which a set is said to leave real shapes out
_SHOWN = 4
_PIXELS = 64  # along the longest side of a tile
_EDGES = np.linspace(-4, 4, 25)  # standard deviations of the real masks

AXES = ("left to right, mm", "back to front, mm", "foot to head, mm")
PICTURES = (
    Picture("mask_shapes_cases.png", "masks picked at random, one from each quarter of the set by lesion volume"),
    Picture("mask_shapes_measures.png", "every measure, in standard deviations of the real masks"),
    Picture("mask_shapes_nearest.png", "the masks that overlap a training mask most, each beside that one"),
)

Measures = Mapping[str, Mapping[str, np.ndarray]]


def distances(cohorts: Sequence[Cohort], measures: Measures, located: str) -> tuple[Table, dict[str, list[str]]]:
    """Every measure of every set against the first cohort, beside its floor; and by set the measures that differ.

    Args:
        cohorts: The real one first.
        measures: By cohort and measure, one number per mask.
        located: What the measures of place refer to.
    """
    real, *sets = cohorts
    rows: list[tuple[TableCell, ...]] = []
    apart: dict[str, list[str]] = {cohort.name: [] for cohort in sets}
    for name in measures[real.name]:
        expected, patients = _numbers(measures[real.name][name], real)
        for cohort in sets:
            found, groups = _numbers(measures[cohort.name][name], cohort)
            if not len(expected) or not len(found):
                rows.append((name, cohort.name, len(found), None, None, None, None, "no such mask"))
                continue
            away = Estimate(*set_distance(expected, found, patients, groups, rng()))
            floor = Estimate(*halves_distance(expected, patients, len(set(groups)), rng()))
            word = "" if np.isfinite([away.low, floor.high]).all() else "too few to say"
            if away.low > floor.high + 1e-9 * abs(away.value):  # where all are equal, both are 0 but for rounding
                word = _DIFFERS
                apart[cohort.name].append(name)
            middles = (float(np.median(found)), float(np.median(expected)))
            rows.append((name, cohort.name, len(found), *middles, away, floor, word))
    table = Table(
        "shape and place of lesions, against real ones",
        ("measure", "masks", "n", "median", f"median of {real.name}", "Wasserstein distance", f"floor: halves of {real.name}", "verdict"),
        tuple(rows),
        "Wasserstein-1 distance in units of the measure, with its 95 % interval over patients on both sides; floor: "
        "mean and central 95 % between random halves of the real patients, each at most as many as the set has. "
        f"{_DIFFERS}: the whole interval lies above the floor's. Resampling pushes distances up, so that a small one may lie "
        f"below its own interval. {located}",
    )  # fmt: skip
    return table, apart


def closeness(cohorts: Sequence[Cohort], measures: Measures) -> tuple[Table, FidelityScores]:
    """Precision, recall, density and coverage of shapes; ``cohorts`` and ``measures`` as in :func:`distances`."""
    real, *sets = (_features(cohort, measures[cohort.name], measures[cohorts[0].name]) for cohort in cohorts)
    scores = compare(real, {cohort.name: one for cohort, one in zip(cohorts[1:], sets, strict=True)})
    rows = [(row.name, row.patients, row.cases, row.precision, row.recall, row.density, row.coverage) for row in scores.rows]  # fmt: skip
    table = Table(
        "how well shapes are covered",
        ("masks", "patients", "n", "precision", "recall", "density", "coverage"),
        tuple(rows),
        f"by volume (log), sphericity, pieces (log) and place, each in standard deviations of the real masks; {scores.at} masks "
        f"a side, {scores.neighbours} neighbours, mean over random halves of the real patients. Coverage: share of real "
        "masks that have a synthetic one as near as their real neighbours; compare with the floor. In brackets 95 % jackknife "
        "intervals over patients",
    )
    return table, scores


def copies(searches: Mapping[str, Measured], level: float) -> Table:
    """Overlap with training masks, against what patients have that nobody copied; these stand first in ``searches``."""
    real = next(iter(searches))
    rows: list[tuple[TableCell, ...]] = []
    for name, found in searches.items():
        nearest = 1 - found.distances[:, 0]
        rate, expected, word = (None, None, "") if name == real else (found.rate, text(found.expected), verdict(found))
        rows.append((name, len(nearest), float(np.median(nearest)), float(nearest.max()), rate, expected, word))
    return Table(
        "copies of training masks",
        ("masks", "n", "Dice with the nearest, median", "highest", "flagged", "expected", "verdict"),
        tuple(rows),
        f"flagged: overlaps a training mask more than all but {level:.1%} of the {len(set(searches[real].features.patients))} real "
        "patients do; the share, patients weighing alike, has an exact 95 % interval over them, expected is its 95 % beta-binomial interval where nothing was copied",
    )  # fmt: skip


def verdict(found: Measured) -> str:
    """One word on a set."""
    return "too few masks to say" if found.mute else "COPIES" if found.copied else "as unseen patients"


def said(apart: Mapping[str, list[str]], scores: FidelityScores, searches: Mapping[str, Measured]) -> list[str]:
    """What is wrong, in plain sentences."""
    notes = [f"{name}: masks differ from real ones in {'; '.join(found)}" for name, found in apart.items() if found]
    floor, *rows = scores.rows
    for name, row in zip(apart, rows, strict=True):
        found = {"recall": (row.recall, floor.recall), "coverage": (row.coverage, floor.coverage)}
        poor = [
            f"{key} {of.value:.2f}, halves of real patients {best.value:.2f}"
            for key, (of, best) in found.items()
            if of.value < _POOR * best.value
        ]
        if poor:
            notes.append(f"{name}: masks leave real shapes out ({'; '.join(poor)})")
    for name in apart:
        if verdict(searches[name]) == "COPIES":
            share = searches[name].rate.value
            notes.append(f"{name}: {share:.0%} of the masks overlap a training mask as closely as copies do")
    return notes


def looked_at(voxel_mm: float | None, cell_mm: float) -> str:
    """What happens to every mask, real or not."""
    voxels = "shapes are measured on the voxels of the masks, which are of one size in all sets"
    if voxel_mm is not None:
        voxels = (
            "sets differ in voxel size, on which surfaces and pieces depend, so all masks were brought to cubes of "
            f"{voxel_mm:.3g} mm before their shape was measured"
        )
    return (
        f"{voxels}; overlap is measured on cells of {cell_mm:.3g} mm, where masks lie and with their centroids in one "
        "place, and the larger counts: a copy that was turned or mirrored is not found"
    )


def write(
    out: Path,
    cohorts: Sequence[Cohort],
    train: Cohort,
    measures: Measures,
    searches: Mapping[str, Measured],
    lesions: tuple[int, ...],
) -> None:
    """Writes ``mask_shapes.csv``, a row per mask, and :data:`PICTURES` into a folder."""
    rows = [
        (cohort.name, case.case_id, *map(float, values))
        for cohort in cohorts
        for case, *values in zip(cohort.cases, *measures[cohort.name].values(), strict=True)
    ]
    write_csv(out / "mask_shapes.csv", ("masks", "case", *measures[cohorts[0].name]), rows)
    cases, histogram, nearest = (out / picture.file for picture in PICTURES)
    _draw_cases(cases, cohorts, measures, lesions)
    _draw_measures(histogram, cohorts, measures)
    _draw_nearest(nearest, cohorts[1:], train, searches, lesions)


def _draw_cases(path: Path, cohorts: Sequence[Cohort], measures: Measures, lesions: tuple[int, ...]) -> Path:
    """Writes a picture: a row per cohort, in it a random mask of each quarter by volume."""
    rows = []
    for cohort in cohorts:
        volumes = measures[cohort.name]["volume, ml"]
        quarters = np.array_split(np.argsort(volumes, kind="stable"), _SHOWN)
        chosen = [int(rng().choice(quarter)) for quarter in quarters]
        rows.append([(f"{cohort.name}, {volumes[n]:.3g} ml", cohort, n) for n in chosen])
    return _sheet(path, rows, lesions, "masks of alike rank in volume, around their lesions")


def _draw_nearest(
    path: Path, sets: Sequence[Cohort], train: Cohort, searches: Mapping[str, Measured], lesions: tuple[int, ...]
) -> Path:
    """Writes a picture: a row per set, in it the masks that are likest to a training mask, each beside that one."""
    rows: list[list[tuple[str, Cohort, int]]] = []
    for cohort in sets:
        found = searches[cohort.name]
        rows.append([])
        for n in np.argsort(found.distances[:, 0], kind="stable")[: _SHOWN // 2]:
            title = f"{cohort.name}, Dice {1 - found.distances[n, 0]:.2f} with"
            nearest = int(found.nearest[n])
            rows[-1] += [(title, cohort, int(n)), (f"training mask {train.cases[nearest].case_id}", train, nearest)]
    return _sheet(path, rows, lesions, "masks nearest to a training mask, each beside it")


def _draw_measures(path: Path, cohorts: Sequence[Cohort], measures: Measures) -> Path:
    """Writes a picture: a histogram per measure, all cohorts in it, the real one first."""
    panels = {}
    for name, expected in measures[cohorts[0].name].items():
        middle, spread = np.nanmean(expected), np.nanstd(expected)
        lines = {}
        for cohort in cohorts:
            values, _ = _numbers(measures[cohort.name][name], cohort)
            scaled = (values - middle) / (spread if spread > 1e-9 else 1.0)
            counts, _ = np.histogram(np.clip(scaled, _EDGES[0], _EDGES[-1]), _EDGES)
            lines[cohort.name] = counts / max(counts.sum(), 1)
        panels[name] = lines
    return histograms(path, panels, _EDGES, f"standard deviations of {cohorts[0].name} masks", 4)


def _sheet(path: Path, rows: Sequence[Sequence[tuple[str, Cohort, int]]], lesions: tuple[int, ...], title: str) -> Path:
    """Lesions on cubes of one size, each in the middle of its tile; what is not lesion is left out."""
    found = [[(name, *_read(cohort, n, lesions)) for name, cohort, n in row] for row in rows]
    spacings = [voxel_sizes(affine) for row in found for _, _, affine in row]
    boxes = [ndimage.find_objects(mask.astype(np.uint8))[0] for row in found for _, mask, _ in row]
    extents = [[(side.stop - side.start) for side in box] * edges for box, edges in zip(boxes, spacings, strict=True)]
    edge_mm = float(max(np.max(extents) / _PIXELS, np.min(spacings)))
    maps = [
        [LabelMap(name, filled.astype(np.int16), at) for name, mask, affine in row
         for filled, at in (mask_of(cells_of(mask, affine, edge_mm), edge_mm),)]
        for row in found
    ]  # fmt: skip
    grid = sheet_grid([made for row in maps for made in row])
    tiles: list[list[Tile]] = [[tile(made.name, made, Labels((0, 1)), grid) for made in row] for row in maps]
    return contact_sheet(path, tiles, Legend(grid.spacing_mm), title, (1,), shared_cut=False)


def _read(cohort: Cohort, n: int, lesions: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    made = LabelMap.read(cohort.cases[n], cohort.manifest.labels)
    return made.of(lesions), made.affine


def _numbers(values: np.ndarray, cohort: Cohort) -> tuple[np.ndarray, list[str]]:
    """Values that are numbers, and their patients."""
    kept = np.flatnonzero(np.isfinite(values))
    return values[kept], [cohort.patients[n] for n in kept]


def _features(cohort: Cohort, of: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> Features:
    """Volume, sphericity, pieces and place as features, none of which counts more than another among the real masks."""
    columns = []
    for name in ("volume, log10 ml", "sphericity", "pieces", *AXES):
        values, expected = (np.log(x[name]) if name == "pieces" else x[name] for x in (of, real))
        spread = float(expected.std())
        columns.append((values - expected.mean()) / (spread if spread > 1e-9 else 1.0))
    return Features(tuple(case.case_id for case in cohort.cases), tuple(cohort.patients), np.stack(columns, 1))
