"""Samplers against closed forms and against diffusers' own loop."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from helpers import tiny_denoiser
from scipy import special
from torch import Tensor

from latentsynth.diffusion import SAMPLERS, sample, sampler_table, schedule_named
from latentsynth.diffusion.gaussian import gaussian_denoiser as gaussian
from latentsynth.diffusion.sampling import build_scheduler, model_output, sampler_named
from latentsynth.errors import ConfigError, UnknownNameError
from latentsynth.types import Conditioning

PAIRS = [(name, schedule) for name, schedule, _, _ in sampler_table()]
FIRST_ORDER = ("euler", "ddim")
# Quantiles instead of draws: exactly unit variance, and 31.7 % lie outside [-1, 1].
NOISE = torch.tensor(special.ndtri((np.arange(1500) + 0.5) / 1500), dtype=torch.float32).view(-1, 1, 1, 1, 1)


def draw(name: str, schedule: str, steps: int, mean: float, std: float) -> Tensor:
    process = schedule_named(schedule)
    return sample(gaussian(process, mean, std), process, NOISE, name, steps)


def test_every_sampler_serves_every_schedule() -> None:
    assert set(PAIRS) == {(name, schedule) for name in SAMPLERS for schedule in ("rectified", "cosine", "linear")}


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_a_gaussian_comes_out_in_closed_form(name: str, schedule: str) -> None:
    """The exact flow carries noise to mean + std * noise, value by value, not only in distribution."""
    mean, std = 0.4, 0.5
    rough, fine = (float((draw(name, schedule, n, mean, std) - mean - std * NOISE).abs().mean()) for n in (10, 100))
    assert fine < (0.03 if name in FIRST_ORDER else 0.01)
    # What a multistep method is left with at 100 steps is the little data that its start, pure noise, leaves out.
    assert fine < (0.2 * rough if name in FIRST_ORDER else 0.8 * rough)


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_nothing_is_clipped(name: str, schedule: str) -> None:
    made = draw(name, schedule, 100, 0.0, 1.0)
    assert float(made.std()) == pytest.approx(1, abs=0.02)
    assert float((made.abs() > 1).float().mean()) > 0.3


def test_clipping_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above fails for diffusers' default DDIM, which clips every estimate to [-1, 1]."""
    clipping = tuple(replace(s, options={**s.options, "clip_sample": True}) for s in SAMPLERS["ddim"])
    monkeypatch.setitem(SAMPLERS, "ddim", clipping)
    made = draw("ddim", "cosine", 100, 0.0, 1.0)
    assert float(made.std()) < 0.8
    assert float((made.abs() > 1).float().mean()) < 0.3


Level = tuple[float, float]  # coefficients of data and noise


def levels(name: str, schedule: str, steps: int) -> list[Level]:
    """Where the steps begin and end, written apart from the schedulers."""
    if schedule == "rectified" and name != "ddim":
        # diffusers' Heun keeps the last thousandth for its last step
        ends = [*np.linspace(1, 0.001, steps), 0] if name == "heun" else np.linspace(1, 0, steps + 1)
        return [(float(1 - t), float(t)) for t in ends]
    process = schedule_named(schedule)
    times = torch.tensor([round(1000 * (1 - n / steps)) / 1001 for n in range(steps)], dtype=torch.float64)
    ratios = (process.sigma(times) / process.alpha(times)).tolist()
    # Heun works on clean data plus noise, the others at unit variance; to both, it is the ratio that matters.
    return [*((1.0, r) if name == "heun" else (1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratios), (1.0, 0.0)]


def stepped(c: float, here: Level, there: Level, std: float) -> float:
    """The distance from ``a mean`` after one step of first order, along the line that data and noise estimates span."""
    a, s = here
    x0 = a * std**2 / (a**2 * std**2 + s**2) * c
    return there[0] * x0 + there[1] * (c - a * x0) / s


def few_steps(name: str, schedule: str, steps: int, mean: float, std: float) -> tuple[Tensor, float]:
    """What steps of first order, or Heun's, make of Gaussian data, and by what factor the noise is in it."""
    grid, factor = levels(name, schedule, steps), 1.0
    for here, there in itertools.pairwise(grid):
        ahead = stepped(factor, here, there, std)
        if name == "heun" and there[1] > 0:  # half way to where the slope at the end leads in a second step
            beyond = (2 * there[0] - here[0], 2 * there[1] - here[1])
            ahead = (factor + stepped(ahead, there, beyond, std)) / 2
        factor = ahead
    start = math.hypot(*grid[0])  # schedulers begin with pure noise of this deviation, without the little data there
    return mean + factor * (start * NOISE - grid[0][0] * mean), factor * start


# How far diffusers is from the formula: its DDIM steps by whole timesteps, its multistep flows begin just short of 1.
TOLERANCE = {"euler": 5e-4, "heun": 1e-3, "dpmpp_2m": 2e-3, "unipc": 1e-3, "ddim": 4e-3}


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_few_steps_of_a_gaussian_have_a_closed_form(name: str, schedule: str) -> None:
    """One step gives the mean, two are of first order but for Heun; in three, multistep methods take one of second."""
    for steps in (1, 2, 3):
        made = draw(name, schedule, steps, 0.4, 0.5)
        expected, factor = few_steps(name, schedule, steps, 0.4, 0.5)
        if steps == 3 and name in ("dpmpp_2m", "unipc"):  # a little nearer to the true factor, 0.5
            assert float(made.mean()) == pytest.approx(float(expected.mean()), abs=2e-4)
            found = float((made * NOISE).mean() / NOISE.square().mean())
            assert factor + 5e-4 < found < factor + 0.015
        else:
            torch.testing.assert_close(made, expected, atol=TOLERANCE[name], rtol=0, msg=f"{steps} steps")


@pytest.mark.parametrize("steps", [5, 40])
@torch.no_grad()
def test_ddim_is_diffusers_own_loop(steps: int) -> None:
    denoiser = tiny_denoiser("cosine", "v")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 4, 4, 4, generator=generator)
    conditioning = Conditioning(torch.rand(2, 3, 4, 4, 4, generator=generator))
    ours = sample(lambda x, t: denoiser(x, t, conditioning), denoiser.schedule, noise, "ddim", steps)

    t = torch.arange(1, 1001, dtype=torch.float64) / 1001
    kept = denoiser.schedule.alpha(t) ** 2
    theirs = DDIMScheduler(
        num_train_timesteps=1000,
        trained_betas=(1 - kept / torch.cat([torch.ones(1).double(), kept[:-1]])).numpy(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    theirs.set_timesteps(steps)
    y = noise
    for timestep in theirs.timesteps:
        share = float(theirs.alphas_cumprod[timestep])
        angle = math.atan2(math.sqrt(1 - share), math.sqrt(share)) * 2 / math.pi
        v = denoiser.network(torch.cat([y, conditioning.spatial], 1), timesteps=torch.full((2,), 1000 * angle))
        y = theirs.step(v, timestep, y, eta=0.0).prev_sample
    torch.testing.assert_close(ours, y, atol=1e-5, rtol=1e-5)
    assert float((ours - noise).abs().mean()) > 0.1


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_schedulers_get_the_noise_levels_of_the_schedule(name: str) -> None:
    schedule = schedule_named(name)
    engine = build_scheduler(sampler_named("ddim", schedule), schedule, 10)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1001
    torch.testing.assert_close(engine.alphas_cumprod.double(), schedule.alpha(t) ** 2, rtol=1e-3, atol=1e-6)


def test_shift_moves_the_steps_of_straight_lines() -> None:
    schedule = schedule_named("rectified")
    for name in ("euler", "heun", "dpmpp_2m", "unipc"):
        plain, moved = (build_scheduler(sampler_named(name, schedule), schedule, 8, s).sigmas for s in (1.0, 3.0))
        assert len(plain.unique()) >= 8, name
        # diffusers' Heun shifts the ends of its grid twice, which moves its smallest level by 0.006
        torch.testing.assert_close(moved, 3 * plain / (1 + 2 * plain), atol=0.007 if name == "heun" else 1e-5, rtol=0)
    process = gaussian(schedule, 0.4, 0.5)
    for name in ("euler", "heun", "dpmpp_2m", "unipc"):
        made = sample(process, schedule, NOISE, name, 100, shift=3.0)
        assert float((made - 0.4 - 0.5 * NOISE).abs().mean()) < 0.02, name


def test_model_output_restates_the_posterior_mean() -> None:
    x0, noise = torch.randn(2, 1, 2, 2, 2).double(), torch.randn(2, 1, 2, 2, 2).double()
    a, s = math.cos(0.7), math.sin(0.7)
    torch.testing.assert_close(model_output("v", x0, a * x0 + s * noise, a, s), a * noise - s * x0)
    torch.testing.assert_close(model_output("flow", x0, 0.3 * x0 + 0.7 * noise, 0.3, 0.7), noise - x0)
    # In a variance-exploding variable, y = x0 + k noise, v is that of the same point brought to unit variance.
    k = s / a
    torch.testing.assert_close(model_output("v", x0, x0 + k * noise, 1.0, k), a * noise - s * x0)


@pytest.mark.parametrize(("name", "schedule"), PAIRS)
def test_the_same_noise_gives_the_same_sample_and_no_other_chance_enters(name: str, schedule: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(name, schedule, 6, 0.4, 0.5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(name, schedule, 6, 0.4, 0.5), first)


@pytest.mark.parametrize(("name", "schedule", "calls"), [(n, s, c) for n, s, _, c in sampler_table()])
def test_the_table_tells_the_calls_and_progress_counts_them(name: str, schedule: str, calls: int) -> None:
    process = schedule_named(schedule)
    asked, told = [], []
    inner = gaussian(process, 0.0, 1.0)

    def counting(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return inner(x_t, t)

    sample(counting, process, NOISE[:4], name, 8, progress=lambda done, total: told.append((done, total)))
    assert 8 * calls - (calls - 1) <= len(asked) <= 8 * calls  # the last step of a two-call method needs one
    assert told == [(n + 1, len(asked)) for n in range(len(asked))]
    assert all(0 <= t <= 1 for t in asked)
    assert asked[0] == max(asked)


@pytest.mark.parametrize(("name", "schedule"), [("ddim", "rectified"), ("unipc", "cosine"), ("euler", "linear")])
def test_a_shift_that_would_be_ignored_is_refused(name: str, schedule: str) -> None:
    process = schedule_named(schedule)
    with pytest.raises(ConfigError, match=r"takes no shift, found 0\.5"):
        sample(gaussian(process, 0.0, 1.0), process, NOISE[:4], name, 4, shift=0.5)


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UnknownNameError, match="choose one of ddim, dpmpp_2m, euler, heun, unipc"):
        draw("magic", "cosine", 5, 0.0, 1.0)
