"""Guidance is a straight line through two posterior means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentsynth.diffusion import autoguided, guided, sample, schedule_named
from latentsynth.diffusion.guidance import two_rows
from latentsynth.types import Conditioning

X, T = torch.linspace(-3, 3, 24).view(2, 1, 3, 2, 2), torch.tensor(0.4)


def centred(mean: float, rows: int = 2) -> Conditioning:
    """A condition that names the centre of a Gaussian."""
    return Conditioning(torch.full((rows, 1, 1, 1, 1), mean))


def posterior_mean(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    """Exact denoiser of N(centre, 1) under the rectified schedule."""
    a, s = 1 - t, t
    return given.spatial + a / (a**2 + s**2) * (x_t - a * given.spatial)


ONE, OTHER = centred(1.0), centred(-0.5)


def test_scale_one_is_the_conditional_itself() -> None:
    calls: list[Conditioning] = []

    def network(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        calls.append(given)
        return posterior_mean(x_t, t, given)

    assert torch.equal(guided(network, ONE, OTHER, 1.0)(X, T), posterior_mean(X, T, ONE))
    assert [len(given.spatial) for given in calls] == [2]  # nothing is computed without the condition
    assert (calls[0].spatial == 1).all()


def test_scale_zero_is_the_unconditional() -> None:
    torch.testing.assert_close(guided(posterior_mean, ONE, OTHER, 0.0)(X, T), posterior_mean(X, T, OTHER))


def test_linear_in_scale() -> None:
    at = {scale: guided(posterior_mean, ONE, OTHER, scale)(X, T) for scale in (0.5, 2.0, 5.0)}
    slope = posterior_mean(X, T, ONE) - posterior_mean(X, T, OTHER)
    for scale, value in at.items():
        torch.testing.assert_close(value, posterior_mean(X, T, OTHER) + scale * slope)
    assert float((at[5.0] - at[2.0]).abs().min()) > 0.1


@pytest.mark.parametrize(("t", "guides"), [(0.1, False), (0.3, True), (0.5, True), (0.7, True), (0.9, False)])
def test_interval_bounds_where_it_acts(t: float, guides: bool) -> None:
    time, rows = torch.tensor(t, dtype=torch.float64), []

    def network(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        rows.append(len(x_t))
        return posterior_mean(x_t, t, given)

    value = guided(network, ONE, OTHER, 3.0, (0.3, 0.7))(X.double(), time)
    assert bool(torch.allclose(value, posterior_mean(X.double(), time, ONE))) is not guides
    assert rows == [4 if guides else 2]  # both halves in one call, and none is wasted


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_lone_row_is_what_it_is_among_others(scale: float) -> None:
    rows = []

    def network(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        rows.append(len(x_t))
        return posterior_mean(x_t, t, given)

    alone = guided(two_rows(network), centred(1.0, 1), centred(-0.5, 1), scale)(X[:1], T)
    assert torch.equal(alone, guided(posterior_mean, ONE, OTHER, scale)(X, T)[:1])
    assert rows == [2]  # never one, which torch is slow on


def test_guiding_two_gaussians_is_a_third() -> None:
    """With equal spread, extrapolating the posterior means is the posterior mean about the extrapolated centre."""
    noise = torch.randn(64, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    scale = 2.5
    steered = guided(posterior_mean, centred(1.0, 64), centred(-0.5, 64), scale)
    made = sample(steered, schedule_named("rectified"), noise, "heun", 40)
    torch.testing.assert_close(made, -0.5 + scale * 1.5 + noise, atol=5e-3, rtol=0)


def test_autoguidance_goes_on_from_the_worse_denoiser_through_the_better_one() -> None:
    def worse(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        return posterior_mean(x_t, t, given) - 0.3

    better = posterior_mean(X, T, ONE)
    for scale in (0.0, 1.0, 2.5):
        made = autoguided(posterior_mean, worse, ONE, scale)(X, T)
        torch.testing.assert_close(made, better + 0.3 * (scale - 1))
    torch.testing.assert_close(autoguided(posterior_mean, posterior_mean, ONE, 4.0)(X, T), better)  # its own equal
    torch.testing.assert_close(
        autoguided(posterior_mean, worse, ONE, 4.0, (0.9, 1.0))(X, T * 0 + 0.5), posterior_mean(X, T * 0 + 0.5, ONE)
    )
