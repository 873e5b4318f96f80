"""Scoring a segmenter on annotated patients: overlap, surfaces in mm, lesions found, volume; by case, label and size."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from nibabel.affines import voxel_sizes

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import read_mask, to_index
from latentsynth.data.frames import resample
from latentsynth.evaluation.cohorts import Cohort, check_new, chosen_on, rng
from latentsynth.evaluation.segmentation.predictions import Predictions, open_segmenter
from latentsynth.evaluation.segmentation.scores import UNION, SegmentationScores, plain, score_case
from latentsynth.evaluation.segmentation.strata import DIAMETERS, SizeBins, recall_by_diameter
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.metrics.bootstrap import SHARE, Bounds, mean_interval
from latentsynth.parallel import over_cases
from latentsynth.results import Estimate, Picture, Result, Table, TableCell, close_results, open_results, write_csv
from latentsynth.segmentation import Segmenter
from latentsynth.types import Split

_BOUNDS: dict[str, Bounds] = {"hd95_mm": (0, np.inf), "volume_error": (-1, np.inf)}  # the others are shares


def evaluate_segmenter(
    path: Path,
    manifest_path: Path,
    out: Path,
    accelerator: Accelerator,
    split: Split = "val",
    region: str = "auto",
    tolerance_mm: float | None = None,
) -> Result:
    """Segments the cases of a split and scores them on their own voxel grids.

    Args:
        path: Run or checkpoint folder of a segmenter, or folder of the label maps that another program found.
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
    cohort = Cohort.load("cases", manifest_path, (split,), annotated=True)
    model = open_segmenter(path, cohort.manifest).to(accelerator.device)
    model.check(cohort.manifest.channels, cohort.manifest.labels, manifest_path)
    notes = check_new(cohort.cases, *model.ledger.seen(cohort.cases), "the segmenter", allowed=split == "train")
    notes += chosen_on(cohort.cases)
    notes += [model.remark] if isinstance(model, Predictions) else []
    whole = region == "scan" or (region == "auto" and model.domain.framing.crop == "whole")
    if not whole and model.domain.framing.crop == "lesion":
        notes.append("the segmenter was shown a crop centred on the annotated lesion; it did not have to find it")
    if accelerator.is_main_process:
        open_results(out)
    tolerance = usual_tolerance(cohort) if tolerance_mm is None else tolerance_mm
    rows = score_cohort(model, cohort, tolerance, accelerator, whole)
    result = _result(model, cohort, rows, tolerance, whole, notes)
    if accelerator.is_main_process:
        result.save(out)  # first: a picture that fails must not cost the numbers
        write_csv(out / "segmenter.csv", [f.name for f in fields(SegmentationScores)], map(plain, rows))
        _sheet(out / result.pictures[0].file, model, cohort, rows, whole)
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def usual_tolerance(cohort: Cohort) -> float:
    """Of the surface Dice, in mm: the longest voxel edge, the median over cases."""
    return float(np.median([max(voxel_sizes(nifti.geometry(case.images[0])[1])) for case in cohort.cases]))


def score_cohort(
    model: Segmenter | Predictions, cohort: Cohort, tolerance_mm: float, accelerator: Accelerator, whole: bool = True
) -> list[SegmentationScores]:
    """Scores of every label of every case, on the cases' own grids.

    Raises:
        DataError: A label map is missing, or lies on another grid than its scan.
    """
    labels = model.domain.labels
    lesions = labels.lesions(model.domain.framing)

    def score(n: int) -> list[SegmentationScores]:
        case = cohort.cases[n]
        assert case.mask is not None
        reference, affine = read_mask(case.mask, labels)
        predicted, _ = model.segment(case, whole)
        return score_case(case, reference, predicted, voxel_sizes(affine).tolist(), labels, lesions, tolerance_mm)

    return [row for rows in over_cases(accelerator, "segmenting", cohort.cases, score) for row in rows]


def _result(
    model: Segmenter | Predictions,
    cohort: Cohort,
    rows: list[SegmentationScores],
    tolerance: float,
    whole: bool,
    notes: list[str],
) -> Result:
    names = list(dict.fromkeys(row.label for row in rows))
    by_label = {name: [row for row in rows if row.label == name] for name in names}
    tables = [
        Table(
            f"segmentation of {len(cohort.cases)} cases",
            ("label", "cases", "Dice", "median Dice", f"surface Dice ({tolerance:.3g} mm)", "HD95 (mm)", "volume error",
             "lesions found"),
            tuple(_summary(name, of) for name, of in by_label.items()),
            "mean over patients with its 95 % interval; volume error: found minus annotated, as a share",
        )
    ]  # fmt: skip
    tables.append(_matched(by_label))
    lesion = next(n for n, v in zip(model.domain.labels.names, model.domain.labels.values, strict=True)
                  if v == model.domain.labels.lesions(model.domain.framing)[0])  # fmt: skip
    main = by_label.get(UNION, by_label[lesion])
    strata = SizeBins.of([row.reference_ml for row in main])
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
    tables += _by_diameter(main)
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
    return Result(
        "segmenter",
        "Segmentation of real patients",
        facts,
        tuple(tables),
        (picture,),
        tuple(notes),
        splits=cohort.splits,
    )


def _matched(by_label: dict[str, list[SegmentationScores]]) -> Table:
    return Table(
        "lesions, matched one to one",
        ("label", "lesions", "recall", "precision", "F1", "false positives per case"),
        tuple(
            (name, sum(row.lesions for row in rows), _mean(rows, "lesion_recall"), _mean(rows, "lesion_precision"),
             _mean(rows, "lesion_f1"), float(np.mean([row.false_positives for row in rows])))
            for name, rows in by_label.items()
        ),
        "connected pieces, found where one found piece and one annotated piece share a tenth of their union; mean over the "
        "cases that have lesions (recall), found pieces (precision), either (F1)",
    )  # fmt: skip


def _by_diameter(rows: list[SegmentationScores]) -> list[Table]:
    """Recall of single lesions by their own size: a large one hides the small ones of its case."""
    if not any(row.lesions for row in rows):
        return []
    found = recall_by_diameter([row.pieces for row in rows], [row.patient for row in rows])
    lines = tuple((name, count, recall) for name, (count, recall) in zip(DIAMETERS, found, strict=True))
    note = "diameter of the ball of the same volume; mean over lesions with its 95 % bootstrap interval over patients"
    return [Table(f"lesions by diameter ({rows[0].label})", ("diameter", "lesions", "recall"), lines, note)]


def _summary(name: str, rows: list[SegmentationScores]) -> tuple[TableCell, ...]:
    return (
        name, len(rows), _mean(rows, "dice"), float(np.median([row.dice for row in rows])), _mean(rows, "surface_dice"),
        _mean(rows, "hd95_mm"), _mean(rows, "volume_error"),
        f"{sum(row.lesions_found for row in rows)} of {sum(row.lesions for row in rows)}",
    )  # fmt: skip


def _stratum(name: str, rows: list[SegmentationScores]) -> tuple[TableCell, ...]:
    found = f"{sum(row.lesions_found for row in rows)} of {sum(row.lesions for row in rows)}"
    return (name, len(rows), *(_mean(rows, key) for key in ("dice", "surface_dice", "hd95_mm")), found)


def _mean(rows: list[SegmentationScores], key: str) -> Estimate:
    patients = [row.patient for row in rows]
    bounds = _BOUNDS.get(key, SHARE)
    return Estimate(*mean_interval([getattr(row, key) for row in rows], patients, rng(), bounds=bounds))


def _sheet(
    path: Path, model: Segmenter | Predictions, cohort: Cohort, rows: list[SegmentationScores], whole: bool
) -> None:
    """Picture of the best, median and worst case, annotation beside what was found, in the segmenter's own frame."""
    overall: dict[str, float] = {}
    for case in cohort.cases:
        overall[case.case_id] = float(
            np.mean([row.dice for row in rows if row.case == case.case_id and row.label != UNION])
        )
    order = sorted(overall, key=lambda name: -overall[name])
    chosen: dict[str, str] = {}
    for name, word in ((order[0], "best"), (order[-1], "worst"), (order[len(order) // 2], "median")):
        chosen.setdefault(name, word)
    tiles = []
    for name, word in sorted(chosen.items(), key=lambda pair: order.index(pair[0])):
        case = next(case for case in cohort.cases if case.case_id == name)
        assert case.mask is not None
        image, frame, found = model.look(case, whole)
        reference, affine = read_mask(case.mask, model.domain.labels)
        nearest = resample(reference, affine, frame, 0, smooth=False, order=0)  # a picture needs no coverage
        wanted = to_index(nearest, model.domain.labels)
        tiles.append(
            [Tile(f"{word}: {name}, annotated", image, wanted), Tile(f"found, Dice {overall[name]:.3f}", image, found)]
        )
    contact_sheet(
        path,
        tiles,
        Legend.of(model.domain),
        "left the annotation, right what the segmenter found",
        model.domain.lesion_indices,
    )
