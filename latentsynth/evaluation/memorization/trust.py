"""Whether a ruler can be trusted: unseen patients must pass for unseen, and planted copies must be found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from latentsynth.evaluation.memorization.planted import SHARES, response
from latentsynth.evaluation.memorization.rulers import Ruler
from latentsynth.evaluation.memorization.yardstick import Measured, Yardstick
from latentsynth.results import Cell, Table

_SEES, _BLIND = 0.9, 0.5  # share of planted copies found


@dataclass(frozen=True)
class Trust:
    """What controls say of one ruler on one training set.

    Attributes:
        ruler: The ruler.
        control: The control patients, as if a generator had made them.
        found: By disguise, the share of planted copies that is flagged.
        responses: By disguise, the copy rate of the base samples with 0, 1, 5, 25 and 100 % copies among them.
        base: Which set the copies were planted in.
    """

    ruler: Ruler
    control: Measured
    found: Mapping[str, float]
    responses: Mapping[str, tuple[float, ...]]
    base: str

    @property
    def reasons(self) -> list[str]:
        """Why the ruler cannot be trusted; empty if it can."""
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
    def trusted(self) -> bool:
        """Whether a copy rate by this ruler means anything."""
        return not self.reasons and not self.ruler.doubt

    @property
    def sight(self) -> str:
        """What the ruler sees and what it is blind to, in words."""
        groups = {
            "finds": [n for n, share in self.found.items() if share >= _SEES],
            "finds some": [n for n, share in self.found.items() if _BLIND <= share < _SEES],
            "is blind to": [n for n, share in self.found.items() if share < _BLIND],
        }
        return "; ".join(f"{verb} copies {', '.join(names)}" for verb, names in groups.items() if names)

    def table(self) -> Table:
        """Planted copies, for people."""
        rows: list[tuple[Cell, ...]] = [
            (name, self.found[name], *rates, "yes" if self.found[name] >= _SEES else "partly" if self.found[name] >= _BLIND else "blind")
            for name, rates in self.responses.items()
        ]  # fmt: skip
        return Table(
            f"planted copies, {self.ruler.name}",
            ("copies", "share found", *(f"copy rate at {share:.0%}" for share in SHARES), "seen"),
            tuple(rows),
            f"training cases put in the place of volumes of {self.base}, the same volumes at every share and in every "
            "row; a copy counts as found at p <= the level",
        )


def control(
    yardstick: Yardstick, measured: Measured, base: Measured, name: str, copies: Mapping[str, np.ndarray]
) -> Trust:
    """Runs the controls of one ruler.

    Args:
        yardstick: The calibrated ruler.
        measured: The control patients.
        base: The samples in which copies are planted.
        name: What that set is called.
        copies: By disguise, features of planted copies.
    """
    flags = {disguise: yardstick.flags(rows) for disguise, rows in copies.items()}
    return Trust(
        yardstick.ruler,
        measured,
        {disguise: float(found.mean()) for disguise, found in flags.items()},
        {disguise: response(base.flagged, found) for disguise, found in flags.items()},
        name,
    )


def text(interval: tuple[float, float]) -> str:
    """An interval of shares as people read it."""
    return f"{interval[0]:.0%} to {interval[1]:.0%}"
