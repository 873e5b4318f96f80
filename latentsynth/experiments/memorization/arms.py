"""What the memorization study trains, and the names under which its cells leave measures."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLES, HELDOUT = "samples", "held-out patients"  # keys of the files of measures


@dataclass(frozen=True)
class Arm:
    """One model, trained on one subset with one seed.

    Attributes:
        model: Name of the model.
        size: Training patients, or "all".
        seed: Of the subset, the weights and the samples.
    """

    model: str
    size: int | str
    seed: int

    @property
    def name(self) -> str:
        """Names its cells."""
        return f"{self.model}-n{self.size}-s{self.seed}"
