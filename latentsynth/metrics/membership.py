"""Can losses tell who was trained on? Membership inference from one loss per case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import SHARE, statistic_interval

LEAST_NON_MEMBERS = 100  # below, 1 % of them is less than one patient
_RATE = 0.01


@dataclass(frozen=True)
class Membership:
    """How well a threshold on the loss tells training patients from others.

    Attributes:
        auc: Probability that a member has a lower loss than a non-member, ties counting half; 0.5 tells nothing.
        low: Lower end of its 95 % interval over patients.
        high: Upper end.
        true_positives: Share of members found while at most 1 % of non-members are; None if that is not estimable.
    """

    auc: float
    low: float
    high: float
    true_positives: float | None


def membership(
    members: Sequence[float] | np.ndarray,
    others: Sequence[float] | np.ndarray,
    member_patients: Sequence[str],
    other_patients: Sequence[str],
    rng: np.random.Generator,
    draws: int = 1000,
) -> Membership:
    """Membership inference by thresholding a loss (Yeom et al. 2018; rates as in Carlini et al. 2022).

    Cases of one patient are averaged first: patients are the unit.

    Args:
        members: Loss of each training case.
        others: Loss of each case that was not trained on.
        member_patients: Whose case each is.
        other_patients: Same for ``others``.
        rng: Source of the bootstrap draws.
        draws: Number of draws.

    Raises:
        DataError: Fewer than 2 patients on a side, a patient on both, or a loss that is not a number.
    """
    inside, names = _by_patient(members, member_patients, "members")
    outside, strangers = _by_patient(others, other_patients, "non-members")
    both = sorted(set(names) & set(strangers))
    if both:
        raise DataError(f"patient {both[0]} is member and non-member: leave patients on one side alone")
    # Not sklearn's roc_auc_score: each draw of the bootstrap is a product with this table and would be a call of its own.
    wins = (inside[:, None] < outside) + 0.5 * (inside[:, None] == outside)
    auc = statistic_interval(
        lambda w, v: ((w @ wins) * v).sum(1) / (w.sum(1) * v.sum(1)), (names, strangers), rng, draws, bounds=SHARE
    )
    found = None
    if len(outside) >= LEAST_NON_MEMBERS:
        allowed = int(_RATE * len(outside))
        found = float((inside < np.sort(outside)[allowed]).mean())
    return Membership(*auc, found)


def _by_patient(
    losses: Sequence[float] | np.ndarray, patients: Sequence[str], who: str
) -> tuple[np.ndarray, list[str]]:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(patients) or not np.isfinite(values).all():
        raise DataError(
            f"{len(patients)} patients for losses of shape {values.shape} of {who}: give one finite loss each"
        )
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < 2:
        raise DataError(f"{len(names)} patients among {who}: give at least 2")
    return np.bincount(index, values) / np.bincount(index), list(names)
