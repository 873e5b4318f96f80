"""What every layout says of a cohort before any scan was opened, and how its folders are listed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from latentsynth.data.nifti import SUFFIXES
from latentsynth.errors import DataError
from latentsynth.types import Case, Labels

OTHER = (".mha", ".mhd", ".nrrd", ".nhdr")  # copied to NIfTI (latentsynth.data.intake.conversion)
READABLE = (*SUFFIXES, *OTHER)
EXPECTED = (
    "expected an nnU-Net raw folder (dataset.json with channel_names, imagesTr/CASE_0000.nii.gz), a Decathlon folder or MONAI "
    "data list (dataset.json with training), BraTS (a folder per case), BIDS (sub-*/anat, masks under derivatives), pairs "
    "(images/ and masks/, or CASE.nii.gz beside CASE_mask.nii.gz), a table of paths (.csv or .jsonl); of masks without images, "
    "a folder of them with --layout masks"
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
        names: What label values mean that the masks may hold, where ``labels`` are not declared.
        several: By case id, the masks of a scan that has more than one, by what their names say.
        spacings: By case id, voxel edges in mm along the file's axes that go before those of the headers.
    """

    name: str
    channels: tuple[str, ...]
    labels: Labels | None
    cases: tuple[Case, ...]
    patients_declared: bool
    splits_declared: bool
    notes: tuple[str, ...] = ()
    several: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    spacings: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)


def existing(source: Path) -> Path:
    """The path of a source.

    Raises:
        DataError: Nothing stands there, or it may not be read.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source} does not exist, {EXPECTED}: check the path")
    if not os.access(source, os.R_OK):
        raise DataError(f"{source} cannot be read: ask for permission")
    return source


def contents(folder: Path) -> str:
    """What lies in a folder, for an error."""
    names = sorted(path.name for path in folder.iterdir())
    return few(names, 4) if names else "nothing (the folder is empty)"


def few(names: Sequence[str], most: int = 6) -> str:
    """The first ``most`` names and how many more there are, for messages."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def listing(folder: Path, notes: list[str]) -> dict[str, Path]:
    """Scans by their names without endings, whichever of the endings they have; what else lies there is noted.

    Hidden files (macOS leaves ``._CASE.nii.gz``) are not files of the cohort.

    Raises:
        DataError: One name stands with two endings.
    """
    found: dict[str, Path] = {}
    others = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.is_dir():
            continue
        if not path.name.lower().endswith(READABLE):
            others.append(path.name)
            continue
        if file_stem(path) in found:
            raise DataError(
                f"{folder} holds {file_stem(path)} twice, as {found[file_stem(path)].name} and as {path.name}: remove or rename one"
            )
        found[file_stem(path)] = path
    if others:
        notes.append(f"{len(others)} files in {folder.name} are no scans and are not read: {few(others, 4)}")
    return found


def file_stem(path: Path | str) -> str:
    """File name without the ending of a format that is read, in small letters or capitals."""
    name = Path(path).name
    ending = next((suffix for suffix in READABLE if name.lower().endswith(suffix)), None)
    return name[: -len(ending)] if ending else Path(path).stem


def mask_word(words: Sequence[str], known: Collection[str]) -> str:
    """The word at the end of a name that says mask, with its number where lesions are numbered: lesion, lesion2, lesion_2; or ""."""
    word = words[-1].lower() if words else ""
    if word.isdecimal() and len(words) > 1:
        word = words[-2].lower() + word
    return word if word.rstrip("0123456789") in known else ""


def held_by_most(names: Collection[Collection[str]]) -> tuple[tuple[str, ...], list[str]]:
    """Of the names of the files of each case, those that more than half of the cases have, and the others."""
    held = Counter(name for of_case in names for name in of_case)
    common = tuple(sorted(name for name in held if held[name] > len(names) / 2))
    return common, sorted(set(held) - set(common))
