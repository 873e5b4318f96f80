"""Which times a diffusion model trains at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentsynth.errors import UnknownNameError

EDGE = 1e-3  # times stay this far from 0 and 1, where weights or posterior means are singular


@dataclass(frozen=True)
class TimeSampler:
    """Maps uniform numbers to training times, so that randomness stays with the caller.

    Attributes:
        kind: ``"uniform"``, or ``"logit_normal"`` (Esser et al. 2024, eq. 19), which favours the middle.
        mean: Mean of logit(t).
        std: Deviation of logit(t).
        shift: Moves times towards noise for larger latents, ``t -> shift t / (1 + (shift - 1) t)`` (ibid., eq. 23):
            averaging over more cells makes the same noise level less destructive.
    """

    kind: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "logit_normal"):
            raise UnknownNameError("time sampling", self.kind, ("uniform", "logit_normal"))

    def __call__(self, uniform: Tensor) -> Tensor:
        """Times in (0, 1), shape ``(B,)``, for uniform numbers in [0, 1)."""
        t = uniform
        if self.kind == "logit_normal":
            normal = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6))
            t = torch.sigmoid(self.mean + self.std * normal).to(uniform.dtype)
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return t.clamp(EDGE, 1 - EDGE)


def automatic_shift(cells: int) -> float:
    """The cube root of latent cells over 32^3, at least 1 and at most 3.

    Information per cell falls as cells grow in number, and with it what a noise level destroys; MONAI's
    ``RFlowScheduler`` grows its shift by the same root. More than 3 leaves too few levels where fine detail is decided.
    """
    return min(max(1.0, (cells / 32**3) ** (1 / 3)), 3.0)
