"""Noise schedules ``t -> (alpha, sigma)`` with ``x_t = alpha x0 + sigma noise``, t from 0 (data) to 1 (noise)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from latentsynth.errors import UnknownNameError


class Schedule(ABC):
    """How signal and noise mix over time. Everything else follows from the two coefficients."""

    flow: bool = False  # whether x_t is a straight line from data to noise, which flow samplers need

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data at times ``t`` (any shape)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise at times ``t``."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The time at which ``sigma / alpha`` equals ``ratio``: the inverse of the schedule."""

    def noisy(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """``x_t`` for data ``(B, *)``, times ``(B,)`` and standard normal noise ``(B, *)``."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise


class RectifiedFlow(Schedule):
    """Straight paths (Liu et al. 2023; Lipman et al. 2023): ``alpha = 1 - t``, ``sigma = t``."""

    flow = True

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)


class CosineVP(Schedule):
    """Variance preserving, ``alpha = cos(angle)`` with the angle linear in t (Nichol & Dhariwal 2021; Salimans & Ho 2022).

    The angle stops short of 0 and pi/2, where the signal-to-noise ratio would be infinite or nothing.
    """

    start, stop = 0.008, math.pi / 2 - 0.008

    def _angle(self, t: Tensor) -> Tensor:
        return self.start + (self.stop - self.start) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._angle(t))

    def time(self, ratio: Tensor) -> Tensor:
        return (torch.atan(ratio) - self.start) / (self.stop - self.start)


class LinearVP(Schedule):
    """Variance preserving with beta linear in t (Ho et al. 2020; in continuous time Song et al. 2021, eq. 33).

    ``log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2`` with b0 = 0.1, b1 = 20.
    """

    first, last = 0.1, 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(t**2) * (self.last - self.first) / 4 - t * self.first / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def time(self, ratio: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.log1p(ratio**2)
        slope = self.last - self.first
        # The stable root of slope/4 t^2 + first/2 t + log_alpha = 0.
        root = torch.sqrt(self.first**2 / 4 - slope * log_alpha)
        return -2 * log_alpha / (self.first / 2 + root)


SCHEDULES: dict[str, type[Schedule]] = {"rectified": RectifiedFlow, "cosine": CosineVP, "linear": LinearVP}


def schedule_named(name: str) -> Schedule:
    """A schedule by name.

    Raises:
        UnknownNameError: There is no such schedule.
    """
    if name not in SCHEDULES:
        raise UnknownNameError("schedule", name, SCHEDULES)
    return SCHEDULES[name]()


def target_weight(prediction: str, schedule: Schedule, t: Tensor) -> Tensor:
    """Weight on ``|x0 - E[x0|x_t]|^2`` under which the raw network is trained on its own target with weight 1.

    Args:
        prediction: ``"v"`` (Salimans & Ho 2022), ``"epsilon"`` (Ho et al. 2020) or ``"x0"``.
        schedule: The noise schedule.
        t: Times, ``(B,)``.
    """
    a, s = schedule.alpha(t), schedule.sigma(t)
    if prediction == "v":
        return (a**2 + s**2) / s**2
    if prediction == "epsilon":
        return a**2 / s**2
    if prediction == "x0":
        return torch.ones_like(t)
    raise UnknownNameError("prediction", prediction, ("v", "epsilon", "x0"))


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """Coefficients ``()`` or ``(B,)`` shaped to multiply ``(B, *)``."""
    return coefficient.reshape(-1, *([1] * (like.ndim - 1)))
