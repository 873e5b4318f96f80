"""What the utility study trains, and what its summary is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KEPT = "kept.json"  # manifest of the volumes that a filter left, in its cell
Place = tuple[str, int | str, str]  # segmenter, size, arm
SeedScores = dict[Place, dict[int, dict[str, dict[str, float]]]]  # seed to measure to patient to score
PatientScores = dict[Place, dict[str, dict[str, float]]]  # measure to patient to mean over seeds


@dataclass(frozen=True)
class Job:
    """One segmenter, trained on one arm's mixture of one subset.

    Attributes:
        arm: Name of the arm.
        segmenter: Name of the segmenter.
        size: Patients of the subset, or "all".
        seed: Of the subset, the generator and the segmenter.
        fold: Which part of the patients is held out, or None where there is one split alone.
    """

    arm: str
    segmenter: str
    size: int | str
    seed: int
    fold: int | None = None

    @property
    def subset(self) -> str:
        """Names its patients."""
        return f"n{self.size}-s{self.seed}" + ("" if self.fold is None else f"-f{self.fold}")

    @property
    def name(self) -> str:
        """Names its cell."""
        return f"{self.segmenter}-{self.arm}-{self.subset}"


@dataclass(frozen=True)
class FinishedStudy:
    """What all cells left.

    Attributes:
        jobs: All segmenters that were trained.
        test: Manifest of the test patients (of the first fold).
        cohort: Fingerprint of all patients.
        uncopied: By name of the volumes, cells that dropped copies.
        short_of: In words, arms that were trained on fewer synthetic volumes than their dose.
    """

    jobs: tuple[Job, ...]
    test: Path
    cohort: str
    uncopied: Mapping[str, Path]
    short_of: tuple[str, ...] = ()
