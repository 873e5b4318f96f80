"""The ways a cohort can lie on disk: nnU-Net raw, Medical Segmentation Decathlon, a table of paths.

Reading a layout opens no scan; what is wrong with the scans is found by :mod:`latentsynth.data.intake.checks`.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentsynth.data.intake import tables
from latentsynth.data.nifti import SUFFIXES, stem
from latentsynth.errors import ConfigError, DataError, UnknownNameError
from latentsynth.files import read_json
from latentsynth.types import Case, Labels

_EXPECTED = (
    "expected an nnU-Net raw folder (dataset.json with channel_names, imagesTr/CASE_0000.nii.gz), a Decathlon folder "
    "(dataset.json with modality and training), a table of paths (.csv or .jsonl); of masks without images, a folder of them with --layout masks"
)


@dataclass(frozen=True)
class RawCohort:
    """What a layout says, before any scan was opened.

    Attributes:
        name: Name of the cohort.
        channels: Channel names.
        labels: Declared labels; None where the layout has no place for them, so that the masks tell.
        cases: Sorted by case id. An empty ``patient_id`` means that nobody knows the patient; files may be missing.
        patients_declared: A column or an expression gave the patients; otherwise every case is its own patient.
        splits_declared: The cases carry the splits of the source.
        notes: What the user should hear about how the source was read.
        spacings: By case id, voxel edges in mm along the file's axes that go before those of the headers.
    """

    name: str
    channels: tuple[str, ...]
    labels: Labels | None
    cases: tuple[Case, ...]
    patients_declared: bool
    splits_declared: bool
    notes: tuple[str, ...] = ()
    spacings: dict[str, tuple[float, float, float]] = field(default_factory=dict)


def recognise(source: Path) -> str:
    """Which layout ``source`` has: ``"nnunet"``, ``"decathlon"`` or ``"table"``.

    Raises:
        DataError: It does not exist, or has none of the three layouts.
    """
    source = _existing(source)
    if source.is_file() or not (source / "dataset.json").is_file():
        _table_file(source)
        return "table"
    value = _dataset(source)
    if "channel_names" in value:
        return "nnunet"
    # nnU-Net 1 kept the Decathlon's dataset.json, but lists files that exist only with a channel number added.
    listed = value.get("training")
    images = [entry.get("image") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    exists = any(isinstance(image, str) and (source / image).is_file() for image in images)
    if "modality" in value and not exists and any(name.endswith("_0000") for name in _listing(source / "imagesTr", [])):
        return "nnunet"
    if "modality" in value or "training" in value:
        return "decathlon"
    raise DataError(f"{source / 'dataset.json'} has only the keys {sorted(value)}, {_EXPECTED}: complete it")


def read_cohort(source: Path, layout: str | None = None, patient_regex: str | None = None) -> RawCohort:
    """Reads which files belong to which case.

    Args:
        source: Folder or table.
        layout: ``"nnunet"``, ``"decathlon"``, ``"table"`` or ``"masks"``; recognised if None.
        patient_regex: Searched in every case id; its first group (or the whole match) is the patient. Goes before
            patients that a table declares.

    Raises:
        DataError: The source has no such layout, contradicts itself, or lists no case.
        ConfigError: ``layout`` is unknown or ``patient_regex`` is not a regular expression.
    """
    source = _existing(source)
    if layout is not None and layout not in _READERS:
        raise UnknownNameError("layout", layout, _READERS)
    cohort = _READERS[layout or recognise(source)](source)
    if len(cohort.channels) > 4 or (not cohort.channels and layout != "masks"):
        raise DataError(f"{source} has {len(cohort.channels)} channels {cohort.channels}, expected 1 to 4: choose some")
    if len(set(cohort.channels)) < len(cohort.channels):  # what is kept per channel is found by its name
        raise DataError(f"{source} gives two channels one name {cohort.channels}: give each its own")
    cases = tuple(sorted(cohort.cases, key=lambda case: (case.case_id, case.images)))
    cohort = replace(cohort, cases=cases)
    return cohort if patient_regex is None else _with_patients(cohort, patient_regex)


def _with_patients(cohort: RawCohort, expression: str) -> RawCohort:
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f"patient expression {expression!r} is not a regular expression: {error}") from None

    def patient(case: Case) -> str:
        match = pattern.search(case.case_id)
        return ((match[1] if pattern.groups else match[0]) or "") if match else ""

    notes = cohort.notes
    if cohort.patients_declared:
        notes += (f"patients come from the expression {expression!r}; the patient column of the table is not used",)
    cases = tuple(replace(case, patient_id=patient(case)) for case in cohort.cases)
    return replace(cohort, cases=cases, patients_declared=True, notes=notes)


# Layouts --------------------------------------------------------------------------------------------------------


def _nnunet(source: Path) -> RawCohort:
    value = _dataset(source)
    channels = _channels(source, value)
    ending = value.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise DataError(f"{source} holds {ending!r} files, expected {' or '.join(SUFFIXES)}: convert them to NIfTI")
    notes: list[str] = []
    images, masks = (_listing(source / name, notes) for name in ("imagesTr", "labelsTr"))
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    stray = []
    for name, path in images.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if match:
            numbered[match[1]][int(match[2])] = path
        else:
            stray.append(path.name)
    if not numbered:
        folder = source / "imagesTr" if (source / "imagesTr").is_dir() else source
        raise DataError(f"{source} has no image imagesTr/CASE_0000{ending} but {_contents(folder)}; {_EXPECTED}")
    if stray:
        notes.append(f"{len(stray)} files in imagesTr have no channel number and are not read: {few(stray, 4)}")
    if _listing(source / "imagesTs", []):
        notes.append("imagesTs is not read: its images have no masks")
    # Every declared channel is named although its file may be missing, and every undeclared one that exists: the
    # checks then report both. So they do for a mask without any image.
    cases = tuple(
        Case(
            case_id=name,
            patient_id=name,
            images=tuple(
                numbered.get(name, {}).get(number, source / "imagesTr" / f"{name}_{number:04d}{ending}")
                for number in sorted({*numbered.get(name, {}), *range(len(channels))})
            ),
            mask=masks.get(name),
        )
        for name in {*numbered, *masks}
    )
    return RawCohort(_name(source, value), channels, _labels(source, value), cases, False, False, tuple(notes))


def _decathlon(source: Path) -> RawCohort:
    value = _dataset(source)
    entries = value.get("training")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{source / 'dataset.json'} lists no training case but {_contents(source)}; {_EXPECTED}")
    cases = []
    for entry in entries:
        paths = [entry.get("image"), entry.get("label") or ""] if isinstance(entry, dict) else [None]
        if not all(isinstance(path, str) for path in paths):
            raise DataError(f'{source / "dataset.json"} lists {entry!r}, expected {{"image": PATH, "label": PATH}}')
        name, label = stem(entry["image"]), entry.get("label")
        cases.append(Case(name, name, (source / entry["image"],), source / label if label else None))
    notes = ("the images listed under test are not read: they have no masks",) if value.get("test") else ()
    channels, labels = _channels(source, value), _labels(source, value)
    return RawCohort(_name(source, value), channels, labels, tuple(cases), False, False, notes)


def _dataset(source: Path) -> dict[str, Any]:
    value = read_json(source / "dataset.json")
    if not isinstance(value, dict):
        raise DataError(f"{source / 'dataset.json'} is a JSON {type(value).__name__}, expected an object; {_EXPECTED}")
    return value


def _name(source: Path, value: dict[str, Any]) -> str:
    return str(value.get("name") or source.resolve().name)


def _channels(source: Path, value: dict[str, Any]) -> tuple[str, ...]:
    declared = value.get("channel_names", value.get("modality"))
    if not isinstance(declared, dict) or set(declared) != {str(n) for n in range(len(declared))}:
        raise DataError(
            f'{source / "dataset.json"} declares channels {declared!r}, expected {{"0": NAME, "1": NAME, ...}}: fix it'
        )
    return tuple(str(declared[str(number)]) for number in range(len(declared)))


def _labels(source: Path, value: dict[str, Any]) -> Labels | None:
    """Reads name -> value (nnU-Net 2) as well as value -> name (Decathlon, nnU-Net 1)."""
    declared = value.get("labels")
    if declared is None:
        return None
    place = f"{source / 'dataset.json'} declares"
    if not isinstance(declared, dict):
        raise DataError(f"{place} labels {declared!r}, expected names and values: fix it")
    names: dict[int, str] = {}
    for key, entry in declared.items():
        if isinstance(entry, list):
            raise DataError(
                f"{place} the region {key!r} = {entry}, expected one value per label: regions overlap, so list the "
                "plain labels that the mask files hold"
            )
        by_value = isinstance(entry, str) and key.isdecimal()
        label, name = (key, str(entry)) if by_value else (entry, key)
        if not re.fullmatch(r"\d+", str(label)):
            raise DataError(f"{place} the label {key!r} = {entry!r}, expected a whole number from 0: fix it")
        if int(label) in names or name in names.values():
            raise DataError(f"{place} the label {key!r} = {entry!r} twice: give every value one name of its own")
        names[int(label)] = name
    if 0 not in names and "background" in names.values():
        raise DataError(f"{place} background with another value than 0, which unlabelled voxels have: correct it")
    names.setdefault(0, "background")
    return Labels(tuple(sorted(names)), tuple(names[label] for label in sorted(names)))


def _table(source: Path) -> RawCohort:
    path = _table_file(source)
    rows = tables.read_rows(path)
    channels = list(dict.fromkeys(name for _, row in rows for name in row["images"]))
    patients = any(row.get("patient") for _, row in rows)
    splits = any(row.get("split") for _, row in rows)
    cases, spacings = [], {}
    for line, row in rows:
        images = tuple(path.parent / row["images"][name] for name in channels if row["images"].get(name))
        case_id = row.get("case") or (stem(images[0]) if images else f"line {line}")
        cases.append(
            Case(
                case_id,
                row.get("patient", "") if patients else case_id,
                images,
                path.parent / row["mask"] if row.get("mask") else None,
                tables.as_split(row.get("split"), f"{path} line {line}") if splits else "train",
            )
        )
        if row.get("spacing"):
            spacings[case_id] = tables.as_spacing(row["spacing"], f"{path} line {line}")
    extra = sorted({key for _, row in rows for key in row if key not in tables.KEYS})
    notes = (f"columns that are not used: {', '.join(extra)}",) if extra else ()
    names = ("image",) if channels == ["image_0"] else tuple(channels)
    return RawCohort(path.stem, names, None, tuple(cases), patients, splits, notes, spacings)


def _masks(source: Path) -> RawCohort:
    notes = ["these cases are masks without images"]
    files = _listing(source, notes)
    if not files:
        raise DataError(f"{source} is no folder of masks: give a folder of NIfTI files, one mask each")
    cases = tuple(Case(name, name, (), file) for name, file in files.items())
    return RawCohort(source.resolve().name, (), None, cases, False, False, tuple(notes))


# Common ---------------------------------------------------------------------------------------------------------


def _existing(source: Path) -> Path:
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source} does not exist, {_EXPECTED}: check the path")
    if not os.access(source, os.R_OK):
        raise DataError(f"{source} cannot be read: ask for permission")
    return source


def _table_file(source: Path) -> Path:
    found = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.is_file())
    named = [path for path in found if path.suffix.lower() in tables.SUFFIXES]
    if len(named) == 1:
        return named[0]
    holds = f"holds {_contents(source)}" if source.is_dir() else "is no table"
    raise DataError(f"{source} {holds}, {_EXPECTED}: name one of them")


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return few(names, 4) if names else "nothing (the folder is empty)"


def few(names: Sequence[str], most: int = 6) -> str:
    """The first ``most`` names and how many more there are, for messages."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _listing(folder: Path, notes: list[str]) -> dict[str, Path]:
    """NIfTI files by their names without endings, whichever of the endings they have; what else lies there is noted.

    Hidden files (macOS leaves ``._CASE.nii.gz``) are not files of the cohort.

    Raises:
        DataError: One name stands with two endings.
    """
    found: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_dir():
            continue
        if not path.name.lower().endswith(SUFFIXES):
            others.append(path.name)
            continue
        if stem(path) in found:
            raise DataError(
                f"{folder} holds {stem(path)} twice, as {found[stem(path)].name} and as {path.name}: remove or rename one"
            )
        found[stem(path)] = path
    if others:
        notes.append(f"{len(others)} files in {folder.name} are no NIfTI files and are not read: {few(others, 4)}")
    return found


_READERS: dict[str, Callable[[Path], RawCohort]] = {
    "nnunet": _nnunet,
    "decathlon": _decathlon,
    "table": _table,
    "masks": _masks,
}
