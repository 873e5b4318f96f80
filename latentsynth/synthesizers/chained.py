"""Two models in a row: one makes the mask, the other paints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latentsynth.errors import ConfigError, DataError
from latentsynth.provenance import fingerprint
from latentsynth.synthesizers.base import Synthesizer
from latentsynth.types import Condition, Generated

_APART = 0x5DEECE66D  # any fixed number


class Chained(Synthesizer):
    """New masks, painted: new patients from two models, as the two-stage model of Vu et al. (2025).

    Args:
        masks: A model that makes masks.
        painter: A model that paints masks, of any family, on the same grid and labels.

    Raises:
        ConfigError: The first makes no masks, the second paints none, or they do not share grid and labels.
    """

    makes_masks = True

    def __init__(self, masks: Synthesizer, painter: Synthesizer):
        if not masks.makes_masks:
            raise ConfigError("the mask model makes no masks: train one with generator.form=mask_only or joint")
        if painter.makes_masks:
            raise ConfigError(
                "the painting model makes its own masks: leave the mask model out, or give another painter"
            )
        for what in ("grid", "framing", "labels"):
            ours, theirs = getattr(masks.domain, what), getattr(painter.domain, what)
            if ours != theirs:
                raise ConfigError(f"the mask model has {what} {ours}, the painter {theirs}: train both on the same")
        self.masks, self.painter = masks, painter
        self.domain = painter.domain
        self.fingerprint = fingerprint([masks.fingerprint, painter.fingerprint])
        self.ledger = masks.ledger | painter.ledger

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        """Makes one volume per seed. The painter's seeds are others: with the same, mask and look would be coupled.

        Raises:
            DataError: A condition: the masks are made here.
        """
        if condition is not None:
            raise DataError("this model makes its own masks: leave the condition None")
        mask = self.masks.generate(None, seeds).mask
        return self.painter.generate(Condition(mask), [int(seed) ^ _APART for seed in seeds], **settings)

    def settings(self, **changes: Any) -> dict[str, Any]:
        return self.painter.settings(**changes)

    def to(self, device: torch.device | str) -> Chained:
        self.masks.to(device)
        self.painter.to(device)
        return self
