"""The latent cache: mean and deviation of every case, written once; training never runs the encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentsynth.config.numbers import Axes
from latentsynth.data.cache.cutting import Cut
from latentsynth.data.cache.volumes import Volume, VolumeCache, one_hot_flags
from latentsynth.errors import DataError
from latentsynth.files import atomic_path
from latentsynth.provenance import fingerprint
from latentsynth.randomness import Stream, generator
from latentsynth.tensors import write_tensors

# image (B, C, I, J, K) -> mean and deviation of raw latents, each (B, c, i, j, k)
Encoder = Callable[[Tensor], tuple[Tensor, Tensor]]


class LatentCache:
    """Latents of the entries of a volume cache.

    Args:
        root: The ``latents`` folder of the autoencoder's run.
        autoencoder: Fingerprint of the autoencoder's weights.
        volumes: The volumes they are latents of.
        cut: What to cut out of a second version of every volume, whose latents are kept too; None keeps no second one.
    """

    on_device = False  # its items come from files

    def __init__(self, root: Path, autoencoder: str, volumes: VolumeCache, cut: Cut | None = None):
        self.volumes, self.cut = volumes, cut
        self.folder = root / fingerprint([autoencoder, volumes.recipe.key, *([asdict(cut)] if cut else [])])

    def __len__(self) -> int:
        return len(self.volumes)

    def path(self, entry: int) -> Path:
        """File of an entry; named after the volume's."""
        return self.volumes.path(entry, self.folder)

    def missing(self) -> list[int]:
        """Entries without a file."""
        return [entry for entry in range(len(self)) if not self.path(entry).is_file()]

    @torch.no_grad()
    def write(self, entries: Sequence[int], encode: Encoder, advance: Callable[[], None] = lambda: None) -> None:
        """Encodes some entries, two at a time.

        Raises:
            DataError: A latent is not finite.
        """
        for start in range(0, len(entries), 2):
            pair = list(entries[start : start + 2])
            volumes = [self.volumes.volume(entry) for entry in pair]
            made = {"": _moments([volume.image for volume in volumes], encode)}
            if self.cut is not None:
                made["host_"] = _moments([self.cut(volume.image, volume.mask) for volume in volumes], encode)
                if self.cut.decoys:
                    pictures = [self._decoy(entry, volume) for entry, volume in zip(pair, volumes, strict=True)]
                    made["decoy_"] = _moments(pictures, encode)
            for row, (entry, volume) in enumerate(zip(pair, volumes, strict=True)):
                tensors = {f"{of}{name}": values[name][row] for of, values in made.items() for name in values}
                if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                    raise DataError(
                        f"latents of {self.volumes.name(entry)} are not finite: train the autoencoder again"
                    )
                if volume.mask is not None:
                    tensors["mask"] = torch.from_numpy(volume.mask)
                with atomic_path(self.path(entry)) as temporary:
                    write_tensors(temporary, tensors)
                advance()

    def _decoy(self, entry: int, volume: Volume) -> np.ndarray:
        """A volume without some of its healthy tissue; without its lesions where none is found."""
        assert self.cut is not None
        if volume.mask is None:
            return volume.image
        region = self.cut.decoy(volume.image, volume.mask, generator(self.volumes.recipe.seed, Stream.DECOY, entry))
        if region is None:
            return self.cut(volume.image, volume.mask)
        return self.cut.out_of(volume.image, region)

    def item(self, entry: int, corner: Axes = (0, 0, 0), cells: Axes | None = None) -> dict[str, Any]:
        """As :meth:`packed`, the mask in float32."""
        return {name: tensor.float() for name, tensor in self.packed(entry, corner, cells).items()}

    def packed(self, entry: int, corner: Axes = (0, 0, 0), cells: Axes | None = None) -> dict[str, Any]:
        """One training item: ``mean`` and ``deviation`` (c, i, j, k), ``mask`` one-hot (L, I, J, K) in booleans.

        Args:
            entry: Which.
            corner: First latent cell of a part of it.
            cells: Latent cells of the part along each axis; less where there are less. No more is read. None takes all.

        With a cut also ``host_mean`` and ``host_deviation``, of the volume without what was cut out, and with decoys
        ``decoy_mean`` and ``decoy_deviation``, of the volume without healthy tissue.

        Raises:
            DataError: The entry was not encoded, or its file is damaged.
        """
        path = self.path(entry)
        if not path.is_file():
            raise DataError(
                f"latents of {self.volumes.name(entry)} are missing: run `latentsynth encode {self.folder.parent.parent}`"
            )
        try:
            tensors, shape = _read(path, corner, cells, self.volumes.recipe.grid.shape)
        except SafetensorError as error:
            raise DataError(
                f"latents of {self.volumes.name(entry)} ({path}) are damaged ({error}): delete the file and encode again"
            ) from error
        labels = len(self.volumes.recipe.labels)
        mask = tensors.pop("mask", None)
        absent = torch.zeros(labels, *shape, dtype=torch.bool)
        return {**tensors, "mask": absent if mask is None else one_hot_flags(mask, labels)}


def covered(
    corner: Sequence[int], cells: Sequence[int], whole: Sequence[int], factors: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Cells and voxels of a part of a volume: from a first cell on, at most so many, of all, each of so many voxels."""
    ends = [min(a + n, m) for a, n, m in zip(corner, cells, whole, strict=True)]
    latent = tuple(slice(a, b) for a, b in zip(corner, ends, strict=True))
    return latent, tuple(slice(a * f, b * f) for a, b, f in zip(corner, ends, factors, strict=True))


def _read(path: Path, corner: Axes, cells: Axes | None, voxels: Axes) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """A part of what a file holds of a volume of so many voxels, and how many the part has."""
    with safe_open(path, framework="pt") as stream:
        whole = stream.get_slice("mean").get_shape()[1:]
        factors = [n // m for n, m in zip(voxels, whole, strict=True)]
        latent, part = covered(corner, cells or whole, whole, factors)
        tensors = {
            name: stream.get_slice(name)[part if name == "mask" else (slice(None), *latent)]
            for name in stream.keys()  # noqa: SIM118 (no __contains__)
        }
    return tensors, tuple(along.stop - along.start for along in part)


def _moments(images: Sequence[np.ndarray], encode: Encoder) -> dict[str, Tensor]:
    """Mean and deviation of some volumes, a row each."""
    mean, deviation = encode(torch.stack([torch.from_numpy(image) for image in images]))
    return {"mean": mean.float().contiguous(), "deviation": deviation.float().contiguous()}
