"""Volumes on the grid: one case from its files, and the cache of preprocessed and augmented cases on disk."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti, windows
from latentsynth.data.frames import Frame, lay, resample, resample_labels
from latentsynth.data.identity import check_files, files_of, identity
from latentsynth.data.intake.checks import SPACING_MM, disagreement, spacing
from latentsynth.errors import DataError
from latentsynth.files import atomic_path, read_json, write_json
from latentsynth.provenance import fingerprint
from latentsynth.randomness import Stream, generator
from latentsynth.tensors import write_tensors
from latentsynth.types import Case, Framing, Grid, Labels, Window
from latentsynth.workers import spread

_VERSION = 4  # raise it when preprocessing changes, so that old caches are not read


@dataclass(frozen=True)
class Volume:
    """One case on the grid.

    Attributes:
        image: float32 in [-1, 1], shape ``(C, I, J, K)``.
        mask: Indices into ``Labels.values``, int16, shape ``(I, J, K)``; None where there is no annotation.
        limits: Per channel, the scanner units that map to -1 and 1.
        zoom: 1, or how far the frame zoomed out to hold the lesion.
    """

    image: np.ndarray
    mask: np.ndarray | None
    limits: tuple[windows.Limits, ...]
    zoom: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a case looks like on the grid."""

    grid: Grid
    framing: Framing
    labels: Labels
    augment: AugmentConfig
    seed: int

    @property
    def key(self) -> str:
        """Names the cache folder."""
        augment = self.augment.model_dump(exclude={"copies"})  # more copies add files, they change none
        facts = [_VERSION, asdict(self.grid), asdict(self.framing), asdict(self.labels), augment, self.seed]
        return fingerprint(facts)

    def frame(
        self, affine: np.ndarray, shape: tuple[int, ...], labels: np.ndarray | None, name: str
    ) -> tuple[Frame, float]:
        """Where the grid lies in a scan of this affine, shape and label values (or None); see :func:`frames.lay`.

        Raises:
            DataError: The lesion does not fit.
        """
        lesion = None if labels is None else np.isin(labels, self.labels.lesions(self.framing))
        return lay(self.grid, self.framing, affine, shape, lesion, name)

    def read(self, case: Case, copy: int = 0) -> Volume:
        """Reads a case from its files; ``copy`` 0 is the scan as it is, others are augmented.

        Raises:
            DataError: A file is unreadable, holds an unknown label, is constant, or its lesion does not fit.
        """
        mask_file = case.mask
        labels, affine = (None, None) if mask_file is None else read_mask(mask_file, self.labels)
        native = [nifti.read(path) for path in case.images]
        check_files(case, native, None if labels is None or affine is None else (labels, affine))
        if affine is None:
            affine = native[0][1]
        shape = native[0][0].shape if labels is None else labels.shape
        frame, zoom = self.frame(affine, shape, labels, case.case_id)
        rng = generator(self.seed, Stream.AUGMENT, copy, int(fingerprint(case.case_id), 16))
        if copy:
            frame = _move(frame, self.augment, rng)
        image, between = window_channels(native, self.grid.windows, frame, case)
        mask = None if labels is None else to_index(resample_labels(labels, affine, frame), self.labels)
        if copy and self.augment.changes_voxels:
            from latentsynth.data.cache.transforms import distort  # TorchIO, which nothing else needs

            image, mask = distort(image, mask, self.grid.spacing_mm, self.augment, rng)
        return Volume(image, mask, between, zoom)


def window_channels(
    native: Sequence[tuple[np.ndarray, np.ndarray]],
    between: Sequence[Window],
    frame: Frame,
    case: Case,
) -> tuple[np.ndarray, tuple[windows.Limits, ...]]:
    """The channels of a scan in a frame, in [-1, 1].

    Args:
        native: Voxels and affine per channel, as read.
        between: Intensity window per channel.
        frame: Where to look.
        case: Whose they are. The limits that a synthetic scan was written with go before percentiles of the scan itself, and
            a filled channel is -1 throughout.

    Returns:
        The image, float32, ``(C, *frame.shape)``, and per channel the scanner units that map to -1 and 1.

    Raises:
        DataError: A channel is constant, or lies on another grid than the first.
    """
    check_grids(native, case.images)
    limits = channel_limits(native, between, case)
    channels = [_window(voxels, affine, frame, ends) for (voxels, affine), ends in zip(native, limits, strict=True)]
    return np.stack(channels) if channels else np.zeros((0, *frame.shape), np.float32), limits


def _window(voxels: np.ndarray, affine: np.ndarray, frame: Frame, ends: windows.Limits) -> np.ndarray:
    """One channel in a frame, in [-1, 1]."""
    # Cubic: linear interpolation takes half of the finest octave's power from every turned or shifted copy.
    return windows.normalise(resample(voxels, affine, frame, fill=ends[0], order=3), ends)


def grid_and_back(voxels: np.ndarray, affine: np.ndarray, frame: Frame, ends: windows.Limits) -> np.ndarray:
    """A channel brought to a frame as training reads it, and back as sampling writes it: what no model can avoid.

    Args:
        voxels: As read.
        affine: Its affine.
        frame: Where to.
        ends: The scanner units that map to -1 and 1.

    Returns:
        In [-1, 1], float32, on the scan's own grid; -1 where the frame does not reach.
    """
    own = Frame(affine, (voxels.shape[0], voxels.shape[1], voxels.shape[2]))
    there = _window(voxels, affine, frame, ends)
    return np.clip(resample(there, frame.affine, own, fill=-1.0, extend=True, order=3), -1, 1)


def check_grids(native: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[Path]) -> None:
    """Refuses the channels of a scan unless they lie on one voxel grid, whose spacing can be that of a scan.

    Args:
        native: Voxels and affine per channel, as read.
        names: What to call the channels in an error.

    Raises:
        DataError: With the file, and how far it is from the first.
    """
    low, high = SPACING_MM
    for (voxels, affine), name in zip(native, names, strict=True):
        edges = spacing(affine)
        if not all(low <= edge <= high for edge in edges):
            found = " x ".join(f"{edge:.3g}" for edge in edges)
            raise DataError(
                f"{name} has voxels of {found} mm, expected {low} to {high} mm per axis: correct the header"
            )
        apart = disagreement(native[0][0].shape, native[0][1], voxels.shape, affine)
        if apart:
            raise DataError(
                f"{name} does not lie on the grid of {names[0].name} ({apart}): resample it onto that image, or restore its "
                "header"
            )


def channel_limits(
    native: Sequence[tuple[np.ndarray, np.ndarray]],
    between: Sequence[Window],
    case: Case,
) -> tuple[windows.Limits, ...]:
    """Per channel the scanner units that map to -1 and 1; arguments as :func:`window_channels`.

    Raises:
        DataError: A channel is constant that is not filled.
    """

    def ends(n: int, voxels: np.ndarray, window: Window) -> windows.Limits:
        if n in case.filled:  # nothing there, whatever the window: -1 throughout
            return float(voxels.max()), float(voxels.max()) + 1
        if case.limits and window.kind == "percentile":
            return case.limits[n]
        return windows.limits(window, voxels, str(case.images[n]))

    return tuple(ends(n, voxels, window) for n, ((voxels, _), window) in enumerate(zip(native, between, strict=True)))


def read_mask(path: Path, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Reads a label map and refuses values the cohort does not have.

    Raises:
        DataError: As :func:`nifti.read_labels`, or a label is unknown.
    """
    voxels, affine = nifti.read_labels(path)
    check_labels(voxels, labels, str(path))
    return voxels, affine


def check_labels(voxels: np.ndarray, labels: Labels, name: str) -> None:
    """Refuses label values the cohort does not have.

    Raises:
        DataError: A label is unknown.
    """
    unknown = sorted(set(np.unique(voxels).tolist()) - set(labels.values))
    if unknown:
        known = ", ".join(f"{v} = {n}" for v, n in zip(labels.values, labels.names, strict=True))
        raise DataError(f"{name} holds label {', '.join(map(str, unknown))}, known are {known}: relabel the mask")


def to_index(values: np.ndarray, labels: Labels) -> np.ndarray:
    """Label values to indices into ``labels.values``, int16: a parcellation has more labels than a byte counts.

    Raises:
        DataError: A value is no label of ``labels``.
    """
    known = np.asarray(labels.values)
    index = np.searchsorted(known, values).clip(max=len(known) - 1).astype(np.int16)
    if not np.array_equal(known[index], values):
        check_labels(values, labels, "the label map")
    return index


def one_hot(index: Tensor, labels: int) -> Tensor:
    """Label indices ``(..., I, J, K)`` to one-hot float ``(..., L, I, J, K)``."""
    return one_hot_flags(index, labels).float()


def one_hot_flags(index: Tensor, labels: int) -> Tensor:
    """As :func:`one_hot`, but booleans: a quarter of the bytes to carry."""
    return index.unsqueeze(-4) == torch.arange(labels, device=index.device).view(-1, 1, 1, 1)


def _move(frame: Frame, augment: AugmentConfig, rng: np.random.Generator) -> Frame:
    """A random rigid move, scaling and mirroring of the frame, drawn in a fixed order."""
    rotate = rng.uniform(-1, 1, 3) * augment.rotate_deg
    scale = float(np.exp(rng.uniform(-1, 1) * np.log1p(augment.scale)))
    shift = rng.uniform(-1, 1, 3) * augment.shift_mm
    flips = rng.random(3) < 0.5
    mirror = np.array([-1.0 if axis in augment.flip_axes and flips[axis] else 1.0 for axis in range(3)])
    return frame.moved(rotate, scale, shift, mirror)


class VolumeCache:
    """Preprocessed cases on disk, one safetensors file per case and copy, keyed by everything that made them.

    Args:
        root: Folder of all caches; this one lives in ``root/<key>``.
        recipe: How cases are brought to the grid.
        cases: Which cases.
        copies: Augmented copies per case beside the scan as it is.
    """

    def __init__(self, root: Path, recipe: Recipe, cases: Sequence[Case], copies: int = 0):
        self.recipe = recipe
        self.folder = Path(root) / recipe.key
        self.entries = [(case, copy) for case in cases for copy in range(copies + 1)]
        self._identities: dict[Case, str] = {}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def annotated(self) -> list[int]:
        """Entries with a mask."""
        return [n for n, (case, _) in enumerate(self.entries) if case.mask is not None]

    def path(self, entry: int, folder: Path | None = None) -> Path:
        """File of an entry in this cache, or in another folder that is organised alike.

        Its name tells what the case's files hold, so that an edited mask is read anew and a cache that was carried to
        another machine is found without them.

        Raises:
            DataError: The manifest holds no hashes, and a file is missing.
        """
        case, copy = self.entries[entry]
        name = self._identities.get(case)
        if name is None:
            name = self._identities[case] = identity(case)
        return (folder or self.folder) / f"{name}.{copy}.safetensors"

    def build(self, rank: int = 0, world: int = 1, advance: Callable[[], None] = lambda: None) -> None:
        """Makes the missing entries of this rank's share, on all its cores.

        Raises:
            DataError: A case cannot be read; the ones before it stay cached.
        """
        if rank == 0:
            recipe = self.recipe
            write_json(self.folder / "recipe.json", {"grid": asdict(recipe.grid), "framing": asdict(recipe.framing)})
            self._warn_of_filled()
        missing = []
        for entry in range(rank, len(self.entries), world):
            case, copy = self.entries[entry]
            if not self.path(entry).is_file():
                missing.append(entry)
                continue
            if copy == 0:
                self._recheck(case)
            advance()
        for _ in spread(self._make, missing):
            advance()

    def _warn_of_filled(self) -> None:
        """What is learnt from an empty channel is that it may be empty, which nobody should learn without being told."""
        cases = [case for case, copy in self.entries if copy == 0]
        for channel, count in sorted(Counter(n for case in cases for n in case.filled).items()):
            warnings.warn(
                f"channel {channel} of {count} of {len(cases)} cases was never scanned and is empty here: a generator trained on "
                "them leaves it empty as often; train on a manifest without them if it must not",
                stacklevel=3,
            )

    def _make(self, entry: int) -> None:
        """Makes one entry."""
        case, copy = self.entries[entry]
        _save(self.path(entry), self.recipe.read(case, copy))
        self._remember(case)

    def _remember(self, case: Case) -> None:
        """Notes when the files of a case were last found to hold what its manifest says."""
        write_json(self._seen(case), _stats(case))

    def _recheck(self, case: Case) -> None:
        """Reads the files of a cached case again if one has changed its size or date since, and compares them.

        Raises:
            DataError: One holds something else than the manifest says.
        """
        stats = _stats(case)
        if not any(stats) or not case.content:  # no file is left, or the cache is found by what they hold now
            return
        seen = self._seen(case)
        if seen.is_file() and read_json(seen) == stats:
            return
        check_files(case, [nifti.read(path) for path in case.images], nifti.read(case.mask) if case.mask else None)
        self._remember(case)

    def _seen(self, case: Case) -> Path:
        return self.folder / "sources" / f"{self._identities[case]}.json"

    def volume(self, entry: int) -> Volume:
        """Reads one entry.

        Raises:
            DataError: It was not built, or its file is damaged.
        """
        return _load(self.path(entry), self.name(entry))

    def name(self, entry: int) -> str:
        """What to call an entry in an error."""
        case, copy = self.entries[entry]
        return f"case {case.case_id}" + (f", copy {copy}" if copy else "")

    def item(self, entry: int) -> dict[str, Any]:
        """One item: ``image`` (C, I, J, K), ``mask`` one-hot (L, I, J, K), zeros where unannotated; both float32."""
        return {name: tensor.float() for name, tensor in self.packed(entry).items()}

    def packed(self, entry: int) -> dict[str, Tensor]:
        """One item as it travels to the device that trains: the image in half precision, the mask in booleans."""
        return self._packed(_read(self.path(entry), self.name(entry))[0])

    def packed_slice(self, entry: int, axis: int, at: int) -> dict[str, Tensor]:
        """As :meth:`packed`, but one slice along a spatial axis, ``(C, *two axes)`` and ``(L, *two axes)``; no more is read."""
        found = self._packed(_read(self.path(entry), self.name(entry), (axis, at))[0])
        return {name: tensor.squeeze(1 + axis) for name, tensor in found.items()}

    def _packed(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        image, labels, mask = tensors["image"], len(self.recipe.labels), tensors.get("mask")
        absent = torch.zeros(labels, *image.shape[1:], dtype=torch.bool)
        return {"image": image, "mask": absent if mask is None else one_hot_flags(mask, labels)}

    def median_limits(self) -> tuple[windows.Limits, ...]:
        """Per channel, the median window over the unaugmented cases that were scanned in it."""
        rows = [(case, self.volume(e).limits) for e, (case, copy) in enumerate(self.entries) if copy == 0]
        return tuple(
            windows.median([limits[c] for case, limits in rows if c not in case.filled])
            for c in range(self.recipe.grid.channels)
        )


def _stats(case: Case) -> list[Any]:
    """Place, size and date of every file of a case; None for one that is not there."""
    found = [(path.resolve(), path.stat()) if path.is_file() else None for path in files_of(case)]
    return [None if one is None else [str(one[0]), one[1].st_size, one[1].st_mtime_ns] for one in found]


def _save(path: Path, volume: Volume) -> None:
    # Half precision in [-1, 1] is exact to 5e-4, a fifth of the finest grey level that 12-bit scanners store.
    tensors = {"image": torch.from_numpy(volume.image).half().contiguous()}
    if volume.mask is not None:
        tensors["mask"] = torch.from_numpy(volume.mask).contiguous()
    facts = {"limits": json.dumps(volume.limits), "zoom": json.dumps(volume.zoom)}
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors, facts)


def _load(path: Path, name: str) -> Volume:
    tensors, facts = _read(path, name)
    between = tuple((float(a), float(b)) for a, b in json.loads(facts["limits"]))
    mask = tensors["mask"].numpy() if "mask" in tensors else None
    return Volume(tensors["image"].float().numpy(), mask, between, float(json.loads(facts["zoom"])))


def _read(path: Path, name: str, part: tuple[int, int] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Image in half precision, mask where there is one, and the facts beside them; of one slice (axis, number) alone if asked."""
    if not path.is_file():
        raise DataError(
            f"the cached volume of {name} ({path}) is missing: run the same command again to rebuild the cache"
        )
    try:
        with safe_open(path, framework="pt") as stream:
            found = {key: _part_of(stream, key, part) for key in stream.keys()}  # noqa: SIM118 (no __iter__)
            return found, stream.metadata()
    except SafetensorError as error:
        raise DataError(
            f"the cached volume of {name} ({path}) is damaged ({error}): delete it and run again"
        ) from error


def _part_of(stream: Any, key: str, part: tuple[int, int] | None) -> Tensor:
    """A tensor of an open file, or one slice of it; the spatial axes are the last three."""
    if part is None:
        whole: Tensor = stream.get_tensor(key)
        return whole
    stored, (axis, at) = stream.get_slice(key), part
    index = [slice(None)] * len(stored.get_shape())
    index[axis - 3] = slice(at, at + 1)
    thin: Tensor = stored[tuple(index)]
    return thin
