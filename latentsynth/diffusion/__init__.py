"""Diffusion as mathematics: noise, denoiser, sampling, guidance. Knows no files, no masks and no volumes.

One contract holds it together: a denoiser returns ``E[x0 | x_t]``. Diffusion and flow matching differ in the schedule
``t -> (alpha, sigma)`` of ``x_t = alpha x0 + sigma noise`` alone; time runs from 0 (data) to 1 (noise).
"""

from latentsynth.diffusion.denoiser import Denoiser, denoising_loss
from latentsynth.diffusion.guidance import autoguided, guided
from latentsynth.diffusion.noise import SCHEDULES, Schedule, schedule_named, target_weight
from latentsynth.diffusion.patches import patchwise
from latentsynth.diffusion.sampling import SAMPLERS, sample, sampler_table
from latentsynth.diffusion.times import TimeSampler

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "Denoiser",
    "Schedule",
    "TimeSampler",
    "autoguided",
    "denoising_loss",
    "guided",
    "patchwise",
    "sample",
    "sampler_table",
    "schedule_named",
    "target_weight",
]
