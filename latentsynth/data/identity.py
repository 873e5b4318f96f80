"""Which files belong to a case: by what they hold, never by what they are called or where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.provenance import file_fingerprint, fingerprint, voxel_hash
from latentsynth.types import Case

Native = tuple[np.ndarray, np.ndarray]  # voxels as read, and their affine
_LONGEST = 180  # bytes of a case id: file names may have 255, and suffixes follow


def volume_hash(voxels: np.ndarray, affine: np.ndarray, known: str = "") -> str:
    """Hash of a volume's voxels and place; the same however its axes are ordered on disk.

    Args:
        voxels: ``(I, J, K)``, compared as float32.
        affine: ``(4, 4)``, compared to a tenth of a micrometre: its last digits depend on the tool that wrote it.
        known: :func:`nifti.canonical_hash` of the same volume, where it was computed already.
    """
    stored = affine.astype(np.float32).astype(np.float64)  # as a NIfTI header keeps it
    turn = nib.orientations.inv_ornt_aff(nib.orientations.io_orientation(stored), voxels.shape)
    canonical = np.round(stored @ turn, 4) + 0.0  # no -0.0
    return fingerprint([known or nifti.canonical_hash(voxels, affine), canonical.tolist()])


def scan_hashes(images: Sequence[Native]) -> tuple[str, ...]:
    """Hashes by which the images of a case are known again, one per channel, whatever their place and orientation on disk.

    "" for an image of one value throughout: it looks like many and is nobody's.
    """
    return tuple(
        "" if voxels.min() == voxels.max() else nifti.canonical_hash(voxels, affine) for voxels, affine in images
    )


def turned_hash(voxels: np.ndarray) -> str:
    """Hash of a volume that no header changes: the same turned, mirrored, with other axes first, or shifted in value.

    The volume is laid with its shorter axes first, those of one length by how far its centre of mass is off the
    middle along them, and mirrored so that this centre is in the first half.

    Args:
        voxels: ``(I, J, K)``, compared as float32 above their minimum.
    """
    array = np.asarray(voxels, dtype=np.float32)
    array = array - array.min()
    off = []
    for axis, length in enumerate(array.shape):
        others = tuple(n for n in range(array.ndim) if n != axis)
        profile = array.sum(axis=others, dtype=np.float64)
        off.append(float(profile @ (np.arange(length) - (length - 1) / 2)))
    order = sorted(range(array.ndim), key=lambda axis: (array.shape[axis], abs(off[axis])))
    return voxel_hash(np.flip(array, tuple(axis for axis in range(array.ndim) if off[axis] > 0)).transpose(order))


def check_files(case: Case, images: Sequence[Native] = (), mask: Native | None = None) -> None:
    """Refuses files that hold something else than when the manifest was prepared; unknown hashes are not compared.

    Args:
        case: With the hashes that its manifest holds.
        images: Its images as read, all of them or none.
        mask: Its mask as read, or None.

    Raises:
        DataError: With the file that is another.
    """
    for path, native, known in zip(case.images, images, case.image_hashes, strict=False):
        _compare(case, path, native, known)
    if mask is not None and case.mask is not None:
        _compare(case, case.mask, mask, case.mask_hash)


def _compare(case: Case, path: Path, native: Native, known: str) -> None:
    if known and volume_hash(*native) != known:
        raise DataError(
            f"{path} does not hold what case {case.case_id} of patient {case.patient_id} was prepared with (another scan, or "
            "one that was changed since): restore the file, or run `latentsynth prepare` again"
        )


def files_of(case: Case) -> list[Path]:
    """Its images, then its mask."""
    return [*case.images, *([case.mask] if case.mask else [])]


def identity(case: Case) -> str:
    """Names a case's volumes in caches: changes with what its files hold, and with its id, which seeds augmentation.

    Raises:
        DataError: The manifest holds no hashes, so the files must be read, and one is missing.
    """
    held = case.content
    if not held:
        missing = [path for path in files_of(case) if not path.is_file()]
        if missing:
            raise DataError(f"{missing[0]} of case {case.case_id} does not exist: check the path")
        held = file_fingerprint(*files_of(case))
    parts = [len(case.images), case.mask is not None, *([case.limits] if case.limits else [])]
    return fingerprint([case.case_id, held, *parts])


def unfit_id(case_id: str) -> str:
    """Why an id cannot name files; "" if it can."""
    if not case_id:
        return "an empty case id"
    if any(mark in case_id for mark in "/\\") or case_id in (".", ".."):
        return "a case id with a slash or dots"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in case_id):
        return "a case id with control characters"
    if len(case_id.encode("utf-8", "surrogatepass")) > _LONGEST:
        return f"a case id of more than {_LONGEST} bytes"
    return ""
