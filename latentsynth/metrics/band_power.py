"""How sharp a volume is: power in octave bands of physical frequency, how unevenly it is spread, and traces of latent cells.

Power alone can be had by adding noise, so it is read beside kurtosis, which sees phase: detail of anatomy is gathered on
edges, detail of noise lies everywhere. Everything is measured on one channel in [-1, 1], inside the body: what lies
outside a mask of it has no influence at all, since filters are normalised convolutions (Knutsson and Westin 1993).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

_AIR = 0.05  # so little above the level of air a voxel counts as air, in units of [-1, 1]
_DARK = 0.2  # above the low end of the window, a corner is no air
_CORNER = 12  # of each edge
_RIM = 3  # voxels: smoothing reaches two into air, and the next is part air
_LARGE = 0.1  # parts of the body below this share of the largest are specks
_FLAT = 1e-10  # power below rounding: caches keep half precision
_FEWEST = 64  # voxels that have a kurtosis
_PERIODS = 4  # along an axis, for a period to be told from its neighbours
_BANDS = 3


@dataclass(frozen=True)
class BandPower:
    """What :func:`band_power` measures of one channel.

    Attributes:
        power: Mean square of each band, finest first, in units of [-1, 1] squared.
        kurtosis: Of the steps at each band's scale: 3 for Gaussian noise, more for edges on smooth ground; see
            :func:`kurtosis`. Not a number where there are no steps.
        seams: Excess of the gradient's energy at the period of a latent cell; see :func:`seams`.
        pattern: Excess of the volume's energy there; see :func:`pattern`.
    """

    power: tuple[float, ...]
    kurtosis: tuple[float, ...]
    seams: float
    pattern: float


def octaves(spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """Lower ends of octave bands, in cycles per mm, finest first.

    The first band reaches from half the Nyquist frequency of the finest axis up, each other is an octave below; there
    are three, and more where the Nyquist frequency of the coarsest axis lies lower.
    """
    nyquist = 1 / (2 * min(spacing_mm))
    count = max(_BANDS, int(np.ceil(np.log2(max(spacing_mm) / min(spacing_mm)) - 1e-6)) + 1)
    return tuple(float(nyquist / 2 ** (n + 1)) for n in range(count))


def body(channel: np.ndarray) -> np.ndarray:
    """Where a channel in [-1, 1] shows something: all but air, without the outermost voxels, which are part air.

    Voxels above air after light smoothing, small gaps closed, holes filled (lungs are inside), specks left out. Air is the
    mean of the darkest corner of the volume, since that of MR is noise above 0, or the low end of the window where no
    corner is dark, as in a crop.

    Returns:
        Boolean, ``(I, J, K)``; empty where there is nothing but air.
    """
    ends = [(slice(max(2, n // _CORNER)), slice(-max(2, n // _CORNER), None)) for n in channel.shape]
    darkest = min(float(channel[corner].mean()) for corner in itertools.product(*ends))
    shown = ndimage.gaussian_filter(channel, 1) > (darkest if darkest < -1 + _DARK else -1) + _AIR
    shown |= ndimage.binary_closing(shown, iterations=2)
    parts, count = ndimage.label(shown)
    if not count:
        return np.zeros(channel.shape, dtype=bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    whole = ndimage.binary_fill_holes((sizes >= _LARGE * sizes.max())[parts])
    return np.asarray(ndimage.binary_erosion(whole, iterations=_RIM, border_value=1))


def bands(
    channel: np.ndarray, inside: np.ndarray, spacing_mm: Sequence[float], edges: Sequence[float]
) -> list[np.ndarray]:
    """Octave bands as differences of Gaussians of mm widths, so that anisotropic voxels are handled (Burt and Adelson 1983).

    A Gaussian that halves the amplitude at frequency f has deviation ``sqrt(log 2 / 2) / (pi f)``; band n is what the
    Gaussian of its lower end takes away from what the one before left. Bands and what is below the last add up to the channel.

    Args:
        channel: Shape ``(I, J, K)``.
        inside: Boolean, the only voxels that are looked at.
        spacing_mm: Millimetres per voxel along each axis.
        edges: Lower end of each band in cycles per mm, descending, as from :func:`octaves`.

    Returns:
        One array per band, ``(I, J, K)``, 0 outside.
    """
    found, before = [], np.where(inside, channel, 0.0)
    for edge in edges:
        widths = np.sqrt(np.log(2) / 2) / (np.pi * edge) / np.asarray(spacing_mm)
        weight = ndimage.gaussian_filter(inside.astype(np.float64), widths, mode="constant")
        low = ndimage.gaussian_filter(np.where(inside, channel, 0.0), widths, mode="constant")
        low = np.where(inside, low / np.maximum(weight, 1e-12), 0.0)
        found.append(before - low)
        before = low
    return found


def band_power(
    channel: np.ndarray,
    inside: np.ndarray,
    spacing_mm: Sequence[float],
    edges: Sequence[float],
    period: Sequence[float] | None = None,
) -> BandPower:
    """Measures one channel.

    Args:
        channel: In [-1, 1], shape ``(I, J, K)``, on the scan's own grid.
        inside: Boolean, the body; where it is empty there is no power.
        spacing_mm: Millimetres per voxel along each axis.
        edges: Lower end of each band in cycles per mm, as from :func:`octaves`.
        period: Voxels per latent cell along each axis, whole or not; None where there are no cells.
    """
    nan = float("nan")
    if inside.sum() < _FEWEST:
        return BandPower((0.0,) * len(edges), (nan,) * len(edges), nan, nan)
    box = tuple(slice(a.min(), a.max() + 1) for a in np.nonzero(inside))
    channel, inside = channel[box].astype(np.float64), inside[box]
    split = bands(channel, inside, spacing_mm, edges)
    power = tuple(float((one[inside] ** 2).mean()) for one in split)
    peaks, rest = [], channel
    for edge, one in zip(edges, split, strict=True):
        peaks.append(kurtosis(rest, inside, 1 / (4 * edge) / np.asarray(spacing_mm)))
        rest = rest - one
    if period is None:
        return BandPower(power, tuple(peaks), nan, nan)
    return BandPower(power, tuple(peaks), seams(channel, inside, period), pattern(split[0], inside, period))


def kurtosis(channel: np.ndarray, inside: np.ndarray, steps: np.ndarray) -> float:
    """Kurtosis of the differences of voxels some steps apart: what tells edges from noise of the same power.

    Images have small differences nearly everywhere and large ones on edges (Field 1987; Huang and Mumford 1999), random
    phases make them normal (Thomson 1999). Differences along one axis show it better than filters that look in all
    directions at once, since sums of many values tend to be normal.

    Args:
        channel: Shape ``(I, J, K)``; for a coarser band, what is left without the finer ones.
        inside: Boolean; both voxels must be inside.
        steps: Voxels between the two along each axis, rounded; axes whose voxels are further apart are left out.

    Returns:
        Fourth moment over squared second around 0, the mean over axes: 3 for Gaussian noise; not a number where nothing
        differs.
    """
    found = []
    for axis, step in enumerate(np.rint(steps).astype(int)):
        if not 1 <= step < channel.shape[axis]:
            continue
        far, near = (
            tuple(part if n == axis else slice(None) for n in range(3)) for part in (slice(step, None), slice(-step))
        )
        squares = (channel[far] - channel[near])[inside[far] & inside[near]] ** 2
        if len(squares) >= _FEWEST and squares.mean() > _FLAT:
            found.append(float((squares**2).mean() / squares.mean() ** 2))
    return float(np.mean(found)) if found else float("nan")


def seams(channel: np.ndarray, inside: np.ndarray, period: Sequence[float]) -> float:
    """Excess of the gradient's energy at the period of a latent cell over that between its multiples.

    A decoder that paints its cells apart leaves steps at their borders, wherever these lie. Along each axis the mean size
    of the difference of neighbours is taken over every plane, as in Wang, Bovik and Evans 2000, in logarithms, so that
    strong edges do not outweigh the others; its periodogram (Hann window) is read at the multiples of 1 / period below
    Nyquist and midway between them.

    Returns:
        Geometric mean of the ratio over axes and multiples: 1 without cells, 10 to 100 000 for visible blocks. Not a number
        where no axis has four periods of more than two voxels.
    """
    logs = []
    for axis, length in enumerate(period):
        others = tuple(n for n in range(3) if n != axis)
        start, stop = (np.delete(np.moveaxis(inside, axis, 0), n, 0) for n in (-1, 0))
        both = np.moveaxis(start & stop, 0, axis)
        count = both.sum(others)
        wide = np.flatnonzero(count > 0.2 * count.max()) if count.any() else np.zeros(0, int)
        if length <= 2 or len(wide) < _PERIODS * length:
            continue
        planes = slice(wide[0], wide[-1] + 1)
        sizes = np.where(both, np.abs(np.diff(channel, axis=axis)), 0).sum(others)[planes] / np.maximum(
            count[planes], 1
        )
        if not sizes.any():
            continue
        profile = np.log(np.maximum(sizes, 1e-6))
        at = np.arange(len(profile))
        profile -= np.polynomial.Polynomial.fit(at, profile, 2)(at)
        halves = np.arange(1, 2 * _multiples(length) + 2) / (2 * length)
        waves = np.exp(-2j * np.pi * np.outer(halves, at)) * np.hanning(len(at) + 2)[1:-1]
        energy = np.log(np.abs(waves @ profile) ** 2 + 1e-20)
        logs += list(energy[1::2] - (energy[:-1:2] + energy[2::2]) / 2)
    return float(np.exp(np.mean(logs))) if logs else float("nan")


def pattern(band: np.ndarray, inside: np.ndarray, period: Sequence[float]) -> float:
    """Excess of a band's energy at the frequencies of the lattice of latent cells over that between them.

    What a decoder paints into every cell alike, a checkerboard for example (Odena et al. 2016), has all its energy there.
    Energy at multiples of 1 / period, below Nyquist and along one, two or three axes (Hann windows), over the mean of that
    half a multiple away along each axis.

    Args:
        band: The finest band, from :func:`bands`.
        inside: Boolean, same shape.
        period: Voxels per cell along each axis; axes without four periods of more than two voxels are averaged over.

    Returns:
        Mean ratio over the lattice: 1 where no pattern repeats; not a number where no axis has periods.
    """
    values = np.where(inside, band - band[inside].mean(), 0.0).astype(np.complex128)
    multiples = []
    for axis, (length, size) in enumerate(zip(period, band.shape, strict=True)):
        known = length > 2 and size >= _PERIODS * length
        reach = 2 * _multiples(length) + 1 if known else 0
        halves = np.arange(-reach, reach + 1)
        window = np.hanning(size + 2)[1:-1] if known else np.ones(size)
        waves = np.exp(-1j * np.pi * np.outer(halves, np.arange(size)) / length) * window
        values = np.moveaxis(np.tensordot(waves, values, (1, axis)), 0, axis)
        multiples.append(halves)
    axes = [axis for axis in range(3) if len(multiples[axis]) > 1]
    energy = np.abs(values) ** 2
    if not axes or energy.max() <= 1e-20:
        return float("nan")
    index = np.meshgrid(*multiples, indexing="ij")
    lattice = np.all([n % 2 == 0 for n in index], axis=0) & np.any([n != 0 for n in index], axis=0)
    near = [np.maximum(np.roll(energy, step, axis)[lattice], 1e-30) for axis in axes for step in (-1, 1)]
    # The mean of 1 / (mean of n exponential numbers) is n / (n - 1).
    return float((energy[lattice] / np.mean(near, axis=0)).mean() * (len(near) - 1) / len(near))


def detail_slope(before: np.ndarray, after: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """How much of an image's finest detail a reconstruction keeps: the slope of its finest band on the original's.

    Least squares through 0 over the original's body, channels pooled: detail that is lost lowers it, noise that has
    nothing to do with the original does not raise it.

    Args:
        before: In [-1, 1], shape ``(C, I, J, K)``.
        after: Same shape.
        spacing_mm: Millimetres per voxel along each axis.

    Returns:
        1 where all is kept, 0 where none is; not a number where the original has no detail.
    """
    edges = octaves(spacing_mm)[:1]
    common = own = 0.0
    for first, second in zip(before, after, strict=True):
        inside = body(first)
        x, y = (bands(one, inside, spacing_mm, edges)[0][inside] for one in (first, second))
        common, own = common + float(x @ y), own + float(x @ x)
    return common / own if own > _FLAT else float("nan")


def _multiples(length: float) -> int:
    """Of 1 / period below Nyquist."""
    return int(np.ceil(length / 2)) - 1
