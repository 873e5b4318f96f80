"""What a cohort is like: extents, spacing and intensities of its scans, and the grid that suits them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from latentsynth.data import nifti
from latentsynth.data.intake.intensities import Intensities, intensities
from latentsynth.data.intake.lesions import Lesions
from latentsynth.errors import DataError
from latentsynth.progress import bar
from latentsynth.types import Case, Framing, Labels


def choose_grid(
    extent_mm: np.ndarray,
    spacing_mm: np.ndarray,
    voxels: int,
    halvings: int,
    cells: float = math.inf,
    cover: bool = True,
) -> tuple[list[int], list[float], tuple[int, int, int]]:
    """The finest grid over an extent with at most so many voxels and latent cells.

    That of the scans' own spacing where it fits: there nothing is interpolated, so nothing is blurred. Scans are not
    upsampled, and axes more than twice as coarse as the finest keep their anisotropy.

    Args:
        extent_mm: What to lay it over, ``(3,)``.
        spacing_mm: Voxel spacing of the scans, ``(3,)``.
        voxels: Largest number of voxels; a grid of 16 x 16 x 16 is always possible.
        halvings: How often the denoiser halves the latent grid, which must divide by 2 to that power.
        cells: Largest number of latent cells, but for that grid.
        cover: Whether the extent lies inside the grid, whose axes are multiples of a few voxels; otherwise each axis is the
            multiple nearest to it.

    Returns:
        Shape, spacing and downsampling factors: 4, or 2 along an axis of fewer than 16 voxels.
    """
    base = np.where(spacing_mm > 2 * spacing_mm.min(), spacing_mm, spacing_mm.min())
    scale = 1.0
    while True:
        spacing = [float(f"{s:.3g}") for s in base * scale]
        counts = [math.ceil(e / s) for e, s in zip(extent_mm, spacing, strict=True)]
        factors = [4 if n >= 16 else 2 for n in counts]
        unit = [f * 2**halvings for f in factors]
        shape = [max((math.ceil(n / u) if cover else round(n / u)) * u, 16) for n, u in zip(counts, unit, strict=True)]
        if math.prod(shape) <= max(min(voxels, cells * math.prod(factors)), 16**3):
            return shape, spacing, (factors[0], factors[1], factors[2])
        scale *= 1.02


@dataclass(frozen=True)
class Survey:
    """What a cohort's scans are like.

    Attributes:
        scans: Extents of the scans along the canonical axes, mm, ``(N, 3)``.
        extents: Extents of all lesions of a case together, mm, ``(M, 3)``; annotated cases alone.
        spacing: Median voxel spacing, mm, ``(3,)``.
        intensities: Per channel, what each scan holds.
        lesions: Those of the annotated cases, ``M``.
    """

    scans: np.ndarray
    extents: np.ndarray
    spacing: np.ndarray
    intensities: list[list[Intensities]]
    lesions: list[Lesions]


def survey(cases: tuple[Case, ...], channels: int, labels: Labels) -> Survey:
    """Reads some cases.

    Args:
        cases: Which.
        channels: Images per case, at least one.
        labels: Of the cohort; all count as lesion but background and ignored ones.

    Raises:
        DataError: A scan is unreadable or has one intensity only.
    """
    scans, extents, spacings, lesions = [], [], [], []
    seen: list[list[Intensities]] = [[] for _ in range(channels)]
    rng = np.random.default_rng(0)
    with bar("reading scans", len(cases), "cases") as shown:
        for case in cases:
            marked = None
            if case.mask is not None:
                values, place = nifti.read_labels(case.mask)
                marked = np.isin(values, labels.lesions(Framing()))
                lesions += [Lesions.find(case.case_id, marked, place)] if marked.any() else []
            for channel, path in enumerate(case.images):
                voxels, affine = nifti.read(path)
                if channel in case.filled:
                    continue
                if voxels.min() == voxels.max():
                    raise DataError(f"{path} has one intensity only: remove this case or this channel")
                seen[channel].append(intensities(case.case_id, voxels, marked, rng))
            orientation = nib.orientations.io_orientation(affine)
            order = np.argsort(orientation[:, 0])
            spacing = voxel_sizes(affine)[order]
            scans.append(np.array(voxels.shape)[order] * spacing)
            spacings.append(spacing)
            if marked is not None and marked.any():
                at = lesions[-1].at
                extents.append((at.max(axis=0) - at.min(axis=0) + 1)[order] * spacing)
            shown.advance()
    return Survey(np.array(scans), np.array(extents), np.median(spacings, axis=0), seen, lesions)
