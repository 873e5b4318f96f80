"""Volumes that are not as sharp as real ones, made from real ones: what a measure of sharpness must not take for real."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from latentsynth.metrics.band_power import bands, octaves

Array = np.ndarray
Plant = Callable[[Array, Array, np.random.Generator], Array]
CELL = 4
_EDGES = octaves((1.0, 1.0, 1.0))


def white(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    """Noise of the body's own mean and deviation."""
    return rng.normal(image[inside].mean(), image[inside].std(), image.shape)


def noisy(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    return image + rng.normal(0, 0.15, image.shape)


def blurred(deviation: float) -> Plant:
    return lambda image, inside, rng: ndimage.gaussian_filter(image, deviation)


def sharpened(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    return 2 * image - ndimage.gaussian_filter(image, 1)


def cells(image: Array) -> Array:
    """Mean of every latent cell."""
    padded = np.pad(image, [(0, -n % CELL) for n in image.shape], mode="edge")
    i, j, k = (n // CELL for n in padded.shape)
    means = padded.reshape(i, CELL, j, CELL, k, CELL).mean((1, 3, 5))
    return means.repeat(CELL, 0).repeat(CELL, 1).repeat(CELL, 2)[tuple(slice(n) for n in image.shape)]


def blocky(share: float) -> Plant:
    return lambda image, inside, rng: (1 - share) * image + share * cells(image)


def checkered(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    """A faint pattern that every latent cell repeats."""
    i, j, k = np.cos(2 * np.pi * np.indices(image.shape) / CELL)
    return image + 0.05 * i * j * k


def with_powers(image: Array, start: Array, inside: Array, rng: np.random.Generator) -> Array:
    """``start`` and noise of as much power in every band as it lacks of the image's."""
    wanted = np.array([(one[inside] ** 2).mean() for one in bands(image, inside, (1, 1, 1), _EDGES)])
    noise = bands(rng.normal(size=image.shape), inside, (1, 1, 1), _EDGES)
    shares = np.full(len(wanted), 0.01)
    for _ in range(12):
        mixed = start + sum(share * one for share, one in zip(shares, noise, strict=True))
        got = np.array([(one[inside] ** 2).mean() for one in bands(mixed, inside, (1, 1, 1), _EDGES)])
        shares = np.clip(shares * np.clip(wanted / got, 0.5, 2) ** 0.7, 1e-6, 10)
    return mixed


def blurred_with_noise(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    return with_powers(image, ndimage.gaussian_filter(image, 1), inside, rng)


def texture(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    """Nothing but noise of the bands' powers."""
    return with_powers(image, np.full(image.shape, image[inside].mean()), inside, rng)


def phase_scrambled(image: Array, inside: Array, rng: np.random.Generator) -> Array:
    """The same amplitude at every frequency, phases of white noise."""
    other = np.fft.fftn(rng.normal(size=image.shape))
    filled = np.where(inside, image - image[inside].mean(), 0)
    made = np.fft.ifftn(np.abs(np.fft.fftn(filled)) * other / np.abs(other)).real
    return made * filled[inside].std() / made[inside].std() + image[inside].mean()


KINDS: dict[str, Plant] = {
    "white noise": white,
    "noise added": noisy,
    "blurred 0.7": blurred(0.7),
    "blurred 1": blurred(1.0),
    "sharpened": sharpened,
    "blocky": blocky(1.0),
    "blocky by half": blocky(0.5),
    "checkered": checkered,
    "blurred, band-matched noise": blurred_with_noise,
    "band-matched noise alone": texture,
    "phase-scrambled": phase_scrambled,
}


def plant(kind: str, image: Array, inside: Array, rng: np.random.Generator) -> Array:
    """One channel in [-1, 1] with a fault inside the body; the air stays as it is."""
    return np.clip(np.where(ndimage.binary_dilation(inside), KINDS[kind](image, inside, rng), image), -1, 1)
