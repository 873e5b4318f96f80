"""Noise schedules: their ends, their order, their inverse, and the weights that go with each training target."""

from __future__ import annotations

import math
from types import MethodType

import numpy as np
import pytest
import torch
from helpers import tiny_denoiser
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import Tensor

from latentsynth.diffusion import SCHEDULES, Denoiser, denoising_loss, schedule_named, target_weight
from latentsynth.errors import ConfigError, UnknownNameError
from latentsynth.types import Conditioning

PREDICTIONS = ("v", "epsilon", "x0")


def grid(count: int = 1001) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_from_data_to_noise(name: str) -> None:
    schedule = schedule_named(name)
    t = grid()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert alpha[0] == pytest.approx(1, abs=1e-4)
    assert sigma[0] == pytest.approx(0, abs=0.01)
    assert alpha[-1] == pytest.approx(0, abs=0.01)
    assert sigma[-1] == pytest.approx(1, abs=1e-4)
    assert bool((alpha.diff() < 0).all())
    assert bool((sigma.diff() > 0).all())


@pytest.mark.parametrize("name", SCHEDULES)
@given(t=st.floats(1e-4, 1 - 1e-4))
def test_time_inverts_the_noise_ratio(name: str, t: float) -> None:
    schedule = schedule_named(name)
    time = torch.tensor(t, dtype=torch.float64)
    back = schedule.time(schedule.sigma(time) / schedule.alpha(time))
    assert float(back) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_orders_any_noise_ratio(name: str) -> None:
    ratio = torch.logspace(-2, 2, 200, dtype=torch.float64)
    t = schedule_named(name).time(ratio)
    assert bool((t.diff() > 0).all())
    schedule = schedule_named(name)
    torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), ratio, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_variance_is_preserved(name: str) -> None:
    schedule = schedule_named(name)
    t = grid()
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), atol=1e-12, rtol=0)
    assert not schedule.flow


def test_rectified_flow_is_a_straight_line() -> None:
    schedule = schedule_named("rectified")
    x0, noise = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    quarter = schedule.noisy(x0, torch.tensor([0.25, 0.25]).double(), noise)
    torch.testing.assert_close(quarter, x0 + 0.25 * (noise - x0))
    assert schedule.flow


def test_noisy_mixes_each_case_by_its_own_time() -> None:
    schedule = schedule_named("cosine")
    x0, noise = torch.randn(2, 1, 2, 2, 2).double(), torch.randn(2, 1, 2, 2, 2).double()
    mixed = schedule.noisy(x0, torch.tensor([0.1, 0.8]).double(), noise)
    for case, t in enumerate((0.1, 0.8)):
        angle = 0.008 + (math.pi / 2 - 0.016) * t
        torch.testing.assert_close(mixed[case], math.cos(angle) * x0[case] + math.sin(angle) * noise[case])


@pytest.mark.parametrize("t", [0.01, 0.3, 0.77, 1.0])
def test_linear_schedule_is_the_integral_of_beta(t: float) -> None:
    area, _ = integrate.quad(lambda s: 0.1 + (20.0 - 0.1) * s, 0, t)
    schedule = schedule_named("linear")
    assert float(schedule.alpha(torch.tensor(t, dtype=torch.float64))) == pytest.approx(math.exp(-area / 2))
    # Where little noise was added yet, 1 - alpha^2 would lose all its digits.
    tiny = torch.tensor(1e-12, dtype=torch.float64)
    assert float(schedule.sigma(tiny)) == pytest.approx(math.sqrt(0.1 * 1e-12), rel=1e-6)


def stubbed(schedule: str, prediction: str, answer: Tensor) -> Denoiser:
    """A denoiser whose network answers what it is told to."""
    denoiser = tiny_denoiser(schedule, prediction)

    def forward(self: torch.nn.Module, x: Tensor, timesteps: Tensor) -> Tensor:
        return answer

    denoiser.network.forward = MethodType(forward, denoiser.network)
    return denoiser.double()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_weighted_loss_is_the_plain_error_of_the_target(name: str, prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise, answer = (torch.randn(5, 4, 2, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    schedule = schedule_named(name)
    a, s = (c.view(-1, 1, 1, 1, 1) for c in (schedule.alpha(t), schedule.sigma(t)))
    norm = (a**2 + s**2).sqrt()
    target = {"v": (a * noise - s * x0) / norm, "epsilon": noise, "x0": x0}[prediction]

    denoiser = stubbed(name, prediction, answer.float().double())
    weight = target_weight(prediction, schedule, t)
    loss = denoising_loss(denoiser, x0, Conditioning(torch.zeros(5, 3, 2, 2, 2)), schedule, t, noise, weight)
    expected = ((answer.float() - target) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-6)


def test_cell_weight_shifts_the_loss_without_scaling_it() -> None:
    x0 = torch.zeros(2, 4, 2, 2, 2).double()
    answer = torch.zeros(2, 4, 2, 2, 2).double()
    answer[:, :, 0, 0, 0] = 1  # wrong in one cell of eight
    denoiser = stubbed("rectified", "x0", answer)
    schedule, t = schedule_named("rectified"), torch.full((2,), 0.5).double()
    spatial = Conditioning(torch.zeros(2, 3, 2, 2, 2))
    one = torch.ones(2).double()
    heavy = torch.ones(2, 1, 2, 2, 2).double()
    heavy[0, :, 0, 0, 0] = 5
    heavy[1] = 5  # equal weights everywhere are no weights
    loss = denoising_loss(denoiser, x0, spatial, schedule, t, x0, one, heavy)
    np.testing.assert_allclose(loss.numpy(), [5 / 12, 1 / 8], rtol=1e-6)


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown schedule 'sine': choose one of cosine, linear, rectified"):
        schedule_named("sine")
    with pytest.raises(ConfigError, match=r"unknown prediction 'score': choose one of epsilon, v, x0"):
        target_weight("score", schedule_named("cosine"), torch.ones(1))
