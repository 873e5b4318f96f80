"""Cases in nnU-Net's raw layout, so that nnU-Net 2 finds nothing to complain of (``verify_dataset_integrity``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latentsynth.data import nifti
from latentsynth.data.cache.volumes import check_grids, check_labels, to_index
from latentsynth.data.identity import check_files
from latentsynth.types import Case, Labels

_IGNORE = "ignore"


def renumbered(labels: Labels) -> tuple[Labels, tuple[int, ...]]:
    """Labels as nnU-Net takes them: consecutive, and what nobody annotated as one label of the name "ignore", the highest.

    Returns:
        The labels, and the new value of each old one, in their order.
    """
    kept = [value for value in labels.values if value not in labels.ignored]
    names = [name for value, name in zip(labels.values, labels.names, strict=True) if value in kept]
    if labels.ignored:
        names.append(_IGNORE)
    values = tuple(kept.index(value) if value in kept else len(kept) for value in labels.values)
    return Labels(tuple(range(len(names))), tuple(names)), values


def write_case(case: Case, name: str, folder: Path, part: str, labels: Labels) -> None:
    """A case's voxels under headers of ours, all with the place of the first image, and with renumbered labels.

    Headers of one scan differ in their last digits where several tools wrote them, and nnU-Net compares spacings of channels
    exactly.

    Args:
        case: With at least one image.
        name: Of the files.
        folder: Of the dataset.
        part: ``"Tr"`` or ``"Ts"``.
        labels: As its mask has them.

    Raises:
        DataError: A file is another than was prepared, channels or mask lie on different grids, or a label is unknown.
    """
    images = [nifti.read(image) for image in case.images]
    mask = nifti.read_labels(case.mask) if case.mask else None
    check_files(case, images, mask)
    everything = [*images, mask] if mask else images
    check_grids(everything, [*case.images, *([case.mask] if case.mask else [])])
    affine = images[0][1]
    for channel, (voxels, _) in enumerate(images):
        nifti.write(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", voxels, affine)
    if mask:
        check_labels(mask[0], labels, str(case.mask))
        values = np.array(renumbered(labels)[1], np.int16)[to_index(mask[0], labels)]
        nifti.write(folder / f"labels{part}" / f"{name}.nii.gz", values, affine)
