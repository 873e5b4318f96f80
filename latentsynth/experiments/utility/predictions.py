"""The utility of synthetic patients for somebody else's segmenter, by the label maps that it made of real patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from accelerate import Accelerator

from latentsynth.config import MarginsConfig
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, chosen_on
from latentsynth.evaluation.segmentation.evaluate import score_cohort, usual_tolerance
from latentsynth.evaluation.segmentation.predictions import Predictions
from latentsynth.evaluation.segmentation.scores import SegmentationScores, plain
from latentsynth.experiments.utility.jobs import SeedScores
from latentsynth.experiments.utility.summary import (
    KIND,
    MEASURES,
    by_patient,
    comparisons,
    conclusion,
    over_seeds,
    sentences,
    tables,
    write_scores,
)
from latentsynth.provenance import file_fingerprint
from latentsynth.results import Result, close_results, open_results

_SEGMENTER, _SIZE = "label maps", "all"
_COLUMNS = tuple(field.name for field in fields(SegmentationScores))


@dataclass(frozen=True)
class Arms:
    """A :class:`latentsynth.experiments.utility.summary.Design` of label maps.

    Attributes:
        baseline: The arm that all others are compared with.
        seeds: A number for each training of every arm.
        margins: Differences that count as none.
        contrasts: None beside those with the baseline.
    """

    baseline: str
    seeds: tuple[int, ...]
    margins: MarginsConfig = MarginsConfig()  # noqa: RUF009 (frozen)
    contrasts: tuple[tuple[str, str], ...] = ()


def compare_predictions(
    cohort: Cohort, arms: Mapping[str, Sequence[Path]], baseline: str, out: Path, accelerator: Accelerator
) -> Result:
    """Scores the label maps of every arm, and compares each with the baseline as a utility study does.

    Args:
        cohort: Annotated patients that no arm was trained on.
        arms: By name the folders of label maps ``CASE.nii.gz``, one per training, in the same order for all arms.
        baseline: Name of the arm that all others are compared with.
        out: Folder for ``utility.json`` and ``utility.csv``.
        accelerator: The processes that share the cases; the first one writes.

    Raises:
        DataError: No such baseline, one arm alone, other numbers of folders, folders of equal label maps; a label map that is
            missing, holds other labels or lies on another grid than its scan.
    """
    _check(arms, baseline)
    models = {arm: [Predictions.load(folder, cohort.manifest) for folder in folders] for arm, folders in arms.items()}
    _check_different(cohort, models)
    if accelerator.is_main_process:
        open_results(out)
    tolerance, labels = usual_tolerance(cohort), cohort.manifest.labels
    by_seed: SeedScores = {}
    for arm, trained in models.items():
        lesions = {labels.names[labels.values.index(value)] for value in labels.lesions(trained[0].domain.framing)}
        scored = [score_cohort(model, cohort, tolerance, accelerator) for model in trained]
        by_seed[_SEGMENTER, _SIZE, arm] = {
            seed: by_patient([_text(row) for row in rows], lesions) for seed, rows in enumerate(scored)
        }
    design, scores = Arms(baseline, tuple(range(len(arms[baseline])))), over_seeds(by_seed)
    found = comparisons(design, by_seed)
    result = Result(
        KIND,
        "Does training on synthetic patients help a segmenter of another program?",
        {"cohort": cohort.manifest.fingerprint, "baseline": baseline, "margins": design.margins.model_dump(),
         "seeds": list(design.seeds), "sizes": [_SIZE], "tolerance_mm": tolerance,
         "arms": {arm: {"label_maps": [model.fingerprint for model in trained]} for arm, trained in models.items()},
         "comparisons": [asdict(one) for one in found]},
        tables(design, scores, found),
        (),
        (*sentences(design, found), "label maps stand for segmenters: whom each was trained on is your word", *chosen_on(cohort.cases)),
        splits=cohort.splits,
        conclusions=tuple(conclusion(one) for one in found if one.measure == MEASURES[0] and one.reference == baseline),
    )  # fmt: skip
    if accelerator.is_main_process:
        result.save(out)
        write_scores(out, scores)
        close_results(out, result)
    accelerator.wait_for_everyone()
    return result


def _text(row: SegmentationScores) -> dict[str, str]:
    """A row as it stands in ``segmenter.csv``."""
    return dict(zip(_COLUMNS, map(str, plain(row)), strict=True))


def _check(arms: Mapping[str, Sequence[Path]], baseline: str) -> None:
    if baseline not in arms or len(arms) < 2:
        raise DataError(f"arms {', '.join(arms)}: give two or more, and among them the baseline, {baseline!r}")
    counts = {arm: len(folders) for arm, folders in arms.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"folders of label maps by arm: {counts}: give every arm as many, since trainings are paired")


def _check_different(cohort: Cohort, models: Mapping[str, Sequence[Predictions]]) -> None:
    """One folder under two names would be two trainings that agree perfectly, or arms without a difference.

    Raises:
        DataError: With both, or with the case that one lacks.
    """
    known: dict[str, str] = {}
    for arm, trained in models.items():
        for model in trained:
            held = file_fingerprint(*map(model.file, cohort.cases))
            if held in known:
                raise DataError(
                    f"{known[held]} and {model.folder} of arm {arm} hold the same label maps: give those of each training"
                )
            known[held] = f"{model.folder} of arm {arm}"
