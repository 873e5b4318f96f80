"""The one case that is solved exactly: Gaussian data. What a sampler loses there, it loses of any detail of that size."""

from __future__ import annotations

import torch
from torch import Tensor

from latentsynth.diffusion.guidance import Denoise
from latentsynth.diffusion.noise import Schedule
from latentsynth.diffusion.sampling import sample

_DRAWS = 1501


def gaussian_denoiser(schedule: Schedule, mean: float, std: float) -> Denoise:
    """``E[x0 | x_t]`` of data ``N(mean, std^2)``, in closed form.

    With ``x_t = alpha x0 + sigma noise``: ``mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (x_t - alpha mean)``.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        a, s = float(schedule.alpha(t.double())), float(schedule.sigma(t.double()))
        return mean + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * mean)

    return denoise


def deviation_kept(schedule: Schedule, scheduler: str, steps: int, std: float, shift: float | None = None) -> float:
    """Deviation of samples over the true one, with an exact denoiser: 1 is right, less loses detail of that size.

    Latents have deviation 1; a component of deviation 0.1 is a detail that holds a hundredth of their variance.

    Args:
        schedule: Noise schedule.
        scheduler: A name from :data:`latentsynth.diffusion.SAMPLERS`.
        steps: Sampling steps.
        std: Deviation of the data.
        shift: Time shift of the sampling grid, or None.
    """
    # Quantiles instead of draws: no chance enters.
    noise = torch.special.ndtri((torch.arange(_DRAWS, dtype=torch.float64) + 0.5) / _DRAWS).float().view(-1, 1)
    made = sample(gaussian_denoiser(schedule, 0.0, std), schedule, noise, scheduler, steps, shift)
    return float(made.std() / noise.std()) / std
