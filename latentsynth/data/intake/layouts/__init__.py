"""The ways a cohort can lie on disk.

Reading a layout opens no scan; what is wrong with the scans is found by :mod:`latentsynth.data.intake.checks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from latentsynth.data.intake import tables
from latentsynth.data.intake.layouts import bids, declared, folders, tabled
from latentsynth.data.intake.layouts.cohort import EXPECTED, RawCohort, existing, few, listing
from latentsynth.errors import ConfigError, DataError, UnknownNameError
from latentsynth.types import Case

__all__ = ["LAYOUTS", "RawCohort", "compiled", "few", "read_cohort", "recognise"]

_MOST_CHANNELS = 8


def recognise(source: Path) -> str:
    """Which layout ``source`` has, by name.

    Raises:
        DataError: It does not exist, or has none of the layouts.
    """
    source = existing(source)
    if source.is_file():
        if source.suffix.lower() == ".json":
            return "decathlon"
        tabled.table_file(source)
        return "table"
    if not (source / "dataset.json").is_file():
        return _undeclared(source)
    value = declared.dataset(source)
    if "channel_names" in value:
        return "nnunet"
    # nnU-Net 1 kept the Decathlon's dataset.json, but lists files that exist only with a channel number added.
    listed = value.get("training")
    images = [entry.get("image") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    exists = any(isinstance(image, str) and (source / image).is_file() for image in images)
    if "modality" in value and not exists and any(name.endswith("_0000") for name in listing(source / "imagesTr", [])):
        return "nnunet"
    if "modality" in value or "training" in value:
        return "decathlon"
    raise DataError(f"{source / 'dataset.json'} has only the keys {sorted(value)}, {EXPECTED}: complete it")


def _undeclared(source: Path) -> str:
    """The layout of a folder without a ``dataset.json``."""
    if _is_table(source):
        return "table"
    if bids.is_bids(source):
        return "bids"
    if folders.case_folders(source):
        return "brats"
    if folders.paired(source, []):
        return "pairs"
    if series := next((path for path in source.glob("**/*.dcm")), None):
        raise DataError(
            f"{source} holds DICOM series ({series.name}), which are not read: convert them to NIfTI with dcm2niix"
        )
    tabled.table_file(source)  # says what is there, and what was expected
    return "table"


def _is_table(source: Path) -> bool:
    """Whether a folder has one table of scans; BraTS comes with tables of other things."""
    try:
        tables.read_rows(tabled.table_file(source))
    except DataError:
        return False
    return True


def read_cohort(source: Path, layout: str | None = None, patient_regex: str | None = None) -> RawCohort:
    """Reads which files belong to which case.

    Args:
        source: Folder or table.
        layout: One of :data:`LAYOUTS`; recognised if None.
        patient_regex: Searched in every case id; its first group (or the whole match) is the patient. Goes before
            patients that a table declares.

    Raises:
        DataError: The source has no such layout, contradicts itself, or lists no case.
        ConfigError: ``layout`` is unknown or ``patient_regex`` is not a regular expression.
    """
    source = existing(source)
    if layout is not None and layout not in _READERS:
        raise UnknownNameError("layout", layout, _READERS)
    cohort = _READERS[layout or recognise(source)](source)
    if len(cohort.channels) > _MOST_CHANNELS or (not cohort.channels and layout != "masks"):
        raise DataError(
            f"{source} has {len(cohort.channels)} channels {cohort.channels}, expected 1 to {_MOST_CHANNELS}: choose some"
        )
    if len(set(cohort.channels)) < len(cohort.channels):  # what is kept per channel is found by its name
        raise DataError(f"{source} gives two channels one name {cohort.channels}: give each its own")
    cases = tuple(sorted(cohort.cases, key=lambda case: (case.case_id, case.images)))
    cohort = replace(cohort, cases=cases)
    return cohort if patient_regex is None else _with_patients(cohort, patient_regex)


def compiled(what: str, expression: str) -> re.Pattern[str]:
    """A regular expression.

    Raises:
        ConfigError: It is none; ``what`` says whose it is.
    """
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{what} expression {expression!r} is not a regular expression: {error}") from None


def _with_patients(cohort: RawCohort, expression: str) -> RawCohort:
    pattern = compiled("patient", expression)

    def patient(case: Case) -> str:
        match = pattern.search(case.case_id)
        return ((match[1] if pattern.groups else match[0]) or "") if match else ""

    notes = cohort.notes
    if cohort.patients_declared:
        notes += (f"patients come from the expression {expression!r}; the patient column of the table is not used",)
    cases = tuple(replace(case, patient_id=patient(case)) for case in cohort.cases)
    return replace(cohort, cases=cases, patients_declared=True, notes=notes)


_READERS: dict[str, Callable[[Path], RawCohort]] = {
    "nnunet": declared.nnunet,
    "decathlon": declared.decathlon,
    "brats": folders.brats,
    "bids": bids.bids,
    "pairs": folders.pairs,
    "table": tabled.table,
    "masks": tabled.masks,
}

LAYOUTS = tuple(_READERS)
