"""NIfTI in and out, with errors a user can act on and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from latentsynth.errors import DataError
from latentsynth.files import atomic_path

SUFFIXES = (".nii.gz", ".nii")


def stem(path: Path | str) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def read(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one 3D volume as stored.

    Returns:
        The voxels, shape ``(I, J, K)`` in the file's own axis order, scaled to scanner units, and the affine
        ``(4, 4)`` from voxel indices to world coordinates in mm (RAS+).

    Raises:
        DataError: The file is missing, is not a readable NIfTI file (a truncated gzip, say), or is not 3D.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist: check the path")
    try:
        image: Any = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib each raise their own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a readable NIfTI file ({reason}): copy or convert it again") from error
    if voxels.ndim == 4 and voxels.shape[3] == 1:  # a trailing axis of one is a common habit of writers
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise DataError(f"{path} has {voxels.ndim} axes {voxels.shape}, expected 3: split it into 3D volumes")
    return voxels, np.asarray(image.affine, dtype=np.float64)


def read_labels(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a label map; float files are accepted if every value is a whole number.

    Returns:
        Labels, int16, shape ``(I, J, K)``, and the affine ``(4, 4)``.

    Raises:
        DataError: As :func:`read`, or a voxel is not a whole number.
    """
    voxels, affine = read(path)
    labels = np.rint(voxels).astype(np.int16)
    if not np.array_equal(labels, voxels):
        raise DataError(f"{path} is not a label map: it holds values that are not whole numbers; threshold it first")
    return labels, affine


def write(path: Path | str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Writes one volume atomically, with its affine as both sform and qform where a qform can hold it."""
    image = nib.Nifti1Image(np.ascontiguousarray(voxels), affine)
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
