"""Is a reconstruction as sharp as what went in? Power and kurtosis of octave bands and traces of cells, on the model's grid.

What goes in is the scan on the model's grid, the control that no autoencoder can better: shares of 1 are perfect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from latentsynth.data.cache.volumes import Volume
from latentsynth.metrics.band_power import BandPower, band_power, body, octaves
from latentsynth.results import Table, TableCell
from latentsynth.types import Domain

_FLOOR = 1e-10  # power below rounding


def shares(volume: Volume, reconstruction: Tensor, domain: Domain, factors: Sequence[float]) -> np.ndarray:
    """Logarithms of a reconstruction's measures over those of its volume.

    Args:
        volume: What went in.
        reconstruction: Shape ``(C, I, J, K)`` in [-1, 1].
        domain: The model's grid.
        factors: Voxels per latent cell along each axis.

    Returns:
        Shape ``(C, measures)``, in the order of :func:`measures`; not a number where one cannot be taken.
    """
    spacing = domain.grid.spacing_mm
    edges = octaves(spacing)
    rows = []
    for before, after in zip(volume.image, reconstruction.numpy(), strict=True):
        inside = body(before)
        one, other = (_row(band_power(channel, inside, spacing, edges, factors)) for channel in (before, after))
        rows.append(np.log(other) - np.log(one))
    return np.array(rows)


def measures(domain: Domain) -> tuple[str, ...]:
    """Names of the measures: power and kurtosis by wavelength, finest first, then seams and pattern."""
    ranges = [f"{1 / (2 * edge):.3g} to {1 / edge:.3g} mm" for edge in octaves(domain.grid.spacing_mm)]
    return (*(f"{kind}, {band}" for kind in ("power", "kurtosis") for band in ranges), "seams", "pattern")


def sharpness_table(found: np.ndarray, domain: Domain) -> Table:
    """Geometric means over cases.

    Args:
        found: What :func:`shares` gave for each case, ``(N, C, measures)``.
        domain: The model's grid.
    """
    rows: list[tuple[TableCell, ...]] = []
    for n, channel in enumerate(domain.channels):
        for m, measure in enumerate(measures(domain)):
            values = found[:, n, m][np.isfinite(found[:, n, m])]
            low, mean, high = np.exp([values.min(), values.mean(), values.max()]) if len(values) else [np.nan] * 3
            rows.append((channel, measure, float(mean), float(low), float(high)))
    return Table(
        "sharpness of reconstructions",
        ("channel", "measure", "share of the original", "least", "most"),
        tuple(rows),
        "measures of reconstructions over those of the same scans on the model's grid: 1 is as sharp; geometric means over "
        "cases. Power: energy of an octave band. Kurtosis: 3 for noise, more for edges. Seams and pattern: energy at the "
        "period of a latent cell over that beside it; above 1, cells show",
    )


def _row(found: BandPower) -> np.ndarray:
    return np.array([*np.maximum(found.power, _FLOOR), *found.kurtosis, found.seams, found.pattern])
