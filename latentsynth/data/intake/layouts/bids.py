"""The Brain Imaging Data Structure: scans under ``sub-*/[ses-*/]anat``, masks under ``derivatives``."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from latentsynth.data.intake import tables
from latentsynth.data.intake.layouts.cohort import EXPECTED, RawCohort, few, file_stem, held_by_most, listing
from latentsynth.errors import DataError
from latentsynth.types import Case

_FOLDERS = ("anat", "pet", "ct", "perf", "swi")  # with 3D scans
_MASKS = ("mask", "dseg", "seg", "roi", "lesion", "label", "segmentation")
_LESION = ("lesion", "tumor", "tumour", "roi", "stroke", "abnormality", "pathology")
_ENTITIES = ("sub", "ses")


def is_bids(source: Path) -> bool:
    """Whether a folder has subjects."""
    return bool(_sessions(source))


def bids(source: Path) -> RawCohort:
    """A case per subject and session; channels are what most of them have; masks are those of lesions, or all there are.

    Raises:
        DataError: There are no subjects.
    """
    scans = {_case(folder): _channels(folder) for folder in _sessions(source)}
    if not scans:
        raise DataError(f"{source} has no subject with scans (sub-*/anat); {EXPECTED}")
    channels, rare = held_by_most(scans.values())
    if not channels:
        raise DataError(
            f"the subjects of {source} have no kind of scan in common ({few(rare)}): choose some by a table"
        )
    notes = []
    if rare:
        notes.append(f"kinds of scans that fewer than half of the cases have are not read: {few(rare)}")
    masks = _masks(source)
    cases, several = [], {}
    for name, files in sorted(scans.items()):
        images = tuple(files.get(channel, source / f"{name}_{channel}.nii.gz") for channel in channels)
        chosen = _chosen(masks.get(name, []))
        if len(chosen) > 1:
            several[name] = {_kind(path): path for path in chosen}
        cases.append(Case(name, name.split("_")[0], images, chosen[0] if len(chosen) == 1 else None))
    known, whole = _names(source), source.resolve().name
    return RawCohort(whole, channels, None, tuple(cases), True, False, tuple(notes), names=known, several=several)


def _sessions(source: Path) -> list[Path]:
    """Folders of subjects, or of their sessions where there are any, that hold scans."""
    found = []
    for subject in sorted(source.glob("sub-*")):
        sessions = sorted(one for one in subject.glob("ses-*") if one.is_dir())
        found += sessions or [subject]
    return [folder for folder in found if any((folder / kind).is_dir() for kind in _FOLDERS)]


def _case(folder: Path) -> str:
    return folder.name if folder.name.startswith("sub-") else f"{folder.parent.name}_{folder.name}"


def _channels(folder: Path) -> dict[str, Path]:
    """The scans of a session by kind: entities other than subject and session, and the suffix; of several runs the first."""
    found: dict[str, Path] = {}
    for kind in _FOLDERS:
        for name, path in listing(folder / kind, []).items():
            words = [word for word in name.split("_") if word.split("-")[0] not in (*_ENTITIES, "run")]
            if words and words[-1].lower() not in _MASKS:
                found.setdefault("_".join(words), path)
    return found


def _masks(source: Path) -> dict[str, list[Path]]:
    """Masks by case, from derivatives and from beside the scans."""
    derived = {path.parent for path in source.glob("derivatives/**/sub-*") if path.is_file()}
    beside = {session / kind for session in _sessions(source) for kind in _FOLDERS}
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(derived | beside):
        for name, path in listing(folder, []).items():
            case = re.match(r"(sub-[^_]+)(_ses-[^_]+)?", name)
            if case and name.split("_")[-1].lower() in _MASKS:
                found[case[0]].append(path)
    return found


def _chosen(masks: list[Path]) -> list[Path]:
    """The masks that say that they are of lesions; all but that of the brain where none does."""
    masks = [path for path in masks if "brain" not in path.name.lower()]
    return [path for path in masks if any(word in path.name.lower() for word in _LESION)] or masks


def _kind(path: Path) -> str:
    """What a mask is of: its name without subject and session."""
    return "_".join(word for word in file_stem(path).split("_") if word.split("-")[0] not in _ENTITIES)


def _names(source: Path) -> dict[int, str]:
    """What the values of a segmentation mean, from its table."""
    found = [*sorted(source.glob("derivatives/**/*_dseg.tsv")), *sorted(source.glob("*dseg.tsv"))]
    return tables.read_names(found[0]) if found else {}
