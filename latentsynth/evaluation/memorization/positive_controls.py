"""Positive controls: training cases put among samples on purpose, plain and disguised, which a measure must find."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from scipy import ndimage

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.evaluation.features import extract_volumes
from latentsynth.extractors.networks import Extractor

SHARES = (0.0, 0.01, 0.05, 0.25, 1.0)
_MOST = 100  # copies per disguise
Disguise = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _rotated(image: np.ndarray, rng: np.random.Generator, degrees: float = 5.0, order: int = 1) -> np.ndarray:
    """Rotated about the last axis through the middle, voxels outside repeated."""
    turn = lambda x: ndimage.rotate(x, degrees, axes=(0, 1), reshape=False, order=order, mode="nearest")  # noqa: E731
    return np.stack([turn(channel) for channel in image])


def _rescaled(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast up or down by a fifth, brightness by a twentieth of the window."""
    contrast, brightness = np.exp(rng.choice([-1, 1]) * np.log(1.2)), rng.choice([-1, 1]) * 0.1
    return np.clip(image * contrast + brightness, -1, 1)


# Generators blur: a copy that came through an autoencoder is smoother than the scan, so that disguise stands here too.
DISGUISES: dict[str, Disguise] = {
    "exact": lambda image, rng: image,
    "flipped": lambda image, rng: image[:, ::-1],
    "rotated by 5 degrees": _rotated,
    "intensity rescaled": _rescaled,
    "with noise": lambda image, rng: np.clip(image + rng.normal(0, 0.1, image.shape), -1, 1),
    "smoothed": lambda image, rng: ndimage.gaussian_filter(image, (0, 1, 1, 1), mode="nearest"),
}
MASK_DISGUISES: dict[str, Disguise] = {
    "exact": DISGUISES["exact"],
    "flipped": DISGUISES["flipped"],
    "rotated by 5 degrees": lambda image, rng: _rotated(image, rng, order=0),
}


def make_copies(
    extractors: Sequence[Extractor],
    training: VolumeCache,
    count: int,
    disguises: dict[str, Disguise],
    read: Callable[[VolumeCache, int], np.ndarray],
    accelerator: Accelerator,
) -> dict[str, dict[str, np.ndarray]]:
    """Features of disguised training cases.

    Args:
        extractors: What describes them.
        training: The training volumes.
        count: How many copies are wanted, at most 100; training cases are drawn at random, all before any again.
        disguises: Name to function of an image ``(C, I, J, K)`` and a random generator.
        read: Image of an entry of the cache.
        accelerator: The processes that share the work.

    Returns:
        By extractor and disguise, rows ``(count, F)``.
    """
    rng = np.random.default_rng(0)
    turns = -(-min(count, _MOST) // len(training))
    chosen = np.concatenate([rng.permutation(len(training)) for _ in range(turns)])[: min(count, _MOST)]
    found: dict[str, dict[str, np.ndarray]] = {one.name: {} for one in extractors}
    for name, disguise in disguises.items():

        def image(n: int, disguise: Disguise = disguise) -> torch.Tensor:
            changed = disguise(read(training, int(chosen[n])), np.random.default_rng(n))
            return torch.from_numpy(np.ascontiguousarray(changed, dtype=np.float32))

        rows = extract_volumes(extractors, image, len(chosen), f"positive controls, {name}", accelerator)
        for one in extractors:
            found[one.name][name] = rows[one.name]
    return found


def response(base: np.ndarray, copies: np.ndarray) -> tuple[float, ...]:
    """Share flagged when some of the base samples are replaced by copies, at each of :data:`SHARES`.

    Args:
        base: Whether each base sample is flagged, ``(N,)``.
        copies: Whether the copy that would replace it is, ``(M,)``; the first M base samples are used.
    """
    count = min(len(base), len(copies))
    order = np.random.default_rng(0).permutation(count)  # nested: a larger share keeps the copies of a smaller one
    rates = []
    for share in SHARES:
        replaced = order[: int(np.ceil(share * count))]
        flags = base[:count].copy()
        flags[replaced] = copies[replaced]
        rates.append(float(flags.mean()))
    return tuple(rates)
