"""What generators of masks are trained on: the facts of a cohort of masks, and items of distance maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentsynth.config import MaskDiffusionConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import VolumeCache, one_hot, read_mask
from latentsynth.data.frames import Frame, lay
from latentsynth.errors import DataError
from latentsynth.masks.distance_maps import DistanceMaps, box_around
from latentsynth.masks.mask_diffusion import MaskAttributes, without_lesions
from latentsynth.metrics.lesions import components
from latentsynth.types import Domain

_MARGIN_CELLS = 1  # around all that training lesions fill


def mask_domain(training: VolumeCache) -> Domain:
    """The domain of a model of masks alone: no channel."""
    recipe = training.recipe
    return Domain(recipe.grid, recipe.framing, recipe.labels, (), ())


def training_facts(training: VolumeCache) -> dict[str, Any]:
    """What a maker keeps of the masks that it has learnt from: domain, place in space, range of lesion volumes.

    Raises:
        DataError: No training mask has a lesion on the grid.
    """
    domain = mask_domain(training)
    unaugmented = [n for n, (_, copy) in enumerate(training.entries) if copy == 0]
    voxels = [int(np.isin(_index(training, n), domain.lesion_indices).sum()) for n in unaugmented]
    if not any(voxels):
        raise DataError(
            f"no training mask has a lesion (labels {', '.join(map(str, domain.labels.lesions(domain.framing)))}) on the "
            "grid: check data.framing and data.grid"
        )
    voxel_ml = float(np.prod(domain.grid.spacing_mm)) / 1000
    filled = [count * voxel_ml for count in voxels if count]
    centres = [_centre(_frame(training, n)) for n in unaugmented]
    affine = np.diag([*domain.grid.spacing_mm, 1.0])
    affine[:3, 3] = np.median(centres, axis=0) - affine[:3, :3] @ ((np.array(domain.grid.shape) - 1) / 2)
    return {"domain": domain, "affine": affine, "volume_ml": (min(filled), max(filled))}


def _frame(training: VolumeCache, n: int) -> Frame:
    """Where the grid lies over the scan of an entry; the lesion need only be read where it decides."""
    recipe, case = training.recipe, training.entries[n][0]
    assert case.mask is not None
    if recipe.framing.crop == "lesion":
        values, affine = read_mask(case.mask, recipe.labels)
        return recipe.frame(affine, values.shape, values, case.case_id)[0]
    shape, affine = nifti.geometry(case.mask)
    return lay(recipe.grid, recipe.framing, affine, shape, None, case.case_id)[0]


def _centre(frame: Frame) -> np.ndarray:
    centre: np.ndarray = frame.affine[:3, :3] @ ((np.array(frame.shape) - 1) / 2) + frame.affine[:3, 3]
    return centre


def _index(cache: VolumeCache, n: int) -> np.ndarray:
    index = cache.volume(n).mask
    assert index is not None
    return index


class DiffusionItems:
    """Whitened distance maps and what is known of each, computed once; entries without a lesion on the grid are left out.

    Args:
        cache: The masks.
        config: How coarse the maps are.
        like: The items of the training masks, whose box and scale are used; None measures them here.
    """

    def __init__(self, cache: VolumeCache, config: MaskDiffusionConfig, like: DiffusionItems | None = None):
        self.cache = cache
        self._kept: dict[int, dict[str, Tensor]] = {}
        lesions = mask_domain(cache).lesion_indices
        inside = [np.isin(_index(cache, n), lesions) for n in range(len(cache))]
        self.usable = [n for n, found in enumerate(inside) if found.any()]
        measured = (
            (like.maps, like.attributes) if like else self._measured(config, lesions, [inside[n] for n in self.usable])
        )
        self.maps: DistanceMaps = measured[0]
        self.attributes: MaskAttributes = measured[1]

    def __len__(self) -> int:
        return len(self.usable)

    def __call__(self, n: int) -> dict[str, Tensor]:
        """``maps`` (c, cells), ``organs`` (organs, cells), ``volume_ml`` () and ``lesions`` ()."""
        if n not in self._kept:
            index = _index(self.cache, self.usable[n])
            inside = np.isin(index, self.maps.lesions)
            grid = self.cache.recipe.grid
            healed = without_lesions(index, self.maps.lesions, grid.spacing_mm)
            hot = one_hot(torch.from_numpy(healed), len(self.cache.recipe.labels))[None]
            self._kept[n] = {
                "maps": self.maps.whiten(self.maps.distances(index)),
                "organs": self.attributes.shares(hot)[0]
                if self.attributes.organs
                else torch.zeros(0, *self.maps.cells),
                "volume_ml": torch.tensor(float(inside.sum() * np.prod(grid.spacing_mm) / 1000)),
                "lesions": torch.tensor(float(components(inside)[1])),
            }
        return self._kept[n]

    def _measured(
        self, config: MaskDiffusionConfig, lesions: list[int], inside: list[np.ndarray]
    ) -> tuple[DistanceMaps, MaskAttributes]:
        """Box, scale and range of volumes of the training masks."""
        grid, cell = self.cache.recipe.grid, config.coarsen * config.patch
        start, size = box_around(np.any(inside, axis=0), _MARGIN_CELLS * config.coarsen, config.unit)
        maps = DistanceMaps(
            grid.shape, grid.spacing_mm, lesions, start, size, config.coarsen, config.patch, config.reach_mm
        )
        maps.fit_scale(maps.distances(_index(self.cache, n)) for n in self.usable)
        log = np.log([found.sum() * np.prod(grid.spacing_mm) / 1000 for found in inside])
        organs = [n for n in range(1, len(self.cache.recipe.labels)) if n not in lesions]
        spread = float(log.std()) or 1.0  # masks of one volume have none
        return maps, MaskAttributes(organs, cell, start, maps.cells, float(log.mean()), spread)
