"""The range of the mean of further patients: its closed form, and how often it holds."""

from __future__ import annotations

import numpy as np
import pytest

from latentsynth.metrics.prediction import mean_range


def test_it_is_the_closed_form() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445 * np.sqrt(2.5) * np.sqrt(1 / 3 + 1 / 5)  # t of 4 degrees of freedom
    assert mean_range(values, 3) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert np.isnan(mean_range(values[:1], 3)).all()


@pytest.mark.parametrize("questions", [1, 6])
def test_all_ranges_hold_together_as_often_as_said(questions: int) -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        seen, further = rng.normal(size=(questions, 12)), rng.normal(size=(questions, 8)).mean(1)
        ends = np.array([mean_range(one, 8, questions=questions) for one in seen])
        held += bool(((ends[:, 0] <= further) & (further <= ends[:, 1])).all())
    assert held / 1000 == pytest.approx(0.95, abs=0.021)  # three standard errors
