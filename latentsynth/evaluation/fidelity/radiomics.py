"""Radiomic features of cohorts, for a Frechet distance between them: of the body, and of lesions where masks are known."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.features import Features, extract
from latentsynth.extractors.networks import Extractor
from latentsynth.metrics import band_power
from latentsynth.metrics.radiomics import FEWEST, LEVELS, radiomics
from latentsynth.metrics.surfaces import Mask
from latentsynth.provenance import fingerprint
from latentsynth.types import Framing, Grid

Region = Literal["body", "lesion"]
UNIT = (
    "Features as the IBSI defines them, each centred and scaled by the real cases: a distance of 1 is the variance of the "
    "real set. The published distance (FRD: Konz et al. 2026) is the logarithm of frechet_raw in the CSV file."
)
_VERSION = 2  # raise it when features change, so that kept ones are not read


class RegionRadiomics(Extractor):
    """Radiomic features (:func:`latentsynth.metrics.radiomics.radiomics`) of a region; its form is told of lesions alone.

    Takes images with the region as the last channel. Where it has no texture the features are not numbers.

    Args:
        region: What the region is.
        grid: Grid of the volumes.
    """

    def __init__(self, region: Region, grid: Grid):
        self.region, self.spacing_mm = region, grid.spacing_mm
        self.name = f"radiomics of the {region}"
        self.fingerprint = fingerprint(["radiomics", _VERSION, region, LEVELS, FEWEST, list(grid.spacing_mm)])
        self.preprocessing = (
            f"Images in [-1, 1] are cut into {LEVELS} grey levels inside the {region}, each channel alone."
        )

    def _features(self, image: Tensor) -> Tensor:
        *channels, region = image[0].double().numpy()
        shape = self.region == "lesion"
        if np.count_nonzero(region) < FEWEST:
            width = len(radiomics(np.zeros((len(channels), 2, 2, 2)), np.ones((2, 2, 2), bool), self.spacing_mm, shape))
            return torch.full((1, width), torch.nan)
        found = radiomics(np.stack(channels), region > 0, self.spacing_mm, shape)
        return torch.tensor([list(found.values())], dtype=torch.float32)

    def of(self, cohort: Cohort, cache: VolumeCache, accelerator: Accelerator) -> Features:
        """Features of the cases of a cohort whose region has texture; kept beside its volumes."""
        read = _with_body if self.region == "body" else _with_lesion
        found = extract([self], cohort, cache, accelerator, read)[self.name]
        return found[np.flatnonzero(np.isfinite(found.values).all(1))]


def regions(grid: Grid, framing: Framing) -> list[RegionRadiomics]:
    """What volumes are described by: their body, and where they are cropped around lesions, whose masks are read, these."""
    names: tuple[Region, ...] = ("body", "lesion") if framing.crop == "lesion" else ("body",)
    return [RegionRadiomics(name, grid) for name in names]


def body(image: np.ndarray) -> Mask:
    """Where some channel of an image ``(C, I, J, K)`` shows something (:func:`latentsynth.metrics.band_power.body`).

    Everything where hardly anything does.
    """
    seen: Mask = np.any([band_power.body(channel) for channel in image], axis=0)
    return seen if np.count_nonzero(seen) >= FEWEST else np.ones_like(seen)


def _with_body(cache: VolumeCache, n: int) -> np.ndarray:
    image = cache.volume(n).image
    return np.concatenate([image, body(image)[None].astype(np.float32)])


def _with_lesion(cache: VolumeCache, n: int) -> np.ndarray:
    volume = cache.volume(n)
    labels, framing = cache.recipe.labels, cache.recipe.framing
    lesion = np.zeros(volume.image.shape[1:], bool)
    if volume.mask is not None:
        lesion = np.isin(np.array(labels.values)[volume.mask], labels.lesions(framing))
    return np.concatenate([volume.image, lesion[None].astype(np.float32)])
