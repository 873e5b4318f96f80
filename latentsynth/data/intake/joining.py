"""Several masks of one scan made one: lesions in a file each, or a structure in a channel each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np

from latentsynth.data import nifti
from latentsynth.data.intake.checks import disagreement
from latentsynth.errors import UnknownNameError, VolumeError

Join = Literal["union", "labels"]


def as_join(name: str | None) -> Join | None:
    """A way to join by its name.

    Raises:
        UnknownNameError: There is no such way.
    """
    known: tuple[Join, ...] = get_args(Join)
    for way in known:
        if name == way:
            return way
    if name is None:
        return None
    raise UnknownNameError("way to join masks", name, known)


def join(masks: Sequence[np.ndarray], values: Sequence[int], how: Join) -> np.ndarray:
    """One label map of several masks.

    Args:
        masks: ``(I, J, K)`` each; what is not 0 is marked.
        values: The label of each.
        how: ``"union"``: 1 where any is marked. ``"labels"``: each its own label, and where several are marked that of the
            smallest structure, which the larger ones would hide.

    Returns:
        int16, ``(I, J, K)``.
    """
    marked = [mask != 0 for mask in masks]
    out = np.zeros(marked[0].shape, np.int16)
    for n in sorted(range(len(marked)), key=lambda n: -int(marked[n].sum())):
        out[marked[n]] = 1 if how == "union" else values[n]
    return out


def read_files(files: Sequence[Path]) -> tuple[list[np.ndarray], np.ndarray]:
    """Masks of one grid, and its affine.

    Raises:
        DataError: One is no label map.
        VolumeError: One lies on another grid than the first.
    """
    read = [nifti.read_labels(path) for path in files]
    first, affine = read[0]
    for path, (voxels, own) in zip(files, read, strict=True):
        apart = disagreement(first.shape, affine, voxels.shape, own)
        if apart:
            cure = "resample it, or choose one mask per case in a table"
            raise VolumeError(f"{path} is on another grid than {files[0]} ({apart}): {cure}", found=apart, cure=cure)
    return [voxels for voxels, _ in read], affine


def read_channels(path: Path) -> tuple[list[np.ndarray], np.ndarray] | None:
    """The masks along the fourth axis of a file, and its affine; None if it has no such axis, or holds no numbers.

    Masks that mark every voxel once are an encoding of labels, whose first is the background: it is left out.
    """
    if not path.is_file() or not path.name.lower().endswith(nifti.SUFFIXES):
        return None
    try:
        image: Any = nib.load(path)
        if len(image.shape) != 4 or image.shape[3] < 2:
            return None
        voxels = np.asanyarray(image.dataobj)
    except Exception:  # the checks say what is wrong with it
        return None
    if voxels.dtype.kind not in "biuf":
        return None
    marked = voxels != 0
    first = 1 if (marked.sum(axis=3) == 1).all() else 0
    return [marked[..., n] for n in range(first, voxels.shape[3])], image.affine
