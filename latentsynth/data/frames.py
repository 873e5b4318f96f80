"""Geometry: where the grid of a run lies in a scan, and the one resampling used in both directions.

A :class:`Frame` is a voxel grid in world coordinates. Reading a case resamples the scan into the frame of its case;
writing a synthetic volume resamples the frame back onto the grid of the mask that asked for it. Augmentation moves the
frame instead of the voxels, so a rotated copy is interpolated once, from the original scan, without black corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from einops import reduce
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.types import Framing, Grid

_SLAB = 4_000_000  # voxels resampled at once
_POINTS = 4  # at most so many points along an axis to measure the coverage of a voxel


@dataclass(frozen=True)
class Frame:
    """A voxel grid in space.

    Attributes:
        affine: ``(4, 4)``, voxel indices to world coordinates in mm (RAS+).
        shape: Voxels ``(I, J, K)``.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]

    def moved(self, rotate_deg: np.ndarray, scale: float, shift_mm: np.ndarray, mirror: np.ndarray) -> Frame:
        """The frame rotated, scaled, shifted and mirrored about its own centre.

        Args:
            rotate_deg: Rotation about each axis of the frame, ``(3,)``, degrees.
            scale: Factor on the frame's extent; 1.1 shows more of the scan, so the anatomy smaller.
            shift_mm: Shift along each axis of the frame, ``(3,)``.
            mirror: 1 or -1 for each axis, ``(3,)``.
        """
        linear = self.affine[:3, :3]
        spacing = np.linalg.norm(linear, axis=0)
        axes = linear / spacing
        centre = linear @ ((np.array(self.shape) - 1) / 2) + self.affine[:3, 3]
        turned = axes @ _rotation(np.deg2rad(rotate_deg)) @ np.diag(mirror)
        affine = np.eye(4)
        affine[:3, :3] = turned * spacing * scale
        affine[:3, 3] = centre + axes @ shift_mm - affine[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return Frame(affine, self.shape)


def _rotation(angles: np.ndarray) -> np.ndarray:
    # Written out: scipy's Rotation passes through quaternions, which changes the last bits of every augmented volume.
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def lay(
    grid: Grid, framing: Framing, affine: np.ndarray, shape: tuple[int, ...], lesion: np.ndarray | None, name: str
) -> tuple[Frame, float]:
    """Lays the grid over a scan, along the scan's own axes reoriented to the nearest RAS+.

    Args:
        grid: The run's grid.
        framing: Where to centre it and what to do with a lesion that does not fit.
        affine: The scan's affine ``(4, 4)``.
        shape: The scan's shape in file order.
        lesion: Boolean lesion mask on the scan's grid, or None; an empty one counts as None.
        name: What to call the case in an error.

    Returns:
        The frame and the zoom it was laid with: 1, or more where ``fit: scale`` had to zoom out.

    Raises:
        DataError: The lesion does not fit and ``framing.fit`` is ``"error"``.
    """
    orientation = nib.orientations.io_orientation(affine)
    canonical = affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    canonical_shape = np.array(shape)[np.argsort(orientation[:, 0])]
    spacing = np.linalg.norm(canonical[:3, :3], axis=0)
    centre = (canonical_shape - 1) / 2
    extent = np.array(grid.extent_mm)
    zoom = 1.0
    box = _bounding_box(lesion, orientation)
    if box is not None:
        low, high = box
        if framing.crop == "lesion":
            centre = (low + high) / 2
        # Twice the farther side: in a lesion crop that is the lesion's own extent. The slack forgives rounding.
        needed = 2 * np.maximum(high + 0.5 - centre, centre - low + 0.5) * spacing
        zoom = max(1.0, float((needed / extent).max()))
        if zoom > 1 + 1e-6 and framing.fit == "error":
            raise DataError(
                f"{name}: the lesion needs {_mm(needed)} around the {framing.crop} centre, the grid covers "
                f"{_mm(extent)}: use a larger grid or coarser spacing, or fit: scale (data.framing.fit=scale when training, --fit scale when sampling)"
            )
        zoom = zoom if zoom > 1 + 1e-6 else 1.0
    step = np.array(grid.spacing_mm) * zoom
    corner = centre - (np.array(grid.shape) - 1) / 2 * step / spacing  # in canonical voxel coordinates
    same = np.isclose(step, spacing, rtol=1e-3)
    corner = np.where(same, np.round(corner), corner)  # equal spacing: hit voxel centres, so nothing is interpolated
    placed = np.eye(4)
    placed[:3, :3] = canonical[:3, :3] / spacing * step
    placed[:3, 3] = canonical[:3, :3] @ corner + canonical[:3, 3]
    return Frame(placed, grid.shape), zoom


def _bounding_box(lesion: np.ndarray | None, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """First and last lesion voxel along each canonical axis."""
    if lesion is None or not lesion.any():
        return None
    where = np.argwhere(nib.orientations.apply_orientation(lesion, orientation))
    return where.min(axis=0), where.max(axis=0)


def _mm(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.0f}" for length in lengths) + " mm"


def resample(
    voxels: np.ndarray,
    affine: np.ndarray,
    frame: Frame,
    fill: float,
    extend: bool = False,
    smooth: bool = True,
    order: int = 1,
) -> np.ndarray:
    """Resamples a scalar volume into a frame, smoothing first where the frame is coarser.

    Args:
        voxels: Shape of the source grid.
        affine: The source grid's affine ``(4, 4)``.
        frame: Where to.
        fill: Value outside the source.
        extend: Let the outermost source voxels reach half a voxel further, to the true edge of the field of view.
        smooth: False takes point samples.
        order: Degree of the spline: 0 takes the nearest voxel, 1 is linear and stays between its values, 3 is sharper
            and may overshoot them.

    Returns:
        float32, shape ``frame.shape``.
    """
    matrix = np.linalg.inv(affine) @ frame.affine
    voxels = np.asarray(voxels, dtype=np.float32)
    ratio = _ratio(affine, frame)
    if smooth and (ratio > 1.05).any():
        # Gaussian whose width turns a box of one source voxel into one of a frame voxel (Cardoso 2015, eq. 2)
        sigma = np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * np.log(2)))
        voxels = ndimage.gaussian_filter(voxels, sigma, mode="nearest")
    if order > 1:
        voxels = ndimage.spline_filter(voxels, order, np.float32, mode="nearest")
    # Rounding must not push a voxel centre of the outermost plane outside: it is inside with a little to spare.
    reach = 0.5 if extend else 1e-4
    last = np.array(voxels.shape).reshape(3, 1, 1, 1) - 1
    out = np.empty(frame.shape, dtype=np.float32)
    slab = max(1, _SLAB // (frame.shape[1] * frame.shape[2]))  # coordinates of a whole large scan would fill memory
    for start in range(0, frame.shape[0], slab):
        index = np.indices((min(slab, frame.shape[0] - start), *frame.shape[1:]), dtype=np.float64)
        index[0] += start
        at = np.einsum("ab,bijk->aijk", matrix[:3, :3], index) + matrix[:3, 3].reshape(3, 1, 1, 1)
        inside = ((at >= -reach) & (at <= last + reach)).all(axis=0)
        values = ndimage.map_coordinates(voxels, np.clip(at, 0, last), order=order, mode="nearest", prefilter=False)
        out[start : start + slab] = np.where(inside, values, fill)
    return out


def resample_labels(labels: np.ndarray, affine: np.ndarray, frame: Frame) -> np.ndarray:
    """Resamples a label map by coverage: where labels together cover more than background, the largest of them wins.

    Coverage is averaged over points inside the voxel; smoothing and thresholding would shrink small lesions. A label
    too small to win any voxel keeps the one it covers most, so that no lesion vanishes silently.

    Returns:
        Label values, int16, shape ``frame.shape``; 0 outside the source.
    """
    points = int(np.clip(np.ceil(_ratio(affine, frame).max() - 0.05), 1, _POINTS))
    fine = _refined(frame, points)

    def coverage_of(value: int) -> np.ndarray:
        indicator = resample((labels == value).astype(np.float32), affine, fine, 0.0, extend=True, smooth=False)
        return reduce(indicator, "(i a) (j b) (k c) -> i j k", "mean", a=points, b=points, c=points)

    best = np.zeros(frame.shape, dtype=np.float32)
    filled = np.zeros(frame.shape, dtype=np.float32)
    out = np.zeros(frame.shape, dtype=np.int16)
    coverages = {int(v): coverage_of(v) for v in np.unique(labels) if v != 0}
    for value, coverage in coverages.items():
        wins = coverage > best
        out[wins], best[wins] = value, coverage[wins]
        filled += coverage
    out[coverage_of(0) > filled + 1e-6] = 0  # where the source ends, what is beyond it counts for neither side
    taken = np.zeros(frame.shape, dtype=bool)
    for value, coverage in coverages.items():
        if not (out == value).any() and coverage.max() > 0:
            place = np.unravel_index(np.argmax(np.where(taken, -1, coverage)), frame.shape)
            out[place], taken[place] = value, True
    return out


def _ratio(affine: np.ndarray, frame: Frame) -> np.ndarray:
    """Source voxels per frame voxel along each source axis, ``(3,)``."""
    return np.linalg.norm((np.linalg.inv(affine) @ frame.affine)[:3, :3], axis=1)


def _refined(frame: Frame, points: int) -> Frame:
    """The frame with ``points`` voxels along each axis in the place of one."""
    finer = frame.affine.copy()
    finer[:3, :3] /= points
    finer[:3, 3] += finer[:3, :3] @ np.full(3, (1 - points) / 2)
    i, j, k = (n * points for n in frame.shape)
    return Frame(finer, (i, j, k))
