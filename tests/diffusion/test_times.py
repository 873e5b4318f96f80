"""Training times: their distribution, their shift, their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from latentsynth.diffusion import TimeSampler
from latentsynth.errors import UnknownNameError

GRID = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.5), (0.6, 1.2)])
def test_logit_normal_quantiles(mean: float, std: float) -> None:
    t = TimeSampler("logit_normal", mean, std)(GRID).numpy()
    expected = special.expit(stats.norm.ppf(GRID.numpy(), mean, std))
    np.testing.assert_allclose(t, np.clip(expected, 1e-3, 1 - 1e-3), rtol=1e-9)


def test_uniform_is_the_number_itself() -> None:
    inner = GRID[1:-1]
    torch.testing.assert_close(TimeSampler("uniform")(inner), inner, atol=0, rtol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shift_follows_its_formula(shift: float) -> None:
    t = TimeSampler("uniform", shift=shift)(GRID).numpy()
    u = GRID.numpy()
    np.testing.assert_allclose(t, np.clip(shift * u / (1 + (shift - 1) * u), 1e-3, 1 - 1e-3), rtol=1e-12)
    if shift == 1:
        np.testing.assert_allclose(t, np.clip(u, 1e-3, 1 - 1e-3))


def test_shift_multiplies_the_noise_ratio() -> None:
    """What the shift is for: it scales t / (1 - t), the noise ratio of straight lines, by one factor."""
    u = GRID[100:-100]
    t = TimeSampler("uniform", shift=2.5)(u)
    torch.testing.assert_close(t / (1 - t), 2.5 * u / (1 - u))


@given(uniform=st.floats(0, 1, exclude_max=True, width=32), low=st.floats(0.1, 10), factor=st.floats(1, 5))
@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_larger_shifts_mean_later_times_within_the_edges(kind: str, uniform: float, low: float, factor: float) -> None:
    u = torch.tensor([uniform])
    early = TimeSampler(kind, std=3.0, shift=low)(u)
    late = TimeSampler(kind, std=3.0, shift=low * factor)(u)
    assert float(late) >= float(early) - 1e-6
    for t in (early, late):
        assert t.dtype == u.dtype
        assert 0.00099 < float(t) < 0.99901


def test_times_keep_the_order_of_the_numbers() -> None:
    t = TimeSampler("logit_normal", 0.3, 1.0, 2.0)(GRID)
    assert bool((t.diff() > 0).all())


def test_unknown_kind_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown time sampling 'beta': choose one of logit_normal, uniform"):
        TimeSampler("beta")
