"""The one interface of everything that makes masks: seeds and wishes in, label maps or reasons out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from latentsynth.errors import DataError
from latentsynth.masks.label_map import LabelMap
from latentsynth.provenance import Ledger
from latentsynth.types import Labels

Between = tuple[float, float]


@dataclass(frozen=True)
class Wanted:
    """What new masks must be like; None leaves it free.

    Attributes:
        volume_ml: Least and largest volume of the lesion labels together, ml.
        lesions: Least and largest number of connected pieces of them.

    Raises:
        DataError: A range that does not ascend, or is below nothing.
    """

    volume_ml: Between | None = None
    lesions: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least, found in (("volume", 0.0, self.volume_ml), ("lesion count", 1, self.lesions)):
            if found is not None and not least <= found[0] <= found[1]:
                raise DataError(
                    f"{name} {found[0]:g}:{found[1]:g} is no range from {least:g} upwards: give LOW:HIGH, low first"
                )

    def __str__(self) -> str:
        parts = [
            f"{found[0]:g} to {found[1]:g} {unit}"
            for found, unit in ((self.volume_ml, "ml"), (self.lesions, "lesions"))
            if found is not None
        ]
        return " and ".join(parts) or "any lesion"

    def refusal(self, made: LabelMap, lesions: Sequence[int]) -> str:
        """Why a mask is not what was wanted, in a few words that repeat from mask to mask; "" if it is."""
        volume = made.volume_ml(lesions)
        if not volume:
            return "no lesion"
        if self.volume_ml is not None and not self.volume_ml[0] <= volume <= self.volume_ml[1]:
            return "too small" if volume < self.volume_ml[0] else "too large"
        if self.lesions is not None:
            count = made.pieces(lesions)
            if not self.lesions[0] <= count <= self.lesions[1]:
                return "too few lesions" if count < self.lesions[0] else "too many lesions"
        return ""


@dataclass(frozen=True)
class Rejected:
    """A mask that could not be made.

    Attributes:
        reason: In a few words that repeat from mask to mask, so that they can be counted.
    """

    reason: str


class MaskMaker(ABC):
    """Makes label maps from seeds.

    Attributes:
        labels: Label values and names.
        lesions: Label values that count as lesion.
        fingerprint: Names what makes the masks, and its settings, in sidecars.
        ledger: The patients it has learnt from.
    """

    labels: Labels
    lesions: tuple[int, ...]
    fingerprint: str
    ledger: Ledger

    @abstractmethod
    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        """Makes a label map per seed, or says why it could not.

        Args:
            seeds: Map b depends on ``(seeds[b], wanted)`` alone, whatever else is in the batch.
            wanted: What a maker that can be told aims at; whoever asks checks the result.

        Raises:
            DataError: What is wanted can never be made, with what could be.
        """
