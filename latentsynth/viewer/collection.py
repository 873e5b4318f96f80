"""What there is to see at some paths: cases with their channels and masks, each beside the real scan it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest, is_manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.evaluation.memorization.report import KIND
from latentsynth.provenance import file_fingerprint
from latentsynth.results import Result
from latentsynth.sharing.filter import read_report
from latentsynth.types import Case


@dataclass(frozen=True)
class Entry:
    """One case.

    Attributes:
        name: What to call it.
        group: Where it comes from: the folder or manifest.
        synthetic: Whether a model made it.
        channels: Names of the channels.
        images: One file per channel.
        mask: Its label map, or None.
        labels: Name of each label value.
        people: Its patient; of a synthetic case, those whose masks and scans it was made from.
        mask_hash: What its label map holds.
        beside: Index of the entry that it is to be compared with: of a synthetic case, the training case that a report found
            nearest, or else the patient whose mask it shows.
        why: Which of them that is, in words.
    """

    name: str
    group: str
    synthetic: bool
    channels: tuple[str, ...]
    images: tuple[Path, ...]
    mask: Path | None = None
    labels: tuple[tuple[int, str], ...] = ()
    people: tuple[str, ...] = ()
    mask_hash: str = ""
    beside: int | None = None
    why: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that may be read of it: images, then the mask where there is one."""
        return (*self.images, *([self.mask] if self.mask else []))


def entries(paths: Sequence[Path]) -> list[Entry]:
    """The cases at some paths.

    Args:
        paths: NIfTI files, manifests, folders of NIfTI files, or folders with manifests of volumes in them or up to two folders
            below, as ``latentsynth run`` and ``latentsynth demo`` write; and reports of ``latentsynth memorization``, given or in
            such folders, of which the nearest training case is shown beside each volume.

    Raises:
        DataError: A path is none of these, or a file is missing.
    """
    inside = [file for path in paths if path.is_dir() for file in _below(path, f"{KIND}.json")]
    reports = [read_report(path) for path in (*paths, *inside) if path.name == f"{KIND}.json"]
    found = [entry for path in paths if path.name != f"{KIND}.json" for entry in _at(path)]
    if not found:
        raise DataError(
            "nothing to look at: give a NIfTI file, a manifest, or a folder that `latentsynth sample` wrote"
        )
    for entry in found:
        for file in entry.files:
            if not file.is_file():
                raise DataError(f"{entry.name}: {file} does not exist: restore it, or give another manifest")
    return [_compared(entry, found, reports) for entry in found]


def _compared(entry: Entry, found: Sequence[Entry], reports: Sequence[Result]) -> Entry:
    """The entry, and what it is to be compared with."""
    if not entry.synthetic:
        return entry
    nearest = _nearest(entry, found, reports)
    if nearest is not None:
        return replace(entry, beside=nearest[0], why=f"the nearest training case, by {nearest[1]}")
    beside = _parent(entry, found)
    return replace(entry, beside=beside, why="" if beside is None else "the patient whose mask it shows")


def _nearest(entry: Entry, found: Sequence[Entry], reports: Sequence[Result]) -> tuple[int, str] | None:
    """The training case that a report found nearest, and by which feature space: all of them together where it has that."""
    told = [cases[entry.name] for report in reports for cases in report.facts["sets"].values() if entry.name in cases]
    if len(told) > 1:  # sets may have names in common, but no files
        files = file_fingerprint(*entry.files)
        told = [facts for facts in told if facts["files"] == files]
    for facts in told:
        for space, case in sorted(facts["nearest"].items(), key=lambda pair: pair[0] != JOINT):
            for n, one in enumerate(found):
                if not one.synthetic and one.name == case:
                    return n, space
    return None


def _parent(entry: Entry, found: Sequence[Entry]) -> int | None:
    """The real case that a sample was made from: of several of a patient, the one whose mask it shows."""
    theirs = [n for n, one in enumerate(found) if not one.synthetic and set(one.people) & set(entry.people)]
    same = [n for n in theirs if found[n].mask_hash == entry.mask_hash]
    return next(iter([*same, *theirs]), None)


def _at(path: Path) -> list[Entry]:
    if path.is_dir():
        cases = [entry for file in _below(path, "manifest.json") if is_manifest(file) for entry in _of_manifest(file)]
        if cases:
            return [
                entry for entry in cases if entry.images != (entry.mask,)
            ] or cases  # masks alone, where there is no volume
        if (path / "metrics.jsonl").is_file():
            raise DataError(
                f"{path} is a training run, which holds no volumes: make some, `latentsynth sample {path} --out FOLDER`, and view these"
            )
        return [_of_file(file) for file in nifti.files(path)]
    if path.suffix == ".json":
        return _of_manifest(path)
    if not path.is_file() or not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(
            f"{path} is no NIfTI file, manifest or folder: give one of these, for example what `latentsynth sample` wrote"
        )
    return [_of_file(path)]


def _below(folder: Path, name: str) -> list[Path]:
    """Files of a name in a folder and up to two folders below, of each level in the order of their names."""
    return [file for level in ("", "*/", "*/*/") for file in sorted(folder.glob(f"{level}{name}"))]


def _of_file(path: Path) -> Entry:
    return Entry(path.name.split(".nii")[0], path.parent.name, False, ("image",), (path,))


def _of_manifest(path: Path) -> list[Entry]:
    manifest = Manifest.load(path)
    labels = tuple(zip(manifest.labels.values, manifest.labels.names, strict=True))
    group = manifest.name or path.parent.name

    def entry(case: Case) -> Entry:
        images = case.images or ((case.mask,) if case.mask else ())
        channels = manifest.channels if case.images else ("mask",)
        synthetic = case.source != "real"
        people = case.parents if synthetic else (case.patient_id,)
        return Entry(case.case_id, group, synthetic, channels, images, case.mask, labels, people, case.mask_hash or "")

    return [entry(case) for case in manifest.cases]
