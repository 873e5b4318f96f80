"""NIfTI in and out, with errors a user can act on and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from latentsynth.errors import AxesError, DataError, VolumeError
from latentsynth.files import atomic_path
from latentsynth.provenance import voxel_hash

SUFFIXES = (".nii.gz", ".nii")
MAX_LABEL = int(np.iinfo(np.int16).max)  # label maps are read as int16


def stem(path: Path | str) -> str:
    """File name without ``.nii`` or ``.nii.gz``, in small letters or capitals."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def read(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one 3D volume as stored.

    Returns:
        The voxels, shape ``(I, J, K)`` in the file's own axis order, scaled to scanner units, and the affine
        ``(4, 4)`` from voxel indices to world coordinates in mm (RAS+).

    Raises:
        VolumeError: The file is missing or is not a readable NIfTI file (a truncated gzip, say).
        AxesError: It is not 3D.
    """
    path = Path(path)
    if not path.is_file():
        raise _missing(path)
    try:
        image: Any = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib each raise their own kinds
        raise _unreadable(path, error) from error
    if voxels.ndim == 4 and voxels.shape[3] == 1:  # a trailing axis of one is a common habit of writers
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise _not_3d(path, voxels.shape)
    return voxels, np.asarray(image.affine, dtype=np.float64)


def canonical_hash(voxels: np.ndarray, affine: np.ndarray) -> str:
    """Hash of a volume's voxels in RAS+ order: the same scan saved twice, in whatever orientation, has the same."""
    return voxel_hash(nib.orientations.apply_orientation(voxels, nib.orientations.io_orientation(affine)))


def geometry(path: Path | str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of a 3D volume from its header, without reading its voxels.

    Returns:
        Shape ``(I, J, K)`` in the file's own axis order, and the affine ``(4, 4)``, as :func:`read` gives them.

    Raises:
        VolumeError: As :func:`read`.
    """
    path = Path(path)
    if not path.is_file():
        raise _missing(path)
    try:
        image: Any = nib.load(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    shape = tuple(int(n) for n in image.shape)
    shape = shape[:3] if len(shape) == 4 and shape[3] == 1 else shape
    if len(shape) != 3:
        raise _not_3d(path, shape)
    return (shape[0], shape[1], shape[2]), np.asarray(image.affine, dtype=np.float64)


def _missing(path: Path) -> VolumeError:
    found, cure = "does not exist", "check the path"
    return VolumeError(f"{path} {found}: {cure}", found=found, cure=cure)


def _unreadable(path: Path, error: Exception) -> VolumeError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    found, cure = f"is not a readable NIfTI file ({reason})", "copy or convert it again"
    return VolumeError(f"{path} {found}: {cure}", found=found, cure=cure)


def _not_3d(path: Path, shape: tuple[int, ...]) -> AxesError:
    found, cure = f"has {len(shape)} axes {shape}", "split it into 3D volumes"
    return AxesError(f"{path} {found}, expected 3: {cure}", found=found, cure=cure)


def read_labels(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a label map; float files are accepted if every value is a whole number.

    Returns:
        Labels, int16, shape ``(I, J, K)``, and the affine ``(4, 4)``.

    Raises:
        DataError: As :func:`read`, or a voxel is not a whole number from 0 to :data:`MAX_LABEL`.
    """
    voxels, affine = read(path)
    if voxels.dtype.kind not in "biuf":
        raise DataError(f"{path} is not a label map: it holds {voxels.dtype} voxels; convert it to whole numbers")
    # Before the cast, which would turn NaN into some number and wrap large labels around.
    if not np.isfinite(voxels).all():
        raise DataError(f"{path} is not a label map: it holds NaN or infinity; give those voxels a label, such as 0")
    if voxels.dtype.kind == "f" and not np.array_equal(np.rint(voxels), voxels):
        raise DataError(f"{path} is not a label map: it holds values that are not whole numbers; threshold it first")
    low, high = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if low < 0 or high > MAX_LABEL:
        raise DataError(
            f"{path} is not a label map: it holds labels from {low:.0f} to {high:.0f}, and the limit is 0 to "
            f"{MAX_LABEL}; renumber them"
        )
    return voxels.astype(np.int16), affine


def write(path: Path | str, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Writes one volume atomically, with its affine as both sform and qform where a qform can hold it.

    Args:
        path: Where to; ends in one of :data:`SUFFIXES`.
        voxels: Shape ``(I, J, K)``. Types that few programs read are stored as others that hold the same values: bool
            as uint8, 64-bit whole numbers as int32.
        affine: ``(4, 4)`` from voxel indices to world coordinates in mm (RAS+).

    Raises:
        DataError: A whole number does not fit into 32 bits, or the place cannot be written.
    """
    image = nib.Nifti1Image(np.ascontiguousarray(_storable(voxels, path)), affine)
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _storable(voxels: np.ndarray, path: Path | str) -> np.ndarray:
    """The same values in a type that NIfTI has and its readers expect."""
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    if voxels.dtype.kind not in "iu" or voxels.dtype.itemsize < 8:
        return voxels
    limits = np.iinfo(np.int32)
    if voxels.size and (voxels.min() < limits.min or voxels.max() > limits.max):
        raise DataError(
            f"{path} would hold whole numbers from {voxels.min()} to {voxels.max()}, expected {limits.min} to "
            f"{limits.max}: convert them to float32"
        )
    return voxels.astype(np.int32)
