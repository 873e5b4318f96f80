"""Cohorts to compare, from manifests or plain folders of NIfTI files, real or made by any program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from latentsynth.data import nifti
from latentsynth.data.identity import scan_hashes, volume_hash
from latentsynth.data.intake.scans import scans
from latentsynth.data.intake.splits import split_cohort
from latentsynth.data.manifest import SPLITS, Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.results import Note
from latentsynth.types import Case, Labels, Split


def open_cohort(
    name: str, source: Path, splits: Sequence[Split] = SPLITS, real: bool = True, channels: int | None = None
) -> Cohort:
    """A cohort from a manifest or a folder.

    Args:
        name: What tables call it.
        source: A manifest, of which the cases of ``splits`` are taken, or all where it has none of them; or a folder of
            ``CASE_0000.nii.gz, CASE_0001.nii.gz, ...`` or ``CASE.nii.gz``, every case a patient, without masks.
        splits: Which splits of a manifest.
        real: Whether the cases are patients; those of a folder are taken at your word.
        channels: Files per case of a folder; None finds out.

    Raises:
        DataError: Nothing there, or synthetic cases where patients are wanted.
    """
    if source.is_dir():
        manifest = _folder(name, source, real, channels)
        return Cohort(name, manifest, manifest.cases)
    whole = Manifest.load(source)
    has = any(case.split in splits for case in whole.cases)
    cohort = Cohort.load(name, source, splits if has else SPLITS, filled=True)
    if real and not cohort.real:
        raise DataError(f"{source} holds synthetic cases, and {name} must be patients: give a manifest of real scans")
    if not real and any(case.source == "real" for case in cohort.cases):
        raise DataError(
            f"{source} holds real scans, and {name} is to be judged as synthetic: for scans that play copies on purpose, make "
            "a manifest of them with `latentsynth prepare --synthetic`"
        )
    return cohort


def synthetic_set(source: Path) -> Manifest:
    """A synthetic set: a manifest, the folder of one, or a plain folder of another program's files.

    Raises:
        DataError: Nothing there.
    """
    if not source.is_dir():
        return Manifest.load(source)
    own = source / "manifest.json"
    return Manifest.load(own) if own.is_file() else open_cohort(source.name, source, real=False).manifest


def halves(heldout: Cohort) -> tuple[Cohort, Cohort]:
    """Held-out patients in two halves at random, always the same for the same patients: calibration and control.

    Raises:
        DataError: Fewer than two patients.
    """
    people = {case.patient_id: case.patient_id for case in heldout.cases}
    side = split_cohort(heldout.cases, people, [case.case_id for case in heldout.cases if case.marked], (0.5, 0.5, 0.0))
    parts = [tuple(c for c in heldout.cases if side[c.case_id] == split) for split in ("train", "val")]
    if not all(parts):
        raise DataError(
            f"{len(people)} held-out patients cannot be split: give at least 38, 19 to calibrate and 19 to check"
        )
    names = ("calibration patients", "control patients")
    first, second = (replace(heldout, name=name, cases=part) for name, part in zip(names, parts, strict=True))
    return first, second


def check_apart(train: Cohort, heldout: Cohort, samples: Sequence[Cohort]) -> list[Note]:
    """Refuses held-out patients that a generator may have seen; says what cannot be verified.

    Returns:
        Notes for the report.

    Raises:
        DataError: A patient or a scan is on both sides, or in the ledger of a generator.
    """
    patients, scans_ = {c.patient_id for c in train.cases}, _scans(train)
    both = [c.case_id for c in heldout.cases if c.patient_id in patients or c.scans & scans_]
    if both:
        raise DataError(
            f"{len(both)} held-out cases are training patients or the same scans ({', '.join(both[:3])}): hold back "
            "patients that no generator saw"
        )
    notes = []
    for cohort in samples:
        if not cohort.ledger.voxels:
            text = f"{cohort.name}: no ledger beside it, so that its generator saw these patients and no others is your word"
            notes.append(Note(text, cohort.name))
            continue
        leaked = [c.case_id for c in heldout.cases if c.scans & cohort.ledger.voxels]
        if leaked:
            raise DataError(
                f"the generator of {cohort.name} was trained on {len(leaked)} of the held-out cases ({', '.join(leaked[:3])}): "
                "a feature space calibrated by them would call copies normal; hold back others"
            )
        unseen = sum(bool(c.scans) and not c.scans & cohort.ledger.voxels for c in train.cases)
        if unseen:
            text = f"{cohort.name}: its generator never saw {unseen} of the {len(train.cases)} training cases given"
            notes.append(Note(text, cohort.name))
        others = len(cohort.ledger.voxels - scans_)
        if others:
            text = (
                f"{cohort.name}: its generator, or the autoencoder under it, also saw {others} images that are not among "
                "the training cases given; copies of those are not looked for"
            )
            notes.append(Note(text, cohort.name))
    return notes


def _scans(cohort: Cohort) -> set[str]:
    """Hashes of every channel of every case."""
    return {scan for case in cohort.cases for scan in case.scans}


def _folder(name: str, folder: Path, real: bool, channels: int | None) -> Manifest:
    made = []
    for case in _guessed(folder) if channels is None else scans(folder, channels):
        volumes = [nifti.read(image) for image in case.images]
        voxels = scan_hashes(volumes)
        hashes = tuple(volume_hash(*volume, known) for volume, known in zip(volumes, voxels, strict=True))
        source = "real" if real else "external"
        made.append(replace(case, voxels=voxels, image_hashes=hashes, source=source))
    return Manifest(name, tuple(f"channel {n}" for n in range(len(made[0].images))), Labels((0,)), tuple(made))


def _guessed(folder: Path) -> list[Case]:
    """The cases of a folder, by as many files a case as fit."""
    found = [cases for count in (1, 2, 3, 4) if (cases := _try(folder, count))]
    # Numbered scans look like the channels of one case; a cohort has several.
    many = [cases for cases in found if len(cases) > 1] or found
    return many[-1] if many else scans(folder, 1)  # which says what is wrong


def _try(folder: Path, channels: int) -> list[Case]:
    """The cases of a folder if every one has so many channels."""
    try:
        return scans(folder, channels)
    except DataError:
        return []
