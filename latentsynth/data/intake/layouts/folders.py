"""Cohorts that no file declares: a folder per case (BraTS and its like), and images beside masks of the same names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path

from latentsynth.data.intake.layouts.cohort import EXPECTED, RawCohort, few, held_by_most, listing, mask_word
from latentsynth.errors import DataError
from latentsynth.types import Case

MASKS = (
    "seg",
    "mask",
    "label",
    "labels",
    "gt",
    "roi",
    "lesion",
    "lesions",
    "tumor",
    "tumour",
    "annotation",
    "segmentation",
)
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "scans", "scan", "volumes", "imagestr")
_MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "segmentations",
    "segmentation",
    "segs",
    "seg",
    "annotations",
    "labelstr",
)
_BRATS = ("t1", "t1n", "t1ce", "t1c", "t2", "t2w", "flair", "t2f")  # of both namings, in their usual order
_BRATS_LABELS = {1: "necrotic tumour core", 2: "oedema", 4: "enhancing tumour"}
_BRATS_LABELS_2023 = {1: "necrotic tumour core", 2: "oedema", 3: "enhancing tumour", 4: "resection cavity"}
_DEEP = 3  # folders below the source in which cases are looked for


def case_folders(source: Path) -> dict[Path, dict[str, Path]]:
    """Folders that hold the scans of one case each, and these by the last word of their names; none unless one has a mask."""
    found: dict[Path, dict[str, Path]] = {}
    level, seen = [source], {source.resolve()}
    for _ in range(_DEEP):
        inside = [one for folder in level for one in sorted(folder.iterdir()) if one.is_dir() and one.name[0] != "."]
        places = {one.resolve(): one for one in inside if one.resolve() not in seen}  # links may lead back
        level, seen = list(places.values()), seen | set(places)
        found |= {folder: parts for folder in level if (parts := _parts(folder))}
    # A case may have no mask, but folders without any are no cohort.
    masked = [{name for name in parts if not _is_mask(name)} for parts in found.values() if any(map(_is_mask, parts))]
    return {folder: parts for folder, parts in found.items() if any(set(parts) & kinds for kinds in masked)}


def brats(source: Path) -> RawCohort:
    """A folder per case, with a file per channel and one mask: ``CASE/CASE_t1.nii.gz`` ... ``CASE/CASE_seg.nii.gz``.

    Names of BraTS of both kinds (2020: ``_t1ce``, 2023: ``-t1c``), whose labels get their names, and any other whose files end
    alike in every folder. Sessions of BraTS (``BraTS-GLI-00005-100``) are one patient.

    Raises:
        DataError: No folder holds an image and a mask, or the folders have no channel in common.
    """
    parts = case_folders(source)
    if not parts:
        raise DataError(f"{source} has no folder that holds images and a mask of one case; {EXPECTED}")
    images_of = [[name for name in files if not _is_mask(name)] for files in parts.values()]
    common, rare = held_by_most(images_of)
    if not common:
        raise DataError(f"the folders of {source} have no channel in common ({few(rare)}): name their files alike")
    channels = tuple(sorted(common, key=_order))
    notes = []
    if rare:
        notes.append(f"channels that fewer than half of the cases have are not read: {few(rare)}")
    cases, several, named = [], {}, _names(source, list(parts))
    for folder, files in parts.items():
        masks = {name: path for name, path in files.items() if _is_mask(name)}
        name, patient = named[folder]
        if len(masks) > 1:
            several[name] = masks
        mask = next(iter(masks.values())) if len(masks) == 1 else None
        images = tuple(files.get(channel, folder / f"{folder.name}_{channel}.nii.gz") for channel in channels)
        cases.append(Case(name, patient, images, mask))
    sessions = len({case.patient_id for case in cases}) < len(cases)
    if sessions:
        notes.append("sessions of one patient (CASE-NNN, or folders inside that of the patient) are kept together")
    # A cohort of T1 alone has labels of its own.
    known = set(channels) <= set(_BRATS) and (
        len(channels) == 4 or all(f.name.lower().startswith("brats") for f in parts)
    )
    names = {} if not known else _BRATS_LABELS_2023 if {"t1n", "t1c", "t2w", "t2f"} & set(channels) else _BRATS_LABELS
    return RawCohort(
        source.resolve().name, channels, None, tuple(cases), sessions, False, tuple(notes), names=names, several=several
    )


def _parts(folder: Path) -> dict[str, Path]:
    """The files of a case folder by the last word of their names; nothing unless there are images, all of one case."""
    files = listing(folder, [])
    named: dict[str, Path] = {}
    for name, path in files.items():
        rest = name[len(folder.name) :] if name.startswith(folder.name) else name
        words = [word for word in re.split(r"[_\-. ]+", rest.lower()) if word]
        word = mask_word(words, MASKS) or (words[-1] if words else "image")
        if word in named:
            return {}  # two scans of one kind: several cases lie here
        named[word] = path
    return {} if all(map(_is_mask, named)) else named


def _is_mask(word: str) -> bool:
    return bool(mask_word([word], MASKS))


def _order(name: str) -> tuple[int, str]:
    return (_BRATS.index(name) if name in _BRATS else len(_BRATS), name)


def _names(source: Path, folders: Sequence[Path]) -> dict[Path, tuple[str, str]]:
    """Case and patient of each folder: its name, or where sessions of patients have the same names, theirs before it."""
    if len({folder.name for folder in folders}) == len(folders):
        return {folder: (folder.name, _patient(folder)) for folder in folders}
    places = [folder.relative_to(source).parts for folder in folders]
    shared = sum(
        1 for _ in takewhile(lambda found: len(set(found)) == 1, zip(*places, strict=False))
    )  # such as TrainingData
    return {f: ("_".join(p[shared:]), p[min(shared, len(p) - 1)]) for f, p in zip(folders, places, strict=True)}


def _patient(folder: Path) -> str:
    """BraTS since 2023 numbers the visits of a patient at the end of a name; others put them into the patient's folder."""
    match = re.fullmatch(r"(BraTS-\w+-\d{5})-\d{3}", folder.name)
    own = re.match(rf"{re.escape(folder.parent.name)}[_\-. ]", folder.name)
    return match[1] if match else folder.parent.name if own else folder.name


def pairs(source: Path) -> RawCohort:
    """One image and one mask per case: ``images/CASE.nii.gz`` and ``masks/CASE.nii.gz``, or ``CASE.nii.gz`` and ``CASE_mask.nii.gz``.

    Raises:
        DataError: There are no such pairs.
    """
    notes: list[str] = []
    found = paired(source, notes)
    if found is None:
        raise DataError(f"{source} holds no pairs of an image and a mask; {EXPECTED}")
    images, masks = found
    alone = sorted(set(masks) - set(images))
    if alone:
        notes.append(f"{len(alone)} masks have no image and are not read: {few(alone)}")
    several = {name: of for name, of in masks.items() if len(of) > 1 and name in images}
    single = {name: next(iter(of.values())) for name, of in masks.items() if len(of) == 1}
    cases = tuple(Case(name, name, (path,), single.get(name)) for name, path in images.items())
    return RawCohort(source.resolve().name, ("image",), None, cases, False, False, tuple(notes), several=several)


def paired(source: Path, notes: list[str]) -> tuple[dict[str, Path], dict[str, dict[str, Path]]] | None:
    """Images by case, and masks by case and what their names say; None where not one mask belongs to an image."""
    inside = {folder.name.lower(): folder for folder in source.iterdir() if folder.is_dir()}
    first, second = _one_of(inside, _IMAGE_FOLDERS), _one_of(inside, _MASK_FOLDERS)
    if first and second:
        images = {re.sub(r"_0000$", "", name): path for name, path in listing(first, notes).items()}
        found = {name: path for name, path in listing(second, notes).items()}
        named = {name: _case_and_word(name, images) for name in found}
    else:
        found = listing(source, notes)
        scans = {_bare_image(name) for name in found if not _case_and_word(name)[1]}
        named = {name: of for name in found if (of := _case_and_word(name, scans))[1]}
        images = {_bare_image(name): path for name, path in found.items() if name not in named}
    masks: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, (case, word) in named.items():
        masks[case][word or "mask"] = found[name]
    return (images, dict(masks)) if set(images) & set(masks) else None


def _one_of(folders: dict[str, Path], names: Sequence[str]) -> Path | None:
    return next((folders[name] for name in names if name in folders), None)


def _case_and_word(name: str, images: Collection[str] = ()) -> tuple[str, str]:
    """The case of a mask and the word that says mask, or the name and ""; a numbered word says so beside an image of the case.

    Otherwise the image ``brain_lesion_007`` would be a mask of ``brain``.
    """
    found = re.fullmatch(rf"(.+?)[_\-. ]({'|'.join(MASKS)})(?:[_\-. ]?(\d+))?", name, flags=re.IGNORECASE)
    if found is None or (found[3] and found[1] not in images):
        return name, ""
    return found[1], f"{found[2].lower()}{found[3] or ''}"


def _bare_image(name: str) -> str:
    """A case's name without the word that says image."""
    return re.sub(r"[_\-. ](image|img|scan|0000)$", "", name, flags=re.IGNORECASE)
