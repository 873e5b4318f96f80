"""Means and differences of rates that have intervals of their own, as of models that were trained apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rate = tuple[float, float, float]  # value, low, high


def mean_rate(rates: Sequence[Rate]) -> Rate:
    """The mean of independent rates; the squares of the arms of their intervals add up (Zou and Donner 2008, eq. 6).

    Args:
        rates: At least one.
    """
    n = len(rates)
    value = math.fsum(value for value, _, _ in rates) / n
    below = math.hypot(*(value - low for value, low, _ in rates)) / n
    above = math.hypot(*(high - value for value, _, high in rates)) / n
    return value, value - below, value + above


def difference(first: Rate, second: Rate) -> Rate:
    """How much larger the first of two independent rates is (Zou and Donner 2008, eq. 4; Newcombe 1998, method 10)."""
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)
