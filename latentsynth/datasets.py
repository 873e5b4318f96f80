"""Synthetic patients for a training loop of one's own: torch datasets of MONAI's dictionaries, made ahead or on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from latentsynth import checkpoint
from latentsynth.config import AugmentConfig
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.exchange.requests import Placed, place, place_array, requests, volume_seed
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.masks import Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.learnt import load_mask_maker
from latentsynth.synthesizers import load_synthesizer
from latentsynth.types import Split

Patient = dict[str, Any]  # image float32 (C, I, J, K) in [-1, 1], label int64 (1, I, J, K) of indices, name

_TRIES = 50  # masks that are tried for one patient


class SampledPatients(Dataset[Patient]):
    """New patients, made when they are asked for: no files, and as many as are wanted.

    Item n is ``image``, float32 ``(C, I, J, K)`` in [-1, 1]; ``label``, int64 ``(1, I, J, K)`` of indices into
    ``domain.labels``; and ``name``. It depends on n, the seed and the models alone. Batches that a loader asks for are sampled
    together. On a GPU leave the loader's ``num_workers`` at 0.

    Args:
        model: Run, checkpoint, or name of a model in the package, that paints masks.
        count: How many patients.
        masks: Label maps that are painted in turn, each time anew: a NIfTI file, a folder, or a manifest.
        mask_model: Or run, checkpoint or name of a model that makes new ones.
        seed: Of the first patient.
        split: Of a manifest of masks.
        device: Where the model runs.
        settings: Sampling settings, for example ``guidance=1.5``.

    Raises:
        ConfigError: Masks and a mask model, or neither; an unknown setting.
        CheckpointError: No such model.
        DataError: Unreadable masks.
    """

    def __init__(
        self,
        model: Path | str,
        count: int,
        *,
        masks: Path | str | None = None,
        mask_model: Path | str | None = None,
        seed: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
        **settings: Any,
    ):
        if (masks is None) == (mask_model is None):
            raise ConfigError("give masks, or the mask_model that makes them")
        self.model = load_synthesizer(model).to(device)
        if self.model.makes_masks:
            raise ConfigError(f"{model} makes its own masks: give a model that paints them")
        self.settings = self.model.settings(**settings)
        self.masks = None if masks is None else requests(Path(masks), split if Path(masks).suffix == ".json" else None)
        self.maker = None if mask_model is None else load_mask_maker(mask_model)
        self.domain, self.count, self.seed = self.model.domain, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, n: int) -> Patient:
        return self.__getitems__([n])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Patient]:
        """The patients of some indices, sampled together."""
        numbers = [self._within(n) for n in indices]
        placed = [self._placed(n) for n in numbers]
        seeds = [volume_seed(self.seed + n, one) for n, one in zip(numbers, placed, strict=True)]
        made = self.model.paint(placed, seeds, **self.settings)
        return [
            patient(image, torch.from_numpy(one.index), f"synthetic-{self.seed + n}")
            for n, one, image in zip(numbers, placed, made.image, strict=True)
        ]

    def _within(self, n: int) -> int:
        if not -self.count <= n < self.count:
            raise IndexError(n)
        return n % self.count

    def _placed(self, n: int) -> Placed:
        """The mask of a patient on the model's grid."""
        if self.masks is not None:
            return place(self.masks[n % len(self.masks)], self.domain)
        assert self.maker is not None
        for attempt in range(_TRIES):  # patients take turns, so that nobody's second try is another's first
            (made,) = self.maker.make([self.seed + n + attempt * self.count], Wanted())
            if isinstance(made, LabelMap) and made.values.any():
                return place_array(made.values, made.affine, self.domain, made.name, "scale")
        raise DataError(f"the mask model made {_TRIES} empty masks in a row for patient {n}: train it longer")


class StoredPatients(Dataset[Patient]):
    """Volumes of a manifest, real or synthetic, on the grid of a model: items as of :class:`SampledPatients`.

    Args:
        manifest: What ``latentsynth sample`` or ``prepare`` wrote.
        like: Run, checkpoint, or name of a model in the package, whose grid and windows they are brought to.
        split: Which part; None takes all.
        cache: Where they are kept once they are brought there.

    Raises:
        CheckpointError: No such model.
        DataError: Unreadable volumes, or none with a mask.
    """

    def __init__(
        self,
        manifest: Path | str,
        like: Path | str,
        split: Split | None = None,
        cache: Path | str = "runs/cache",
    ):
        found, self.domain = Manifest.load(manifest), checkpoint.read_header(checkpoint.locate(like)).domain
        if found.channels != self.domain.channels or found.labels.values != self.domain.labels.values:
            raise DataError(
                f"{manifest} has channels {found.channels} and labels {found.labels.values}, {like} {self.domain.channels} and "
                f"{self.domain.labels.values}: give the manifest of such scans"
            )
        cases = [case for case in found.cases if case.mask is not None and split in (None, case.split)]
        if not cases:
            raise DataError(f"{manifest} has no annotated case" + (f" in split {split}" if split else ""))
        recipe = Recipe(self.domain.grid, self.domain.framing, found.labels, AugmentConfig(), 0)
        self.volumes = VolumeCache(Path(cache), recipe, cases)
        self.volumes.build()

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, n: int) -> Patient:
        volume = self.volumes.volume(n)
        assert volume.mask is not None
        name = self.volumes.entries[n][0].case_id
        return patient(torch.from_numpy(volume.image), torch.from_numpy(volume.mask), name)


def patient(image: Tensor, index: Tensor, name: str) -> Patient:
    """One item from an image ``(C, I, J, K)`` and label indices ``(I, J, K)``."""
    return {"image": image.float(), "label": index.long()[None], "name": name}
