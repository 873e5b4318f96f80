"""What can be wrong with a cohort, found before a day of training is spent on it.

Every file is opened once. A problem says which file, what was found, what was expected and what to do.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from latentsynth.data import nifti
from latentsynth.data.identity import scan_hashes, turned_hash, unfit_id, volume_hash
from latentsynth.data.intake.duplicates import outline
from latentsynth.data.intake.headers import Remark, header_remarks
from latentsynth.data.intake.layouts import RawCohort
from latentsynth.data.intake.respacing import Spacing, respaced
from latentsynth.errors import AxesError, VolumeError
from latentsynth.metrics.lesions import components
from latentsynth.progress import bar
from latentsynth.types import Case, Labels

SPACING_MM = (0.05, 20.0)  # finer is a wrong unit (metres), coarser a wrong header
CORNER_MM = 0.01  # two grids agree if no corner of the volume is farther apart than this ...
CORNER_VOXELS = 0.01  # ... or than this share of the smallest voxel edge, whichever is larger

_ABSENT = "add the file, or leave the case out with --skip-invalid"
_AXES = "split it into one 3D file per channel or time point and list them in a table or as nnU-Net raw"
_AXES_OF_A_MASK = "give --several-masks union or labels if its channels are masks, or choose one"

_VoxelGrid = tuple[tuple[int, ...], np.ndarray]  # shape and affine


@dataclass(frozen=True)
class Problem:
    """One row of the table of problems.

    Attributes:
        case_id: Case that cannot be used.
        file: Path of the file, or the case id where no file is at fault.
        found: What is there.
        expected: What should be there.
        cure: What to do about it.
    """

    case_id: str
    file: str
    found: str
    expected: str
    cure: str


@dataclass(frozen=True)
class CaseFacts:
    """What was learnt while the files were open.

    Attributes:
        voxels: As in :class:`latentsynth.types.Case`, "" for an image that could not be read.
        turned: :func:`latentsynth.data.identity.turned_hash` of each, also of the numbers in the file where its header
            scales them; nothing where the image could not be read or holds one value throughout.
        shape: Voxels ``(I, J, K)`` in the file's own axis order, or None if no image could be read.
        spacing_mm: Voxel edges in mm along the same axes, or None.
        label_voxels: Voxels per label value in the mask, 0 included; empty without a valid mask.
        image_hashes: As in :class:`latentsynth.types.Case`, "" for an image that could not be read.
        mask_hash: The same of the mask.
        lesion_voxels: Voxels of every lesion: connected voxels of labels other than background and ignored ones.
        remarks: What its headers leave open.
        outlines: :func:`latentsynth.data.intake.duplicates.outline` of each image, None where it could not be read or holds
            one value throughout.
    """

    voxels: tuple[str, ...] = ()
    turned: tuple[tuple[str, ...], ...] = ()
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    label_voxels: dict[int, int] = field(default_factory=dict)
    image_hashes: tuple[str, ...] = ()
    mask_hash: str = ""
    lesion_voxels: tuple[int, ...] = ()
    remarks: tuple[Remark, ...] = ()
    outlines: tuple[np.ndarray | None, ...] = field(default=(), compare=False, repr=False)


def check_case(
    case: Case,
    channels: Sequence[str],
    labels: Labels | None,
    *,
    allow_unlabelled: bool = False,
    spacing_mm: Spacing | None = None,
) -> tuple[list[Problem], CaseFacts]:
    """Reads the files of one case and reports everything that is wrong with them.

    Args:
        case: The case.
        channels: Names of the images it must have.
        labels: Values its mask may hold; None allows any whole number from 0.
        allow_unlabelled: Accept a case without a mask. A mask that is named but missing stays a problem.
        spacing_mm: Goes before that of the headers.
    """
    problems: list[Problem] = []

    def report(file: Path | str, found: str, expected: str, cure: str) -> None:
        problems.append(Problem(case.case_id, str(file), found, expected, cure))

    if unfit := unfit_id(case.case_id):
        report(case.case_id, unfit, "an id that can be a file name", "rename the case")
    if not case.patient_id:
        cure = "change the --patient expression so that it matches this case id, or complete the patient column"
        report(case.case_id, "no patient", "a patient id for every case", cure)

    hashes: list[str] = []
    placed: list[str] = []
    turned: list[tuple[str, ...]] = []
    outlines: list[np.ndarray | None] = []
    remarks: list[Remark] = []
    grid: _VoxelGrid | None = None
    for number, path in enumerate(case.images):
        name = channels[number] if number < len(channels) else f"undeclared channel {number}"
        read = _read(
            path, f"a readable 3D NIfTI file for {name}", case.case_id, problems, spacing_mm, _absent(number, name)
        )
        if read is None:
            hashes.append("")
            placed.append("")
            turned.append(())
            outlines.append(None)
            continue
        remarks += header_remarks(path)
        voxels, affine = read
        if grid is None:
            grid = voxels.shape, affine
            finest, coarsest = SPACING_MM
            if not all(finest <= edge <= coarsest for edge in spacing(affine)):
                expected = f"{finest} to {coarsest} mm per axis"
                report(path, f"spacing {_mm(spacing(affine))}", expected, "correct the header")
        else:
            apart = disagreement(*grid, voxels.shape, affine)
            if apart:
                report(path, apart, f"the grid of {case.images[0].name}", "resample it onto the first image")
        hashes += scan_hashes([read])
        placed.append(volume_hash(voxels, affine, hashes[-1]))
        low, high = float(voxels.min()), float(voxels.max())
        turned.append(_turned(path, voxels) if low < high else ())
        outlines.append(outline(voxels, affine) if low < high else None)
        if low == high and number not in case.filled:
            report(
                path,
                f"one value throughout ({low:g})",
                f"a scan for {name}",
                f"name the right file; {_absent(number, name)}",
            )
    split_channels = any("axes" in problem.found for problem in problems)  # one 4D file: the count says nothing more
    if len(case.images) != len(channels) and not split_channels:
        file, expected = case.images[0] if case.images else case.case_id, f"{len(channels)} ({', '.join(channels)})"
        report(file, f"{len(case.images)} images", expected, "complete the case or remove it")
    for (one, mine), (two, theirs) in itertools.combinations(zip(case.images, turned, strict=True), 2):
        if set(mine) & set(theirs):
            report(two, f"the same voxels as {one.name}", "another image per channel", "name the right file")

    mask = _MaskFacts()
    if case.mask is not None:
        mask = _check_mask(case.mask, case, labels, grid, problems, spacing_mm)
        grid = grid or (None if case.images else mask.grid)
        remarks += header_remarks(case.mask) if mask.grid else []
    elif not allow_unlabelled:
        file = case.images[0] if case.images else case.case_id
        report(
            file,
            "no mask",
            "a mask for every case",
            "add the mask, or give --allow-unlabelled for autoencoders and diffusion models",
        )
    facts = CaseFacts(tuple(hashes), tuple(turned), label_voxels=mask.label_voxels, outlines=tuple(outlines))
    facts = replace(facts, remarks=tuple(r for r in remarks if spacing_mm is None or r.doubt == "no orientation"))
    if grid is None:
        return problems, facts
    (i, j, k), edges = grid[0], spacing(grid[1])
    return problems, replace(
        facts,
        shape=(i, j, k),
        spacing_mm=edges,
        image_hashes=tuple(placed),
        mask_hash=mask.mask_hash,
        lesion_voxels=mask.lesion_voxels,
    )


def _absent(number: int, channel: str) -> str:
    """The cure of a missing channel; the first says where a scan lies and whose it is, and is never filled."""
    return f"{_ABSENT}, or give --fill-missing {channel}, which marks the channel as missing" if number else _ABSENT


def _turned(path: Path, voxels: np.ndarray) -> tuple[str, ...]:
    stored: Any = nib.load(path).dataobj  # type: ignore[attr-defined]
    if stored.slope == 1:
        return (turned_hash(voxels),)
    return turned_hash(voxels), turned_hash(stored.get_unscaled().reshape(voxels.shape))


@dataclass(frozen=True)
class _MaskFacts:
    """What a mask tells: fields as those of :class:`CaseFacts`, and its grid; empty if it is no label map."""

    label_voxels: dict[int, int] = field(default_factory=dict)
    mask_hash: str = ""
    lesion_voxels: tuple[int, ...] = ()
    grid: _VoxelGrid | None = None


def _read(
    path: Path,
    expected: str,
    case_id: str,
    problems: list[Problem],
    spacing_mm: Spacing | None,
    absent: str = _ABSENT,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Voxels and affine; None, and a problem, where they are not finite numbers on a usable grid."""
    if not path.is_file():
        problems.append(Problem(case_id, str(path), "does not exist", expected, absent))
        return None
    try:
        voxels, affine = nifti.read(path)
        return voxels, respaced(affine, spacing_mm)
    except VolumeError as error:
        cure = error.cure
        if isinstance(error, AxesError):
            cure = _AXES_OF_A_MASK if "label map" in expected else _AXES
        problems.append(Problem(case_id, str(path), error.found, expected, cure))
        return None


def _check_mask(
    path: Path,
    case: Case,
    labels: Labels | None,
    grid: _VoxelGrid | None,
    problems: list[Problem],
    spacing_mm: Spacing | None,
) -> _MaskFacts:
    """Reads the mask; adds a problem if it is no label map."""

    def report(found: str, expected: str, cure: str) -> None:
        problems.append(Problem(case.case_id, str(path), found, expected, cure))

    read = _read(path, "a readable 3D NIfTI label map", case.case_id, problems, spacing_mm)
    if read is None:
        return _MaskFacts()
    voxels, affine = nifti.whole(read[0]), read[1]
    if grid is not None:
        apart = disagreement(*grid, voxels.shape, affine)
        if apart:
            report(apart, "the grid of its image", "resample the mask onto the image with nearest neighbour")
    whole = voxels.dtype.kind in "biu" or bool((voxels == np.rint(voxels)).all())
    if not whole or voxels.min() < 0 or voxels.max() > nifti.MAX_LABEL:
        low, high = float(voxels.min()), float(voxels.max())
        found = f"{'values' if whole else 'fractions'} from {low:g} to {high:g}"
        report(found, f"whole numbers from 0 to {nifti.MAX_LABEL}", "threshold it, or name the right file")
        return _MaskFacts()
    counts = {int(v): int(n) for v, n in enumerate(np.bincount(voxels.ravel().astype(np.int64))) if n}
    nothing = (0, *(labels.ignored if labels else ()))
    if {0} != set(counts) <= set(nothing):  # all 0 is a healthy case
        report(
            "no lesion beside voxels that nobody annotated",
            "an annotated voxel",
            "annotate the case or remove its mask",
        )
    unknown = sorted(set(counts) - set(labels.values)) if labels else []
    if unknown:
        values = ", ".join(map(str, labels.values if labels else ()))
        report(f"unknown labels {unknown[:8]}", f"labels {values}", "declare the label or correct the mask")
    lesions = tuple(np.bincount(components(~np.isin(voxels, nothing))[0].ravel())[1:].tolist())
    return _MaskFacts(counts, volume_hash(voxels, affine), lesions, (voxels.shape, affine))


def check_cohort(
    cohort: RawCohort, *, allow_unlabelled: bool = False, progress: bool = True
) -> tuple[list[Problem], tuple[CaseFacts, ...]]:
    """Checks every case, and the cases against each other.

    Args:
        cohort: The cohort.
        allow_unlabelled: Accept cases without a mask.
        progress: Show progress on standard error: a bar on a terminal, a line now and then in a log.

    Returns:
        The problems, and the facts in the order of ``cohort.cases``. Scans that appear twice within one patient are
        no problem; :func:`twins` finds those too.
    """
    problems: list[Problem] = []
    facts = []
    with bar("checking scans", len(cohort.cases), "cases", show=progress) as done:
        for case in cohort.cases:
            spacing_mm = cohort.spacings.get(case.case_id)
            found, fact = check_case(
                case, cohort.channels, cohort.labels, allow_unlabelled=allow_unlabelled, spacing_mm=spacing_mm
            )
            problems += found
            facts.append(fact)
            done.advance()
    for name, count in Counter(case.case_id for case in cohort.cases).items():
        if count > 1:
            files = ", ".join(str(c.images[0]) for c in cohort.cases if c.case_id == name and c.images)
            problems.append(
                Problem(name, files, f"the case id {name} {count} times", "one id per case", "add or fix a case column")
            )
    for group in twins(cohort.cases, facts):
        if len({case.patient_id for case, _ in group}) > 1:
            problems += [_leak(case, path, group) for case, path in group]
    return problems, tuple(facts)


def _leak(case: Case, path: Path, group: list[tuple[Case, Path]]) -> Problem:
    other, file = next((c, p) for c, p in group if c.patient_id != case.patient_id)
    return Problem(
        case.case_id,
        str(path),
        f"the same voxels as {file.name} (case {other.case_id}, patient {other.patient_id or 'unknown'})",
        "scans of different patients to differ",
        "remove one of the two, or give both the same patient",
    )


def twins(cases: Iterable[Case], facts: Iterable[CaseFacts]) -> list[list[tuple[Case, Path]]]:
    """Groups of images in different cases with the same voxels, whatever their headers, orientation and number type.

    Images that hold one value throughout are left out: they look alike without being one scan.
    """
    places: dict[str, list[tuple[Case, Path]]] = defaultdict(list)
    for case, fact in zip(cases, facts, strict=True):
        for path, names in zip(case.images, fact.turned, strict=True):
            for name in names:
                if all(c is not case for c, _ in places[name]):
                    places[name].append((case, path))
    groups = {tuple(path for _, path in group): group for group in places.values() if len(group) > 1}
    return list(groups.values())


def spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel edges in mm of an affine ``(4, 4)``."""
    i, j, k = (float(edge) for edge in voxel_sizes(affine))
    return (i, j, k)


def disagreement(
    shape: tuple[int, ...], affine: np.ndarray, other_shape: tuple[int, ...], other_affine: np.ndarray
) -> str:
    """How two voxel grids differ, or "" if they agree.

    They agree if the shapes are equal and no corner of the volume moves by more than :data:`CORNER_MM` or
    :data:`CORNER_VOXELS` of the smallest voxel edge, whichever is larger: headers written by different tools differ
    in the last digits.
    """
    if shape != other_shape:
        return f"shape {other_shape} beside {shape}"
    # Voxel centres of the eight corners, (4, 8).
    corners = np.array([[*((np.array(shape) - 1) * bits), 1] for bits in np.ndindex(2, 2, 2)], dtype=np.float64).T
    moved_mm = float(np.linalg.norm((other_affine - affine)[:3] @ corners, axis=0).max())
    if moved_mm <= max(CORNER_MM, CORNER_VOXELS * min(spacing(affine))):
        return ""
    return f"corners {moved_mm:.3g} mm away from those of the image, spacing {_mm(spacing(other_affine))}"


def _mm(edges: Iterable[float]) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges) + " mm"
