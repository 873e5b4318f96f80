"""Mask obedience: a segmenter trained on real patients re-segments volumes, and is compared with the masks asked for.

A conditional model that ignores its mask looks fine, so the score never stands alone: beside it the same score with
masks exchanged between cases, on real patients, on reconstructions of them by the autoencoder, by lesion size; and the
intensities inside and around the lesions against real ones, since a caricature is easier to segment than a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import (
    Cohort,
    check_names,
    check_new,
    chosen_on,
    generator_saw,
    other_spacing,
    rng,
)
from latentsynth.evaluation.obedience.intensities import Intensities, contrasts, distances, draw, intensities_of
from latentsynth.evaluation.segmentation.predictions import Predictions, open_segmenter
from latentsynth.evaluation.segmentation.strata import DIAMETERS, SizeBins, recall_by_diameter
from latentsynth.evaluation.sheets import same_masks, shared_patients
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.metrics.bootstrap import SHARE, mean_interval, ratio_interval
from latentsynth.metrics.lesions import LesionScores, lesion_scores
from latentsynth.metrics.surfaces import dice, mean_dice
from latentsynth.parallel import over_cases
from latentsynth.plots import strips
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
from latentsynth.segmentation import Segmenter

_SHIFTS = 5  # other masks that each case is compared with
_SHOWN = 5
AS_REAL = 0.95  # share of the Dice in real scans from which volumes are said to show their masks as these do


@dataclass(frozen=True)
class Answer:
    """What a segmenter says to one volume, on the segmenter's grid.

    Attributes:
        mask: Label indices asked for, ``(I, J, K)``.
        found: Label indices found.
        ml: Volume of the lesion labels asked for.
        dice: Mean Dice over labels of what was found with what was asked for; not a number where both are empty.
        intensities: Inside and around the lesion.
        lesions: Which of the lesions asked for were found, one to one.
    """

    mask: np.ndarray
    found: np.ndarray
    ml: float
    dice: float
    intensities: Intensities
    lesions: LesionScores


def evaluate_obedience(
    path: Path,
    samples: Sequence[Cohort],
    references: Sequence[Cohort],
    out: Path,
    accelerator: Accelerator,
    like: Path | None = None,
) -> Result:
    """Measures how well volumes show the masks they were made for.

    Args:
        path: Run or checkpoint folder of a segmenter that was trained on real patients, or folder of the label maps that
            another program found in all of the volumes.
        samples: Synthetic cohorts.
        references: Real patients the segmenter never saw, first, and whatever else should stand beside the samples
            (reconstructions of the same patients); may be empty.
        out: Folder for ``obedience.json``, ``obedience.csv`` and pictures.
        accelerator: The processes that share the cases.
        like: For label maps, run or checkpoint folder whose grid they are compared on; None chooses one.

    Raises:
        DataError: A cohort does not fit the segmenter, or it was trained on the real patients.
        CheckpointError: No segmenter there.
    """
    cohorts = [*references, *samples]
    check_names(cohorts)
    if not samples:
        raise DataError("no synthetic cohort was given: give at least one, --samples NAME=MANIFEST")
    model = open_segmenter(path, cohorts[0].manifest, like).to(accelerator.device)
    notes = [model.remark] if model.remark else []
    for cohort in cohorts:
        model.check(cohort.manifest.channels, cohort.manifest.labels, cohort.name)
        real = [case for case in cohort.cases if case.source == "real"]
        if real:
            notes += check_new(real, *model.ledger.seen(real), "the segmenter")
        notes += _parents_seen(model, cohort)
    everyone = [case for cohort in references for case in cohort.cases if case.source == "real"]
    notes += chosen_on(everyone)
    for cohort in samples:
        notes += [*generator_saw(everyone, cohort), *other_spacing(everyone, cohort)]
    if accelerator.is_main_process:
        open_results(out)
    answers = {cohort.name: _answers(model, cohort, accelerator) for cohort in cohorts}
    labels = len(model.domain.labels)
    others = {cohort.name: exchanged(answers[cohort.name], cohort.patients, labels) for cohort in cohorts}
    result = _result(model, cohorts, len(references), answers, others, notes)
    if accelerator.is_main_process:
        result.save(out)  # first: a picture that fails must not cost the numbers
        _write(out, model, cohorts, len(references), answers, others)
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def _parents_seen(model: Segmenter | Predictions, cohort: Cohort) -> list[str]:
    """A note where masks belong to patients that the segmenter was trained on: it may know their shapes."""
    made = [case for case in cohort.cases if case.source != "real" and case.parents]
    parents = [replace(case, patient_id=case.parents[0], voxels=()) for case in made]
    seen, _ = model.ledger.seen(parents)
    if not seen:
        return []
    return [f"{cohort.name}: {len(seen)} of {len(cohort.cases)} masks come from patients the segmenter was trained on"]


def _answers(model: Segmenter | Predictions, cohort: Cohort, accelerator: Accelerator) -> list[Answer]:
    lesions = model.domain.lesion_indices
    voxel_ml = float(np.prod(model.domain.grid.spacing_mm)) / 1000

    def answer(n: int) -> Answer:
        volume = model.recipe.read(cohort.cases[n])
        assert volume.mask is not None
        inside = np.isin(volume.mask, lesions)
        ml = float(inside.sum()) * voxel_ml * volume.zoom**3
        found = model.found(cohort.cases[n], volume.image)
        score = mean_dice(volume.mask, found, len(model.domain.labels))
        spacing = [mm * volume.zoom for mm in model.domain.grid.spacing_mm]
        pieces = lesion_scores(inside, np.isin(found, lesions), spacing)
        return Answer(volume.mask, found, ml, score, intensities_of(volume.image, inside), pieces)

    return over_cases(accelerator, f"segmenting {cohort.name}", cohort.cases, answer)


def exchanged(answers: Sequence[Answer], patients: Sequence[str], labels: int) -> list[float]:
    """For every case the mean Dice of what was found with the masks of some other patients; nan where there is none."""
    exchange = rng()
    scores = []
    for answer, patient in zip(answers, patients, strict=True):
        others = [
            n
            for n, other in enumerate(patients)
            if other != patient and not np.array_equal(answers[n].mask, answer.mask)
        ]
        chosen = exchange.permutation(others)[:_SHIFTS]
        values = [mean_dice(answers[n].mask, answer.found, labels) for n in chosen]
        finite = [value for value in values if np.isfinite(value)]
        scores.append(float(np.mean(finite)) if finite else float("nan"))
    return scores


def _result(
    model: Segmenter | Predictions,
    cohorts: Sequence[Cohort],
    references: int,
    answers: dict[str, list[Answer]],
    others: dict[str, list[float]],
    notes: list[str],
) -> Result:
    labels = len(model.domain.labels)
    own = {name: [answer.dice for answer in of] for name, of in answers.items()}
    reference = cohorts[0] if references else None
    rows: list[tuple[TableCell, ...]] = []
    concluded = []
    for cohort in cohorts:
        share = (
            Estimate(
                *ratio_interval((own[cohort.name], cohort.patients), (own[reference.name], reference.patients), rng())
            )
            if reference is not None and cohort is not reference
            else None
        )
        if share and cohort in cohorts[references:]:
            concluded.append(_conclusion(cohort.name, share))
        rows.append(
            (
                cohort.name, len(cohort.cases), len(set(cohort.patients)), cohort.mean(own[cohort.name], SHARE), share,
                cohort.mean(others[cohort.name], SHARE),
            )
        )  # fmt: skip
    tables = [
        Table(
            "Dice of what the segmenter finds with the mask that was asked for",
            ("volumes", "n", "patients", "own mask", f"share of {reference.name if reference else 'real'}", "other patients' masks"),
            tuple(rows),
            "mean over labels and cases, then patients or masks, on the segmenter's grid, with 95 % intervals over these; the last column "
            "is what a model that ignores its mask would get",
        )
    ]  # fmt: skip
    if labels > 2:
        tables.append(_by_label(model, cohorts, answers))
    tables += _by_size(cohorts, answers, own)
    tables.append(_lesions(cohorts, answers))
    if reference is not None:
        intensities = {name: [answer.intensities for answer in of] for name, of in answers.items()}
        tables.append(distances(model.domain.channels, cohorts, intensities))
        tables.append(contrasts(model.domain.channels, cohorts, intensities))
    else:
        notes = [*notes, "no real patients were given: without --real nothing says how good the segmenter itself is"]
    for cohort in cohorts:
        silent = sum(not np.isfinite(score) for score in own[cohort.name])
        if silent:
            notes = [
                *notes,
                f"{cohort.name}: in {silent} cases no label is asked for and none found; they count nowhere",
            ]
    facts = {
        "segmenter": model.fingerprint,
        "trained_on": dict(model.trained_on),
        "cohorts": {c.name: {"manifest": c.manifest.fingerprint, "cases": len(c.cases)} for c in cohorts},
        "dice": {name: float(np.nanmean(values)) for name, values in own.items()},
    }
    pictures = [
        Picture("obedience_cases.png", "volumes with the mask asked for, and with what the segmenter found"),
        Picture("obedience_dice.png", "Dice of every case with its own mask"),
    ]
    if len(cohorts) > 1 and shared_patients(cohorts):
        pictures.insert(0, Picture("obedience_masks.png", "volumes of all cohorts for the same masks"))
    if reference is not None:
        pictures.append(Picture("obedience_intensities.png", "intensities inside and around the lesions"))
    return Result("obedience", "Do volumes show the masks they were made for?", facts, tuple(tables), tuple(pictures), tuple(notes), splits=reference.splits if reference else (), conclusions=tuple(concluded))  # fmt: skip


def _conclusion(name: str, share: Estimate) -> Conclusion:
    reason = (
        f"a segmenter finds their masks in them {text(share)} times as well as in real scans; {AS_REAL} is asked for"
    )
    return Conclusion.at_least(Question.LOOK, name, share, AS_REAL, reason)


def _by_label(model: Segmenter | Predictions, cohorts: Sequence[Cohort], answers: dict[str, list[Answer]]) -> Table:
    names = model.domain.labels.names
    rows: list[tuple[TableCell, ...]] = [
        (cohort.name, *(
            cohort.mean([_label_dice(a, index) for a in answers[cohort.name]], SHARE)
            for index in range(1, len(names))
        ))
        for cohort in cohorts
    ]  # fmt: skip
    return Table("the same by label", ("volumes", *names[1:]), tuple(rows))


def _label_dice(answer: Answer, index: int) -> float:
    """Dice of one label; not a number where it is neither asked for nor found."""
    asked, found = answer.mask == index, answer.found == index
    return dice(asked, found) if asked.any() or found.any() else float("nan")


def _by_size(cohorts: Sequence[Cohort], answers: dict[str, list[Answer]], own: dict[str, list[float]]) -> list[Table]:
    """Strata of the first cohort's lesion volumes, the same for all."""
    strata = SizeBins.of([answer.ml for answer in answers[cohorts[0].name]])
    if strata is None:
        return []
    rows: list[tuple[TableCell, ...]] = []
    for cohort in cohorts:
        cells: list[Estimate | str] = []
        for name in strata.names:
            inside = [n for n, answer in enumerate(answers[cohort.name]) if strata.name(answer.ml) == name]
            values = [own[cohort.name][n] for n in inside]
            estimate = Estimate(*mean_interval(values, [cohort.patients[n] for n in inside], rng(), bounds=SHARE))
            cells += [estimate, str(len(inside))]
        rows.append((cohort.name, *cells))
    columns = ("volumes", *(part for name in strata.names for part in (name, "n")))
    return [Table("the same by lesion volume", columns, tuple(rows), f"thirds of the lesions of {cohorts[0].name}")]


def _lesions(cohorts: Sequence[Cohort], answers: dict[str, list[Answer]]) -> Table:
    """How many lesions are found again, one to one, and by their own size: a large one hides the small ones of its case."""
    rows: list[tuple[TableCell, ...]] = []
    for cohort in cohorts:
        pieces = [answer.lesions for answer in answers[cohort.name]]
        whole = (cohort.mean([getattr(one, key) for one in pieces]) for key in ("recall", "precision", "f1"))
        sizes = (cell for n, recall in recall_by_diameter(pieces, cohort.patients) for cell in (recall, n))
        rows.append((cohort.name, sum(one.lesions for one in pieces), *whole, *sizes))
    return Table(
        "lesions asked for that the segmenter finds, matched one to one",
        ("volumes", "lesions", "recall", "precision", "F1", *(part for name in DIAMETERS for part in (name, "n"))),
        tuple(rows),
        "connected pieces of all lesion labels, found where one found piece and one asked for share a tenth of their union; "
        "mean over cases, then recall of single lesions by diameter of the ball of the same volume; 95 % bootstrap intervals "
        "over patients",
    )


def _write(
    out: Path,
    model: Segmenter | Predictions,
    cohorts: Sequence[Cohort],
    references: int,
    answers: dict[str, list[Answer]],
    others: dict[str, list[float]],
) -> None:
    names = model.domain.labels.names
    rows = []
    for cohort in cohorts:
        for case, patient, answer, score in zip(
            cohort.cases, cohort.patients, answers[cohort.name], others[cohort.name], strict=True
        ):
            each = [_label_dice(answer, n) for n in range(1, len(names))]
            pieces = answer.lesions
            rows.append(
                (cohort.name, case.case_id, patient, answer.ml, answer.dice, *each, score, pieces.lesions, pieces.found,
                 pieces.false_positives)
            )  # fmt: skip
    columns = (
        "volumes",
        "case",
        "made_from",
        "lesion_ml",
        "dice",
        *(f"dice_{n}" for n in names[1:]),
        "dice_other_masks",
        "lesions",
        "lesions_found",
        "false_positives",
    )
    write_csv(out / "obedience.csv", columns, rows)
    strips(
        out / "obedience_dice.png",
        {name: [answer.dice for answer in of] for name, of in answers.items()},
        "Dice with the mask asked for",
    )
    if references:
        intensities = {name: [answer.intensities for answer in of] for name, of in answers.items()}
        draw(out / "obedience_intensities.png", model.domain.channels, cohorts, intensities)
    sheet = []
    for cohort in cohorts[references:]:
        for n in np.linspace(0, len(cohort.cases) - 1, min(_SHOWN, len(cohort.cases))).astype(int):
            image, answer = model.recipe.read(cohort.cases[n]).image, answers[cohort.name][n]
            sheet.append(
                [Tile(f"{cohort.name}: {cohort.cases[n].case_id}", image, answer.mask),
                 Tile(f"found, Dice {answer.dice:.3f}", image, answer.found)]
            )  # fmt: skip
    same_masks(out / "obedience_masks.png", cohorts, model.recipe.read, model.domain)
    title = "left the mask asked for, right what the segmenter found"
    contact_sheet(out / "obedience_cases.png", sheet, Legend.of(model.domain), title, model.domain.lesion_indices)
