"""What a cohort lacks, in copies beside it: scans that are no 3D NIfTI files, channels on another grid or missing, empty masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from latentsynth.data import nifti
from latentsynth.data.frames import Frame, resample
from latentsynth.data.intake import joining
from latentsynth.data.intake.checks import disagreement
from latentsynth.data.intake.joining import Join
from latentsynth.data.intake.layouts.cohort import OTHER, RawCohort, few
from latentsynth.errors import DataError, VolumeError
from latentsynth.outputs import claim, finish
from latentsynth.types import Case

KIND = "converted scans"
_PART = "volumes"


@dataclass(frozen=True)
class Wanted:
    """What is made good, because somebody asked for it by name.

    Attributes:
        resample: Resample channels that lie on another grid than the first channel onto it.
        fill: Channels, by position, of which missing or constant images are filled with zeros.
        healthy: Found in the ids of cases whose missing mask is an empty one; None where there are none.
        join: What is made of several masks of one scan; None refuses them.
    """

    resample: bool = False
    fill: tuple[int, ...] = ()
    healthy: re.Pattern[str] | None = None
    join: Join | None = None


def converted(cohort: RawCohort, folder: Path, wanted: Wanted) -> tuple[RawCohort, list[str]]:
    """The cohort with 3D NIfTI copies of whatever files are something else; all others stay where they are.

    Args:
        cohort: Of files that may be missing or damaged, which the checks report.
        folder: Where copies go; made only if there are any.
        wanted: What else is made good.

    Returns:
        The cohort, and what the user should hear.

    Raises:
        DataError: The folder holds something else, or scans have several masks and nobody said what to make of them.
    """
    if cohort.several and wanted.join is None:
        case, masks = next(iter(cohort.several.items()))
        raise DataError(
            f"{len(cohort.several)} cases have several masks (first {case}: {few([path.name for path in masks.values()])}): "
            "give --several-masks union if all are one kind of lesion, --several-masks labels if each is a structure of its "
            "own, or name one mask per case in a table"
        )
    work = _Copies(folder)
    kinds = sorted({kind for masks in cohort.several.values() for kind in masks})
    if wanted.join == "union":
        cohort = replace(cohort, labels=None, names={1: "lesion"})
    elif kinds:
        cohort = replace(cohort, names=dict(enumerate(kinds, 1)))
    out = [_convert(case, cohort, kinds, work, wanted) for case in cohort.cases]
    if work.made:
        finish(folder, work.made)
    notes = [f"{len(files)} files {what}, in copies under {folder}" for what, files in work.reasons.items()]
    return replace(cohort, cases=tuple(out)), notes


class _Copies:
    """Where copies go, and which were made why."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.made: list[Path] = []
        self.reasons: dict[str, list[str]] = {}

    def write(self, name: str, voxels: np.ndarray, affine: np.ndarray, why: str, source: Path) -> Path:
        """Writes a copy."""
        if not self.made:
            claim(self.folder, KIND, parts=(_PART,))
        path = self.folder / _PART / f"{name}.nii.gz"
        nifti.write(path, voxels, affine)
        self.made.append(path)
        self.reasons.setdefault(why, []).append(source.name)
        return path


def _convert(case: Case, cohort: RawCohort, kinds: Sequence[str], work: _Copies, wanted: Wanted) -> Case:
    channels = len(cohort.channels)
    images: list[Path] = []
    if len(case.images) == 1 and channels > 1:
        images = _along_fourth_axis(case, channels, work)
    images = images or [_as_nifti(path, f"{case.case_id}_{n:04d}", work) for n, path in enumerate(case.images)]
    mask = None if case.mask is None else _as_nifti(case.mask, f"{case.case_id}_mask", work)
    case = replace(case, images=tuple(images), mask=mask)
    if wanted.join is not None:
        case = _joined(case, cohort.several.get(case.case_id, {}), kinds, work, wanted.join)
    case = _filled(case, wanted.fill, work)
    case = _aligned(case, work) if wanted.resample else case
    unmarked = case.mask is None and wanted.healthy is not None and wanted.healthy.search(case.case_id)
    return _declared_healthy(case, work) if unmarked else case


def _joined(case: Case, masks: Mapping[str, Path], kinds: Sequence[str], work: _Copies, how: Join) -> Case:
    """One mask of several files, or of several channels of a file; values of 1 and more in the order of kinds, or of channels."""
    name, why = f"{case.case_id}_mask", f"are masks that were joined ({how})"
    if masks:
        files = {kind: _as_nifti(path, f"{case.case_id}_{kind}", work) for kind, path in masks.items()}
        try:
            read, affine = joining.read_files(list(files.values()))
        except VolumeError as error:
            raise DataError(f"case {case.case_id}: {error}") from None
        values = [1 + kinds.index(kind) for kind in files]
    else:
        channels = None if case.mask is None else joining.read_channels(case.mask)
        if channels is None:
            return case
        read, affine = channels
        values = list(range(1, len(read) + 1))
    joined = joining.join(read, values, how)
    return replace(case, mask=work.write(name, joined, affine, why, next(iter(masks.values()), Path(name))))


def _filled(case: Case, channels: Sequence[int], work: _Copies) -> Case:
    """Zeros on the grid of the first channel where a channel is missing; one that holds one value throughout is taken as it is."""
    images, filled = list(case.images), []
    for n in (n for n in channels if n < len(images)):
        try:
            if images[n].is_file():
                voxels = nifti.read(images[n])[0]
                filled += [n] if voxels.min() == voxels.max() else []
                continue
            shape, affine = nifti.geometry(images[0])
        except DataError:  # the checks say what is wrong with it
            continue
        zeros = np.zeros(shape, np.uint8)
        images[n] = work.write(f"{case.case_id}_{n:04d}", zeros, affine, "were missing and are zeros", images[n])
        filled.append(n)
    return replace(case, images=tuple(images), filled=tuple(filled))


def _declared_healthy(case: Case, work: _Copies) -> Case:
    try:
        shape, affine = nifti.geometry(case.images[0])
    except (DataError, IndexError):  # the checks say what is wrong with it
        return case
    name = f"{case.case_id}_mask"
    empty = work.write(name, np.zeros(shape, np.uint8), affine, "are empty masks of cases declared healthy", Path(name))
    return replace(case, mask=empty)


def _as_nifti(path: Path, name: str, work: _Copies) -> Path:
    if not path.name.lower().endswith(OTHER) or not path.is_file():
        return path
    try:
        voxels, affine = read_other(path)
    except VolumeError:
        return path  # the checks say what is wrong with it
    return work.write(name, voxels, affine, "are no NIfTI files", path)


def read_other(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A MetaImage or NRRD file: voxels ``(I, J, K)`` and affine to world coordinates in mm (RAS+).

    Raises:
        VolumeError: It is unreadable, or not 3D with one value per voxel.
    """
    import SimpleITK as sitk  # noqa: N813 (as its own documentation does)

    try:
        image: Any = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        found, cure = f"is not readable ({reason})", "copy or convert it again"
        raise VolumeError(f"{path} {found}: {cure}", found=found, cure=cure) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        found = f"has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values per voxel"
        cure = "split it into 3D volumes of one value each"
        raise VolumeError(f"{path} {found}, expected 3 and 1: {cure}", found=found, cure=cure)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world is LPS
    return np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0)), to_ras @ affine


def _along_fourth_axis(case: Case, channels: int, work: _Copies) -> list[Path]:
    """The channels of a file that holds them all; nothing if it does not."""
    path = case.images[0]
    if not path.is_file() or not path.name.lower().endswith(nifti.SUFFIXES):
        return []
    try:
        image: Any = nib.load(path)
        shape = image.shape
        if len(shape) != 4 or shape[3] != channels:
            return []
        voxels = np.asanyarray(image.dataobj)
    except Exception:  # the checks say what is wrong with it
        return []
    return [
        work.write(
            f"{case.case_id}_{n:04d}", voxels[..., n], image.affine, "hold their channels along a fourth axis", path
        )
        for n in range(channels)
    ]


def _aligned(case: Case, work: _Copies) -> Case:
    """All channels on the grid of the first."""
    try:
        shape, affine = nifti.geometry(case.images[0])
        frame = Frame(affine, shape)
        moved = list(case.images)
        for n, path in enumerate(case.images[1:], 1):
            if disagreement(shape, affine, *nifti.geometry(path)):
                voxels, own = nifti.read(path)
                laid = resample(voxels, own, frame, fill=float(voxels.min()), order=3)
                laid = np.clip(laid, voxels.min(), voxels.max())
                moved[n] = work.write(
                    f"{case.case_id}_{n:04d}", laid, affine, "were resampled onto the first channel", path
                )
        return replace(case, images=tuple(moved))
    except (DataError, IndexError):  # the checks say what is wrong with it
        return case
