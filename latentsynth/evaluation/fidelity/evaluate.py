"""Fidelity: how close synthetic volumes come to real ones as sets, with what two halves of the real ones would score.

Every distance of small sets is biased upward, the more the smaller they are. So every row is computed at one number of
cases, that of half the real patients, and the first row is the other half of the real patients: the floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, check_names, generator_saw, other_spacing, rng
from latentsynth.evaluation.features import extract
from latentsynth.evaluation.fidelity.comparison import (
    FLOOR,
    Difference,
    compare,
    csv_columns,
    csv_row,
    principal,
    spread,
)
from latentsynth.evaluation.fidelity.radiomics import UNIT, regions
from latentsynth.evaluation.fidelity.sharpness import CONTROL, Cell, Share, Sharpness, sharpness, sharpness_table
from latentsynth.extractors.networks import Extractor
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.metrics.diversity import mean_similarity, ms_ssim_scales, random_pairs
from latentsynth.plots import scatters
from latentsynth.progress import bar
from latentsynth.results import (
    Conclusion,
    Estimate,
    Picture,
    Question,
    Result,
    Table,
    TableCell,
    close_results,
    open_results,
    text,
    write_csv,
)
from latentsynth.types import Framing, Grid

_FEWEST = 2  # real patients: with one there are none to be like
_LEAST = 8  # for distances between sets; their halves hold the neighbourhoods of precision and recall
_PAIRS = 60  # pairs of volumes whose similarity is averaged
_SHOWN = 4
CLOSE = 0.1  # Frechet distance beyond that of real patients up to which a set is said to be as close: a tenth of their variance
_UNIT = "Features are centred and scaled by the real ones: a Frechet distance of 1 is all the variance of the real set."


def evaluate_fidelity(
    real: Cohort,
    samples: Sequence[Cohort],
    caches: dict[str, VolumeCache],
    extractors: Sequence[Extractor],
    out: Path,
    accelerator: Accelerator,
    cell: Cell | None = None,
) -> Result:
    """Compares sets of synthetic volumes with real ones.

    Args:
        real: Real cases, best of patients that no generator saw.
        samples: Synthetic cohorts.
        caches: The volumes of every cohort, by its name.
        extractors: Networks that turn volumes into features.
        out: Folder for ``fidelity.json``, ``fidelity.csv`` and pictures. With fewer than 8 real patients distances between sets
            are left out, which the report says.
        accelerator: The processes that share the cases.
        cell: Voxels of the grid per latent cell of the generators, whose traces are looked for; None looks for none.

    Raises:
        DataError: Too few real patients, or cohorts that do not fit together.
    """
    check_cohorts(real, samples)
    names = [cohort.name for cohort in (real, *samples)]
    notes = []
    if not real.real:
        notes.append(f"{real.name} holds synthetic cases: the floor is not one of real patients")
    if accelerator.is_main_process:
        open_results(out)
    features = {
        cohort.name: extract(extractors, cohort, caches[cohort.name], accelerator) for cohort in (real, *samples)
    }
    tables: list[Table] = []
    concluded: list[Conclusion] = []
    rows: list[tuple[TableCell, ...]] = []
    patients, recipe = len(set(real.patients)), caches[real.name].recipe
    halved = patients >= _LEAST
    if not halved:
        notes.append(
            f"no distances between sets: {real.name} has {patients} patients, and halves of fewer than {_LEAST} say nothing of how "
            "far real ones are apart; another --split or larger --fractions of `prepare` give more"
        )
    for one in extractors if halved else ():
        of = {name: features[name][one.name] for name in names}
        scores = compare(of[real.name], {cohort.name: of[cohort.name] for cohort in samples})
        tables += [scores.table(one.name, one.fingerprint, _UNIT), scores.comparisons(one.name), scores.bias(one.name)]
        rows += [(one.name, *csv_row(row)) for row in scores.rows]
        concluded += [_close(one.name, pair) for pair in scores.differences if pair.other == FLOOR]
    textures = regions(recipe.grid, recipe.framing) if halved else ()
    for texture in textures:
        of = {cohort.name: texture.of(cohort, caches[cohort.name], accelerator) for cohort in (real, *samples)}
        few = [name for name, one in of.items() if len(set(one.patients)) < (_LEAST if name == real.name else 2)]
        if few:
            notes.append(f"no {texture.name}: too few cases of {', '.join(few)} have one in the prepared volumes")
            continue
        scores = compare(of[real.name], {cohort.name: of[cohort.name] for cohort in samples}, each=True)
        tables += [scores.table(texture.name, texture.fingerprint, UNIT), scores.comparisons(texture.name)]
        rows += [(texture.name, *csv_row(row)) for row in scores.rows]
    tables.append(_diversity((real, *samples), caches, accelerator))
    sharp = sharpness((real, *samples), recipe, cell, accelerator)
    tables += [sharpness_table(cohort.name, sharp[cohort.name], sharp[CONTROL]) for cohort in samples]
    concluded += [_sharp(cohort.name, sharp[cohort.name]) for cohort in samples]
    for cohort in samples:
        notes += [*_related(real, cohort), *generator_saw(real.cases, cohort), *other_spacing(real.cases, cohort)]
    result = Result(
        "fidelity",
        "How close do synthetic volumes come to real ones?",
        {
            "cohorts": {c.name: {"manifest": c.manifest.fingerprint, "cases": len(c.cases)} for c in (real, *samples)},
            "extractors": {one.name: {"fingerprint": one.fingerprint, "preprocessing": one.preprocessing} for one in (*extractors, *textures)},
            "preprocessing": preprocessing(recipe.grid, recipe.framing),
            "sharpness": {name: one.facts for name, one in sharp.items()},
        },
        tuple(tables),
        (
            Picture("fidelity_cases.png", "volumes picked at random, without their masks"),
            Picture("fidelity_features.png", "features on the first two principal components of the real ones"),
        ),
        (*notes, preprocessing(recipe.grid, recipe.framing)),
        splits=real.splits,
        conclusions=tuple(concluded),
    )  # fmt: skip
    if accelerator.is_main_process:
        result.save(out)  # first: a picture that fails must not cost the numbers
        write_csv(out / "fidelity.csv", ("extractor", *csv_columns()), rows)
        _sheet(out / "fidelity_cases.png", (real, *samples), caches)
        panels = {one.name: {name: features[name][one.name].values for name in names} for one in extractors}
        scatters(out / "fidelity_features.png", {name: principal(sets) for name, sets in panels.items()})
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def _close(extractor: str, pair: Difference) -> Conclusion:
    """Whether a set is about as far from real patients as other real patients are."""
    beyond = Estimate(-pair.frechet.value, -pair.frechet.high, -pair.frechet.low)
    reason = f"Frechet distance by {extractor} {text(pair.frechet)} beyond that of real patients; {CLOSE} or less is asked for"
    return Conclusion.at_least(Question.LOOK, pair.name, beyond, -CLOSE, reason)


def _sharp(name: str, found: Sharpness) -> Conclusion:
    """Whether detail is as in real patients."""
    outside = [_told(share) for share in found.shares if not share.inside]
    more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
    reason = f"beside real patients: {'; '.join(outside[:3])}{more}" if outside else "detail as in real patients"
    return Conclusion(Question.LOOK, name, "yes" if found.as_real else "no", reason)


def _told(share: Share) -> str:
    """A measure of detail in words."""
    one, times = share.measure, f"{share.measure.channel} has {text(share.value.value)} times"
    band = f"{one.band_mm[0]:.3g} to {one.band_mm[1]:.3g} mm"
    if one.kind == "power":
        return f"{times} the detail of {band}"
    return f"{times} the kurtosis at {band}" if one.kind == "kurtosis" else f"{times} the {one.kind} of latent cells"


def check_cohorts(real: Cohort, samples: Sequence[Cohort]) -> None:
    """Refuses cohorts that cannot be compared, before anything is read or trained.

    Raises:
        DataError: Too few real patients or synthetic volumes, equal names, or other channels.
    """
    patients = len(set(real.patients))
    if patients < _FEWEST:
        raise DataError(
            f"{patients} real patients are too few to compare with: give at least {_FEWEST}, by another --split or "
            "by larger --fractions of `prepare`"
        )
    check_names((real, *samples))
    for cohort in samples:
        if cohort.manifest.channels != real.manifest.channels:
            raise DataError(
                f"{cohort.name} has channels {cohort.manifest.channels}, the real scans {real.manifest.channels}"
            )
        if len(cohort.cases) < 2:
            raise DataError(f"{cohort.name} holds one volume: a set has at least 2")


def preprocessing(grid: Grid, framing: Framing) -> str:
    """What happens to every volume, real or not, before an extractor sees it."""
    shape = " x ".join(map(str, grid.shape))
    spacing = " x ".join(f"{step:g}" for step in grid.spacing_mm)
    windows = ", ".join(f"{w.kind} {w.low:g} to {w.high:g}" for w in grid.windows)
    return (
        f"every volume, real or not, is resampled to {shape} voxels of {spacing} mm (crop: {framing.crop}) and windowed "
        f"to [-1, 1] ({windows})"
    )


def _diversity(cohorts: Sequence[Cohort], caches: dict[str, VolumeCache], accelerator: Accelerator) -> Table:
    """MS-SSIM between volumes of different patients, and between volumes made for one mask."""
    rows: list[tuple[TableCell, ...]] = []
    for cohort in cohorts:
        cache = caches[cohort.name]
        apart = random_pairs(cohort.patients, _PAIRS, rng())
        alike = _same(cohort.patients)
        cells: list[TableCell] = []
        with bar(f"diversity of {cohort.name}", len(apart) + len(alike), "pairs", accelerator.is_main_process) as shown:
            for pairs in (apart, alike):
                values = mean_similarity(partial(_image, cache), pairs, shown.advance)
                cells += [float(values.mean()) if len(values) else None, len(values)]
        rows.append((cohort.name, *cells))
    weights, window = ms_ssim_scales(caches[cohorts[0].name].recipe.grid.shape)
    return Table(
        "diversity: multi-scale structural similarity between volumes",
        ("volumes", "different patients", "pairs", "same patient or mask", "pairs"),
        tuple(rows),
        f"{len(weights)} scales, window of {window} voxels; lower is more diverse. Above the real value, volumes are too "
        "alike",
    )


def _image(cache: VolumeCache, n: int) -> torch.Tensor:
    return torch.from_numpy(cache.volume(n).image)


def _related(real: Cohort, cohort: Cohort) -> list[str]:
    """A note where synthetic cases were made from patients that they are compared with."""
    patients = {case.patient_id for case in real.cases}
    related = sum(bool(patients & set(case.parents)) for case in cohort.cases)
    if not related:
        return []
    return [
        f"{cohort.name}: {related} of {len(cohort.cases)} volumes were made from masks or scans of the real patients they "
        "are compared with, which brings them closer than independent patients would be"
    ]


def _same(patients: Sequence[str]) -> list[tuple[int, int]]:
    """Up to so many pairs of rows of one patient."""
    by: dict[str, list[int]] = {}
    for n, patient in enumerate(patients):
        by.setdefault(patient, []).append(n)
    return [(rows[0], rows[1]) for rows in by.values() if len(rows) > 1][:_PAIRS]


def _sheet(path: Path, cohorts: Sequence[Cohort], caches: dict[str, VolumeCache]) -> None:
    """Picture: volumes of every cohort picked at random, one row each, without masks."""
    rows = []
    for cohort in cohorts:
        chosen = spread(cohort.patients, _SHOWN, rng())
        rows.append([Tile(cohort.name, caches[cohort.name].volume(n).image) for n in chosen])
    first = cohorts[0]
    contact_sheet(path, rows, Legend(caches[first.name].recipe.grid.spacing_mm, first.manifest.channels))
