"""Intensities inside and around lesions against real ones: a caricature is easier to segment than a patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.metrics import histograms
from latentsynth.metrics.reconstruction import lesion_contrast
from latentsynth.plots import histograms as draw_histograms
from latentsynth.results import Estimate, Table, TableCell

REGIONS = ("inside", "around", "elsewhere")
_MARGIN = 3  # voxels around a lesion


@dataclass(frozen=True)
class Intensities:
    """Intensities of one volume.

    Attributes:
        histograms: Shares per bin, ``(C, regions, bins)``; not a number where a region is empty.
        contrast: Mean inside the lesion minus mean around it, per channel, ``(C,)``.
    """

    histograms: np.ndarray
    contrast: np.ndarray


def intensities_of(image: np.ndarray, lesion: np.ndarray) -> Intensities:
    """Intensities of an image ``(C, I, J, K)`` in [-1, 1] with a boolean lesion mask ``(I, J, K)``."""
    grown = ndimage.binary_dilation(lesion, iterations=_MARGIN)
    regions = (lesion, grown & ~lesion, ~grown)
    shares = [[histograms.histogram(channel[region]) for region in regions] for channel in image]
    contrast = lesion_contrast(torch.from_numpy(image)[None], torch.from_numpy(lesion)[None], _MARGIN)
    return Intensities(np.array(shares), contrast[0].numpy())


def _shares(cases: Sequence[Intensities], channel: int, region: int) -> tuple[np.ndarray, np.ndarray]:
    """Histograms ``(N, bins)`` of the cases where the region is not empty, and which cases these are."""
    rows = np.array([case.histograms[channel, region] for case in cases])
    kept = np.isfinite(rows).all(1)
    return rows[kept], np.flatnonzero(kept)


def distances(channels: Sequence[str], cohorts: Sequence[Cohort], of: Mapping[str, Sequence[Intensities]]) -> Table:
    """Wasserstein distance of every cohort to the first, by channel and region, beside what halves of the first have."""
    reference, others = cohorts[0], cohorts[1:]
    rows: list[tuple[TableCell, ...]] = []
    for c, channel in enumerate(channels):
        for r, region in enumerate(REGIONS):
            real, kept = _shares(of[reference.name], c, r)
            patients = [reference.patients[n] for n in kept]
            cells = []
            for cohort in others:
                fake, inside = _shares(of[cohort.name], c, r)
                groups = [cohort.patients[n] for n in inside]
                found = (
                    histograms.cohort_distance(real, fake, patients, groups, rng()) if len(real) and len(fake) else None
                )
                cells.append(None if found is None else Estimate(*found))
            rows.append((channel, region, histograms.floor(real, patients, rng()), *cells))
    return Table(
        f"Wasserstein distance of intensities to {reference.name}",
        ("channel", "region of the lesion", f"floor: halves of {reference.name}", *(cohort.name for cohort in others)),
        tuple(rows),
        "in units of the intensity window, which is 2 wide; around: within 3 voxels; 95 % intervals over "
        "patients. The floor compares half as many cases, so a good model may fall below it",
    )


def contrasts(channels: Sequence[str], cohorts: Sequence[Cohort], of: Mapping[str, Sequence[Intensities]]) -> Table:
    """Lesion contrast of every cohort: smaller than real is blurred away, larger is a caricature."""
    rows: list[tuple[TableCell, ...]] = []
    for c, channel in enumerate(channels):
        cells = [cohort.mean([float(case.contrast[c]) for case in of[cohort.name]]) for cohort in cohorts]
        rows.append((channel, *cells))
    return Table(
        "lesion contrast: mean inside minus mean around",
        ("channel", *(cohort.name for cohort in cohorts)),
        tuple(rows),
        "in units of the intensity window; nearer to zero than real is washed out, farther is a caricature",
    )


def draw(
    path: Path, channels: Sequence[str], cohorts: Sequence[Cohort], of: Mapping[str, Sequence[Intensities]]
) -> Path:
    """Writes a picture: mean histograms inside and around the lesion, a row per channel."""
    panels = {
        f"{channel}, {region}": {cohort.name: _shares(of[cohort.name], c, r)[0].mean(0) for cohort in cohorts}
        for c, channel in enumerate(channels)
        for r, region in enumerate(REGIONS[:2])
    }
    return draw_histograms(path, panels, histograms.EDGES, "intensity in the window", 2)
