"""The grid of a plan, where it is laid, and what it loses: lesions too small for it, detail too fine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti, windows
from latentsynth.data.cache.volumes import Recipe, channel_limits, grid_and_back, read_mask
from latentsynth.data.intake.lesions import Count, count_held
from latentsynth.data.intake.survey import Survey, choose_grid
from latentsynth.metrics.band_power import detail_slope
from latentsynth.planning.machine import Machine
from latentsynth.types import Case, Framing, Grid, Labels

_MARGIN_MM = 15.0  # anatomy shown around the largest lesion of a lesion crop
_LESION_SHARE = 0.4  # crop on the lesion if it needs less than this share of the scan's volume
_MOST_OUTSIDE = (
    0.15  # of a grid may lie outside of the scans, or a smaller one is looked for: nothing is there to learn
)
_NEARLY_ALL = 0.95  # of the lesions, which a finer grid is looked for to hold


@dataclass(frozen=True)
class Layout:
    """A grid.

    Attributes:
        crop: Where it is laid.
        shape: Voxels along each axis.
        spacing: Millimetres per voxel.
        factors: Voxels per latent cell.
        outside: The share of it that lies outside of the scans, on average, were both laid centre on centre.
        kept: The lesions that were looked at, and how many of them it holds.
    """

    crop: Literal["whole", "lesion"]
    shape: list[int]
    spacing: list[float]
    factors: tuple[int, int, int]
    outside: float
    kept: Count

    @property
    def fit(self) -> Literal["error", "scale"]:
        """What becomes of a lesion that it does not hold while lesions are counted: a whole scan is not zoomed for one."""
        return "scale" if self.crop == "lesion" else "error"

    @property
    def cells(self) -> int:
        """Latent cells."""
        return math.prod(self.shape) // math.prod(self.factors)

    def coarser_than(self, spacing: np.ndarray) -> bool:
        """Whether its voxels are larger than those of scans along any axis, ``(3,)``."""
        return bool((np.array(self.spacing) > 1.02 * spacing).any())


def lay_out(scans: Survey, machine: Machine, crop: Literal["auto", "whole", "lesion"], cells: float) -> Layout:
    """The grid; where the crop is left open, the one that loses fewest lesions, and of equals one that scans fill.

    Args:
        scans: Of the cohort.
        machine: Whose memory limits the voxels.
        crop: Where to lay the grid; ``"whole"`` covers the largest scan.
        cells: Latent cells that the denoiser has time for.
    """
    covering = [_layout(scans, machine, where, cells, cover=True) for where in _order(scans, crop)]
    filled = [
        _layout(scans, machine, layout.crop, cells, cover=False)
        for layout in covering
        if crop != "whole" and layout.outside > _MOST_OUTSIDE
    ]
    found = []
    for layout in (*filled, *covering):
        found.append(replace(layout, kept=_kept(scans, layout)))
        if not found[-1].kept.lost:
            break
    return min(found, key=lambda layout: layout.kept.lost)  # the first of equals


def _order(scans: Survey, crop: Literal["auto", "whole", "lesion"]) -> tuple[Literal["whole", "lesion"], ...]:
    """Which crops to try, the likelier one first."""
    if crop != "auto":
        return (crop,)
    largest = scans.scans.max(axis=0)
    share = float(np.prod(np.minimum(_lesion_extent(scans), largest)) / np.prod(largest))
    return ("lesion", "whole") if share < _LESION_SHARE else ("whole", "lesion")


def _lesion_extent(scans: Survey) -> np.ndarray:
    return scans.extents.max(axis=0) + 2 * _MARGIN_MM if len(scans.extents) else scans.scans.max(axis=0)


def _layout(scans: Survey, machine: Machine, crop: Literal["whole", "lesion"], cells: float, cover: bool) -> Layout:
    """A grid over the largest scan, or the largest lesion and its surroundings; not ``cover``: not beyond the median scan."""
    extent = _lesion_extent(scans) if crop == "lesion" else scans.scans.max(axis=0)
    if not cover:
        extent = np.minimum(extent, np.median(scans.scans, axis=0))
        extent = np.maximum(extent, scans.extents.max(axis=0)) if len(scans.extents) else extent
    shape, spacing, factors = choose_grid(
        extent, scans.spacing, machine.voxels, len(machine.denoiser) - 1, cells, cover
    )
    edges = np.array(shape) * spacing
    inside = np.minimum(scans.scans, edges).prod(axis=1) / edges.prod()
    return Layout(crop, shape, spacing, factors, float(1 - inside.mean()), Count(0, 0, ()))


def _kept(scans: Survey, layout: Layout, finer: float = 1.0) -> Count:
    """The lesions that a layout holds, or would hold at a finer spacing over the same extent."""
    i, j, k = (math.ceil(n * finer) for n in layout.shape)
    a, b, c = (edge / finer for edge in layout.spacing)
    return count_held(scans.lesions, Grid((i, j, k), (a, b, c)), Framing(layout.crop, layout.fit))


def detail_kept(cases: Sequence[Case], grid: Grid, framing: Framing, labels: Labels) -> float:
    """How much of their finest detail scans keep on the way to a grid and back, without any model.

    Returns:
        Mean over cases and channels of :func:`~latentsynth.metrics.band_power.detail_slope`.
    """
    recipe = Recipe(grid, framing, labels, AugmentConfig(), 0)
    found = []
    for case in cases:
        native = [nifti.read(path) for path in case.images]
        marked = None if case.mask is None else read_mask(case.mask, labels)[0]
        frame, _ = recipe.frame(native[0][1], native[0][0].shape, marked, case.case_id)
        limits = channel_limits(native, grid.windows, case)
        scanned = [n for n in range(len(native)) if n not in case.filled]
        for (voxels, affine), ends in ((native[n], limits[n]) for n in scanned):
            before, after = windows.normalise(voxels, ends), grid_and_back(voxels, affine, frame, ends)
            found.append(detail_slope(before[None], after[None], np.linalg.norm(affine[:3, :3], axis=0).tolist()))
    return float(np.nanmean(found))


def cure(scans: Survey, layout: Layout, most: float) -> str:
    """The coarsest spacing, in steps of a tenth, over the same extent that holds nearly all lesions.

    Args:
        scans: Of the cohort.
        layout: The grid that loses some.
        most: Voxels that this machine trains in the time there is.
    """
    finer = 1.1
    while layout.spacing[0] / finer > 0.9 * scans.spacing.min():
        if _kept(scans, layout, finer).held >= _NEARLY_ALL * layout.kept.lesions:
            voxels = math.prod(layout.shape) * finer**3 / 1e6
            return (
                f"{in_mm(np.array(layout.spacing) / finer)} would hold {100 * _NEARLY_ALL:.0f} % of all, with {voxels:.2g} "
                f"million voxels; this machine trains {most / 1e6:.2g} in that time"
            )
        finer *= 1.1
    return "no grid over this extent holds nearly all; crop the scans, or leave these lesions out of the masks"


def in_mm(lengths: np.ndarray) -> str:
    """For people."""
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"
