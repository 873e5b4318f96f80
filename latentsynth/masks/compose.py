"""Lesions from any maker, put into the anatomy of another subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from latentsynth.config.mask_shapes import ComposeConfig
from latentsynth.data.frames import Frame, resample_labels
from latentsynth.errors import DataError
from latentsynth.masks.base import MaskMaker, Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.placement import Frequency, check_roles, digest, healthy, near, room_in, window_of
from latentsynth.metrics.lesions import components
from latentsynth.provenance import Ledger, fingerprint
from latentsynth.randomness import Stream, generator
from latentsynth.types import Labels

_NOTHING = "nothing left in the organ"
_CUT = "cut off by the organ's border"
_OVERLAP = "overlaps another lesion"


def compose(
    lesion: LabelMap,
    host: LabelMap,
    labels: Labels,
    lesions: Sequence[int],
    inside: Sequence[int],
    rng: np.random.Generator,
    config: ComposeConfig,
    frequency: Frequency | None = None,
) -> LabelMap | Rejected:
    """Puts the lesions of one map into the anatomy of another.

    Lesions are resampled to the host's voxels by coverage and keep their orientation in the world. Each connected one
    is then tried at places, largest first: what lies in the organ is kept, a place is refused where too much would be
    cut off. Every other label of the host stays as it is.

    Args:
        lesion: Whose lesions to take, on any grid.
        host: Where to put them.
        labels: Label values and names of the result.
        lesions: Label values that count as lesion, in both maps.
        inside: Labels of the organ they must lie in; :data:`FIELD_OF_VIEW` for all that is background.
        rng: Source of randomness.
        config: Where to and how strictly.
        frequency: Learnt places to draw from, instead of any voxel of the organ.

    Returns:
        The host with lesions, with the parents of both; or why no place would do.

    Raises:
        DataError: The host lacks the organ, the map has no lesion, or labels are unknown.
    """
    check_roles(labels, lesions, inside)
    if not lesion.of(lesions).any():
        raise DataError(f"{lesion.name} has no lesion (labels {list(lesions)}): leave it out")
    values = healthy(host, lesions, inside)
    room = room_in(values, inside)
    taken = np.zeros(room.shape, dtype=bool)
    if not config.replace_lesions:
        values, taken = host.values.copy(), host.of(lesions)
    if taken.any():
        box, close = near(taken, host.spacing_mm, config.gap_mm)
        taken[box] |= close
    corner, moved = _on_grid_of(host, lesion, lesions)
    same = config.place == "same"
    for part in [moved] if same else _parts(moved):
        where = np.argwhere(part > 0)
        found = _place(rng, host, where + corner, room, taken, config, frequency)
        if isinstance(found, Rejected):
            return found
        at, kept = found
        values[tuple(at[kept].T)] = part[tuple(where[kept].T)]
        new = np.zeros(room.shape, dtype=bool)
        new[tuple(at[kept].T)] = True
        box, close = near(new, host.spacing_mm, config.gap_mm)
        taken[box] |= close
    parents = tuple(dict.fromkeys((*host.parents, *lesion.parents)))
    return LabelMap(f"{lesion.name} in {host.name}", values.astype(np.int16), host.affine, parents)


def _on_grid_of(host: LabelMap, lesion: LabelMap, lesions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Lesion labels on the voxels of a host's grid, which may go on beyond its border, and the first voxel."""
    box = window_of(lesion.of(lesions))
    values = np.where(lesion.of(lesions)[box], lesion.values[box], 0)
    affine = lesion.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    to_host = np.linalg.inv(host.affine) @ affine
    corners = np.array(list(product(*((-0.5, n - 0.5) for n in values.shape)))) @ to_host[:3, :3].T + to_host[:3, 3]
    low = np.floor(corners.min(axis=0)).astype(int)
    i, j, k = (int(n) for n in np.ceil(corners.max(axis=0)).astype(int) - low + 1)
    target = host.affine.copy()
    target[:3, 3] += target[:3, :3] @ low
    return low, resample_labels(values, affine, Frame(target, (i, j, k)))


def _parts(moved: np.ndarray) -> list[np.ndarray]:
    """The connected lesions, each alone in an array of its values, largest first."""
    pieces, count = components(moved > 0)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    return [np.where(pieces == n + 1, moved, 0) for n in np.argsort(-sizes, kind="stable")]


def _place(
    rng: np.random.Generator,
    host: LabelMap,
    where: np.ndarray,
    room: np.ndarray,
    taken: np.ndarray,
    config: ComposeConfig,
    frequency: Frequency | None,
) -> tuple[np.ndarray, np.ndarray] | Rejected:
    """Moves lesion voxels to a place that will do.

    Args:
        rng: Source of randomness.
        host: Where to.
        where: Host voxels of the lesion where it was, ``(N, 3)``, also beyond the grid.
        room: Voxels of the organ, ``(I, J, K)``.
        taken: Voxels of other lesions and the gap around them, ``(I, J, K)``.
        config: Where to and how strictly.
        frequency: Learnt places to draw from.

    Returns:
        Host voxels ``(N, 3)`` and which of them to keep ``(N,)``; or the reason met most often.
    """
    same = config.place == "same"
    anchors = np.flatnonzero(room & ~taken)
    if not same and not len(anchors):
        return Rejected(_OVERLAP if room.any() else _NOTHING)
    middle = np.rint(where.mean(axis=0)).astype(int)
    reasons: Counter[str] = Counter()
    for _ in range(1 if same else config.attempts):
        at = where
        if not same:
            anchor = np.unravel_index(int(anchors[rng.integers(len(anchors))]), room.shape)
            at = where + (np.array(anchor if frequency is None else frequency.draw(rng, host)) - middle)
        kept = np.all((at >= 0) & (at < room.shape), axis=1)
        kept[kept] = room[tuple(at[kept].T)]
        if not kept.any():
            reasons[_NOTHING] += 1
        elif kept.mean() < 1 - config.max_cut:
            reasons[_CUT] += 1
        elif taken[tuple(at[kept].T)].any():
            reasons[_OVERLAP] += 1
        else:
            return at, kept
    return Rejected(reasons.most_common(1)[0][0])


class Composed(MaskMaker):
    """The lesions of another maker, in the anatomies of other subjects.

    Args:
        maker: Makes the lesions; where it has labels of its own, its lesion labels become the hosts' in their order, or
            all of them the only one that hosts have.
        hosts: Whose anatomy to put them into.
        labels: Label values and names of the hosts.
        lesions: Label values of the hosts that count as lesion.
        inside: Labels of the organ they must lie in; :data:`FIELD_OF_VIEW` for all that is background.
        config: Where to and how strictly.
        frequency: Learnt places to draw from, instead of any voxel of the organ.
        ledger: The patients that the places were learnt from; hosts become parents of what is made.

    Raises:
        DataError: A host lacks the organ, labels are unknown, or lesion labels do not correspond.
    """

    def __init__(
        self,
        maker: MaskMaker,
        hosts: Sequence[LabelMap],
        labels: Labels,
        lesions: Sequence[int],
        inside: Sequence[int],
        config: ComposeConfig,
        frequency: Frequency | None = None,
        ledger: Ledger = Ledger(),  # noqa: B008 (frozen)
    ):
        check_roles(labels, lesions, inside)
        if not hosts:
            raise DataError("no anatomy to put lesions into: give at least one host")
        if len(lesions) not in (1, len(maker.lesions)):
            raise DataError(
                f"the maker's lesion labels {list(maker.lesions)} cannot become {list(lesions)}: name one label for all, "
                "or as many"
            )
        self.labels, self.lesions, self.inside = labels, tuple(lesions), tuple(inside)
        self.config, self.frequency, self.ledger = config, frequency, maker.ledger | ledger
        self._maker, self._hosts = maker, tuple(hosts)
        self._room_ml = max(
            int(room_in(healthy(host, lesions, inside), inside).sum()) * host.voxel_ml for host in hosts
        )
        places = None if frequency is None else digest(LabelMap("", frequency.counts, np.eye(4)))
        self.fingerprint = fingerprint(
            ["composed", maker.fingerprint, config.model_dump(mode="json"), self.lesions, self.inside, places,
             [digest(host) for host in hosts]]
        )  # fmt: skip

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        """See :meth:`MaskMaker.make`; what is wanted of the result is asked of the lesions' maker."""
        if wanted.volume_ml is not None and wanted.volume_ml[0] > self._room_ml:
            raise DataError(
                f"lesions of {wanted.volume_ml[0]:g} to {wanted.volume_ml[1]:g} ml are wanted, and the largest organ has "
                f"{self._room_ml:.3g} ml: ask for less"
            )
        made = self._maker.make(seeds, wanted)
        return [
            lesion if isinstance(lesion, Rejected) else self._put(seed, lesion)
            for seed, lesion in zip(seeds, made, strict=True)
        ]

    def _put(self, seed: int, lesion: LabelMap) -> LabelMap | Rejected:
        rng = generator(seed, Stream.COMPOSED)
        host = self._hosts[int(rng.integers(len(self._hosts)))]
        if not lesion.of(self._maker.lesions).any():
            return Rejected("no lesion")
        values = np.zeros(lesion.values.shape, dtype=np.int16)
        for n, value in enumerate(self._maker.lesions):
            values[lesion.values == value] = self.lesions[min(n, len(self.lesions) - 1)]
        return compose(
            replace(lesion, values=values),
            host,
            self.labels,
            self.lesions,
            self.inside,
            rng,
            self.config,
            self.frequency,
        )
