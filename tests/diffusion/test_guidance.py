"""Guidance is a straight line through two posterior means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentsynth.diffusion import guided, sample, schedule_named

X, T = torch.linspace(-3, 3, 24).view(2, 1, 3, 2, 2), torch.tensor(0.4)


def gaussian(mean: float):  # type: ignore[no-untyped-def]
    """Exact denoiser of N(mean, 1) under the rectified schedule."""

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, s = 1 - t, t
        return mean + a / (a**2 + s**2) * (x_t - a * mean)

    return denoise


def refuse(x_t: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the unconditional denoiser was called")


def test_scale_one_is_the_conditional_itself() -> None:
    conditional = gaussian(1.0)
    assert guided(conditional, refuse, 1.0) is conditional
    assert guided(conditional, refuse, 1) is conditional


def test_scale_zero_is_the_unconditional() -> None:
    torch.testing.assert_close(guided(gaussian(1.0), gaussian(-0.5), 0.0)(X, T), gaussian(-0.5)(X, T))


def test_linear_in_scale() -> None:
    at = {scale: guided(gaussian(1.0), gaussian(-0.5), scale)(X, T) for scale in (0.5, 2.0, 5.0)}
    slope = gaussian(1.0)(X, T) - gaussian(-0.5)(X, T)
    for scale, value in at.items():
        torch.testing.assert_close(value, gaussian(-0.5)(X, T) + scale * slope)
    assert float((at[5.0] - at[2.0]).abs().min()) > 0.1


@pytest.mark.parametrize(("t", "guides"), [(0.1, False), (0.3, True), (0.5, True), (0.7, True), (0.9, False)])
def test_interval_bounds_where_it_acts(t: float, guides: bool) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    value = guided(gaussian(1.0), gaussian(-0.5), 3.0, (0.3, 0.7))(X.double(), time)
    plain = gaussian(1.0)(X.double(), time)
    assert bool(torch.allclose(value, plain)) is not guides
    if not guides:  # no call is wasted either
        guided(gaussian(1.0), refuse, 3.0, (0.3, 0.7))(X.double(), time)


def test_guiding_two_gaussians_is_a_third() -> None:
    """With equal spread, extrapolating the posterior means is the posterior mean about the extrapolated centre."""
    noise = torch.randn(64, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    scale, centres = 2.5, (1.0, -0.5)
    steered = guided(gaussian(centres[0]), gaussian(centres[1]), scale)
    made = sample(steered, schedule_named("rectified"), noise, "heun", 40)
    torch.testing.assert_close(made, centres[1] + scale * (centres[0] - centres[1]) + noise, atol=5e-3, rtol=0)
