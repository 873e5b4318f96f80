"""New masks from real ones: bent, turned, mirrored, their lesions grown, shrunk, smoothed, split and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from latentsynth.config.mask_shapes import DeformConfig
from latentsynth.errors import DataError
from latentsynth.masks.base import MaskMaker, Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.placement import (
    FIELD_OF_VIEW,
    aim,
    check_roles,
    digest,
    healthy,
    room_in,
    whole_voxels,
    window_of,
)
from latentsynth.masks.reshaping import reshaped
from latentsynth.masks.roughness import bounded_field
from latentsynth.metrics.shapes import CELL_MM, CELLS, cells_of, centroid_mm, overlaps
from latentsynth.provenance import Ledger, fingerprint
from latentsynth.randomness import Stream, generator
from latentsynth.types import Labels

_ALIKE = 0.9  # quantile of the overlap of patients with their nearest other one
_STRENGTHS = (1.0, 1.5, 2.25)  # times the amounts of the configuration, one after the other
_COPY = "nearer to its source than patients are to each other"
_LOST = 0.05  # share of a lesion that may leave the field of view
_WORLD = {"left-right": 0, "back-front": 1, "feet-head": 2}


@dataclass(frozen=True)
class _Source:
    """A real mask, cropped to its labels: where there is nothing, nothing can be bent."""

    name: str
    anatomy: np.ndarray  # label values without lesions, in the window
    lesion: np.ndarray  # lesion label values, 0 elsewhere, in the window
    corner: np.ndarray  # first voxel of the window
    shape: tuple[int, ...]
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    parents: tuple[str, ...]
    voxel_ml: float
    lesion_ml: float
    room_ml: float

    @classmethod
    def of(cls, made: LabelMap, lesions: Sequence[int], inside: Sequence[int]) -> _Source:
        box = window_of(made.values)
        cropped = replace(made, values=made.values[box])
        anatomy = healthy(cropped, lesions, inside)
        beyond = 0 if inside else made.values.size - cropped.values.size  # all background
        room_ml = (int(room_in(anatomy, inside).sum()) + beyond) * made.voxel_ml
        lesion = np.where(cropped.of(lesions), cropped.values, 0)
        corner = np.array([side.start for side in box])
        return cls(made.name, anatomy, lesion, corner, made.values.shape, made.affine, made.spacing_mm,
                   made.parents, made.voxel_ml, np.count_nonzero(lesion) * made.voxel_ml, room_ml)  # fmt: skip

    def shows(self, values: np.ndarray) -> bool:
        """Whether a label map is this mask, unchanged."""
        own = np.where(self.lesion > 0, self.lesion, self.anatomy)
        box = tuple(slice(c, c + n) for c, n in zip(self.corner, own.shape, strict=True))
        return np.count_nonzero(values) == np.count_nonzero(own) and np.array_equal(values[box], own)


@dataclass(frozen=True)
class _Likeness:
    """How alike the lesions of different patients are, and which masks are more alike to theirs than that.

    Overlap is measured on cubic cells with centroids in one place, as ``evaluate masks`` does.
    """

    edge_mm: float
    lesions: tuple[int, ...]
    cells: Mapping[str, np.ndarray]
    most: float

    @classmethod
    def of(cls, maps: Sequence[LabelMap], lesions: Sequence[int]) -> _Likeness:
        lesions = tuple(lesions)
        edge_mm = min(CELL_MM, (1000 * float(np.median([made.volume_ml(lesions) for made in maps])) / CELLS) ** (1 / 3))
        cells = [_centred(made, lesions, edge_mm) for made in maps]
        people = np.array([" ".join(made.parents) or made.name for made in maps])
        others = people[:, None] != people  # two scans of one patient are alike
        most = 1.0
        if others.any():
            table = np.where(others, overlaps(cells, cells), 0)
            most = float(np.quantile(table.max(1), _ALIKE))
        return cls(edge_mm, lesions, dict(zip((made.name for made in maps), cells, strict=True)), most)

    def copies(self, made: LabelMap, source: str) -> bool:
        """Whether a map overlaps its source more than all but a tenth of the patients overlap anybody else."""
        return bool(overlaps([_centred(made, self.lesions, self.edge_mm)], [self.cells[source]])[0, 0] > self.most)


def _centred(made: LabelMap, lesions: tuple[int, ...], edge_mm: float) -> np.ndarray:
    mask = made.of(lesions)
    return cells_of(mask, made.affine, edge_mm, np.array(centroid_mm(mask, made.affine)))


class Deformed(MaskMaker):
    """Real masks, changed.

    Elastic: a cubic B-spline over random control points that cannot fold, as in free-form registration (Rueckert et al.
    1999). Affine: rotation, size and shift about the middle of the labels, mirroring about the middle of the scan. Then
    lesions alone: growth or shrinkage by a distance, smoothing, cuts and bridges. Amirrajab et al. (2022,
    https://arxiv.org/abs/2209.04223) paint label maps made this way. Where every label is a
    lesion, all are bent together.

    A wanted volume is drawn log-uniformly; a mask near it is scaled, then its surface moved until the volume is hit to
    the voxel. A wanted number of lesions is approached by cuts, bridges and by dropping specks.

    Args:
        maps: Real masks; those without a lesion are left out.
        labels: Label values and names.
        lesions: Label values that count as lesion.
        config: How far masks are changed.
        ledger: The patients of the maps.
        inside: Labels of the organ that lesions stay in; they take no voxel of anything else, and what they leave
            becomes organ. None named, they stay in the background.

    Raises:
        DataError: No map has a lesion, one lacks the organ, or labels are unknown.
    """

    def __init__(
        self,
        maps: Sequence[LabelMap],
        labels: Labels,
        lesions: Sequence[int],
        config: DeformConfig,
        ledger: Ledger,
        inside: Sequence[int] = FIELD_OF_VIEW,
    ):
        check_roles(labels, lesions, inside)
        maps = [made for made in maps if made.of(lesions).any()]
        if not maps:
            raise DataError(f"none of the masks has a lesion (labels {list(lesions)}): there is nothing to deform")
        self.labels, self.lesions, self.inside = labels, tuple(lesions), tuple(inside)
        self.config, self.ledger = config, ledger
        self._sources = [_Source.of(made, lesions, inside) for made in maps]
        self._likeness = _Likeness.of(maps, lesions)
        self.fingerprint = fingerprint(
            ["deformed", config.model_dump(mode="json"), self.lesions, self.inside, [digest(made) for made in maps]]
        )

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        """See :meth:`MaskMaker.make`."""
        between_ml = None if wanted.volume_ml is None else self._within_reach(wanted.volume_ml)
        return [self._make(seed, wanted, between_ml) for seed in seeds]

    def _reach(self, source: _Source) -> tuple[float, float]:
        factor = self.config.max_factor
        return source.lesion_ml / factor, min(source.lesion_ml * factor, source.room_ml)

    def _within_reach(self, between_ml: tuple[float, float]) -> tuple[float, float]:
        """The part of a wanted range that some mask can be brought to."""
        least, most = (list(ends) for ends in zip(*map(self._reach, self._sources), strict=True))
        low, high = max(between_ml[0], min(least)), min(between_ml[1], max(most))
        if low > high:
            volumes = [source.lesion_ml for source in self._sources]
            raise DataError(
                f"lesions of {between_ml[0]:g} to {between_ml[1]:g} ml are wanted, the masks hold {min(volumes):.3g} to "
                f"{max(volumes):.3g} ml with room for {max(source.room_ml for source in self._sources):.3g} ml, and their "
                f"volume changes by a factor of at most {self.config.max_factor:g}: ask for {min(least):.2g} to "
                f"{max(most):.3g} ml, or raise max_factor"
            )
        return low, high

    def _make(self, seed: int, wanted: Wanted, between_ml: tuple[float, float] | None) -> LabelMap | Rejected:
        rng = generator(seed, Stream.DEFORMED)
        sources, target_ml = self._sources, None
        if between_ml is not None:
            target_ml = aim(rng, between_ml)
            sources = [s for s in sources if self._reach(s)[0] <= target_ml <= self._reach(s)[1]]
            if not sources:
                return Rejected("no mask near this volume")
        source = sources[seed % len(sources) if self.config.draw == "turn" else int(rng.integers(len(sources)))]
        strict = self.config.changes and self.config.reject_copies
        made: LabelMap | Rejected = Rejected(_COPY)
        for strength in _STRENGTHS if strict else _STRENGTHS[:1]:
            made = self._changed(rng, source, wanted, target_ml, strength)
            if isinstance(made, LabelMap) and not (strict and self._likeness.copies(made, source.name)):
                return replace(made, name=f"{source.name}, seed {seed}")
        return made if isinstance(made, Rejected) else Rejected(_COPY)

    def _changed(
        self, rng: np.random.Generator, source: _Source, wanted: Wanted, target_ml: float | None, strength: float
    ) -> LabelMap | Rejected:
        """A mask changed once, by lengths that suit the size of its lesion times a strength."""
        growth = 1.0 if target_ml is None else (target_ml / source.lesion_ml) ** (1 / 3)
        config = self.config.sized(2 * (3 * 1000 * source.lesion_ml / (4 * np.pi)) ** (1 / 3), strength)
        corner, anatomy, lesion, lost = _bent(rng, source, config, growth)
        if lost > _LOST:
            return Rejected("leaves the field of view")
        room = room_in(anatomy, self.inside)
        shaped = (lesion > 0) & room
        if not shaped.any():
            return Rejected("nothing left of the lesion")
        voxels = None
        if target_ml is not None:
            voxels = whole_voxels(target_ml, source.voxel_ml, wanted)
            if not voxels:
                return Rejected("no whole number of voxels")
        taken = reshaped(rng, shaped, room, source.spacing_mm, config, wanted.lesions, voxels)
        if taken is None:
            return Rejected("no room for this volume")
        if not taken.any():
            return Rejected("nothing left of the lesion")
        anatomy[taken] = _nearest(np.where(shaped, lesion, 0), source.spacing_mm)[taken]
        values = np.zeros(source.shape, dtype=np.int16)
        values[tuple(slice(c, c + n) for c, n in zip(corner, anatomy.shape, strict=True))] = anatomy
        for axis in _voxel_axes(source.affine, self.config.mirror):
            if rng.random() < 0.5:
                values = np.flip(values, axis)
        if self.config.changes and source.shows(values):
            return Rejected("same as its source")
        return LabelMap(source.name, np.ascontiguousarray(values), source.affine, source.parents)


def _voxel_axes(affine: np.ndarray, world_axes: Sequence[str]) -> list[int]:
    """The voxel axes that run most nearly along world axes."""
    along = nib.orientations.io_orientation(affine)[:, 0]
    return [int(np.flatnonzero(along == _WORLD[name])[0]) for name in world_axes]


def _nearest(values: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """At every voxel the nearest value that is not 0."""
    found = np.unique(values[values > 0])
    if len(found) == 1:
        return np.full_like(values, found[0])
    at = ndimage.distance_transform_edt(values == 0, spacing_mm, return_distances=False, return_indices=True)
    return np.asarray(values[tuple(at)])


def _bent(
    rng: np.random.Generator, source: _Source, config: DeformConfig, growth: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A mask after the elastic and affine deformation, in a window of its grid.

    Args:
        rng: Source of randomness.
        source: The mask.
        config: How far to deform.
        growth: Factor on the lesion's diameter, about its own middle.

    Returns:
        The window's first voxel, anatomy and lesions in the window, and which share of the lesion the grid has no
        place for.
    """
    u = rng.uniform
    mm = np.array(source.spacing_mm)
    turn = Rotation.from_euler("xyz", u(-1, 1, 3) * config.rotate_deg, degrees=True).as_matrix()
    linear = turn * np.exp(np.log1p(config.scale) * u(-1, 1))
    shift = u(-1, 1, 3) * config.shift_mm
    middle = (np.array(source.lesion.shape) - 1) / 2 * mm  # of the labels; mm count from the window's first voxel
    heart = np.argwhere(source.lesion).mean(axis=0) * mm

    corners = np.array(list(product(*((0.0, (n - 1) * step) for n, step in zip(source.lesion.shape, mm, strict=True)))))
    reach = np.concatenate([corners, heart + growth * (corners - heart)])
    reach = (reach - middle) @ linear.T + middle + shift
    margin = (
        config.elastic_mm + config.grow_mm + 0.1 * (reach.max(axis=0) - reach.min(axis=0))
    )  # room for moving surfaces
    first = np.floor((reach.min(axis=0) - margin) / mm).astype(int)
    shape = np.ceil((reach.max(axis=0) + margin) / mm).astype(int) - first + 1

    # Backwards, each voxel asks where it comes from: displaced first, so that a field without folds stays without.
    at = [((first[a] + np.arange(shape[a], dtype=np.float32)) * mm[a]).astype(np.float32) for a in range(3)]
    there = list(np.broadcast_arrays(*np.meshgrid(*at, indexing="ij", sparse=True)))
    if config.elastic_mm:
        there = [x + config.elastic_mm * bounded_field(rng, shape, source.spacing_mm, config.control_mm) for x in there]
    back = np.linalg.inv(linear)
    there = [x - s - m for x, s, m in zip(there, shift, middle, strict=True)]
    there = [row[0] * there[0] + row[1] * there[1] + row[2] * there[2] + m for row, m in zip(back, middle, strict=True)]

    origin = [((x - h) / growth + h) / step for x, h, step in zip(there, heart, mm, strict=True)]
    lesion = _warped(source.lesion, origin)
    low = source.corner + first
    kept = tuple(
        slice(max(0, -start), max(0, min(n, full - start)))
        for start, n, full in zip(low, shape, source.shape, strict=True)
    )
    known = lesion > 0  # what goes on beyond the border of the scan was not there to be lost
    for x, size in zip(origin, source.lesion.shape, strict=True):
        known &= (x > -0.5) & (x < size - 0.5)
    lost = 1 - int(known[kept].sum()) / max(1, int(known.sum()))
    anatomy = _warped(source.anatomy, [(x / step)[kept] for x, step in zip(there, mm, strict=True)])
    return np.maximum(low, 0), anatomy, lesion[kept], lost


def _warped(values: np.ndarray, at: Sequence[np.ndarray]) -> np.ndarray:
    """Labels at voxel coordinates, by coverage: where labels together cover half, the one that covers most wins.

    The window has a margin of background, unless labels reach the border of the scan; beyond it they go on.
    """
    out = np.zeros(at[0].shape, dtype=np.int16)
    best = np.zeros(out.shape, dtype=np.float32)
    filled = np.zeros(out.shape, dtype=np.float32)
    for value in np.unique(values[values > 0]):
        indicator = (values == value).astype(np.float32)
        coverage = ndimage.map_coordinates(indicator, np.stack(at), order=1, mode="nearest", output=np.float32)
        wins = coverage > best
        out[wins], best[wins] = value, coverage[wins]
        filled += coverage
    out[filled < 0.5 - 1e-5] = 0
    return out
