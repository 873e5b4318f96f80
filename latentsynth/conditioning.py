"""From a condition to what a network takes in: per latent cell, how much of it each label covers, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from latentsynth.errors import ConfigError, DataError
from latentsynth.pretrained import Pretrained
from latentsynth.types import Condition, Conditioning


@dataclass(frozen=True)
class Place:
    """Where patches were cut out of volumes.

    Attributes:
        corner: First latent cell of each, ``(B, 3)``.
        whole: Latent cells of a volume along each axis.
    """

    corner: Tensor
    whole: tuple[int, int, int]


class MaskConditioner(Pretrained):
    """Averages a one-hot mask over the voxels of each part of a latent cell.

    One fraction per cell says how much of the cell a label covers, not where its border runs; parts of the cell, each
    a channel of its own, say that. The fractions of a part sum to 1, so an absent condition, zeros everywhere, cannot be mistaken for any mask. That
    makes unannotated cases and dropped conditions the same thing to the network.

    Args:
        labels: Number of labels ``L``, background included.
        factors: Voxels per latent cell along each axis.
        detail: Parts per axis that a cell is described in; at most its voxels along that axis.
        levels: Resolutions of the network that takes the maps in.
        patch: Latent cells, along each axis, of the patches that the network works on; it is then told where every cell lies
            in its volume (Wang et al. 2023, sec. 3.1). None: it sees whole volumes.

    Raises:
        ConfigError: A factor is not a multiple of the parts along its axis.
    """

    @register_to_config
    def __init__(
        self,
        labels: int,
        factors: Sequence[int],
        detail: int = 1,
        levels: int = 1,
        patch: Sequence[int] | None = None,
    ):
        super().__init__()
        self.patch = None if patch is None else tuple(patch)
        self.levels = levels
        self.labels = labels
        self.factors = tuple(factors)
        self.parts = tuple(min(detail, factor) for factor in factors)
        if any(factor % part for factor, part in zip(self.factors, self.parts, strict=True)):
            raise ConfigError(
                f"conditioner.detail {detail} does not divide latent cells of {self.factors} voxels: use 1, 2 or 4"
            )

    takes_context = False

    @property
    def channels(self) -> int:
        """Spatial channels ``S`` that it adds to a network's input."""
        return self._told

    @property
    def _fractions(self) -> int:
        """Channels of the mask."""
        return self.labels * math.prod(self.parts)

    @property
    def _told(self) -> int:
        """Channels of the mask, and behind them of the place of a patch."""
        return self._fractions + (0 if self.patch is None else 3)

    def forward(self, condition: Condition, host: Tensor | None = None, place: Place | None = None) -> Conditioning:
        """Condition to fractions per part of a cell, ``(B, S, i, j, k)``, and their means at every coarser level.

        Args:
            condition: The mask.
            host: For those that take a context: latents of the scan to paint into, ``(B, c, i, j, k)``, or None.
            place: Where the masks were cut out, for a model that works on patches; None: they are of whole volumes.

        Raises:
            DataError: The mask has another number of labels, or the condition carries what this model was not
                trained on (context, covariates, style).
        """
        if condition.mask.shape[1] != self.labels:
            raise DataError(
                f"the conditioner was built for {self.labels} labels, got a mask with {condition.mask.shape[1]}"
            )
        given = {
            "context": host if host is not None else condition.context,
            "covariates": condition.covariates,
            "style": condition.style,
        }
        for name, value in given.items():
            if value is not None and not (name == "context" and self.takes_context):
                raise DataError(f"this model was trained on masks alone, got also {name}: leave Condition.{name} None")
        sizes = tuple(factor // part for factor, part in zip(self.factors, self.parts, strict=True))
        fractions = functional.avg_pool3d(condition.mask, sizes)
        a, b, c = self.parts
        spatial = rearrange(fractions, "n l (i a) (j b) (k c) -> n (l a b c) i j k", a=a, b=b, c=c)
        if self.patch is not None:
            spatial = torch.cat([spatial, coordinates(spatial, place)], dim=1)
        return self._at_levels(spatial)

    def _at_levels(self, spatial: Tensor) -> Conditioning:
        coarser = [spatial]
        for _ in range(self.levels - 1):
            coarser.append(functional.avg_pool3d(coarser[-1], 2))
        return Conditioning(spatial, tuple(coarser[1:]))

    def cell_fractions(self, conditioning: Conditioning) -> Tensor:
        """The share of each whole cell that every label covers, shape ``(B, L, i, j, k)``."""
        spatial = conditioning.spatial[:, : self._fractions]
        return reduce(spatial, "n (l p) i j k -> n l i j k", "mean", l=self.labels)

    def dropped(self, conditioning: Conditioning, keep: Tensor) -> Conditioning:
        """The conditioning with whole cases taken away; a patch still lies where it does.

        Args:
            conditioning: What :meth:`forward` returned.
            keep: Boolean, ``(B,)``; False removes that case's condition.
        """
        left = conditioning.mapped(lambda x: torch.where(keep.view(-1, *[1] * (x.ndim - 1)), x, 0.0))
        place = slice(self._fractions, self._told)
        for maps, whole in zip(left.maps, conditioning.maps, strict=True):
            maps[:, place] = whole[:, place]
        return left


def coordinates(maps: Tensor, place: Place | None = None) -> Tensor:
    """Where the middle of every cell lies in its volume, from -1 to 1 along each axis: ``(B, 3, i, j, k)`` for such maps."""
    size = maps.shape[2:]
    if place is None:
        place = Place(torch.zeros(len(maps), 3), (size[0], size[1], size[2]))
    along = []
    for axis in range(3):
        cell = torch.arange(size[axis], device=maps.device) + place.corner.to(maps)[:, axis : axis + 1] + 0.5
        shape = [len(maps), 1, 1, 1]
        shape[1 + axis] = size[axis]
        along.append((2 * cell / place.whole[axis] - 1).view(shape).expand(-1, *size))
    return torch.stack(along, dim=1).to(maps)


class ContextConditioner(MaskConditioner):
    """A mask, and the scan that it is to be painted into, its lesion cut out (DiffTumor: Chen et al. 2024, section 3.2).

    The scan comes as latents, since these are what the denoiser works on; a further channel says that there is one.

    Args:
        labels: Number of labels ``L``, background included.
        factors: Voxels per latent cell along each axis.
        detail: Parts per axis that a cell is described in.
        latent_channels: Latent channels ``c`` of the scan.
        cut_margin_mm: Voxels so near a lesion are cut out with it.
        decoys: Share of training in which healthy tissue was cut out instead.
        levels: Resolutions of the network that takes the maps in.
        patch: Latent cells of the patches that the network works on, or None.
    """

    takes_context = True

    @register_to_config
    def __init__(
        self,
        labels: int,
        factors: Sequence[int],
        detail: int,
        latent_channels: int,
        cut_margin_mm: float,
        decoys: float = 0.0,
        levels: int = 1,
        patch: Sequence[int] | None = None,
    ):
        super().__init__(labels, factors, detail, levels, patch)
        self.latent_channels = latent_channels
        self.cut_margin_mm = cut_margin_mm
        self.decoys = decoys

    @property
    def channels(self) -> int:
        return self._told + self.latent_channels + 1

    def forward(self, condition: Condition, host: Tensor | None = None, place: Place | None = None) -> Conditioning:
        mask = super().forward(condition, host, place).spatial
        if host is None:
            beside = mask.new_zeros(len(mask), self.latent_channels + 1, *mask.shape[2:])
        else:
            beside = torch.cat([host.to(mask), torch.ones_like(mask[:, :1])], dim=1)
        return self._at_levels(torch.cat([mask, beside], dim=1))

    def without_host(self, conditioning: Conditioning, keep: Tensor) -> Conditioning:
        """The conditioning with the scans of the cases taken away where ``keep``, boolean ``(B,)``, is False."""
        count = self._told

        def without(maps: Tensor) -> Tensor:
            return torch.cat([maps[:, :count], torch.where(keep.view(-1, 1, 1, 1, 1), maps[:, count:], 0.0)], dim=1)

        return replace(
            conditioning,
            spatial=without(conditioning.spatial),
            coarser=tuple(without(maps) for maps in conditioning.coarser),
        )
