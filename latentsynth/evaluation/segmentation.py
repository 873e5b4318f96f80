"""Scoring a segmenter on annotated patients: overlap, surfaces in mm, lesions found, volume; by case, label and size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from latentsynth.data import nifti
from latentsynth.data.frames import resample_labels
from latentsynth.data.volumes import read_mask, to_index, window_channels
from latentsynth.evaluation.cohorts import Cohort, check_new, over_cases, rng
from latentsynth.evaluation.strata import Strata
from latentsynth.figures import Tile, contact_sheet
from latentsynth.files import make_folder
from latentsynth.metrics.bootstrap import mean_interval
from latentsynth.metrics.lesions import lesion_scores, volume_error
from latentsynth.metrics.surfaces import dice, surface_scores, volume_ml
from latentsynth.results import Cell, Estimate, Picture, Result, Table, write_csv
from latentsynth.segmentation import Segmenter
from latentsynth.types import Case, Labels, Split

ANY = "any label"


@dataclass(frozen=True)
class Scores:
    """One label of one case. The columns of ``segmenter.csv``.

    Attributes:
        case: Case id.
        patient: Patient id.
        label: Label name, or "any label" for all of them together.
        dice: Overlap, 0 to 1.
        surface_dice: Share of both surfaces within the tolerance of each other.
        hd95_mm: 95th percentile Hausdorff distance.
        reference_ml: Annotated volume.
        predicted_ml: Volume found.
        volume_error_ml: Found minus annotated.
        volume_error: The same as a share of the annotated volume.
        lesions: Connected annotated pieces.
        lesions_found: Of them, those of which at least a tenth was found.
        false_positives: Connected pieces found where nothing is annotated.
        empty: Which of the two masks is empty, if any.
    """

    case: str
    patient: str
    label: str
    dice: float
    surface_dice: float
    hd95_mm: float
    reference_ml: float
    predicted_ml: float
    volume_error_ml: float
    volume_error: float
    lesions: int
    lesions_found: int
    false_positives: int
    empty: str


def score_case(
    case: Case,
    reference: np.ndarray,
    predicted: np.ndarray,
    spacing_mm: Sequence[float],
    labels: Labels,
    tolerance_mm: float,
) -> list[Scores]:
    """Scores of every label but background, and of all together where there are several.

    Args:
        case: For its names.
        reference: Annotated label values, ``(I, J, K)``.
        predicted: Label values found, same shape.
        spacing_mm: Millimetres per voxel along the arrays' own axes.
        labels: Label values and names.
        tolerance_mm: Tolerance of the surface Dice.
    """
    pairs = {n: (reference == v, predicted == v) for v, n in zip(labels.values, labels.names, strict=True) if v}
    if len(pairs) > 1:
        pairs[ANY] = (reference > 0, predicted > 0)
    rows = []
    for name, (wanted, found) in pairs.items():
        surfaces = surface_scores(wanted, found, spacing_mm, tolerance_mm)
        lesions = lesion_scores(wanted, found, spacing_mm)
        ml, relative = volume_error(wanted, found, spacing_mm)
        rows.append(
            Scores(
                case.case_id,
                case.patient_id,
                name,
                dice(wanted, found),
                surfaces.surface_dice,
                surfaces.hd95_mm,
                volume_ml(wanted, spacing_mm),
                volume_ml(found, spacing_mm),
                ml,
                relative,
                lesions.lesions,
                lesions.found,
                lesions.false_positives,
                surfaces.empty,
            )
        )
    return rows


def evaluate_segmenter(
    path: Path,
    manifest_path: Path,
    out: Path,
    accelerator: Accelerator,
    split: Split = "test",
    region: str = "auto",
    tolerance_mm: float | None = None,
) -> Result:
    """Segments the cases of a split and scores them on their own voxel grids.

    Args:
        path: Run or checkpoint folder of a segmenter.
        manifest_path: Annotated cases.
        out: Folder for ``segmenter.json``, ``segmenter.csv`` and ``segmenter.png``.
        accelerator: The processes that share the cases.
        split: Which cases.
        region: ``"scan"`` segments the whole field of view, ``"crop"`` the grid as training laid it (around the
            annotated lesion, for a segmenter trained on crops), ``"auto"`` does as training did.
        tolerance_mm: Tolerance of the surface Dice; None takes the longest voxel edge, the median over cases.

    Raises:
        DataError: The cohort does not fit the segmenter, or it was trained on these patients.
        CheckpointError: No segmenter there.
    """
    model = Segmenter.from_pretrained(path).to(accelerator.device)
    cohort = Cohort.load("cases", manifest_path, (split,), annotated=True)
    model.check(cohort.manifest.channels, cohort.manifest.labels, manifest_path)
    notes = check_new(cohort.cases, *model.ledger.seen(cohort.cases), "the segmenter", allowed=split == "train")
    whole = region == "scan" or (region == "auto" and model.domain.framing.crop == "whole")
    if not whole and model.domain.framing.crop == "lesion":
        notes.append("the segmenter was shown a crop centred on the annotated lesion; it did not have to find it")
    edges = [max(_spacing(nifti.geometry(case.images[0])[1])) for case in cohort.cases]
    tolerance = float(np.median(edges)) if tolerance_mm is None else tolerance_mm

    def score(n: int) -> list[Scores]:
        case = cohort.cases[n]
        assert case.mask is not None
        reference, affine = read_mask(case.mask, model.domain.labels)
        predicted, _ = model.segment(case, whole)
        return score_case(case, reference, predicted, _spacing(affine), model.domain.labels, tolerance)

    rows = [row for rows in over_cases(accelerator, "segmenting", cohort.cases, score) for row in rows]
    result = _result(model, cohort, rows, tolerance, whole, notes)
    if accelerator.is_main_process:
        make_folder(out)
        write_csv(out / "segmenter.csv", [f.name for f in fields(Scores)], map(astuple, rows))
        _sheet(out / result.pictures[0].file, model, cohort, rows, whole)
        result.save(out)
    accelerator.wait_for_everyone()
    return result


def _result(
    model: Segmenter, cohort: Cohort, rows: list[Scores], tolerance: float, whole: bool, notes: list[str]
) -> Result:
    names = list(dict.fromkeys(row.label for row in rows))
    by_label = {name: [row for row in rows if row.label == name] for name in names}
    tables = [
        Table(
            f"segmentation of {len(cohort.cases)} cases",
            ("label", "cases", "Dice", "median Dice", f"surface Dice ({tolerance:.3g} mm)", "HD95 (mm)", "volume error",
             "lesions found", "false positives per case"),
            tuple(_summary(name, of) for name, of in by_label.items()),
            "mean over cases with its 95 % bootstrap interval over patients; volume error: found minus annotated, as a share",
        )
    ]  # fmt: skip
    main = by_label.get(ANY, by_label[names[0]])
    strata = Strata.of([row.reference_ml for row in main])
    if strata is not None:
        tables.append(
            Table(
                f"by annotated volume ({main[0].label})",
                ("stratum", "cases", "Dice", f"surface Dice ({tolerance:.3g} mm)", "HD95 (mm)", "lesions found"),
                tuple(
                    _stratum(name, [row for row in main if strata.name(row.reference_ml) == name])
                    for name in strata.names
                ),
            )
        )
    kinds = Counter(row.empty for row in rows if row.empty)
    conventions = {
        "both": "no voxel annotated and none found: Dice 1, HD95 0",
        "predicted": "nothing found where something is annotated: Dice 0, HD95 the image diagonal",
        "reference": "something found where nothing is annotated: Dice 0, HD95 the image diagonal",
    }
    notes = notes + [f"{count} of {len(rows)} label scores: {conventions[kind]}" for kind, count in kinds.items()]
    facts = {
        "segmenter": model.fingerprint,
        "trained_on": dict(model.trained_on),
        "cohort": cohort.manifest.fingerprint,
        "cases": len(cohort.cases),
        "region": "scan" if whole else "crop",
        "tolerance_mm": tolerance,
    }
    picture = Picture("segmenter.png", "best, median and worst case: annotation, and what the segmenter found")
    return Result("segmenter", "Segmentation of real patients", facts, tuple(tables), (picture,), tuple(notes))


def _summary(name: str, rows: list[Scores]) -> tuple[Cell, ...]:
    lesions = sum(row.lesions for row in rows)
    return (
        name, len(rows), _mean(rows, "dice"), float(np.median([row.dice for row in rows])), _mean(rows, "surface_dice"),
        _mean(rows, "hd95_mm"), _mean(rows, "volume_error"),
        f"{sum(row.lesions_found for row in rows)} of {lesions}",
        float(np.mean([row.false_positives for row in rows])),
    )  # fmt: skip


def _stratum(name: str, rows: list[Scores]) -> tuple[Cell, ...]:
    found = f"{sum(row.lesions_found for row in rows)} of {sum(row.lesions for row in rows)}"
    return (name, len(rows), *(_mean(rows, key) for key in ("dice", "surface_dice", "hd95_mm")), found)


def _mean(rows: list[Scores], key: str) -> Estimate:
    patients = [row.patient for row in rows]
    return Estimate(*mean_interval([getattr(row, key) for row in rows], patients, rng()))


def _spacing(affine: np.ndarray) -> tuple[float, ...]:
    """Millimetres per voxel along the file's own axes."""
    return tuple(float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))


def _sheet(path: Path, model: Segmenter, cohort: Cohort, rows: list[Scores], whole: bool) -> None:
    """Picture of the best, median and worst case, annotation beside what was found, in the segmenter's own frame."""
    overall: dict[str, float] = {}
    for case in cohort.cases:
        overall[case.case_id] = float(
            np.mean([row.dice for row in rows if row.case == case.case_id and row.label != ANY])
        )
    order = sorted(overall, key=lambda name: -overall[name])
    chosen: dict[str, str] = {}
    for name, word in ((order[0], "best"), (order[-1], "worst"), (order[len(order) // 2], "median")):
        chosen.setdefault(name, word)
    tiles = []
    for name, word in sorted(chosen.items(), key=lambda pair: order.index(pair[0])):
        case = next(case for case in cohort.cases if case.case_id == name)
        assert case.mask is not None
        frame = model.frame(case, whole)
        image, _ = window_channels(
            [nifti.read(file) for file in case.images], model.domain.grid.windows, frame, case.images
        )
        reference, affine = read_mask(case.mask, model.domain.labels)
        wanted, found = (
            to_index(resample_labels(values, affine, frame), model.domain.labels)
            for values in (reference, model.segment(case, whole)[0])
        )
        tiles.append(
            [Tile(f"{word}: {name}, annotated", image, wanted), Tile(f"found, Dice {overall[name]:.3f}", image, found)]
        )
    contact_sheet(
        path,
        tiles,
        model.domain.grid.spacing_mm,
        "left the annotation, right what the segmenter found",
        model.domain.lesion_indices,
    )
