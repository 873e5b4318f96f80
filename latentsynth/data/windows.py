"""Intensity windows: scanner units to [-1, 1] and back."""

from __future__ import annotations

import numpy as np

from latentsynth.errors import DataError
from latentsynth.types import Window

Limits = tuple[float, float]


# How foreground is told from what an empty field of view is filled with.
_STEPS = 1024  # values closer than this part of the image's own range count as equal: resampling leaves traces of 1e-12
_ON_BORDER = 0.1  # a fill holds at least this share of the outermost voxels ...
_FLAT = 0.5  # ... and at least this share of its voxels have a neighbour of its own value
_OVERSHOOT = 0.1  # voxels below a fill by less than this part of what the rest rises above it ...
_FEW = 0.01  # ... or fewer than this share of the rest are ringing of a resampling, no tissue ...
_BETWEEN = 0.25  # ... and between two fills, where resampling mixes them, fewer than this


def limits(window: Window, image: np.ndarray, name: str = "image") -> Limits:
    """What maps to -1 and 1 in one image, in its own units.

    Percentiles are taken over the foreground, see :func:`foreground`.

    Raises:
        DataError: The image is constant, so it has no percentiles to speak of.
    """
    if window.kind == "fixed":
        return window.low, window.high
    for inside in (foreground(image), image > image.min()):  # images of few values may be nothing but fills
        if inside.any():
            low, high = (float(p) for p in np.percentile(image[inside], (window.low, window.high)))
            if low < high:
                return low, high
    raise DataError(f"{name} has one intensity only ({float(image.flat[0]):g}): remove this case or this channel")


def foreground(image: np.ndarray) -> np.ndarray:
    """Voxels that hold tissue, whichever value the empty field of view has: the lowest, or one amid tissue's own.

    Skull-stripping, defacing and padding fill with one value. It is the image's minimum, or a value that the border is
    full of in flat regions: 0 in a scan that was brought to mean 0 over the brain alone. There may be several, such as
    air of -1000 HU inside a padding of -2000. What a resampling lets undershoot a fill is no tissue either.

    Args:
        image: Shape ``(I, J, K)``.

    Returns:
        Boolean, shaped like ``image``; nowhere true if the image holds one value.
    """
    image = np.asarray(image, np.float32)  # half the memory of differences to whole numbers
    fills, step = _fills(image)
    inside = image > image.min()
    for fill in fills:
        inside &= np.abs(image - fill) > step
    values = image[inside]
    below = [fill for fill in fills if values.size and fill < np.median(values)]
    if below:
        above, under = values[values > max(below)], values[values < max(below)]
        small = under.size and max(below) - np.median(under) < _OVERSHOOT * (np.percentile(above, 99) - max(below))
        if small or under.size <= (_FEW if len(below) == 1 else _BETWEEN) * values.size:
            inside &= image > max(below)
    return inside


def _fills(image: np.ndarray) -> tuple[list[float], float]:
    """Values that the field of view is filled with around the tissue, and how far from them counts as equal."""
    border = np.concatenate([image.take(end, axis).ravel() for axis in range(image.ndim) for end in (0, -1)])
    values, counts = np.unique(border, return_counts=True)
    common = float(values[counts.argmax()])
    rest = image[image != common]
    low, high = np.percentile(rest, (0.5, 99.5)) if rest.size else (0.0, 0.0)
    step = float(high - low) / _STEPS
    bins, counts = np.unique(np.rint((border - common) / (step or 1.0)), return_counts=True)
    candidates = common + bins[counts >= _ON_BORDER * border.size] * (step or 1.0)
    return [float(value) for value in candidates if _flat(np.abs(image - float(value)) <= step)], step


def _flat(where: np.ndarray) -> bool:
    """Whether voxels lie side by side, as those of a fill do and those of one value of tissue do not."""
    shares = []
    for axis in range(where.ndim):
        along = np.moveaxis(where, axis, 0)
        if along[:-1].any():
            shares.append(float((along[:-1] & along[1:]).sum() / along[:-1].sum()))
    return bool(shares) and float(np.mean(shares)) >= _FLAT


def normalise(image: np.ndarray, between: Limits) -> np.ndarray:
    """Maps ``between`` to [-1, 1] and clips; float32."""
    low, high = between
    return np.clip((image.astype(np.float32) - low) * (2 / (high - low)) - 1, -1, 1)


def restore(image: np.ndarray, between: Limits) -> np.ndarray:
    """Inverse of :func:`normalise` for what was not clipped."""
    low, high = between
    return ((image + 1) * ((high - low) / 2) + low).astype(np.float32)


def median(between: list[Limits]) -> Limits:
    """The window that images without units of their own come out in: the median of the training images'."""
    low, high = np.median(np.asarray(between), axis=0)
    return float(low), float(high)
