"""Layouts that a ``dataset.json`` declares: nnU-Net raw, Medical Segmentation Decathlon, MONAI data lists."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from latentsynth.data.intake.layouts.cohort import EXPECTED, READABLE, RawCohort, contents, few, file_stem, listing
from latentsynth.errors import DataError
from latentsynth.files import read_json
from latentsynth.types import Case, Labels


def nnunet(source: Path) -> RawCohort:
    """nnU-Net raw, of its first and second version.

    Raises:
        DataError: No case is there, or the ``dataset.json`` contradicts itself.
    """
    value = dataset(source)
    channels = _channels(source, value)
    ending = value.get("file_ending", ".nii.gz")
    if ending not in READABLE:
        raise DataError(f"{source} holds {ending!r} files, expected {', '.join(READABLE)}: convert them to NIfTI")
    notes: list[str] = []
    images, masks = (listing(source / name, notes) for name in ("imagesTr", "labelsTr"))
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
        raise DataError(f"{source} has no image imagesTr/CASE_0000{ending} but {contents(folder)}; {EXPECTED}")
    if stray:
        notes.append(f"{len(stray)} files in imagesTr have no channel number and are not read: {few(stray, 4)}")
    if listing(source / "imagesTs", []):
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


def decathlon(source: Path) -> RawCohort:
    """Medical Segmentation Decathlon, or a data list of MONAI: a folder with a ``dataset.json``, or a file like it.

    Raises:
        DataError: It lists no training case, or contradicts itself.
    """
    value = dataset(source)
    entries = value.get("training")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{source} lists no training case; {EXPECTED}")
    base, cases, most = source.parent if source.is_file() else source, [], 0
    for entry in entries:
        images, label = _listed(entry)
        if not images:
            raise DataError(
                f'{source / "dataset.json"} lists {entry!r}, expected {{"image": PATH or PATHS, "label": PATH}}'
            )
        name, most = file_stem(images[0]), max(most, len(images))
        if len(images) > 1:
            name = re.sub(r"_0000$", "", name)
        cases.append(Case(name, name, tuple(base / path for path in images), base / label if label else None))
    notes = []
    if value.get("test"):
        notes.append("the images listed under test are not read: they have no masks")
    if any(isinstance(entry, dict) and "fold" in entry for entry in entries):
        notes.append("folds are not read: patients are split anew, or by --split-file")
    if "modality" in value or "channel_names" in value:
        channels = _channels(source, value)
    else:  # a data list of MONAI names no channels
        channels = ("image",) if most == 1 else tuple(f"image_{n}" for n in range(most))
    return RawCohort(_name(source, value), channels, _labels(source, value), tuple(cases), False, False, tuple(notes))


def _listed(entry: object) -> tuple[list[str], str]:
    """Images and label of an entry; no images if it is none."""
    if not isinstance(entry, dict):
        return [], ""
    images, label = entry.get("image"), entry.get("label") or ""
    images = [images] if isinstance(images, str) else images
    if isinstance(label, list) and len(label) == 1:
        label = label[0]
    if not isinstance(images, list) or not isinstance(label, str) or not all(isinstance(one, str) for one in images):
        return [], ""
    return images, label


def dataset(source: Path) -> dict[str, Any]:
    """What the ``dataset.json`` of a folder says, or a file like it.

    Raises:
        DataError: It is no JSON object.
    """
    file = source if source.is_file() else source / "dataset.json"
    value = read_json(file)
    if not isinstance(value, dict):
        raise DataError(f"{file} is a JSON {type(value).__name__}, expected an object; {EXPECTED}")
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
    for key, entry in _plain(declared).items():
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


def _plain(declared: dict[str, Any]) -> dict[str, Any]:
    """Labels with regions (nnU-Net 2: a name for several values) taken apart: a value bears the name of its smallest region."""
    regions = {key: entry for key, entry in declared.items() if isinstance(entry, list)}
    plain = {key: entry for key, entry in declared.items() if key not in regions}
    smallest: dict[int, str] = {}
    for name in sorted(regions, key=lambda name: len(regions[name])):
        for value in regions[name]:
            if isinstance(value, int):
                smallest.setdefault(value, name)
    for value, name in smallest.items():
        if value not in plain.values():
            plain[f"{name} {value}" if list(smallest.values()).count(name) > 1 else name] = value
    return plain
