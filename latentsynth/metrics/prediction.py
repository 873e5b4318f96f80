"""Where the mean of further patients would lie, judged by those at hand: the range of what is normal."""

from __future__ import annotations

import numpy as np
from scipy import stats


def mean_range(values: np.ndarray, count: int, level: float = 0.95, questions: int = 1) -> tuple[float, float]:
    """Range in which the mean of further values lies, of the same normal distribution.

    ``mean +- t s sqrt(1 / count + 1 / n)`` (Meeker, Hahn and Escobar 2017, chapter 4), at ``1 - (1 - level) / questions``
    so that as many ranges hold at once (Bonferroni).

    Args:
        values: One per patient, ``(n,)``.
        count: How many further patients are averaged.
        level: How often the mean lies inside.
        questions: How many ranges are asked for together.

    Returns:
        Its ends; not numbers for fewer than two values.
    """
    n = len(values)
    if n < 2 or count < 1:
        return float("nan"), float("nan")
    half = stats.t.ppf(1 - (1 - level) / questions / 2, n - 1) * values.std(ddof=1) * np.sqrt(1 / count + 1 / n)
    return float(values.mean() - half), float(values.mean() + half)
