"""What a cohort is like: extents, spacing and intensities of its scans, and the grid and windows that suit them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from latentsynth.data import nifti
from latentsynth.errors import DataError
from latentsynth.progress import bar
from latentsynth.types import Case

_CT_AIR = -900.0  # a channel that reaches below this is in Hounsfield units


def choose_grid(
    extent_mm: np.ndarray, spacing_mm: np.ndarray, voxels: int, halvings: int
) -> tuple[list[int], list[float], tuple[int, int, int]]:
    """A grid that covers an extent with at most ``voxels`` voxels.

    Scans are not upsampled, and axes more than twice as coarse as the finest keep their anisotropy.

    Args:
        extent_mm: What to cover, ``(3,)``.
        spacing_mm: Voxel spacing of the scans, ``(3,)``.
        voxels: Largest number of voxels.
        halvings: How often the denoiser halves the latent grid, which must divide by 2 to that power.

    Returns:
        Shape, spacing and downsampling factors: 4, or 2 along an axis of fewer than 24 voxels.
    """
    base = np.where(spacing_mm > 2 * spacing_mm.min(), spacing_mm, spacing_mm.min())
    scale = 1.0
    while True:
        spacing = [float(f"{s:.3g}") for s in base * scale]
        counts = [math.ceil(e / s) for e, s in zip(extent_mm, spacing, strict=True)]
        factors = [4 if n >= 24 else 2 for n in counts]
        unit = [f * 2**halvings for f in factors]
        shape = [max(math.ceil(n / u) * u, 16) for n, u in zip(counts, unit, strict=True)]
        if math.prod(shape) <= max(voxels, 16**3):
            return shape, spacing, (factors[0], factors[1], factors[2])
        scale *= 1.02


@dataclass(frozen=True)
class Survey:
    """What a cohort's scans are like.

    Attributes:
        scans: Extents of the scans along the canonical axes, mm, ``(N, 3)``.
        lesions: Extents of the annotations, mm, ``(M, 3)``; annotated cases alone.
        spacing: Median voxel spacing, mm, ``(3,)``.
        intensities: Per channel, a sample of foreground voxels of all scans.
    """

    scans: np.ndarray
    lesions: np.ndarray
    spacing: np.ndarray
    intensities: list[np.ndarray]


def survey(cases: tuple[Case, ...], channels: int) -> Survey:
    """Reads some cases.

    Raises:
        DataError: A scan is unreadable or has one intensity only.
    """
    scans, lesions, spacings = [], [], []
    intensities: list[list[np.ndarray]] = [[] for _ in range(channels)]
    rng = np.random.default_rng(0)
    with bar("reading scans", len(cases), "cases") as shown:
        for case in cases:
            for channel, path in enumerate(case.images):
                voxels, affine = nifti.read(path)
                values = voxels[voxels > voxels.min()].ravel()
                if not values.size:
                    raise DataError(f"{path} has one intensity only: remove this case or this channel")
                intensities[channel].append(rng.choice(values, min(values.size, 4000)).astype(np.float32))
            orientation = nib.orientations.io_orientation(affine)
            order = np.argsort(orientation[:, 0])
            spacing = voxel_sizes(affine)[order]
            scans.append(np.array(voxels.shape)[order] * spacing)
            spacings.append(spacing)
            if case.mask is not None:
                mask, _ = nifti.read_labels(case.mask)
                where = np.argwhere(nib.orientations.apply_orientation(mask > 0, orientation))
                if len(where):
                    lesions.append((where.max(axis=0) - where.min(axis=0) + 1) * spacing)
            shown.advance()
    pooled = [np.concatenate(values) for values in intensities]
    return Survey(np.array(scans), np.array(lesions), np.median(spacings, axis=0), pooled)


def propose_window(name: str, values: np.ndarray) -> dict[str, Any]:
    """Fixed for units that mean the same in every scan (CT, PET), percentiles of each image otherwise."""
    if values.min() < _CT_AIR or "CT" in name.upper().split():
        tissue = values[values > -500]
        low, high = np.percentile(tissue if tissue.size else values, (1, 99.5))
        return {"kind": "fixed", "low": float(np.floor(low / 10) * 10), "high": float(np.ceil(high / 10) * 10)}
    if any(word in name.upper() for word in ("PET", "SUV")):
        return {"kind": "fixed", "low": 0.0, "high": float(f"{np.percentile(values, 99.9):.2g}")}
    return {"kind": "percentile", "low": 0.5, "high": 99.5}
