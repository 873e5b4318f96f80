"""Synthetic masks against real ones: are they shaped alike, do they cover what is real, are they copies?

Label maps alone are read, one at a time, so cases need no images. Every number stands beside what random halves of the
real patients score, and copies are counted against what patients nobody learnt from would be taken for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, check_names, check_new
from latentsynth.evaluation.features import Features
from latentsynth.evaluation.masks import figures
from latentsynth.evaluation.memorization.reference import Measured, ReferenceDistances, one_per_patient
from latentsynth.evaluation.memorization.spaces import FeatureSpace, MaskVoxels
from latentsynth.masks.label_map import LabelMap
from latentsynth.metrics.shapes import CELL_MM, CELLS, Shape, cells_of, centroid_mm, mask_of, overlaps, shape_of
from latentsynth.parallel import over_cores
from latentsynth.results import Result, close_results, open_results
from latentsynth.types import Framing

_LEAST = 6  # masks per set
_LEVEL = 0.05
_LOOKED_AT = 12  # masks that tell how large a typical lesion is
_OF_LABEL = ("volume, log10 ml", "sphericity", "pieces")


@dataclass(frozen=True)
class Lattice:
    """How masks are looked at.

    Attributes:
        lesions: Label values that count as lesion, and their names.
        voxel_mm: Edge of the cubes that all masks are brought to before their shape is measured; None measures voxels
            as they are, where all sets have the same.
        cell_mm: Edge of the cells that overlap is measured on.
    """

    lesions: Mapping[int, str]
    voxel_mm: float | None
    cell_mm: float


@dataclass(frozen=True)
class Lesion:
    """One mask, described.

    Attributes:
        measures: Size and form of all lesion labels together, and of each where several count as lesion.
        from_anatomy_mm: Its centroid relative to that of everything that is labelled; not numbers without an organ.
        from_centre_mm: Its centroid relative to the centre of the field of view.
        cells: Where it lies, see :func:`latentsynth.metrics.shapes.cells_of`.
        centred: The same with its centroid at the origin.
    """

    measures: Mapping[str, float]
    from_anatomy_mm: np.ndarray
    from_centre_mm: np.ndarray
    cells: np.ndarray
    centred: np.ndarray


@dataclass(frozen=True)
class Described:
    """The masks of a cohort that show a lesion."""

    cohort: Cohort
    masks: tuple[Lesion, ...]
    empty: int


def evaluate_masks(
    real: Cohort,
    train: Sequence[Cohort],
    samples: Sequence[Cohort],
    out: Path,
    accelerator: Accelerator,
    lesion_labels: Sequence[int] = (),
) -> Result:
    """Compares sets of synthetic masks with those of real patients.

    Args:
        real: Annotated cases of patients that no generator saw.
        train: Annotated cases that generators learnt from, in one or several cohorts.
        samples: Synthetic sets.
        out: Folder for ``mask_shapes.json``, ``mask_shapes.csv`` and pictures.
        accelerator: The processes that share the cases.
        lesion_labels: Label values that count as lesion; none takes all but background.

    Raises:
        DataError: Real patients that were trained on, sets of fewer than 6 masks with a lesion, or one name twice.
        ConfigError: A label that a set does not have.
    """
    everyone = _together(train)
    notes = _check(real, everyone, samples)
    cohorts = (real, everyone, *samples)
    lesions = _lesion_labels(cohorts, tuple(lesion_labels))
    lattice = _lattice((real, *samples), lesions)
    if accelerator.is_main_process:
        open_results(out)
    described = [_describe(cohort, lattice, accelerator) for cohort in cohorts]
    notes += [f"{one.cohort.name}: {one.empty} masks without a lesion were left out" for one in described if one.empty]
    patients, learnt, *sets = described
    shown = [one.cohort for one in (patients, *sets)]
    measures, located = _measures(described)
    distances, apart = figures.distances(shown, measures, located)
    closeness, scores = figures.closeness(shown, measures)
    searches, level = _copies(patients, learnt, sets)
    result = Result(
        "mask_shapes",
        "Are synthetic masks like real ones?",
        {
            "cohorts": {c.name: {"manifest": c.manifest.fingerprint, "masks": len(c.cases)} for c in cohorts},
            "lesion_labels": list(lesions),
            "voxel_mm": lattice.voxel_mm,
            "cell_mm": lattice.cell_mm,
        },
        (distances, closeness, figures.copies(searches, level)),
        figures.PICTURES,
        (*figures.said(apart, scores, searches), *notes, figures.looked_at(lattice.voxel_mm, lattice.cell_mm)),
        splits=real.splits,
    )
    if accelerator.is_main_process:
        result.save(out)  # first: a picture that fails must not cost the numbers
        figures.write(out, shown, learnt.cohort, measures, searches, lesions)
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def _together(train: Sequence[Cohort]) -> Cohort:
    """Training cases of several manifests as one cohort."""
    if len({cohort.manifest.labels.values for cohort in train}) != 1:
        raise DataError(
            "manifests of training patients have different labels, or there is none: give those of one study"
        )
    return replace(train[0], cases=tuple(case for cohort in train for case in cohort.cases))


def _lesion_labels(cohorts: Sequence[Cohort], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Label values that count as lesion, the same in all cohorts."""
    found = [cohort.manifest.labels.lesions(Framing(lesion_labels=wanted)) for cohort in cohorts]
    for cohort, lesions in zip(cohorts, found, strict=True):
        if lesions != found[0]:
            raise DataError(
                f"{cohort.name} has labels {lesions}, {cohorts[0].name} has {found[0]}: name those to compare with "
                "--lesion-labels"
            )
    return found[0]


def _check(real: Cohort, train: Cohort, samples: Sequence[Cohort]) -> list[str]:
    """Refuses what cannot be compared, before anything is read; notes on what cannot be verified."""
    check_names((real, train, *samples))
    learnt, scans = ({case.patient_id for case in train.cases}, {scan for case in train.cases for scan in case.scans})
    both = [case.case_id for case in real.cases if case.patient_id in learnt or case.scans & scans]
    if both:
        raise DataError(
            f"{len(both)} real cases are of training patients ({', '.join(both[:3])}): compare with patients that no "
            "generator saw, those of --split val or test"
        )
    notes = []
    if not real.real:
        notes.append(f"{real.name} holds synthetic cases: the floor is not one of real patients")
    patients = {case.patient_id for case in real.cases}
    for cohort in samples:
        if not (cohort.ledger.everybody or cohort.ledger.voxels):
            notes.append(
                f"{cohort.name}: no ledger beside it, so that its maker never saw the real patients is your word"
            )
        else:
            seen, verified = cohort.ledger.seen(real.cases)
            notes += check_new(real.cases, seen, verified, f"the maker of {cohort.name}")
        related = sum(bool(patients & set(case.parents)) for case in cohort.cases)
        if related:
            notes.append(
                f"{cohort.name}: {related} of {len(cohort.cases)} masks were made from those of the real patients they are "
                "compared with, which brings them closer than independent patients would be"
            )
    return notes


def _lattice(cohorts: Sequence[Cohort], lesions: tuple[int, ...]) -> Lattice:
    """Voxels and cells that suit all cohorts that are compared, the real one first."""
    spacings = []
    for cohort in cohorts:
        affines = [nifti.geometry(case.mask)[1] for case in cohort.cases if case.mask is not None]
        spacings.append(np.median([np.sort(np.linalg.norm(a[:3, :3], axis=0)) for a in affines], axis=0))
    same = all(np.allclose(one, spacings[0], rtol=0.05) for one in spacings)
    real = cohorts[0]
    looked = [real.cases[n] for n in np.unique(np.linspace(0, len(real.cases) - 1, _LOOKED_AT).astype(int))]
    volumes = [LabelMap.read(case, real.manifest.labels).volume_ml(lesions) for case in looked]
    typical = float(np.cbrt(1000 * np.median(volumes) / CELLS))
    finest = float(np.cbrt(np.prod(spacings[0])))
    labels = real.manifest.labels
    names = {v: name for v, name in zip(labels.values, labels.names, strict=True) if v in lesions}
    return Lattice(
        names, None if same else float(np.max(spacings)), min(CELL_MM, max(typical, finest)) if typical else CELL_MM
    )


def _describe(cohort: Cohort, lattice: Lattice, accelerator: Accelerator) -> Described:
    found = over_cores(accelerator, f"masks of {cohort.name}", cohort.cases, partial(_lesion, cohort, lattice), "masks")
    kept = [n for n, one in enumerate(found) if one is not None]
    if len(kept) < _LEAST:
        raise DataError(
            f"{len(kept)} of {len(cohort.cases)} masks of {cohort.name} show a lesion (labels "
            f"{', '.join(map(str, lattice.lesions))}), expected at least {_LEAST}: give more, or name other --lesion-labels"
        )
    shown = replace(cohort, cases=tuple(cohort.cases[n] for n in kept))
    return Described(shown, tuple(one for one in found if one is not None), len(found) - len(kept))


def _lesion(cohort: Cohort, lattice: Lattice, n: int) -> Lesion | None:
    made = LabelMap.read(cohort.cases[n], cohort.manifest.labels)
    mask = made.of(tuple(lattice.lesions))
    if not mask.any():
        return None
    at = np.array(centroid_mm(mask, made.affine))
    organs = set(cohort.manifest.labels.values[1:]) - set(lattice.lesions)
    # Lesions belong to the organ they lie in: without them it would have a hole, and a centroid away from them.
    anatomy = centroid_mm(made.values > 0, made.affine) if made.of(sorted(organs)).any() else np.full(3, np.nan)
    middle = made.affine[:3, :3] @ ((np.array(mask.shape) - 1) / 2) + made.affine[:3, 3]
    measures = _shape(mask, made.affine, lattice).measures
    for value, name in lattice.lesions.items() if len(lattice.lesions) > 1 else ():
        part = made.of((value,))
        measures[f"{name}: present"] = float(part.any())
        if part.any():
            own = _shape(part, made.affine, lattice).measures
            measures |= {f"{name}: {key}": own[key] for key in _OF_LABEL}
    return Lesion(
        measures,
        at - anatomy,
        at - middle,
        cells_of(mask, made.affine, lattice.cell_mm),
        cells_of(mask, made.affine, lattice.cell_mm, at),
    )


def _shape(mask: np.ndarray, affine: np.ndarray, lattice: Lattice) -> Shape:
    if lattice.voxel_mm is None:
        return shape_of(mask, affine)
    return shape_of(*mask_of(cells_of(mask, affine, lattice.voxel_mm), lattice.voxel_mm))


def _measures(described: Sequence[Described]) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """By cohort and measure one number per mask, not a number where a label is missing; and what places refer to."""
    names = dict.fromkeys(name for one in described for mask in one.masks for name in mask.measures)
    anatomy = all(np.isfinite(mask.from_anatomy_mm).all() for one in described for mask in one.masks)
    measures = {}
    for one in described:
        found = {name: np.array([mask.measures.get(name, np.nan) for mask in one.masks]) for name in names}
        places = [mask.from_anatomy_mm if anatomy else mask.from_centre_mm for mask in one.masks]
        measures[one.cohort.name] = {**found, **dict(zip(figures.AXES, np.transpose(places), strict=True))}
    origin = "the centroid of everything that is labelled" if anatomy else "the centre of the field of view"
    return measures, f"Places are those of the lesions' centroid relative to {origin}, in mm along the world's axes"


def _copies(patients: Described, learnt: Described, sets: Sequence[Described]) -> tuple[dict[str, Measured], float]:
    """By name, every set against the training masks, the real patients first; and the level of the p-values.

    Real patients have one mask each and no part in training, so they calibrate. They are too few to be parted for a
    control: positive controls in the tests stand for that.
    """
    asked = [mask for one in (patients, *sets) for mask in one.masks]
    where = overlaps([mask.cells for mask in asked], [mask.cells for mask in learnt.masks])
    moved = overlaps([mask.centred for mask in asked], [mask.centred for mask in learnt.masks])
    table = 1 - np.maximum(where, moved)

    def search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = table[np.ix_(queries[:, 0], reference[:, 0])]
        order = found.argsort(1, kind="stable")[:, :k]
        return np.take_along_axis(found, order, 1), order

    start, rows = 0, {}
    for one in (patients, *sets):
        rows[one.cohort.name] = _numbered(one, start)
        start += len(one.masks)
    calibration = one_per_patient(rows[patients.cohort.name])
    level = max(_LEVEL, 1 / (len(calibration.ids) + 1))
    reference = ReferenceDistances(
        FeatureSpace(MaskVoxels(), search, "1 - Dice"), _numbered(learnt, 0), calibration, level
    )
    return {name: reference.measure(found) for name, found in rows.items()}, level


def _numbered(one: Described, start: int) -> Features:
    """Masks by their number, which is all that the search needs."""
    ids = tuple(case.case_id for case in one.cohort.cases)
    return Features(ids, tuple(one.cohort.patients), np.arange(start, start + len(ids))[:, None])
