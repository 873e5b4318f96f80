"""Masks by diffusion of distance maps, told the organs, the lesion volume and the lesion count, each if known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from latentsynth.config import MaskSamplingConfig
from latentsynth.diffusion import Denoiser, guided, sample
from latentsynth.errors import DataError
from latentsynth.masks.base import Rejected, Wanted
from latentsynth.masks.distance_maps import DistanceMaps
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.placement import digest
from latentsynth.masks.trained import TrainedMaker
from latentsynth.pretrained import Pretrained
from latentsynth.provenance import fingerprint
from latentsynth.randomness import Draws, Stream, generator
from latentsynth.types import Conditioning

_MOST_LESIONS = 8  # counts above are all "many"
_NOTHING_ML = 0.1


def without_lesions(index: np.ndarray, lesions: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Label indices ``(I, J, K)`` with every lesion turned into the nearest other label, or a hole would give it away."""
    lesion = np.isin(index, list(lesions))
    if not lesion.any() or lesion.all():
        return np.where(lesion, 0, index)
    nearest = ndimage.distance_transform_edt(lesion, spacing_mm, return_distances=False, return_indices=True)
    filled: np.ndarray = index[tuple(nearest)]
    return filled


class MaskAttributes(Pretrained):
    """What is asked for as maps beside the noisy one, zeros where nothing is.

    Volume stands in two constant channels, its whitened logarithm and the radius of the ball it would fill, which is
    what distances grow with; the count in one; organs as the share of each cell that they cover. A channel beside each
    says whether it is known.

    Args:
        organs: Label indices that are organs.
        cell: Voxels per cell of the network along each axis.
        start: First voxel of the box along each axis.
        cells: Cells of the box along each axis.
        log_mean: Mean of the logarithm of training volumes in ml.
        log_deviation: Its standard deviation.
    """

    @register_to_config
    def __init__(
        self,
        organs: Sequence[int],
        cell: int,
        start: Sequence[int],
        cells: Sequence[int],
        log_mean: float,
        log_deviation: float,
    ):
        super().__init__()
        self.organs, self.cell, self.cells = tuple(organs), cell, tuple(cells)
        self.box = tuple(slice(a, a + n * cell) for a, n in zip(start, cells, strict=True))
        self.log_mean, self.log_deviation = log_mean, log_deviation

    @property
    def channels(self) -> int:
        """Channels ``S`` that it adds to the network's input."""
        return 5 + (len(self.organs) + 1 if self.organs else 0)

    def shares(self, mask: Tensor) -> Tensor:
        """One-hot masks ``(B, L, I, J, K)`` to organ shares per cell, ``(B, organs, cells)``."""
        kept = mask[:, list(self.organs)][(slice(None), slice(None), *self.box)]
        return functional.avg_pool3d(kept, self.cell)

    def forward(self, volume_ml: Tensor, lesions: Tensor, organs: Tensor | None = None) -> Conditioning:
        """Wishes, not a number where there is none, as ``(B, S, cells)``.

        Args:
            volume_ml: ``(B,)``.
            lesions: Counts, ``(B,)``.
            organs: What :meth:`shares` gave, all zeros for a case without organs, or None for no case's.
        """
        log = (volume_ml.log() - self.log_mean) / self.log_deviation
        radius = (volume_ml / math.exp(self.log_mean)) ** (1 / 3) - 1
        count = lesions.clamp(1, _MOST_LESIONS).log2() / 2
        known = [torch.isfinite(value).float() for value in (volume_ml, lesions)]
        scalars = torch.stack([log, radius, count, *known], 1).nan_to_num(0.0)
        maps = scalars[:, :, None, None, None].expand(-1, -1, *self.cells)
        if not self.organs:
            return Conditioning(maps)
        if organs is None:
            organs = maps.new_zeros(len(maps), len(self.organs), *self.cells)
        given = organs.flatten(1).amax(1).gt(0).to(organs).view(-1, 1, 1, 1, 1).expand(-1, 1, *self.cells)
        return Conditioning(torch.cat([maps, organs, given], 1))


def obedience(asked_ml: Sequence[float], obtained_ml: Sequence[float]) -> dict[str, float]:
    """How near volumes come to what was asked for, ml; a mask without a lesion counts as one of a tenth of a ml.

    Returns:
        ``volume_correlation`` of logarithms (Pearson) and ``volume_error``, the median distance as a share of what was
        asked for.
    """
    asked, got = np.asarray(asked_ml), np.asarray(obtained_ml)
    correlation = np.corrcoef(np.log(asked), np.log(np.maximum(got, _NOTHING_ML)))[0, 1]
    return {"volume_correlation": float(correlation), "volume_error": float(np.median(np.abs(got / asked - 1)))}


@dataclass(kw_only=True)
class MaskDiffusionMaker(TrainedMaker):
    """Samples a diffusion model of distance maps.

    Attributes:
        maps: Distance maps to label maps.
        wishes: What is asked for, as the network takes it in.
        denoiser: The averaged weights.
        anatomy: Label maps whose organs are drawn from, one per seed; empty makes lesions without organs.
    """

    kind = "mask_diffusion"
    part_kinds = MappingProxyType({"maps": DistanceMaps, "attributes": MaskAttributes, "denoiser": Denoiser})
    sampling_kind = MaskSamplingConfig

    maps: DistanceMaps
    attributes: MaskAttributes
    denoiser: Denoiser
    anatomy: Sequence[LabelMap] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampling = self.sampling.resolved(self.denoiser.schedule.flow)

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        return {
            "grid": (self.maps.grid, self.domain.grid.shape),
            "lesion labels": (self.maps.lesions, tuple(self.domain.lesion_indices)),
            "cells": (self.attributes.cells, self.maps.cells),
            "denoiser channels": (self.denoiser.config["latent_channels"], self.maps.channels),
            "denoiser conditions": (self.denoiser.config["spatial_channels"], self.attributes.channels),
        }

    def inside(self, anatomy: Sequence[LabelMap]) -> Self:
        """The same maker, putting each mask into one of these label maps, whose organs it is told.

        Args:
            anatomy: Label maps; lesions of their own are healed. A mask has the parents of the one it is put into.

        Raises:
            DataError: There are none, or the model knows no organ.
        """
        if not self.attributes.organs:
            raise DataError("this model knows no organ: all its labels are lesions; make its masks without anatomy")
        if not anatomy:
            raise DataError("no anatomy to put masks into: give at least one label map")
        named = fingerprint([self.fingerprint, [digest(one) for one in anatomy]])
        return replace(self, anatomy=tuple(anatomy), fingerprint=named)

    def aim(self, seed: int, wanted: Wanted) -> tuple[float, float]:
        """What mask ``seed`` is asked to be: volume in ml, log-uniform in the range, and count; not a number where free.

        Raises:
            DataError: The volume is out of reach.
        """
        rng = generator(seed, Stream.ATTRIBUTES)
        volume = count = math.nan
        place, which = rng.random(2)
        if wanted.volume_ml is not None:
            low, high = self.within_reach(wanted.volume_ml)
            volume = low * (high / low) ** place
        if wanted.lesions is not None:
            count = float(wanted.lesions[0] + int(which * (wanted.lesions[1] - wanted.lesions[0] + 1)))
        return volume, count

    @torch.no_grad()
    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        aims = [self.aim(seed, wanted) for seed in seeds]
        hosts = [self._host(seed) for seed in seeds]
        volume, count = (torch.tensor(values) for values in zip(*aims, strict=True))
        fields = self.maps.fields(self._sample(seeds, volume, count, hosts).cpu())
        voxel_ml = float(np.prod(self.domain.grid.spacing_mm)) / 1000
        exact: list[int | None] = [None if math.isnan(aim) else max(1, round(aim / voxel_ml)) for aim, _ in aims]
        made = self.maps.index(fields, exact if self.sampling.exact_volume else None).numpy()
        return [self._inside(*row) for row in zip(seeds, made, hosts, strict=True)]

    def scores(self, seeds: Sequence[int]) -> dict[str, float]:
        """Also of samples asked for volumes spread over those learnt: how near they come (:func:`obedience`)."""
        wanted = Wanted(volume_ml=self.volume_ml)
        made = [one.volume_ml(self.lesions) for one in self.make(seeds, wanted) if isinstance(one, LabelMap)]
        return {**super().scores(seeds), **obedience([self.aim(seed, wanted)[0] for seed in seeds], made)}

    def _sample(
        self, seeds: Sequence[int], volume: Tensor, count: Tensor, hosts: Sequence[tuple[LabelMap, np.ndarray] | None]
    ) -> Tensor:
        """Whitened distance maps, ``(B, c, cells)``."""
        device = next(self.denoiser.parameters()).device
        organs = None
        if self.attributes.organs:
            empty = np.zeros(self.domain.grid.shape, np.int16)
            index = torch.from_numpy(np.stack([empty if host is None else host[1] for host in hosts]))
            organs = self.attributes.shares(functional.one_hot(index.long(), len(self.labels)).movedim(-1, 1).float())
        given = self.attributes(volume, count, organs)
        nothing = self.attributes(torch.full_like(volume, math.nan), torch.full_like(count, math.nan))
        wanted, dropped = (Conditioning(one.spatial.float().to(device)) for one in (given, nothing))
        noise = Draws.seeded(seeds, stream=Stream.MASK_SAMPLE).normal(self.maps.channels, *self.maps.cells)
        chosen = self.sampling.resolved(self.denoiser.schedule.flow)
        denoise = guided(self.denoiser, wanted, dropped, chosen.guidance, chosen.guidance_interval)
        start = noise.to(device)
        return sample(denoise, self.denoiser.schedule, start, chosen.scheduler, chosen.steps, chosen.grid_shift)

    def _host(self, seed: int) -> tuple[LabelMap, np.ndarray] | None:
        """The anatomy that mask ``seed`` is made in: label map and indices on the model's grid, its own lesions healed."""
        if not self.anatomy:
            return None
        chosen = self.anatomy[int(generator(seed, Stream.ANATOMY).integers(len(self.anatomy)))]
        index, affine = self.laid(chosen)
        healed = without_lesions(index, self.maps.lesions, self.domain.grid.spacing_mm)
        return LabelMap(chosen.name, chosen.values, affine, chosen.parents), healed

    def _inside(self, seed: int, index: np.ndarray, host: tuple[LabelMap, np.ndarray] | None) -> LabelMap:
        if host is None:
            return self.placed(seed, index)
        anatomy, organs = host
        return self.placed(seed, np.where(index > 0, index, organs), anatomy.affine, anatomy.parents)
