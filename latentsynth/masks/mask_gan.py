"""Masks from a GAN that was trained on masks alone, of any family that makes annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from latentsynth.config import GanSamplingConfig
from latentsynth.gans import Annotation, Generator
from latentsynth.gans.annotation import Coding, SliceAxis
from latentsynth.masks.base import Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.trained import TrainedMaker
from latentsynth.synthesizers import GAN


@dataclass(kw_only=True)
class MaskGANMaker(TrainedMaker):
    """Samples a generator of form ``mask_only``.

    Attributes:
        generator: The averaged weights.
        coding: How labels stand in its channels.
        slice_axis: Axis along which slices are stacked; None for a generator of volumes.
    """

    kind = "mask_gan"
    part_kinds = MappingProxyType({"generator": Generator})
    sampling_kind = GanSamplingConfig
    facts = MappingProxyType({"coding": Coding, "slice_axis": SliceAxis})

    generator: Generator
    coding: Coding
    slice_axis: int | None

    @property
    def annotation(self) -> Annotation:
        """Labels as channels."""
        return Annotation(self.labels.values, self.coding)

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        shape = tuple(n for at, n in enumerate(self.domain.grid.shape) if at != self.slice_axis)
        return {
            "generator grid": (tuple(self.generator.shape), shape),
            "generator channels": (self.generator.config["out_channels"], self.annotation.channels),
        }

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        model = GAN(self.domain, self.generator, "mask_only", self.annotation, self.slice_axis, self.sampling)
        made = model.generate(None, seeds).mask.argmax(1).byte().numpy()
        return [self.placed(seed, index) for seed, index in zip(seeds, made, strict=True)]
