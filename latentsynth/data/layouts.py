"""The ways a cohort can lie on disk: nnU-Net raw, Medical Segmentation Decathlon, a table of paths.

Reading a layout opens no scan; what is wrong with the scans is found by :mod:`latentsynth.data.checks`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentsynth.data.manifest import SPLITS
from latentsynth.data.nifti import SUFFIXES, stem
from latentsynth.errors import ConfigError, DataError, UnknownNameError
from latentsynth.files import read_json
from latentsynth.types import Case, Labels, Split

TABLES = (".csv", ".jsonl")
_EXPECTED = (
    "expected an nnU-Net raw folder (dataset.json with channel_names, imagesTr/CASE_0000.nii.gz), a Decathlon folder "
    "(dataset.json with modality and training) or a table of paths (.csv or .jsonl)"
)
_KNOWN = ("case", "patient", "images", "mask", "split")  # keys of a table row; CSV spells images as several columns


@dataclass(frozen=True)
class Cohort:
    """What a layout says, before any scan was opened.

    Attributes:
        name: Name of the cohort.
        channels: Channel names.
        labels: Declared labels; None where the layout has no place for them, so that the masks tell.
        cases: Sorted by case id. An empty ``patient_id`` means that nobody knows the patient; files may be missing.
        patients_declared: A column or an expression gave the patients; otherwise every case is its own patient.
        splits_declared: The cases carry the splits of the source.
        notes: What the user should hear about how the source was read.
    """

    name: str
    channels: tuple[str, ...]
    labels: Labels | None
    cases: tuple[Case, ...]
    patients_declared: bool
    splits_declared: bool
    notes: tuple[str, ...] = ()


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
    if "modality" in value and not exists and any((source / "imagesTr").glob("*_0000.nii*")):
        return "nnunet"
    if "modality" in value or "training" in value:
        return "decathlon"
    raise DataError(f"{source / 'dataset.json'} has only the keys {sorted(value)}, {_EXPECTED}: complete it")


def read_cohort(source: Path, layout: str | None = None, patient_regex: str | None = None) -> Cohort:
    """Reads which files belong to which case.

    Args:
        source: Folder or table.
        layout: ``"nnunet"``, ``"decathlon"`` or ``"table"``; recognised if None.
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
    if not 1 <= len(cohort.channels) <= 4:
        raise DataError(f"{source} has {len(cohort.channels)} channels {cohort.channels}, expected 1 to 4: choose some")
    cases = tuple(sorted(cohort.cases, key=lambda case: (case.case_id, case.images)))
    cohort = replace(cohort, cases=cases)
    return cohort if patient_regex is None else _with_patients(cohort, patient_regex)


def _with_patients(cohort: Cohort, expression: str) -> Cohort:
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


# nnU-Net raw and Decathlon --------------------------------------------------------------------------------------


def _nnunet(source: Path) -> Cohort:
    value = _dataset(source)
    channels = _channels(source, value)
    ending = value.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise DataError(f"{source} holds {ending!r} files, expected {' or '.join(SUFFIXES)}: convert them to NIfTI")
    images, masks = _listing(source / "imagesTr", ending), _listing(source / "labelsTr", ending)
    numbers: dict[str, set[int]] = defaultdict(set)
    stray = []
    for name in images:
        match = re.fullmatch(r"(.+)_(\d{4})", name)
        if match:
            numbers[match[1]].add(int(match[2]))
        else:
            stray.append(name + ending)
    if not numbers:
        folder = source / "imagesTr" if (source / "imagesTr").is_dir() else source
        raise DataError(f"{source} has no image imagesTr/CASE_0000{ending} but {_contents(folder)}; {_EXPECTED}")
    notes = []
    if stray:
        notes.append(f"{len(stray)} files in imagesTr have no channel number and are not read: {_few(stray)}")
    if any((source / "imagesTs").glob(f"*{ending}")):
        notes.append("imagesTs is not read: its images have no masks")
    # Every declared channel is named although its file may be missing, and every undeclared one that exists: the
    # checks then report both. So they do for a mask without any image.
    cases = tuple(
        Case(
            case_id=name,
            patient_id=name,
            images=tuple(
                source / "imagesTr" / f"{name}_{number:04d}{ending}"
                for number in sorted(numbers.get(name, set()) | set(range(len(channels))))
            ),
            mask=source / "labelsTr" / f"{name}{ending}" if name in masks else None,
        )
        for name in {*numbers, *masks}
    )
    return Cohort(_name(source, value), channels, _labels(source, value), cases, False, False, tuple(notes))


def _decathlon(source: Path) -> Cohort:
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
    return Cohort(_name(source, value), channels, labels, tuple(cases), False, False, notes)


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
    names.setdefault(0, "background")
    return Labels(tuple(sorted(names)), tuple(names[label] for label in sorted(names)))


# Tables ---------------------------------------------------------------------------------------------------------


def _table(source: Path) -> Cohort:
    path = _table_file(source)
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets like to begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable text ({error}): save it as UTF-8") from error
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text)
    if not rows:
        raise DataError(f"{path} lists no case: add one row per case")
    channels = list(dict.fromkeys(name for _, row in rows for name in row["images"]))
    patients = any(row.get("patient") for _, row in rows)
    splits = any(row.get("split") for _, row in rows)
    cases = []
    for line, row in rows:
        images = tuple(path.parent / row["images"][name] for name in channels if row["images"].get(name))
        case_id = row.get("case") or (stem(images[0]) if images else f"line {line}")
        cases.append(
            Case(
                case_id,
                row.get("patient", "") if patients else case_id,
                images,
                path.parent / row["mask"] if row.get("mask") else None,
                as_split(row.get("split"), f"{path} line {line}") if splits else "train",
            )
        )
    extra = sorted({key for _, row in rows for key in row if key not in _KNOWN})
    notes = (f"columns that are not used: {', '.join(extra)}",) if extra else ()
    names = ("image",) if channels == ["image_0"] else tuple(channels)
    return Cohort(path.stem, names, None, tuple(cases), patients, splits, notes)


def as_split(value: object, place: str) -> Split:
    """Checks the name of a split; ``place`` says where it stands.

    Raises:
        DataError: It is not ``"train"``, ``"val"`` or ``"test"``.
    """
    for split in SPLITS:
        if value == split:
            return split
    raise DataError(f"{place} has split {value or ''!r}, expected {', '.join(SPLITS)}: correct it")


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # half of Europe's spreadsheets write semicolons
    reader = csv.reader(text.split("\n"), delimiter=delimiter)
    header = [_key(cell) for cell in next(reader, [])]
    columns = [column for column in header if _channel(column)]
    places = {_channel(column): column for column in columns}
    plain = sorted(name for name in places if places[name] == "image" or places[name].startswith("image_"))
    wanted = [f"image_{number}" for number in range(len(places))]
    repeated = len(set(header)) < len(header) or len(places) < len(columns)
    if not places or repeated or (plain and plain != wanted):
        raise DataError(
            f"{path} has the columns {header}, expected image, or image_0 to image_3, or image:NAME for every channel, "
            "and if you like case, patient, mask, split: rename them"
        )
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{path} line {reader.line_num} has {len(cells)} cells, expected {len(header)}: correct it")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        images = {name: row.pop(places[name]) for name in plain or places}
        rows.append((reader.line_num, {**row, "images": images}))
    return rows


def _key(cell: str) -> str:
    """Column names in any case; the NAME of ``image:NAME`` as written."""
    cell = cell.strip()
    return cell if cell.startswith("image:") else cell.lower()


def _channel(column: str) -> str:
    """Channel that a CSV column holds, or "" if it holds no image."""
    if column.startswith("image:"):
        return column.removeprefix("image:").strip()
    return "image_0" if column == "image" else column if re.fullmatch(r"image_\d", column) else ""


def _jsonl_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {line} is not JSON ({error}): correct it") from None
        row = {_key(key): entry for key, entry in row.items()} if isinstance(row, dict) else {}
        images = row.get("images")
        if isinstance(images, str | list):
            listed = [images] if isinstance(images, str) else images
            images = {f"image_{number}": image for number, image in enumerate(listed)}
        texts = [*images.values(), row.get("mask") or ""] if isinstance(images, dict) else [None]
        if not all(isinstance(entry, str) for entry in texts):
            raise DataError(f'{path} line {line}: expected {{"images": [PATHS] or {{NAME: PATH}}, "mask": PATH, ...}}')
        ids = {key: "" if row.get(key) is None else str(row[key]) for key in ("case", "patient")}
        rows.append((line, {**row, **ids, "images": images}))
    return rows


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
    tables = [path for path in found if path.suffix.lower() in TABLES]
    if len(tables) == 1:
        return tables[0]
    holds = f"holds {_contents(source)}" if source.is_dir() else "is no table"
    raise DataError(f"{source} {holds}, {_EXPECTED}: name one of them")


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return _few(names) if names else "nothing (the folder is empty)"


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _listing(folder: Path, ending: str) -> set[str]:
    """Names without ``ending``; hidden files (macOS leaves ``._CASE.nii.gz``) are not files of the cohort."""
    found = folder.glob(f"*{ending}") if folder.is_dir() else ()
    return {path.name[: -len(ending)] for path in found if not path.name.startswith(".")}


_READERS: dict[str, Callable[[Path], Cohort]] = {"nnunet": _nnunet, "decathlon": _decathlon, "table": _table}
