"""Masks that volumes are asked for, brought to a model's grid, and the way back to the mask's own grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from latentsynth.data import nifti, windows
from latentsynth.data.cache.volumes import check_labels, read_mask, to_index
from latentsynth.data.frames import Frame, lay, resample, resample_labels
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.metrics.lesions import components
from latentsynth.provenance import Ledger, fingerprint, origins_of, voxel_hash
from latentsynth.types import Case, Domain, Fit, Framing, Labels, Split

_KEPT = 0.1  # share of a lesion that must be left for it to count as given


@dataclass(frozen=True)
class Request:
    """One mask to make volumes for.

    Attributes:
        name: Used in file names; unique.
        mask: Label map, on any grid; None leaves it to a model that makes its own.
        parents: Patients the mask was taken from.
        images: A real scan of the same mask to show beside the samples, one file per channel, or empty.
        ledger: Whom the maker of the mask has learnt from.
    """

    name: str
    mask: Path | None
    parents: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class Placed:
    """A mask brought to a model's grid.

    Attributes:
        index: Label indices on the grid, int16, ``(I, J, K)``.
        values: Label values on the mask's own grid, int16.
        affine: The mask's own affine.
        frame: The grid's frame in world coordinates.
        zoom: How far the frame zoomed out to hold the lesion.
    """

    index: np.ndarray
    values: np.ndarray
    affine: np.ndarray
    frame: Frame
    zoom: float

    def healthy(self, domain: Domain) -> Placed:
        """The same without lesions."""
        values = np.where(np.isin(self.values, domain.labels.lesions(domain.framing)), 0, self.values)
        index = np.where(np.isin(self.index, domain.lesion_indices), 0, self.index)
        return replace(self, values=values.astype(self.values.dtype), index=index.astype(self.index.dtype))

    def given(self, labels: Labels) -> np.ndarray:
        """The mask as the model gets it: label values on the mask's own grid, int16, 0 beyond the model's grid."""
        own = Frame(self.affine, self.values.shape)
        index = resample(self.index, self.frame.affine, own, 0, extend=True, smooth=False, order=0)
        return np.array(labels.values, np.int16)[index.astype(np.int16)]


def requests_of(cases: Sequence[Case]) -> list[Request]:
    """The masks of some cases, each with its patient and its scan; empty ones ask for nothing and are left out.

    Raises:
        DataError: None of them has a mask that marks something.
    """
    found = [
        Request(case.case_id, case.mask, _owners(case), case.images, Ledger(origins=origins_of([case])))
        for case in cases
        if case.marked
    ]
    if not found:
        raise DataError(
            f"none of {len(cases)} scans has a mask that marks something: give a manifest of annotated ones"
        )
    return found


def _owners(case: Case) -> tuple[str, ...]:
    """The patients whose annotation a mask is. A synthetic case is no patient; whoever it was made from is.

    A model's own mask is nobody's; of one that another program made nobody knows, so it counts as somebody's.
    """
    if case.source == "real" or (case.source == "external" and not case.parents):
        return (case.patient_id, *case.parents)
    return case.parents


@dataclass(frozen=True)
class Shown:
    """What of a mask a volume can show.

    Attributes:
        values: Label values on the mask's own grid, int16, without the lesions that the model never got.
        lesions: How many lesions the mask asks for: connected components of all lesion labels together.
        lost: How many of them the model never got: too small for its voxels.
    """

    values: np.ndarray
    lesions: int
    lost: int

    @classmethod
    def of(cls, asked: np.ndarray, given: np.ndarray, lesions: Sequence[int]) -> Shown:
        """Compares a mask with what the model got of it.

        A lesion is lost if less than a tenth of it is lesion there.

        Args:
            asked: Label values, ``(I, J, K)``.
            given: The same as the model gets them (:meth:`Placed.given`).
            lesions: Label values that count as lesion.
        """
        wanted, got = np.isin(asked, list(lesions)), np.isin(given, list(lesions))
        boxes = ndimage.find_objects(wanted.view(np.uint8))  # most of a scan holds nothing
        if not boxes:
            return cls(asked, 0, 0)
        box, values = boxes[0], asked.copy()
        pieces, count = components(wanted[box])
        shares = np.atleast_1d(ndimage.mean(got[box], pieces, range(1, count + 1)))
        found = shares >= _KEPT
        gone = np.isin(pieces, np.flatnonzero(~found) + 1)
        values[box][gone] = given[box][gone]
        return cls(values, count, int((~found).sum()))


def requests(source: Path, split: Split | None = None) -> list[Request]:
    """Masks to sample for: a NIfTI file, a folder of them, or a manifest.

    Args:
        source: Where the masks are.
        split: For a manifest, the split to take; None takes the validation cases.

    Raises:
        DataError: Nothing there, or names that collide.
    """
    if source.is_dir():
        files = nifti.files(source)
        if not files:
            raise DataError(f"{source} holds no NIfTI file (*.nii, *.nii.gz): give a folder of masks")
        found = [Request(nifti.stem(path), path) for path in files]
    elif source.name.lower().endswith(nifti.SUFFIXES):
        found = [Request(nifti.stem(source), source)]
    else:
        cases = [case for case in Manifest.load(source).select(split or "val") if case.marked]
        if not cases:
            raise DataError(
                f"no case of {source} in split {split or 'val'} has a mask that marks something: choose another --split"
            )
        beside = Ledger.beside(source)
        found = [replace(request, ledger=request.ledger | beside) for request in requests_of(cases)]
    names = [request.name for request in found]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{source} holds masks of equal name, {repeated[0]!r}: rename them")
    return found


def place(request: Request, domain: Domain, fit: Fit | None = None) -> Placed:
    """Brings a mask to a model's grid; where none is asked for, an empty one on a grid of its own around the origin.

    Raises:
        DataError: Unreadable, a label the model was not trained on, empty, or a lesion that does not fit the grid.
    """
    if request.mask is None:
        shape, spacing = domain.grid.shape, np.array(domain.grid.spacing_mm)
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
        return Placed(np.zeros(shape, np.int16), np.zeros(shape, np.int16), affine, Frame(affine, shape), 1.0)
    values, affine = read_mask(request.mask, domain.labels)
    return place_array(values, affine, domain, str(request.mask), fit)


def place_array(values: np.ndarray, affine: np.ndarray, domain: Domain, name: str, fit: Fit | None = None) -> Placed:
    """:func:`place` for a mask in memory.

    Args:
        values: Label values, shape ``(I, J, K)`` in the affine's own axis order.
        affine: ``(4, 4)``, voxel indices to world coordinates in mm (RAS+).
        domain: The model's.
        name: What to call the mask in an error.
        fit: Overrides what to do with a lesion that does not fit the grid.
    """
    if values.ndim != 3:
        raise DataError(f"{name} has {values.ndim} axes {values.shape}, expected 3: give one 3D label map")
    check_labels(values, domain.labels, name)
    if not values.any():
        raise DataError(f"{name} is empty: give a mask with at least one voxel that is not 0")
    framing = domain.framing if fit is None else Framing(domain.framing.crop, fit, domain.framing.lesion_labels)
    lesion = np.isin(values, domain.labels.lesions(framing))
    frame, zoom = lay(domain.grid, framing, affine, values.shape, lesion, name)
    index = to_index(resample_labels(values, affine, frame), domain.labels)
    if not index.any():
        raise DataError(f"{name}: nothing of the mask lies inside the model's grid: centre it, or use --fit scale")
    return Placed(index, values, affine, frame, zoom)


def volume_seed(seed: int, placed: Placed) -> int:
    """The seed of one volume: of the user's seed and the mask's voxels, so no two masks share their noise."""
    return int(fingerprint([seed, voxel_hash(placed.values)])[:15], 16)


def to_scanner(
    image: np.ndarray, placed: Placed, domain: Domain, limits: Sequence[windows.Limits] | None = None
) -> np.ndarray:
    """A generated image on the mask's own grid, in scanner units; outside the crop the window's minimum.

    Cubic splines, since linear interpolation onto a finer grid blurs; kept inside the window, which they may overshoot.

    Args:
        image: In [-1, 1], shape ``(C, I, J, K)`` on the model's grid.
        placed: Where it belongs.
        domain: The windows.
        limits: Per channel, the scanner units of -1 and 1; None takes the domain's.

    Returns:
        float32, shape ``(C, *placed.values.shape)``.
    """
    target = Frame(placed.affine, placed.values.shape)
    channels = []
    for channel, (low, high) in zip(image, limits or domain.limits, strict=True):
        restored = windows.restore(channel, (low, high))
        placed_back = resample(restored, placed.frame.affine, target, fill=low, extend=True, order=3)
        channels.append(np.clip(placed_back, low, high))
    return np.stack(channels)
