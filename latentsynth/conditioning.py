"""From a condition to what a network takes in: per latent cell, the fraction that each label covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional

from latentsynth.errors import DataError
from latentsynth.pretrained import Pretrained
from latentsynth.types import Condition, Conditioning


class MaskConditioner(Pretrained):
    """Averages a one-hot mask over the voxels of each latent cell.

    The fractions of a cell sum to 1, so an absent condition, zeros everywhere, cannot be mistaken for any mask. That
    makes unannotated cases and dropped conditions the same thing to the network.

    Args:
        labels: Number of labels ``L``, background included.
        factors: Voxels per latent cell along each axis.
    """

    @register_to_config
    def __init__(self, labels: int, factors: Sequence[int]):
        super().__init__()
        self.labels = labels
        self.factors = tuple(factors)

    @property
    def channels(self) -> int:
        """Spatial channels ``S`` that it adds to a network's input."""
        return self.labels

    def forward(self, condition: Condition) -> Conditioning:
        """Condition to cell fractions, shape ``(B, L, i, j, k)``.

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
        return Conditioning(functional.avg_pool3d(condition.mask, self.factors))

    def dropped(self, conditioning: Conditioning, keep: Tensor) -> Conditioning:
        """The conditioning with whole cases taken away.

        Args:
            conditioning: What :meth:`forward` returned.
            keep: Boolean, ``(B,)``; False removes that case's condition.
        """
        return Conditioning(torch.where(keep.view(-1, 1, 1, 1, 1), conditioning.spatial, 0.0))
