"""From a condition to what a network takes in: per latent cell, how much of it each label covers, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange, reduce
from torch import Tensor
from torch.nn import functional

from latentsynth.errors import ConfigError, DataError
from latentsynth.pretrained import Pretrained
from latentsynth.types import Condition, Conditioning


class MaskConditioner(Pretrained):
    """Averages a one-hot mask over the voxels of each part of a latent cell.

    One fraction per cell says how much of the cell a label covers, not where its border runs; parts of the cell, each
    a channel of its own, say that. The fractions of a part sum to 1, so an absent condition, zeros everywhere, cannot be mistaken for any mask. That
    makes unannotated cases and dropped conditions the same thing to the network.

    Args:
        labels: Number of labels ``L``, background included.
        factors: Voxels per latent cell along each axis.
        detail: Parts per axis that a cell is described in; at most its voxels along that axis.

    Raises:
        ConfigError: A factor is not a multiple of the parts along its axis.
    """

    @register_to_config
    def __init__(self, labels: int, factors: Sequence[int], detail: int = 1):
        super().__init__()
        self.labels = labels
        self.factors = tuple(factors)
        self.parts = tuple(min(detail, factor) for factor in factors)
        if any(factor % part for factor, part in zip(self.factors, self.parts, strict=True)):
            raise ConfigError(
                f"conditioner.detail {detail} does not divide latent cells of {self.factors} voxels: use 1, 2 or 4"
            )

    @property
    def channels(self) -> int:
        """Spatial channels ``S`` that it adds to a network's input."""
        return self.labels * math.prod(self.parts)

    def forward(self, condition: Condition) -> Conditioning:
        """Condition to fractions per part of a cell, shape ``(B, S, i, j, k)``.

        Raises:
            DataError: The mask has another number of labels, or the condition carries what this model was not
                trained on (context, covariates, style).
        """
        if condition.mask.shape[1] != self.labels:
            raise DataError(
                f"the conditioner was built for {self.labels} labels, got a mask with {condition.mask.shape[1]}"
            )
        for name in ("context", "covariates", "style"):
            if getattr(condition, name) is not None:
                raise DataError(f"this model was trained on masks alone, got also {name}: leave Condition.{name} None")
        sizes = tuple(factor // part for factor, part in zip(self.factors, self.parts, strict=True))
        fractions = functional.avg_pool3d(condition.mask, sizes)
        a, b, c = self.parts
        return Conditioning(rearrange(fractions, "n l (i a) (j b) (k c) -> n (l a b c) i j k", a=a, b=b, c=c))

    def cell_fractions(self, conditioning: Conditioning) -> Tensor:
        """The share of each whole cell that every label covers, shape ``(B, L, i, j, k)``."""
        return reduce(conditioning.spatial, "n (l p) i j k -> n l i j k", "mean", l=self.labels)

    def dropped(self, conditioning: Conditioning, keep: Tensor) -> Conditioning:
        """The conditioning with whole cases taken away.

        Args:
            conditioning: What :meth:`forward` returned.
            keep: Boolean, ``(B,)``; False removes that case's condition.
        """
        return Conditioning(torch.where(keep.view(-1, 1, 1, 1, 1), conditioning.spatial, 0.0))
