"""Label maps as channels that a generator can paint beside the image, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Coding = Literal["one_hot", "cuts"]
SliceAxis = Literal[0, 1, 2] | None  # that a volume is cut along; None where it is made whole


@dataclass(frozen=True)
class Annotation:
    """How labels stand in channels.

    Attributes:
        values: Label values, ascending from 0.
        coding: ``"one_hot"``: a channel per label, 1 inside and -1 outside; ``"cuts"``: one channel in which value v of
            at most m stands at 2 v / (m + 1) - 1, read back by cuts half-way between neighbours, as Usman Akbar et al.
            (2024) wrote BraTS labels 0, 1, 2, 4 into grey levels v / 5 and cut them at 0.5, 1.5 and 3.
    """

    values: tuple[int, ...]
    coding: Coding = "one_hot"

    @property
    def channels(self) -> int:
        """Channels that it takes."""
        return len(self.values) if self.coding == "one_hot" else 1

    def encode(self, mask: Tensor) -> Tensor:
        """One-hot labels ``(B, L, *shape)`` to channels ``(B, A, *shape)`` in [-1, 1]."""
        if self.coding == "one_hot":
            return 2 * mask - 1
        levels = self._levels(mask).view(1, -1, *[1] * (mask.ndim - 2))
        return (mask * levels).sum(1, keepdim=True)

    def decode(self, channels: Tensor) -> Tensor:
        """Channels to the one-hot labels that they come closest to."""
        return functional.one_hot(self._nearest(channels), len(self.values)).movedim(-1, 1).to(channels)

    def invalid(self, channels: Tensor) -> Tensor:
        """Share of voxels per case ``(B,)`` that name no label clearly.

        One-hot: none or several channels above 0. Cuts: nearer to a cut than to the label's own level.
        """
        if self.coding == "one_hot":
            wrong = (channels > 0).sum(1) != 1
        else:
            levels = self._levels(channels)
            index = self._nearest(channels)
            value = channels[:, 0]
            # Half of the way to the neighbour on whose side the value lies; none beyond the outermost levels.
            gaps = functional.pad(levels.diff() / 2, (1, 1), value=float("inf"))
            room = torch.where(value < levels[index], gaps[index], gaps[index + 1])
            wrong = (value - levels[index]).abs() > room / 2
        return wrong.flatten(1).float().mean(1)

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor([2 * v / (self.values[-1] + 1) - 1 for v in self.values], device=like.device)

    def _nearest(self, channels: Tensor) -> Tensor:
        if self.coding == "one_hot":
            return channels.argmax(1)
        levels = self._levels(channels)
        return torch.bucketize(channels[:, 0].contiguous(), (levels[1:] + levels[:-1]) / 2)
