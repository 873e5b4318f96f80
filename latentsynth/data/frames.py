"""Geometry: where the grid of a run lies in a scan, and the one resampling used in both directions.

A :class:`Frame` is a voxel grid in world coordinates. Reading a case resamples the scan into the frame of its case;
writing a synthetic volume resamples the frame back onto the grid of the mask that asked for it. Augmentation moves the
frame instead of the voxels, so a rotated copy is interpolated once, from the original scan, without black corners.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.types import Framing, Grid


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
    voxels: np.ndarray, affine: np.ndarray, frame: Frame, fill: float, order: int = 1, extend: bool = False
) -> np.ndarray:
    """Resamples a scalar volume into a frame, smoothing first where the frame is coarser.

    Args:
        voxels: Shape of the source grid.
        affine: The source grid's affine ``(4, 4)``.
        frame: Where to.
        fill: Value outside the source.
        order: Spline order; 1 is linear.
        extend: Let the outermost source voxels reach half a voxel further, to the true edge of the field of view.

    Returns:
        float32, shape ``frame.shape``.
    """
    matrix = np.linalg.inv(affine) @ frame.affine
    voxels = np.asarray(voxels, dtype=np.float32)
    ratio = np.linalg.norm(matrix[:3, :3], axis=1)  # source voxels per frame voxel along each source axis
    if (ratio > 1.05).any():
        # Gaussian whose width turns a box of one source voxel into one of a frame voxel (Cardoso 2015, eq. 2)
        sigma = np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * np.log(2)))
        voxels = ndimage.gaussian_filter(voxels, sigma, mode="nearest")
    offset = matrix[:3, 3]
    if extend:
        voxels = np.pad(voxels, 1, mode="edge")
        offset = offset + 1
    out = ndimage.affine_transform(
        voxels, matrix[:3, :3], offset, output_shape=frame.shape, order=order, mode="constant", cval=fill
    )
    return np.asarray(out, dtype=np.float32)


def resample_labels(labels: np.ndarray, affine: np.ndarray, frame: Frame) -> np.ndarray:
    """Resamples a label map: each label as a smooth indicator, the largest wins.

    A label too small to win any voxel keeps the one where it is strongest, so that no lesion vanishes silently.

    Returns:
        Label values, int16, shape ``frame.shape``; 0 outside the source.
    """
    present = [int(v) for v in np.unique(labels) if v != 0]
    best = np.full(frame.shape, 0.5, dtype=np.float32)
    out = np.zeros(frame.shape, dtype=np.int16)
    indicators = []
    for value in present:
        indicator = resample((labels == value).astype(np.float32), affine, frame, 0.0)
        indicators.append(indicator)
        # Against background a label needs half the voxel; between labels the larger share wins.
        wins = indicator >= best
        out[wins] = value
        best[wins] = indicator[wins]
    for value, indicator in zip(present, indicators, strict=True):
        if not (out == value).any() and indicator.max() > 0:
            out[np.unravel_index(np.argmax(indicator), frame.shape)] = value
    return out
