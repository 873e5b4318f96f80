"""Where lesions may lie: the room an organ gives them, where training lesions lay, and exactly so many voxels of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from latentsynth.data.frames import Frame, lay, resample
from latentsynth.errors import DataError
from latentsynth.masks.base import Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.write import sheet_grid
from latentsynth.metrics.lesions import components
from latentsynth.provenance import voxel_hash
from latentsynth.types import Framing, Grid, Labels

FIELD_OF_VIEW: tuple[int, ...] = ()  # the "organ" where none is labelled: all that is background
Window = tuple[slice, slice, slice]

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
_ROUNDS = 12


def check_roles(labels: Labels, lesions: Sequence[int], inside: Sequence[int]) -> None:
    """Makes sure that lesion and organ labels exist and differ.

    Raises:
        DataError: One is not a label of the cohort, or is both, or there is no lesion label.
    """
    unknown = sorted({*lesions, *inside} - set(labels.values[1:]))
    if unknown or not lesions:
        raise DataError(
            f"lesion labels {list(lesions)} inside {list(inside) or 'the field of view'}: choose from the labels "
            f"{list(labels.values[1:])}, at least one for lesions"
        )
    if both := sorted(set(lesions) & set(inside)):
        raise DataError(f"labels {both} are named as lesion and as organ: a label is one of them")


def window_of(mask: np.ndarray, margin: Sequence[int] = (1, 1, 1)) -> Window:
    """The bounding box of a mask that is not empty, with some voxels of margin where the grid has them."""
    found = ndimage.find_objects(mask.view(np.uint8) if mask.dtype == bool else mask.astype(bool).view(np.uint8))[0]
    i, j, k = (
        slice(max(0, side.start - more), min(n, side.stop + more))
        for side, more, n in zip(found, margin, mask.shape, strict=True)
    )
    return (i, j, k)


def healthy(made: LabelMap, lesions: Sequence[int], inside: Sequence[int]) -> np.ndarray:
    """The label values with every lesion turned into the organ around it, or into background where none is named.

    Raises:
        DataError: An organ is named, and the map has no voxel of it.
    """
    lesion = made.of(lesions)
    values = made.values.copy()
    if not inside:
        values[lesion] = 0
        return values
    organ = made.of(inside)
    if not organ.any():
        raise DataError(
            f"{made.name} has no voxel of label {' or '.join(map(str, inside))}, in which lesions are to lie: leave it out, "
            "or name the organ that it has"
        )
    if len(inside) == 1:
        values[lesion] = inside[0]
    elif lesion.any():
        box = window_of(lesion | organ)
        nearest = ndimage.distance_transform_edt(
            ~organ[box], made.spacing_mm, return_distances=False, return_indices=True
        )
        values[box][lesion[box]] = made.values[box][tuple(nearest)][lesion[box]]
    return values


def room_in(values: np.ndarray, inside: Sequence[int]) -> np.ndarray:
    """Voxels that lesions may take of healthy anatomy, boolean, of its shape."""
    return np.isin(values, list(inside) or [0])


def digest(made: LabelMap) -> list[object]:
    """What a fingerprint needs to know of a label map: its voxels, where they lie and whose they are."""
    box = window_of(made.values) if made.values.any() else (slice(0),) * 3
    corner = [side.start for side in box]
    return [made.values.shape, made.affine.tolist(), corner, voxel_hash(made.values[box]), made.parents]


def near(mask: np.ndarray, spacing_mm: Sequence[float], gap_mm: float) -> tuple[Window, np.ndarray]:
    """Voxels within a gap of a mask, or that touch it by as much as a corner.

    Returns:
        A window around the mask, and the voxels in that window, boolean.
    """
    gap_mm = max(gap_mm, 1.001 * float(np.linalg.norm(spacing_mm)))
    box = window_of(mask, [int(np.ceil(gap_mm / mm)) for mm in spacing_mm])
    return box, ndimage.distance_transform_edt(~mask[box], spacing_mm) <= gap_mm


def aim(rng: np.random.Generator, between_ml: tuple[float, float]) -> float:
    """A volume in ml drawn log-uniformly; the draw uses one number, whatever the range."""
    low, high = np.log(between_ml)
    return float(np.exp(low + (high - low) * rng.random()))


def whole_voxels(target_ml: float, voxel_ml: float, wanted: Wanted) -> int:
    """The number of voxels nearest to a volume that is as wanted; 0 if no whole number is."""
    voxels = max(1, round(target_ml / voxel_ml))
    if wanted.volume_ml is None:
        return voxels
    # products, as the check of what was wanted forms them
    near_by = [
        n for n in (voxels, voxels + 1, voxels - 1) if wanted.volume_ml[0] <= n * voxel_ml <= wanted.volume_ml[1]
    ]
    return max(0, near_by[0]) if near_by else 0


def fitted(score: np.ndarray, room: np.ndarray, voxels: int, core: np.ndarray) -> np.ndarray | None:
    """Exactly so many voxels of the lowest scores, as far as they are connected to a core.

    What a threshold leaves is connected to the core more and more as the threshold rises, so the threshold is searched;
    where an island joins at once, it is taken layer by layer.

    Args:
        score: ``(I, J, K)``.
        room: Voxels that may be taken, boolean, ``(I, J, K)``.
        voxels: How many are wanted.
        core: Each connected piece of the result holds a voxel of it, boolean, ``(I, J, K)``.

    Returns:
        Boolean, ``(I, J, K)``; None where the room around the core has fewer voxels.
    """
    core = core & room
    scores = score[room]
    if not core.any() or scores.size < voxels:
        return None

    below = np.zeros_like(room)
    below[np.unravel_index(np.argmin(np.where(core, score, np.inf)), score.shape)] = True
    above, least, most, rank = None, 0, scores.size, voxels
    for _ in range(_ROUNDS):
        limit = np.partition(scores, rank - 1)[rank - 1]
        grown = holding(room & (score <= limit), core)
        size = int(grown.sum())
        if size == voxels:
            return grown
        if size < voxels:
            if rank == scores.size:
                return None
            below, least = (grown, rank) if size else (below, rank)
        else:
            above, most = grown, rank
        if most - least <= 1:
            break
        step = rank + 2 * (voxels - size) if above is None else (least + most) // 2
        rank = int(np.clip(step, least + 1, most if above is None else most - 1))
    if above is None:
        above = holding(room, core)
        if int(above.sum()) < voxels:
            return None
    return _filled_up(below, above, score, voxels)


def holding(mask: np.ndarray, core: np.ndarray) -> np.ndarray:
    """The connected pieces of a mask that hold a voxel of a core, boolean like both."""
    pieces, count = components(mask)
    kept = np.zeros(count + 1, dtype=bool)
    kept[pieces[core & mask]] = True
    kept[0] = False
    return np.asarray(kept[pieces])


def _filled_up(below: np.ndarray, above: np.ndarray, score: np.ndarray, voxels: int) -> np.ndarray:
    """``below`` and as many voxels of ``above`` as are missing, neighbours first."""
    out = below.copy()
    while missing := voxels - int(out.sum()):
        front = ndimage.binary_dilation(out, _NEIGHBOURS) & above & ~out
        if not front.any():
            front = above & ~out
        if int(front.sum()) > missing:
            places = np.flatnonzero(front)
            front = np.zeros_like(front)
            front.flat[places[np.argsort(score.flat[places], kind="stable")[:missing]]] = True
        out |= front
    return out


@dataclass(frozen=True)
class Frequency:
    """Where training lesions lie, on a grid that is laid over the middle of any scan along its own axes.

    Attributes:
        grid: Holds the largest training map.
        counts: Training lesions at each cell, smoothed, float32, ``(I, J, K)``.
    """

    grid: Grid
    counts: np.ndarray

    @classmethod
    def fit(cls, maps: Sequence[LabelMap], lesions: Sequence[int], smooth_mm: float) -> Frequency:
        """Counts the lesions of some label maps and smooths the count.

        Args:
            maps: Training masks.
            lesions: Label values that count as lesion.
            smooth_mm: Deviation of the Gaussian.
        """
        grid = sheet_grid(maps)
        counts = np.zeros(grid.shape)
        cell_ml = float(np.prod(grid.spacing_mm)) / 1000
        for made in maps:
            to_cell = np.linalg.inv(_laid(grid, made).affine) @ made.affine
            cells = np.rint(np.argwhere(made.of(lesions)) @ to_cell[:3, :3].T + to_cell[:3, 3]).astype(int)
            cells = cells[((cells >= 0) & (cells < grid.shape)).all(axis=1)]
            covered = np.bincount(np.ravel_multi_index(tuple(cells.T), grid.shape), minlength=counts.size)
            counts += np.minimum(covered.reshape(grid.shape) * made.voxel_ml / cell_ml, 1)
        smoothed = ndimage.gaussian_filter(counts, smooth_mm / np.array(grid.spacing_mm), mode="constant")
        return cls(grid, smoothed.astype(np.float32))

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(self.counts, dtype=np.float64)

    def draw(self, rng: np.random.Generator, host: LabelMap) -> tuple[int, int, int]:
        """A voxel of a host, as likely as training lesions lie there; it may be outside of the host's grid."""
        flat = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        cell = np.array(np.unravel_index(min(flat, self.counts.size - 1), self.counts.shape)) + rng.uniform(
            -0.5, 0.5, 3
        )
        to_host = np.linalg.inv(host.affine) @ _laid(self.grid, host).affine
        i, j, k = (int(n) for n in np.rint(to_host[:3, :3] @ cell + to_host[:3, 3]))
        return (i, j, k)

    def reached(self, host: LabelMap, box: Window, least: float) -> np.ndarray:
        """Where in a window of a host at least so many training lesions lie, boolean, of the window's shape."""
        affine = host.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
        i, j, k = (side.stop - side.start for side in box)
        return (
            resample(self.counts, _laid(self.grid, host).affine, Frame(affine, (i, j, k)), 0.0, smooth=False) >= least
        )

    def reached_ml(self, least: float) -> float:
        """Volume in ml where at least so many training lesions lie."""
        return int((self.counts >= least).sum()) * float(np.prod(self.grid.spacing_mm)) / 1000


def _laid(grid: Grid, made: LabelMap) -> Frame:
    return lay(grid, Framing(), made.affine, made.values.shape, None, made.name)[0]
