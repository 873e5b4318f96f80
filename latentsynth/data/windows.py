"""Intensity windows: scanner units to [-1, 1] and back."""

from __future__ import annotations

import numpy as np

from latentsynth.errors import DataError
from latentsynth.types import Window

Limits = tuple[float, float]


def limits(window: Window, image: np.ndarray, name: str = "image") -> Limits:
    """What maps to -1 and 1 in one image, in its own units.

    Percentiles are taken over the foreground: voxels above the image's minimum, which is what skull-stripping,
    defacing and an empty field of view fill with.

    Raises:
        DataError: The image is constant, so it has no percentiles to speak of.
    """
    if window.kind == "fixed":
        return window.low, window.high
    foreground = image[image > image.min()]
    if foreground.size:
        low, high = (float(p) for p in np.percentile(foreground, (window.low, window.high)))
        if low < high:
            return low, high
    raise DataError(f"{name} has one intensity only ({float(image.flat[0]):g}): remove this case or this channel")


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
