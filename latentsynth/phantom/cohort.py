"""A procedural cohort of abdominal patients: the library's built-in data, for demonstrations and tests.

Schematic anatomy, not physics: layers of skin, fat and muscle, spine and ribs, lung bases, liver with vessels and
lesions, kidneys, spleen, stomach, bowel and great vessels. Shapes are implicit functions of coordinates that run from
-1 to 1 across the grid and are bent by smooth random fields, so the body is stretched to fill whatever grid is asked
for. Only the lesions have a size in millilitres.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from latentsynth import outputs
from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.files import clear_partial, write_json
from latentsynth.phantom.anatomy import LABELS, Array, body, ct, lesions, many_lesions, mr
from latentsynth.progress import bar

NAME = "phantom"
CHANNELS = ("CT", "MR")
MOST_LESIONS = 50
MIN_VOXELS = 24  # below this along an axis the organs are too few voxels to hold a lesion
_OURS = re.compile(rf"{NAME}_\d{{3,}}(_\d{{4}})?\.nii\.gz")


def write_cohort(
    out: Path,
    cases: int,
    seed: int,
    *,
    shape: tuple[int, int, int] = (48, 48, 48),
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0),
    channels: int = 2,
    many: tuple[int, int] | None = None,
) -> Path:
    """Writes a cohort as an nnU-Net raw dataset: ``imagesTr``, ``labelsTr`` and, last, ``dataset.json``.

    Images are stored as scanners store them, rounded to int16. A cohort that an earlier call left in ``out`` is
    replaced, whole or unfinished, if nobody has touched it since.

    Args:
        out: Folder to write; made if missing.
        cases: Number of patients.
        seed: Patient ``n`` of a seed is the same whatever the number of patients.
        shape: Voxels ``(I, J, K)`` of each volume.
        spacing_mm: Millimetres per voxel along each axis.
        channels: 1 for CT alone, 2 for CT and MR.
        many: Fewest and most lesions of a patient, of 3 to 30 mm (:func:`~latentsynth.phantom.anatomy.many_lesions`);
            None draws one to three larger ones.

    Returns:
        ``out``.

    Raises:
        DataError: As :func:`phantom`, or ``cases`` is below 1, or ``out`` cannot be written or holds other data.
    """
    if cases < 1:
        raise DataError(f"a cohort of {cases} cases: ask for at least 1")
    _check(seed, 0, shape, spacing_mm, channels, many)
    out = Path(out)
    outputs.claim(out, "phantom patients", parts=("imagesTr", "labelsTr"))
    folders = [out / "imagesTr", out / "labelsTr"]
    for folder in folders:
        clear_partial(folder)
    old = [path for folder in folders for path in folder.iterdir() if _OURS.fullmatch(path.name)]
    (out / "dataset.json").unlink(missing_ok=True)  # first, since its presence says that the cohort is complete
    for path in old:
        path.unlink()
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) * mm / 2 for n, mm in zip(shape, spacing_mm, strict=True)]  # world 0 is the centre
    with bar("drawing phantoms", cases, "patients") as shown:
        for case in range(cases):
            image, labels = phantom(seed, case, shape, spacing_mm, channels, many)
            for index, channel in enumerate(np.rint(image).astype(np.int16)):
                nifti.write(folders[0] / f"{NAME}_{case:03d}_{index:04d}.nii.gz", channel, affine)
            nifti.write(folders[1] / f"{NAME}_{case:03d}.nii.gz", labels, affine)
            shown.advance()
    description = {
        "name": NAME,
        "channel_names": {str(index): name for index, name in enumerate(CHANNELS[:channels])},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(out / "dataset.json", description)
    outputs.finish(out, [out / "dataset.json", *(path for folder in folders for path in folder.iterdir())])
    return out


def phantom(
    seed: int,
    case: int,
    shape: tuple[int, int, int] = (48, 48, 48),
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0),
    channels: int = 2,
    many: tuple[int, int] | None = None,
) -> tuple[Array, Array]:
    """One patient, a function of the arguments alone.

    Args:
        seed: Seed of the cohort.
        case: Number of the patient in the cohort, from 0.
        shape: Voxels ``(I, J, K)``, axes to the patient's right, front and head (RAS+).
        spacing_mm: Millimetres per voxel along each axis.
        channels: 1 for CT alone, 2 for CT and MR; the CT does not depend on it.
        many: Fewest and most lesions, as in :func:`write_cohort`.

    Returns:
        The image, float32, shape ``(C, I, J, K)``, CT in Hounsfield units and MR in arbitrary units from 0; and the
        labels of :data:`LABELS`, uint8, shape ``(I, J, K)``.

    Raises:
        DataError: A number is negative, the grid is too small or not a grid, ``channels`` is not 1 or 2, ``many`` is no
            range from 1 to 50, or the liver has no room for so many lesions.
    """
    _check(seed, case, shape, spacing_mm, channels, many)
    rng = np.random.default_rng([seed, case])
    tissue, labels = body(rng, shape)
    liver = labels == LABELS["liver"]
    each, ring = lesions(rng, liver, spacing_mm) if many is None else many_lesions(rng, liver, spacing_mm, many)
    lesion = each > 0
    labels[lesion] = LABELS["lesion"]
    image = [ct(rng, tissue, lesion, ring)]
    if channels == 2:
        image.append(mr(rng, tissue, lesion, ring))
    return np.stack(image).astype(np.float32), labels


def _check(
    seed: int,
    case: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    channels: int,
    many: tuple[int, int] | None,
) -> None:
    """Raises :class:`DataError` for arguments that no patient can be made from."""
    if seed < 0 or case < 0:
        raise DataError(f"seed {seed} and case {case} must not be negative")
    if len(shape) != 3 or min(shape) < MIN_VOXELS:
        raise DataError(f"phantom shape {tuple(shape)} must be three voxel counts of at least {MIN_VOXELS}")
    if len(spacing_mm) != 3 or not all(0 < mm < np.inf for mm in spacing_mm):
        raise DataError(f"phantom spacing_mm {tuple(spacing_mm)} must be three positive lengths in mm")
    if channels not in (1, 2):
        raise DataError(f"a phantom with {channels} channels: ask for 1 (CT) or 2 (CT and MR)")
    if many is not None and not 1 <= many[0] <= many[1] <= MOST_LESIONS:
        raise DataError(
            f"{many[0]}:{many[1]} lesions per patient: give the fewest and the most, from 1 to {MOST_LESIONS}"
        )
