"""What the memorization study trains, and the names under which its cells leave measures."""

from __future__ import annotations

from dataclasses import dataclass

from latentsynth.config import OvertrainedConfig

SAMPLES, HELDOUT = "samples", "held-out patients"  # keys of the files of measures


@dataclass(frozen=True)
class Arm:
    """One model, trained on one subset with one seed.

    Attributes:
        model: Name of the model.
        size: Training patients, or "all".
        seed: Of the subset, the weights and the samples.
        overtrained: How it is overtrained, or None.
    """

    model: str
    size: int | str
    seed: int
    overtrained: OvertrainedConfig | None = None

    @property
    def name(self) -> str:
        """Names its cells."""
        return f"{self.model}-n{self.size}-s{self.seed}" + ("-overtrained" if self.overtrained else "")

    @property
    def factor(self) -> float:
        """Times the compute of the other cells."""
        return self.overtrained.factor if self.overtrained else 1.0
