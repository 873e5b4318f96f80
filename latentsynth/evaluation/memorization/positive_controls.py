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
LOST_HEADER = "exact, header lost"
MOST_COPIES = 40  # copies per disguise
Disguise = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""Image ``(C, I, J, K)`` in [-1, 1] of a training case, the same of somebody else, random numbers: the copy."""

_ELASTIC_CONTROL = 8  # voxels between control points of an elastic deformation


def _rotated(image: np.ndarray, degrees: float, order: int = 1) -> np.ndarray:
    """Rotated about the last axis through the middle, voxels outside repeated."""
    turn = lambda x: ndimage.rotate(x, degrees, axes=(0, 1), reshape=False, order=order, mode="nearest")  # noqa: E731
    return np.stack([turn(channel) for channel in image])


def _moved(image: np.ndarray, voxels: int) -> np.ndarray:
    """Moved along every axis, to and fro in turn; the border is repeated."""
    shift = [voxels, -voxels, voxels]
    return np.stack([ndimage.shift(channel, shift, order=0, mode="nearest") for channel in image])


def _zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """Made smaller or larger about the middle; the border is repeated."""
    middle = (np.array(image.shape[1:]) - 1) / 2
    scale = lambda x: ndimage.affine_transform(x, np.eye(3) / factor, middle - middle / factor, order=1, mode="nearest")  # noqa: E731
    return np.stack([scale(channel) for channel in image])


def _bent(image: np.ndarray, voxels: float, rng: np.random.Generator) -> np.ndarray:
    """Moved along every axis by a smooth random field that reaches so many voxels."""
    shape = image.shape[1:]
    points = [max(3, n // _ELASTIC_CONTROL) for n in shape]
    where = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij"))
    for axis in range(3):
        field = ndimage.zoom(rng.uniform(-1, 1, points), [n / p for n, p in zip(shape, points, strict=True)], order=3)
        where[axis] += voxels * field / np.abs(field).max()
    return np.stack([ndimage.map_coordinates(channel, where, order=1, mode="nearest") for channel in image])


def _part(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """A share of an image, along its longest axis, and the rest of another one."""
    axis = 1 + int(np.argmax(image.shape[1:]))
    edge = round(image.shape[axis] * share)
    first, second = (np.take(x, range(*r), axis) for x, r in ((image, (0, edge)), (other, (edge, image.shape[axis]))))
    return np.concatenate([first, second], axis)


# What an augmentation, an autoencoder or a collage makes of a patient. "other" is an unseen patient where the copy is a part,
# so that no more than that part is copied.
DISGUISES: dict[str, Disguise] = {
    "exact": lambda image, other, rng: image,
    "mirrored left-right": lambda image, other, rng: image[:, ::-1],
    "mirrored front-back": lambda image, other, rng: image[:, :, ::-1],
    "mirrored and turned by 10 degrees": lambda image, other, rng: _rotated(image[:, ::-1], 10),
    "moved 4 voxels": lambda image, other, rng: _moved(image, 4),
    "zoomed .8": lambda image, other, rng: _zoomed(image, 0.8),
    "rotated 20 degrees": lambda image, other, rng: _rotated(image, 20),
    "blurred 1.5 voxels": lambda image, other, rng: ndimage.gaussian_filter(image, (0, 1.5, 1.5, 1.5), mode="nearest"),
    "with noise": lambda image, other, rng: np.clip(image + rng.normal(0, 0.1, image.shape), -1, 1),
    "gamma 2.2": lambda image, other, rng: 2 * ((image + 1) / 2) ** 2.2 - 1,
    "inverted": lambda image, other, rng: -image,
    "elastic 2 voxels": lambda image, other, rng: _bent(image, 2, rng),
    "mean of two": lambda image, other, rng: (image + other) / 2,
    "half copied": lambda image, other, rng: _part(image, other, 1 / 2),
    "a third copied": lambda image, other, rng: _part(image, other, 1 / 3),
}
MASK_DISGUISES: dict[str, Disguise] = {
    "exact": DISGUISES["exact"],
    "mirrored left-right": DISGUISES["mirrored left-right"],
    "mirrored front-back": DISGUISES["mirrored front-back"],
    "rotated by 5 degrees": lambda image, other, rng: _rotated(image, 5, order=0),
}


def make_copies(
    extractors: Sequence[Extractor],
    training: VolumeCache,
    unseen: VolumeCache,
    count: int,
    disguises: dict[str, Disguise],
    read: Callable[[VolumeCache, int], np.ndarray],
    accelerator: Accelerator,
) -> dict[str, dict[str, np.ndarray]]:
    """Features of disguised training cases.

    Args:
        extractors: What describes them.
        training: The training volumes.
        unseen: Volumes of patients that no generator saw, with which copies are mixed.
        count: How many copies are wanted, at most 40; training cases are drawn at random, all before any again.
        disguises: By name.
        read: Image of an entry of the cache.
        accelerator: The processes that share the work.

    Returns:
        By extractor and disguise, rows ``(count, F)``.
    """
    chosen = drawn(len(training), count)
    found: dict[str, dict[str, np.ndarray]] = {one.name: {} for one in extractors}
    for name, disguise in disguises.items():

        def image(n: int, disguise: Disguise = disguise) -> torch.Tensor:
            other = read(unseen, n % len(unseen))
            changed = disguise(read(training, chosen[n]), other, np.random.default_rng(n))
            return torch.from_numpy(np.ascontiguousarray(changed, dtype=np.float32))

        rows = extract_volumes(extractors, image, len(chosen), f"positive controls, {name}", accelerator)
        for one in extractors:
            found[one.name][name] = rows[one.name]
    return found


def drawn(cases: int, count: int) -> list[int]:
    """Which training cases are copied, at most 40: drawn at random, all before any again."""
    rng, wanted = np.random.default_rng(0), min(count, MOST_COPIES)
    turns = -(-wanted // cases)
    return np.concatenate([rng.permutation(cases) for _ in range(turns)])[:wanted].tolist()  # type: ignore[no-any-return]


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
