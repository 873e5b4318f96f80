"""The whole memorization measurement: from manifests or folders to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.data.intake.splits import split_patients
from latentsynth.data.manifest import Manifest
from latentsynth.documents import finite_number, read_csv
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, check_names, rng
from latentsynth.evaluation.features import comparison_space, contrastive_extractor, train_contrastive, volumes
from latentsynth.evaluation.inputs import check_apart, halves, open_cohort
from latentsynth.evaluation.memorization.headers import Arrays
from latentsynth.evaluation.memorization.measures import (
    PatientGroups,
    copies_of_each,
    search_copies,
    search_mask_copies,
)
from latentsynth.evaluation.memorization.positive_controls import drawn
from latentsynth.evaluation.memorization.report import copy_rate, write_memorization
from latentsynth.evaluation.memorization.spaces import OWN, FeatureSpace, own_space
from latentsynth.extractors.networks import extractor
from latentsynth.metrics.conformal import check_level
from latentsynth.metrics.membership import Membership, membership
from latentsynth.results import Note, Result, close_results, open_results
from latentsynth.types import Framing, Grid

_BARE = "copies without headers"
DEFAULT = ("voxels", "registered", "parts")


def measure_memorization(
    train: Path,
    heldout: Path,
    samples: Sequence[tuple[str, Path]],
    out: Path,
    accelerator: Accelerator,
    spaces: Sequence[str] | None = None,
    like: Path | None = None,
    level: float = 0.05,
    losses: Mapping[str, Path] | None = None,
    dar2024: bool = False,
    cache: Path = Path("runs/cache"),
    images: int = 16000,
) -> tuple[Result, float]:
    """Measures synthetic sets of any origin against their training patients.

    Args:
        train: Manifest or folder of the training patients.
        heldout: Of patients that no generator saw; half of them calibrate, half pose as a generator.
        samples: Name and manifest or folder of each synthetic set.
        out: Folder for the report.
        accelerator: The processes that share the volumes.
        spaces: How volumes are compared; None takes :data:`DEFAULT`.
        like: Run or checkpoint folder whose grid is taken; None chooses one.
        level: Level of the p-values.
        losses: By name, CSV files of losses of training and held-out cases.
        dar2024: Also apply the published rule of 2024.
        cache: Where volumes and detectors are kept.
        images: How long to train a copy detector.

    Returns:
        The report, and the highest copy rate by a valid feature space (not a number if none is valid).

    Raises:
        DataError: Cohorts that do not fit together, too few held-out patients, or held-out patients that were seen.
    """
    learned = open_cohort("training patients", train, ("train",))
    channels = len(learned.manifest.channels)
    unseen = open_cohort("held-out patients", heldout, ("val", "test"), channels=channels)
    sets = [open_cohort(name, path, real=False, channels=channels) for name, path in samples]
    groups = PatientGroups(learned, *halves(unseen))
    check_names((*groups.all, *sets))
    for cohort in (unseen, *sets):
        if len(cohort.manifest.channels) != len(learned.manifest.channels):
            raise DataError(
                f"{cohort.name} has channels {cohort.manifest.channels}, the training patients have "
                f"{learned.manifest.channels}: give the same images"
            )
    check_level(level)  # before anything is read
    notes = check_apart(learned, unseen, sets)
    arrays = Arrays(learned, cache)
    arrays.check_apart(unseen)
    aligned = [arrays.aligned(cohort) for cohort in sets]
    notes += [note for _, said in aligned for note in said]
    losses_of = {name: _membership(path, groups) for name, path in (losses or {}).items()}
    grid, framing = comparison_space(like, learned.manifest)
    masks = _comparable_masks(groups, sets)
    labels = learned.manifest.labels
    if framing.crop == "lesion" and not masks:
        raise DataError(f"{like} looks at crops around lesions, and some cases have no mask: give all cases masks")
    if accelerator.is_main_process:
        open_results(out)
    laid = (*groups.all, *(cohort for cohort, _ in aligned))
    caches = {c.name: volumes(c, grid, framing, labels, cache, accelerator, masks) for c in laid}
    if not masks:
        notes.append(
            Note("masks were not compared: some cases have none, all of one side are empty, or their labels differ")
        )
    chosen = [_space(word, learned, caches[learned.name], grid, framing, cache, images) for word in spaces or DEFAULT]
    names = [one.name for one in chosen]
    if len(set(names)) < len(names):
        raise DataError(
            f"feature spaces {', '.join(names)}: tables could not tell two of one name apart; rename the files"
        )
    bare = arrays.without_headers(
        [learned.cases[n] for n in drawn(len(learned.cases), copies_of_each(groups, sets))], _BARE
    )
    without_headers = volumes(arrays.aligned(bare)[0], grid, framing, labels, cache, accelerator, masks)
    searches = search_copies(chosen, groups, sets, caches, accelerator, level, dar2024, without_headers)
    of_masks = search_mask_copies(groups, sets, caches, accelerator, level) if masks else None
    exact = {cohort.name: arrays.twins(cohort) for cohort in sets}
    result = write_memorization(
        out, groups, sets, searches, of_masks, caches, level, accelerator, notes, losses_of, exact
    )  # fmt: skip
    if accelerator.is_main_process:
        close_results(out, result)
    return result, copy_rate(searches, exact)


def _comparable_masks(groups: PatientGroups, sets: Sequence[Cohort]) -> bool:
    """Whether every case has a mask in the same labels, and no side of the patients has empty ones alone."""
    cohorts = (*groups.all, *sets)
    labels = {cohort.manifest.labels.values for cohort in cohorts}
    every = all(case.mask is not None for cohort in cohorts for case in cohort.cases)
    return len(labels) == 1 and every and all(any(c.marked for c in side.cases) for side in groups.all)


def _space(
    word: str, train: Cohort, training: VolumeCache, grid: Grid, framing: Framing, cache: Path, images: int
) -> FeatureSpace:
    kind, _, rest = word.partition(":")
    if word in OWN:
        return own_space(word, training)
    if kind != "contrastive":
        return FeatureSpace(extractor(word, grid.channels))
    folder = (
        Path(rest) if rest else train_contrastive(_fitting(train, cache), grid, framing, cache, images, copies=True)
    )
    return FeatureSpace(contrastive_extractor(folder, grid, projected=True))


def _fitting(train: Cohort, cache: Path) -> Path:
    """A manifest of the training patients alone, some of them set aside to watch the detector's training."""
    split = split_patients([case.patient_id for case in train.cases], (0.9, 0.1, 0.0))
    cases = tuple(replace(case, split=split[case.patient_id]) for case in train.cases)
    manifest: Manifest = replace(train.manifest, name="detector", cases=cases)
    path = cache / "extractors" / f"{manifest.fingerprint}.json"
    if not path.is_file():
        manifest.save(path)
    return path


def _membership(path: Path, groups: PatientGroups) -> Membership:
    """Membership inference from a CSV of losses.

    Raises:
        DataError: Another table, or a case that is neither a training nor a held-out one.
    """
    inside = {case.case_id: case.patient_id for case in groups.train.cases}
    outside = {case.case_id: case.patient_id for c in (groups.calibration, groups.control) for case in c.cases}
    rows = [(row["case"], finite_number(row, "loss", path)) for row in read_csv(path, ("case", "loss"))]
    strangers = [name for name, _ in rows if name not in inside and name not in outside]
    if strangers:
        raise DataError(f"{path}: case {strangers[0]} is neither a training nor a held-out case: leave it out")
    mine, others = ([(name, loss) for name, loss in rows if name in side] for side in (inside, outside))
    return membership(
        [loss for _, loss in mine], [loss for _, loss in others],
        [inside[name] for name, _ in mine], [outside[name] for name, _ in others], rng(),
    )  # fmt: skip
