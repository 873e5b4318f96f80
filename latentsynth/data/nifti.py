"""NIfTI in and out, with errors a user can act on and nothing half-written."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from latentsynth.errors import AxesError, DataError, VolumeError
from latentsynth.files import atomic_path
from latentsynth.provenance import voxel_hash
from latentsynth.types import MAX_VOXELS

SUFFIXES = (".nii.gz", ".nii")
MAX_LABEL = int(np.iinfo(np.int16).max)  # label maps are read as int16
_LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 1e-3  # a label value may be so far from a whole number
_REST_BYTES = 1 << 26  # more behind the voxels is no note of a scanner
_QFORM_MM = 1e-4  # how exactly a qform must hold an affine


def stem(path: Path | str) -> str:
    """File name without ``.nii`` or ``.nii.gz``, in small letters or capitals."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(path).stem


def files(folder: Path) -> list[Path]:
    """The NIfTI files directly inside a folder, by name; hidden ones, such as the ``._NAME`` of macOS, are no scans."""
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("."))


def read(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads one 3D volume as stored, to the end of its file, so that a damaged one does not pass.

    Returns:
        The voxels, shape ``(I, J, K)`` in the file's own axis order, scaled to scanner units, finite, and the affine
        ``(4, 4)`` from voxel indices to world coordinates in mm (RAS+), which has an inverse.

    Raises:
        VolumeError: The file is missing or is not a readable NIfTI file (a truncated gzip, say); its voxels are no real
            numbers (complex, colours), or NaN or infinity is among them; there are more than :data:`MAX_VOXELS`; its
            affine has no inverse.
        AxesError: It is not 3D.
    """
    path = Path(path)
    image, shape, affine = _opened(path)
    try:
        voxels = (
            np.asanyarray(image.dataobj) if not path.name.lower().endswith(".gz") else _unpacked(path, image.dataobj)
        )
    except MemoryError:
        raise _too_large(path, shape, "the memory that is free") from None
    except VolumeError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each raise their own kinds
        raise _unreadable(path, error) from error
    # NaN passes through both, so the usual scan is looked at without a copy of it. All work is done in float32.
    if voxels.dtype.kind == "f" and not (voxels.min() >= -_LARGEST and voxels.max() <= _LARGEST):
        found = f"NaN or infinity in {int(voxels.size - (np.abs(voxels) <= _LARGEST).sum())} voxels"
        raise _unfit(path, found, "replace them by a real value, such as that of air (in a label map, 0)")
    return voxels.reshape(shape), affine


def _unpacked(path: Path, stored: Any) -> np.ndarray:
    """The voxels of a gzipped file, which is read on to its checksum: nibabel stops where the voxels end."""
    with gzip.open(path) as stream:
        spec = (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)
        voxels = np.asanyarray(nib.arrayproxy.ArrayProxy(stream, spec))
        rest = 0
        while block := stream.read(1 << 20):
            rest += len(block)
            if rest > _REST_BYTES:
                raise _unfit(path, "much more than the voxels that its header names", "convert it again")
    return voxels


def _opened(path: Path) -> tuple[Any, tuple[int, int, int], np.ndarray]:
    """A file by its header: the image, whose voxels are not read yet, its shape and its affine."""
    if not path.is_file():
        found, cure = "does not exist", "check the path"
        raise VolumeError(f"{path} {found}: {cure}", found=found, cure=cure)
    try:
        image: Any = nib.load(path)
        shape = tuple(int(n) for n in image.shape)
        affine, stored = np.asarray(image.affine, dtype=np.float64), image.get_data_dtype()
    except Exception as error:
        raise _unreadable(path, error) from error
    while len(shape) > 3 and shape[-1] == 1:  # a trailing axis of one is a common habit of writers
        shape = shape[:-1]
    if len(shape) != 3:
        found, cure = f"has {len(shape)} axes {shape}", "split it into 3D volumes"
        raise AxesError(f"{path} {found}, expected 3: {cure}", found=found, cure=cure)
    if stored.kind not in "biuf" or not min(shape):
        kind = "colours" if stored.names else str(stored)
        raise _unfit(path, f"voxels of type {kind} and shape {shape}", "convert it to plain numbers, one per voxel")
    if math.prod(shape) > MAX_VOXELS:
        raise _too_large(path, shape, f"the limit, {MAX_VOXELS:,}")
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise _unfit(path, "an affine that has no inverse", "correct the header")
    return image, (shape[0], shape[1], shape[2]), affine


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A volume's voxels in RAS+ order, and their sizes along its axes in mm."""
    turn = nib.orientations.io_orientation(affine)
    i, j, k = nib.affines.voxel_sizes(affine)[np.argsort(turn[:, 0])]
    return nib.orientations.apply_orientation(voxels, turn), (float(i), float(j), float(k))


def canonical_hash(voxels: np.ndarray, affine: np.ndarray) -> str:
    """Hash of a volume's voxels in RAS+ order: the same scan saved twice, in whatever orientation, has the same."""
    return voxel_hash(canonical(voxels, affine)[0])


def geometry(path: Path | str) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of a 3D volume from its header, without reading its voxels.

    Returns:
        Shape ``(I, J, K)`` in the file's own axis order, and the affine ``(4, 4)``, as :func:`read` gives them.

    Raises:
        VolumeError: As :func:`read`.
    """
    return _opened(Path(path))[1:]


def _unreadable(path: Path, error: Exception) -> VolumeError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    found, cure = f"is not a readable NIfTI file ({reason})", "copy or convert it again"
    ending = path.name[-len("".join(s for s in SUFFIXES if path.name.lower().endswith(s)) or ".nii") :]
    if ending not in (ending.lower(), ending.upper()):  # nibabel looks for small letters or capitals
        cure = f"rename it to end in {ending.lower()}"
    return VolumeError(f"{path} {found}: {cure}", found=found, cure=cure)


def _unfit(path: Path, found: str, cure: str) -> VolumeError:
    return VolumeError(f"{path} has {found}: {cure}", found=found, cure=cure)


def _too_large(path: Path, shape: tuple[int, ...], limit: str) -> VolumeError:
    size = " x ".join(map(str, shape))
    return _unfit(path, f"{math.prod(shape):,} voxels ({size}), more than {limit}", "crop it or resample it coarser")


def whole(voxels: np.ndarray) -> np.ndarray:
    """Label values that were stored as fractions, such as 0.9999 of a scaled or resampled file, as the whole numbers they stand for.

    Others, such as the probabilities of a soft mask, come back as they are.
    """
    if voxels.dtype.kind != "f":
        return voxels
    rounded = np.rint(voxels)
    return rounded if np.abs(voxels - rounded).max(initial=0) <= _ROUNDING else voxels


def read_labels(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a label map; float files are accepted if every value is a whole number, but for rounding.

    Returns:
        Labels, int16, shape ``(I, J, K)``, and the affine ``(4, 4)``.

    Raises:
        DataError: As :func:`read`, or a voxel is not a whole number from 0 to :data:`MAX_LABEL`.
    """
    voxels, affine = read(path)
    voxels = whole(voxels)
    if voxels.dtype.kind == "f" and not np.array_equal(np.rint(voxels), voxels):
        raise DataError(f"{path} is not a label map: it holds values that are not whole numbers; threshold it first")
    low, high = voxels.min(), voxels.max()
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
    image.set_qform(affine, code="scanner")
    if not np.allclose(image.get_qform(), affine, atol=_QFORM_MM):  # sheared: quaternions cannot say so
        image.set_qform(None)
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
