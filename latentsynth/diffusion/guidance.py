"""Classifier-free guidance (Ho & Salimans 2022) as a wrapper: a guided denoiser is a denoiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``(x_t, t) -> E[x0 | x_t]`` with everything else bound; ``t`` is a scalar tensor."""


def guided(
    conditional: Denoise, unconditional: Denoise, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Denoise:
    """Extrapolates from the unconditional to the conditional posterior mean.

    Args:
        conditional: Denoiser with the condition.
        unconditional: Denoiser without it.
        scale: 1 is the conditional denoiser itself, 0 the unconditional.
        interval: Times within which to guide (Kynkaanniemi et al. 2024); outside, the conditional denoiser.
    """
    if scale == 1:
        return conditional

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        with_condition = conditional(x_t, t)
        if not interval[0] <= float(t) <= interval[1]:
            return with_condition
        without = unconditional(x_t, t)
        return without + scale * (with_condition - without)

    return denoise
