"""Whether a feature space is valid: unseen patients must pass for unseen, and positive controls must be found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentsynth.evaluation.memorization.positive_controls import SHARES, response
from latentsynth.evaluation.memorization.reference import Measured, ReferenceDistances
from latentsynth.evaluation.memorization.spaces import FeatureSpace
from latentsynth.results import Table, TableCell

FOUND, _BLIND = 0.9, 0.5  # share of positive controls found: a disguise is seen through, or not at all


@dataclass(frozen=True)
class Controls:
    """What controls say of one feature space on one training set.

    Attributes:
        space: The feature space.
        control: The control patients, as if a generator had made them.
        found: By disguise, the share of positive controls that is flagged.
        responses: By disguise, the copy rate of the base samples with 0, 1, 5, 25 and 100 % copies among them.
        base: Which set the copies were planted in.
    """

    space: FeatureSpace
    control: Measured
    found: Mapping[str, float]
    responses: Mapping[str, tuple[float, ...]]
    base: str

    @property
    def reasons(self) -> list[str]:
        """Why the feature space is not valid; empty if it can."""
        found = []
        if self.control.copied:
            found.append(
                f"{self.control.rate.value:.0%} of unseen control patients are flagged, expected "
                f"{text(self.control.expected)}"
            )
        if self.found["exact"] < 1:
            found.append(f"only {self.found['exact']:.0%} of exact copies are found")
        falling = [name for name, rates in self.responses.items() if name == "exact" and (np.diff(rates) < 0).any()]
        if falling:
            found.append("more exact copies do not raise the copy rate")
        return found

    @property
    def valid(self) -> bool:
        """Whether a copy rate by this feature space means anything."""
        return not self.reasons and not self.space.doubt

    @property
    def sight(self) -> str:
        """What the feature space sees and what it is blind to, in words."""
        groups = {
            "finds": [n for n, share in self.found.items() if share >= FOUND],
            "finds some": [n for n, share in self.found.items() if _BLIND <= share < FOUND],
            "is blind to": [n for n, share in self.found.items() if share < _BLIND],
        }
        return "; ".join(f"{verb} copies {', '.join(names)}" for verb, names in groups.items() if names)

    def table(self) -> Table:
        """Positive controls, for people."""
        rows: list[tuple[TableCell, ...]] = [
            (name, self.found[name], *rates, "yes" if self.found[name] >= FOUND else "partly" if self.found[name] >= _BLIND else "blind")
            for name, rates in self.responses.items()
        ]  # fmt: skip
        return Table(
            f"positive controls, {self.space.name}",
            ("copies", "share found", *(f"copy rate at {share:.0%}" for share in SHARES), "seen"),
            tuple(rows),
            f"training cases put in the place of volumes of {self.base}, the same volumes at every share and in every "
            "row; a copy counts as found at p <= the level",
        )


def control(
    reference: ReferenceDistances, measured: Measured, base: Measured, name: str, copies: Mapping[str, np.ndarray]
) -> Controls:
    """Runs the controls of one feature space.

    Args:
        reference distances: The calibrated feature space.
        measured: The control patients.
        base: The samples in which copies are planted.
        name: What that set is called.
        copies: By disguise, features of positive controls.
    """
    flags = {disguise: reference.flags(rows) for disguise, rows in copies.items()}
    return Controls(
        reference.space,
        measured,
        {disguise: float(found.mean()) for disguise, found in flags.items()},
        {disguise: response(base.flagged, found) for disguise, found in flags.items()},
        name,
    )


def text(interval: tuple[float, float]) -> str:
    """An interval of shares as people read it."""
    return f"{interval[0]:.0%} to {interval[1]:.0%}"
