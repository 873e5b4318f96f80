"""Sampling with diffusers' schedulers, by name, for every noise schedule.

A scheduler keeps its own variable, ``y = a x0 + s noise``, and asks for its own kind of model output. A denoiser knows
``x_t`` of its own schedule and returns ``E[x0 | x_t]``. Between the two stands one rule: at equal ``s / a`` the two
variables are the same up to a factor. So any scheduler serves any schedule, and the closed-form tests prove it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from latentsynth.diffusion.guidance import Denoise
from latentsynth.diffusion.noise import SCHEDULES, Schedule
from latentsynth.diffusion.times import EDGE
from latentsynth.errors import ConfigError, UnknownNameError

_STEPS = 1000  # training steps that the schedulers discretise a schedule into

# Where the scheduler stands, given itself, the step and the timestep: coefficients (a, s) of its variable.
Coordinates = Callable[[Any, int, Tensor], tuple[float, float]]


def _by_line(scheduler: Any, step: int, timestep: Tensor) -> tuple[float, float]:
    sigma = float(timestep) / _STEPS  # flow-matching schedulers: timestep = 1000 sigma
    return 1 - sigma, sigma


def _by_flow_sigma(scheduler: Any, step: int, timestep: Tensor) -> tuple[float, float]:
    sigma = float(scheduler.sigmas[step])  # multistep flow modes round their timesteps, not their sigmas
    return 1 - sigma, sigma


def _by_alphas(scheduler: Any, step: int, timestep: Tensor) -> tuple[float, float]:
    a2 = float(scheduler.alphas_cumprod[int(timestep)])
    return a2**0.5, (1 - a2) ** 0.5


def _by_noise_level(scheduler: Any, step: int, timestep: Tensor) -> tuple[float, float]:
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy()
    return 1.0, float(np.interp(float(timestep), np.arange(_STEPS), levels))  # variance-exploding variable


@dataclass(frozen=True)
class Sampler:
    """One scheduler of diffusers and how it is to be called.

    Attributes:
        scheduler: Class name in diffusers.
        options: Its constructor's arguments beside the noise schedule.
        coordinates: Where its variable stands.
        output: The model output it is given: ``"v"`` or ``"flow"``.
        flow: Whether it keeps straight-line variables itself.
        calls: Denoiser calls per step.
    """

    scheduler: str
    options: dict[str, Any]
    coordinates: Coordinates
    output: str
    flow: bool
    calls: int = 1


_VP = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

# name -> (for straight-line schedules, for variance-preserving schedules)
SAMPLERS: dict[str, tuple[Sampler, Sampler]] = {
    "euler": (
        Sampler("FlowMatchEulerDiscreteScheduler", {}, _by_line, "flow", True),
        Sampler("EulerDiscreteScheduler", _VP, _by_noise_level, "v", False),
    ),
    "heun": (
        Sampler("FlowMatchHeunDiscreteScheduler", {}, _by_line, "flow", True, calls=2),
        Sampler("HeunDiscreteScheduler", _VP, _by_noise_level, "v", False, calls=2),
    ),
    "dpmpp_2m": (
        Sampler("DPMSolverMultistepScheduler", _FLOW, _by_flow_sigma, "flow", True),
        Sampler("DPMSolverMultistepScheduler", _VP, _by_alphas, "v", False),
    ),
    "unipc": (
        Sampler("UniPCMultistepScheduler", _FLOW, _by_flow_sigma, "flow", True),
        Sampler("UniPCMultistepScheduler", _VP, _by_alphas, "v", False),
    ),
    "ddim": (
        # DDIM has no flow mode: a straight-line model is served through the VP variable of equal noise ratio.
        Sampler("DDIMScheduler", {**_VP, "clip_sample": False}, _by_alphas, "v", False),
        Sampler("DDIMScheduler", {**_VP, "clip_sample": False}, _by_alphas, "v", False),
    ),
}


def sampler_named(name: str, schedule: Schedule) -> Sampler:
    """The sampler that serves a schedule.

    Raises:
        UnknownNameError: There is no such sampler.
    """
    if name not in SAMPLERS:
        raise UnknownNameError("scheduler", name, SAMPLERS)
    return SAMPLERS[name][0 if schedule.flow else 1]


def sampler_table() -> list[tuple[str, str, str, int]]:
    """Rows (name, schedule, class in diffusers, denoiser calls per step) for every pair on offer."""
    return [
        (name, schedule, sampler.scheduler, sampler.calls)
        for name in SAMPLERS
        for schedule, kind in SCHEDULES.items()
        for sampler in [sampler_named(name, kind())]
    ]


def build_scheduler(sampler: Sampler, schedule: Schedule, steps: int, shift: float | None = None) -> Any:
    """A diffusers scheduler with its timesteps set.

    Args:
        sampler: Which one.
        schedule: Its noise levels; schedulers that keep straight lines know theirs.
        steps: Sampling steps.
        shift: Time shift, for schedulers that keep straight lines; None leaves their steps where they are.

    Raises:
        ConfigError: A shift for a scheduler that would ignore it.
    """
    if shift is not None and not sampler.flow:
        raise ConfigError(f"{sampler.scheduler} takes no shift, found {shift:g}: leave it out")
    kind = getattr(diffusers, sampler.scheduler)
    options = dict(sampler.options)
    if sampler.flow:
        options["flow_shift" if "use_flow_sigmas" in options else "shift"] = 1.0 if shift is None else shift
    else:
        t = torch.arange(1, _STEPS + 1, dtype=torch.float64) / (_STEPS + 1)
        a2 = 1 / (1 + (schedule.sigma(t) / schedule.alpha(t)) ** 2)
        options["trained_betas"] = (1 - a2 / torch.cat([torch.ones(1, dtype=a2.dtype), a2[:-1]])).numpy()
    scheduler = kind(num_train_timesteps=_STEPS, **options)
    if sampler.scheduler == "FlowMatchEulerDiscreteScheduler":
        # Its own grid stops at 1/1000 before the last step; equal steps down to 0 are what Euler means.
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def model_output(kind: str, x0: Tensor, y: Tensor, a: float, s: float) -> Tensor:
    """The posterior mean as the output that a scheduler asks for.

    Args:
        kind: ``"v"`` (``a noise - s x0`` in the variance-preserving variable) or ``"flow"`` (``noise - x0``).
        x0: Posterior mean, ``(B, *)``.
        y: The scheduler's variable ``a x0 + s noise``, ``(B, *)``.
        a: Coefficient of the data.
        s: Coefficient of the noise.
    """
    noise = (y - a * x0) / s
    if kind == "flow":
        return noise - x0
    norm = (a**2 + s**2) ** 0.5
    return (a * noise - s * x0) / norm


@torch.no_grad()
def sample(
    denoise: Denoise,
    schedule: Schedule,
    noise: Tensor,
    scheduler: str = "euler",
    steps: int = 30,
    shift: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draws from the model: integrates from noise to data. Deterministic given ``noise``.

    Args:
        denoise: ``(x_t, t) -> E[x0 | x_t]``.
        schedule: The denoiser's schedule.
        noise: Standard normal, ``(B, *)``.
        scheduler: A name from :data:`SAMPLERS`.
        steps: Sampling steps.
        shift: Time shift of the sampling grid, ``t -> shift t / (1 + (shift - 1) t)`` (Esser et al. 2024, eq. 23), for
            samplers that keep straight lines. Below 1 it spends more steps near the data.
        progress: Called with (calls done, calls in all).

    Returns:
        Samples, shaped like ``noise``. Nothing is clipped: latents are not bounded.

    Raises:
        ConfigError: No such scheduler, or a shift for one that takes none.
    """
    sampler = sampler_named(scheduler, schedule)
    engine = build_scheduler(sampler, schedule, steps, shift)
    y = noise * float(getattr(engine, "init_noise_sigma", 1.0))
    timesteps, arguments = engine.timesteps, _arguments(engine)
    for step, timestep in enumerate(timesteps):
        a, s = sampler.coordinates(engine, step, timestep)
        # Short of t = 1, which no model is trained at and where some posterior means are 0 / 0.
        t = schedule.time(torch.tensor(s / max(a, 1e-9), dtype=torch.float64)).clamp(max=1 - EDGE / 2).to(noise)
        own = float(schedule.alpha(t.double())), float(schedule.sigma(t.double()))
        # At equal noise ratio the variables differ by one factor; taken from the larger coefficient it is stable.
        factor = own[0] / a if a > s else own[1] / s
        x0 = denoise(y * factor, t)
        if hasattr(engine, "scale_model_input"):
            engine.scale_model_input(y, timestep)  # some schedulers check that it was called; scaling is ours
        output = model_output(sampler.output, x0, y, a, s)
        y = engine.step(output, timestep, y, **arguments).prev_sample
        if progress:
            progress(step + 1, len(timesteps))
    return y


def _arguments(engine: Any) -> dict[str, Any]:
    """DDIM's eta, which other schedulers do not have: 0 draws no fresh noise."""
    return {"eta": 0.0} if "eta" in inspect.signature(engine.step).parameters else {}
