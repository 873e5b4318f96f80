"""Feature spaces: what a volume is described by, and how the nearest training cases are found by that description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.extractors.networks import Extractor
from latentsynth.files import atomic_path
from latentsynth.metrics.copying import Search
from latentsynth.metrics.neighbours import nearest, nearest_distinct
from latentsynth.metrics.parts import detail, nearest_by_parts
from latentsynth.metrics.registration import describe, nearest_by_registration
from latentsynth.metrics.structural import nearest_by_dice, nearest_by_ssim
from latentsynth.provenance import fingerprint
from latentsynth.tensors import write_tensors
from latentsynth.workers import spread

OWN = ("voxels", "ssim", "registered", "parts")  # feature spaces that need no network
SAME_MASK = 0.02  # 1 - Dice of masks that differ by resampling alone
_ALIGNED = 0.8  # share of patients that must come nearer to the others where they lie than moved
_COMPARED = 40  # patients whose alignment is looked at
_AT_A_TIME = 8  # queries of a slow search that one core looks for
_ASKED = 2  # neighbours that are searched at least: the second is asked for soon after the first


@dataclass(frozen=True)
class FeatureSpace:
    """A distance between volumes.

    Attributes:
        extractor: Turns a volume into a row.
        search: Finds the nearest rows.
        unit: What the distance is.
        doubt: Why this feature space does not apply to these volumes, or "".
        wide: Rows are whole volumes.
        proportional: It is a distance between volumes themselves, of which the mean of two is half as far away as they are
            apart, so that distances may be compared by their ratio.
        same: Distance up to which two differ by resampling alone, where that is known.
    """

    extractor: Extractor
    search: Search = nearest
    unit: str = "Euclidean distance of features"
    doubt: str = ""
    wide: bool = False
    proportional: bool = False
    same: float = 0.0

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.extractor.name


class ForegroundVoxels(Extractor):
    """The voxels of the foreground, standardised per channel.

    Half the squared Euclidean distance of two rows is ``1 - r``, r being Pearson's correlation over the foreground,
    averaged over channels (Usman Akbar et al. 2025 correlate pixels; without a foreground mask, background inflates r).

    Args:
        foreground: Boolean, shape ``(I, J, K)``.
    """

    def __init__(self, foreground: np.ndarray):
        self.foreground = torch.from_numpy(foreground)
        self.name, self.preprocessing = "voxels", "foreground voxels, standardised per channel"
        self.fingerprint = fingerprint(["voxels", np.packbits(foreground).tobytes().hex()])

    def _features(self, image: Tensor) -> Tensor:
        inside = image[..., self.foreground].double()
        centred = inside - inside.mean(-1, keepdim=True)
        length = centred.norm(dim=-1, keepdim=True)
        rows = torch.where(length > 0, centred / length.clamp(min=1e-12), 0.0)
        return (rows / inside.shape[1] ** 0.5).flatten(1).float()


class WholeVolume(Extractor):
    """All voxels as they are."""

    name, fingerprint, preprocessing = "ssim", "ssim-2", "all voxels in [-1, 1]"

    def _features(self, image: Tensor) -> Tensor:
        return image.flatten(1)


class Smoothed(Extractor):
    """The volume without its finest detail, which generators lose and copies do not need."""

    name, fingerprint, preprocessing = "registered", "registered-4", "smoothed and thinned out, registered to each case"

    def _features(self, image: Tensor) -> Tensor:
        return torch.from_numpy(describe(image[0].numpy())).flatten()[None]


class Detail(Extractor):
    """The fine structure of a volume alone, of which a copied part keeps its own."""

    name, fingerprint, preprocessing = "parts", "parts-2", "band of fine detail, of one strength everywhere"

    def _features(self, image: Tensor) -> Tensor:
        return torch.from_numpy(detail(image[0].numpy())).flatten()[None]


class MaskVoxels(Extractor):
    """Label indices, given as an image of one channel."""

    name, fingerprint, preprocessing = "masks", "masks", "label maps on the common grid"

    def _features(self, image: Tensor) -> Tensor:
        return image.flatten(1)


def voxel_space(training: VolumeCache) -> FeatureSpace:
    """Pearson's correlation of foreground voxels; says so where the volumes of different patients are not aligned."""
    volumes = np.stack([training.volume(n).image for n in _spread(len(training))])
    foreground = found if (found := (volumes.mean((0, 1)) > -0.95)).any() else np.ones_like(found)
    extractor = ForegroundVoxels(foreground)
    share = alignment(volumes)
    doubt = ""
    if share < _ALIGNED:
        doubt = (
            f"volumes of different patients are not aligned (only {share:.0%} of them are more alike where they lie than "
            "moved by an eighth of the grid), so voxels do not correspond"
        )
    return FeatureSpace(extractor, nearest, "square root of 2 (1 - Pearson's r)", doubt, True, True)


def ssim_space(training: VolumeCache) -> FeatureSpace:
    """Structural similarity of whole volumes."""
    shape = training.volume(0).image.shape
    slow = partial(nearest_by_ssim, shape=shape)
    search = remembered(slow, training.folder / "distances", WholeVolume.fingerprint)
    return FeatureSpace(WholeVolume(), search, "1 - SSIM", "", True)


def registered_space(training: VolumeCache) -> FeatureSpace:
    """Absolute correlation after a move, turn, scaling or mirroring of the training case: finds what augmentation hides."""
    shape = describe(training.volume(0).image).shape
    slow = partial(nearest_by_registration, shape=shape)
    search = remembered(slow, training.folder / "distances", Smoothed.fingerprint)
    return FeatureSpace(Smoothed(), search, "square root of 2 (1 - |Pearson's r|) after registration", "", True, True)


def parts_space(training: VolumeCache) -> FeatureSpace:
    """Correlation of the best third of the blocks, mirrored too: finds halves, thirds and mixtures of training cases."""
    shape = detail(training.volume(0).image).shape
    slow = partial(nearest_by_parts, shape=shape)
    search = remembered(slow, training.folder / "distances", Detail.fingerprint)
    return FeatureSpace(
        Detail(), search, "square root of 2 (1 - mean |r| of the best third of the blocks)", "", True, True
    )


def remembered(search: Search, folder: Path, name: str) -> Search:
    """The same search, slow as it is, done once: what it found is kept in a folder by the contents of both sides.

    Calibration, control and positive controls are the same for every set that is measured against one training set.

    Args:
        search: Nearest neighbours.
        folder: Where results are kept.
        name: Of the search, and its version.
    """

    def look(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked = max(k, min(_ASKED, len(reference)))
        groups = [
            [x.shape, str(x.dtype), sha256(np.ascontiguousarray(x).data).hexdigest()] for x in (queries, reference)
        ]
        file = folder / f"{fingerprint([name, asked, groups])}.safetensors"
        if file.is_file():
            kept = load_file(file)
        else:
            distances, rows = _on_all_cores(search, queries, reference, asked)
            kept = {"distances": np.ascontiguousarray(distances), "rows": np.ascontiguousarray(rows)}
            with atomic_path(file) as temporary:
                write_tensors(temporary, kept)
        return kept["distances"][:, :k], kept["rows"][:, :k]

    return look


def _on_all_cores(search: Search, queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What the search finds, a few queries at a time."""
    parts = [queries[first : first + _AT_A_TIME] for first in range(0, max(len(queries), 1), _AT_A_TIME)]
    found = list(spread(lambda some: search(some, reference, k), parts))
    distances, rows = (np.concatenate(side) for side in zip(*found, strict=True))
    return distances, rows


def mask_space(shape: Sequence[int]) -> FeatureSpace:
    """Overlap of label maps, mirrored left-right or front-back too.

    Args:
        shape: Of a label map, ``(I, J, K)``.
    """

    def search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        volumes = reference.reshape(-1, *shape)
        ways = [volumes, volumes[:, ::-1], volumes[:, :, ::-1]]
        found = [nearest_by_dice(queries, np.ascontiguousarray(way).reshape(reference.shape), k) for way in ways]
        distances, rows = (np.concatenate(part, 1) for part in zip(*found, strict=True))
        nearest_rows = [nearest_distinct(*pair, k) for pair in zip(distances, rows, strict=True)]
        return np.stack([d for d, _ in nearest_rows]), np.stack([row for _, row in nearest_rows])

    unit = "1 - Dice over all labels"
    return FeatureSpace(MaskVoxels(), search, unit, "", True, same=SAME_MASK)


def own_space(name: str, training: VolumeCache) -> FeatureSpace:
    """One of :data:`OWN`, fitted to the training volumes."""
    spaces = {"voxels": voxel_space, "ssim": ssim_space, "registered": registered_space, "parts": parts_space}
    return spaces[name](training)


def alignment(volumes: np.ndarray) -> float:
    """Share of patients whose volume is more like the mean of the others where it lies than moved by an eighth.

    Near 1 for volumes registered or centred on one organ, near 1/2 where anatomy lies anywhere.

    Args:
        volumes: One per patient, shape ``(N, C, I, J, K)``.
    """
    if len(volumes) < 2:
        return 1.0
    total = volumes.sum(0)
    wins = []
    for one in volumes:
        others = (total - one) / (len(volumes) - 1)
        steps = [max(1, n // 8) if n > 2 else 0 for n in one.shape[1:]]
        axes = [axis for axis in range(3) if steps[axis]]
        moved = [_inner(one, others, steps, axis, sign) for axis, sign in product(axes, (-1, 1))]
        wins.append(_inner(one, others, steps, 0, 0) > np.mean(moved))
    return float(np.mean(wins))


def _inner(one: np.ndarray, others: np.ndarray, steps: Sequence[int], axis: int, sign: int) -> float:
    """Correlation of the inner part of a volume with the mean of others, moved by a step along one axis."""
    inner = tuple(slice(step, n - step) for step, n in zip(steps, one.shape[1:], strict=True))
    shifted = list(inner)
    shifted[axis] = slice(steps[axis] * (1 + sign), one.shape[1 + axis] - steps[axis] * (1 - sign))
    a, b = one[(slice(None), *shifted)].ravel(), others[(slice(None), *inner)].ravel()
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def _spread(cases: int) -> list[int]:
    """Evenly spread cases, not more than are needed."""
    return sorted({int(n) for n in np.linspace(0, cases - 1, min(cases, _COMPARED))})
