"""Lesions drawn by rule: rough ellipsoids, with sizes, numbers and places learnt from training masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from latentsynth.config.mask_shapes import ProceduralConfig
from latentsynth.errors import DataError
from latentsynth.masks.base import MaskMaker, Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.placement import (
    FIELD_OF_VIEW,
    Frequency,
    Window,
    aim,
    check_roles,
    digest,
    fitted,
    healthy,
    near,
    room_in,
    whole_voxels,
)
from latentsynth.masks.roughness import rough_radius
from latentsynth.masks.sizes import Sizes
from latentsynth.provenance import Ledger, fingerprint
from latentsynth.randomness import Stream, generator
from latentsynth.types import Labels

_WIDE = (1.6, 2.6, 5.0)  # half the window that a lesion is drawn in, in radii; wider where it does not fit
_FILLS = 3


class Procedural(MaskMaker):
    """Ellipsoids of random axes with a surface roughened in octaves, put into anatomy.

    The family of DiffTumor's shape generator (Chen et al. 2024, https://arxiv.org/abs/2402.19470), which draws one of
    four radii; here the total volume comes from the smoothed training distribution or from what is wanted, and is hit to
    the voxel.

    Args:
        labels: Label values and names.
        lesions: Label values that count as lesion. Each lesion is of one of them, as often as in training.
        config: What the lesions look like.
        ledger: The patients that sizes and places were learnt from.
        sizes: Learnt numbers and volumes.
        frequency: Learnt places.
        hosts: Label maps to put them on: anatomies, or empty maps.
        inside: Labels of the organ that they lie in; none named, in the background.

    Raises:
        DataError: Labels are unknown, or a host lacks the organ.
    """

    def __init__(
        self,
        labels: Labels,
        lesions: Sequence[int],
        config: ProceduralConfig,
        ledger: Ledger,
        sizes: Sizes,
        frequency: Frequency,
        hosts: Sequence[LabelMap],
        inside: Sequence[int] = FIELD_OF_VIEW,
    ):
        check_roles(labels, lesions, inside)
        self.labels, self.lesions, self.inside = labels, tuple(lesions), tuple(inside)
        self.config, self.ledger = config, ledger
        self.sizes, self.frequency = sizes, frequency
        self._hosts = tuple(hosts)
        self._bounded = not inside and config.reach > 0
        self._room_ml = max(self._room_of(host) for host in hosts)
        facts = [sizes.total_ml, sizes.counts, sizes.piece_ml, sizes.piece_labels, frequency.counts]
        self.fingerprint = fingerprint(
            ["procedural", config.model_dump(mode="json"), self.lesions, self.inside,
             [values.tolist() for values in facts[:-1]], digest(LabelMap("", facts[-1], np.eye(4))),
             [digest(host) for host in hosts]]
        )  # fmt: skip

    @classmethod
    def fit(
        cls,
        maps: Sequence[LabelMap],
        labels: Labels,
        lesions: Sequence[int],
        config: ProceduralConfig,
        ledger: Ledger,
        hosts: Sequence[LabelMap] = (),
        inside: Sequence[int] = FIELD_OF_VIEW,
    ) -> Procedural:
        """Learns sizes, numbers and places from training masks.

        Args:
            maps: Training masks; those without a lesion are left out.
            labels: Label values and names.
            lesions: Label values that count as lesion.
            config: What the lesions look like.
            ledger: The patients of the maps.
            hosts: Anatomies to put lesions into, their own lesions taken out. Without them, the training masks
                themselves where an organ is named, and empty maps on their grids where none is; an empty map shows
                nothing of a patient, so it has no parents.
            inside: Labels of the organ that lesions lie in; none named, they lie in the background.

        Raises:
            DataError: No map has a lesion, labels are unknown, or a host lacks the organ.
        """
        check_roles(labels, lesions, inside)
        maps = [made for made in maps if made.of(lesions).any()]
        if not maps:
            raise DataError(f"none of the masks has a lesion (labels {list(lesions)}): there is nothing to learn from")
        if not hosts:
            hosts = maps if inside else _empty_grids(maps)
        frequency = Frequency.fit(maps, lesions, config.place_smooth_mm)
        sizes = Sizes.fit(maps, lesions, config.min_piece_ml)
        return cls(labels, lesions, config, ledger, sizes, frequency, hosts, inside)

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        """See :meth:`MaskMaker.make`."""
        if wanted.volume_ml is not None and wanted.volume_ml[0] > self._room_ml:
            raise DataError(
                f"lesions of {wanted.volume_ml[0]:g} to {wanted.volume_ml[1]:g} ml are wanted, and there is room for at most "
                f"{self._room_ml:.3g} ml: ask for less"
                + (", or set reach to 0 so that they may lie where no training lesion does" if self._bounded else "")
            )
        return [self._make(seed, wanted) for seed in seeds]

    def _room_of(self, host: LabelMap) -> float:
        """Most ml that lesions can have in a host."""
        room_ml = int(room_in(healthy(host, self.lesions, self.inside), self.inside).sum()) * host.voxel_ml
        return min(room_ml, self.frequency.reached_ml(self.config.reach)) if self._bounded else room_ml

    def _make(self, seed: int, wanted: Wanted) -> LabelMap | Rejected:
        rng = generator(seed, Stream.PROCEDURAL)
        host = self._hosts[int(rng.integers(len(self._hosts)))]
        values = healthy(host, self.lesions, self.inside)
        room = room_in(values, self.inside)
        target_ml = self.sizes.draw_total_ml(rng)
        if wanted.volume_ml is not None:
            most = min(wanted.volume_ml[1], self._room_ml)
            target_ml = aim(rng, (min(max(wanted.volume_ml[0], host.voxel_ml), most), most))
        voxels = whole_voxels(target_ml, host.voxel_ml, wanted)
        if not voxels:
            return Rejected("no whole number of voxels")
        count = int(self.sizes.counts[rng.integers(len(self.sizes.counts))])
        if wanted.lesions is not None:
            count = int(rng.integers(wanted.lesions[0], wanted.lesions[1] + 1))
        count = min(count, voxels)
        parts = np.maximum(1, np.floor(self.sizes.draw_shares(rng, count) * voxels)).astype(int)
        parts[0] += voxels - parts.sum()
        for part in parts:
            value = self.sizes.piece_labels[rng.integers(len(self.sizes.piece_labels))]
            grown = self._placed(rng, host, room, int(part))
            if grown is None:
                return Rejected("no room for a lesion")
            values[grown] = value
            box, close = near(grown, host.spacing_mm, self.config.gap_mm)
            room[box] &= ~close
        return LabelMap(f"drawn on {host.name}, seed {seed}", values.astype(np.int16), host.affine, host.parents)

    def _placed(self, rng: np.random.Generator, host: LabelMap, room: np.ndarray, voxels: int) -> np.ndarray | None:
        """A lesion of so many voxels somewhere in the room, boolean, ``(I, J, K)``; None if no place has room."""
        uniform = self.config.place == "uniform"
        places = np.flatnonzero(room) if uniform else None
        for _ in range(self.config.attempts):
            if places is not None:
                if not len(places):
                    return None
                centre = np.unravel_index(places[rng.integers(len(places))], room.shape)
            else:
                centre = self.frequency.draw(rng, host)
            i, j, k = (int(n) for n in centre)
            if not all(0 <= c < n for c, n in zip((i, j, k), room.shape, strict=True)) or not room[i, j, k]:
                continue
            grown = self._grown(rng, host, room, (i, j, k), voxels)
            if grown is not None:
                return grown
        return None

    def _grown(
        self, rng: np.random.Generator, host: LabelMap, room: np.ndarray, centre: tuple[int, int, int], voxels: int
    ) -> np.ndarray | None:
        """A lesion of so many voxels around a centre; None where the room around it has fewer."""
        radius_mm = float((voxels * host.voxel_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3))
        for wide in _WIDE:
            box = _around(centre, wide * radius_mm, host)
            here = room[box]
            if self._bounded:
                here = here & self.frequency.reached(host, box, self.config.reach)
            within = [c - side.start for c, side in zip(centre, box, strict=True)]
            core = np.zeros(here.shape, dtype=bool)
            core[tuple(within)] = True
            if not (core & here).any():
                return None
            score = rough_radius(
                rng, here.shape, host.spacing_mm, within, radius_mm, self.config.elongation, self.config.roughness
            )
            score[core] = score.min() - 1
            grown = _solid(score, here, voxels, core)
            if grown is not None and not _cut_off(grown, box, room.shape):
                out = np.zeros(room.shape, dtype=bool)
                out[box] = grown
                return out
        return None


def _solid(score: np.ndarray, room: np.ndarray, voxels: int, core: np.ndarray) -> np.ndarray | None:
    """So many voxels of the lowest score, without holes that lesions could fill."""
    for _ in range(_FILLS):
        grown = fitted(score, room, voxels, core)
        if grown is None:
            return None
        holes = ndimage.binary_fill_holes(grown) & room & ~grown
        if not holes.any():
            return grown
        score = np.where(holes, score[core].min(), score)  # taken first next time
    return grown


def _empty_grids(maps: Sequence[LabelMap]) -> list[LabelMap]:
    """The grids of some maps, each once, without what is on them; they take no memory."""
    grids = {(made.values.shape, made.affine.tobytes()): made.affine for made in maps}
    return [
        LabelMap("an empty grid", np.broadcast_to(np.zeros((), dtype=np.int16), shape), affine)
        for (shape, _), affine in grids.items()
    ]


def _around(centre: tuple[int, int, int], half_mm: float, host: LabelMap) -> Window:
    i, j, k = (
        slice(max(0, c - reach), min(n, c + reach + 1))
        for c, n, reach in (
            (c, n, int(np.ceil(half_mm / mm)) + 1)
            for c, n, mm in zip(centre, host.values.shape, host.spacing_mm, strict=True)
        )
    )
    return (i, j, k)


def _cut_off(grown: np.ndarray, box: Window, shape: tuple[int, ...]) -> bool:
    """Whether a lesion reaches a side of its window that is not the border of the grid."""
    for axis, (side, n) in enumerate(zip(box, shape, strict=True)):
        first, last = grown.take(0, axis), grown.take(-1, axis)
        if (first.any() and side.start > 0) or (last.any() and side.stop < n):
            return True
    return False
