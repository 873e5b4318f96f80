"""Guidance as a wrapper: a guided denoiser is a denoiser.

Away from no condition (classifier-free: Ho & Salimans 2022), or away from a worse version of the model (autoguidance:
Karras et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentsynth.parallel import copies_of_rows
from latentsynth.types import Conditioning

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``(x_t, t) -> E[x0 | x_t]`` with everything else bound; ``t`` is a scalar tensor."""

ConditionedDenoise = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""``(x_t, t, conditioning) -> E[x0 | x_t]``, rows of a batch apart."""


def guided(
    network: ConditionedDenoise,
    wanted: Conditioning,
    nothing: Conditioning,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """Extrapolates from the unconditional to the conditional posterior mean; both in one call of the network.

    Args:
        network: Denoiser with and without a condition.
        wanted: The condition.
        nothing: No condition, for as many rows.
        scale: 1 is the conditional denoiser itself, 0 the unconditional.
        interval: Times within which to guide (Kynkaanniemi et al. 2024); outside, the conditional denoiser.
    """
    both = _joined(wanted, nothing) if scale != 1 else wanted

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        if scale == 1 or not interval[0] <= float(t) <= interval[1]:
            return network(x_t, t, wanted)
        with_condition, without = network(torch.cat([x_t, x_t]), t, both).chunk(2)
        return without + scale * (with_condition - without)

    return denoise


def autoguided(
    network: ConditionedDenoise,
    guide: ConditionedDenoise,
    wanted: Conditioning,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """Extrapolates from the posterior mean of a worse denoiser to that of a better one (Karras et al. 2024, eq. 3).

    Where a model has learnt too little, the worse version errs in the same way and farther. So samples gain in quality, and
    lose no variety as they do away from no condition.

    Args:
        network: The denoiser.
        guide: An earlier or smaller one, of the same latents and conditions.
        wanted: The condition, which both get.
        scale: 1 is the denoiser itself.
        interval: Times within which to guide; outside, the denoiser itself.
    """

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        better = network(x_t, t, wanted)
        if scale == 1 or not interval[0] <= float(t) <= interval[1]:
            return better
        worse = guide(x_t, t, wanted)
        return worse + scale * (better - worse)

    return denoise


def two_rows(network: ConditionedDenoise) -> ConditionedDenoise:
    """The same denoiser, a lone row going in twice where that is faster (:func:`latentsynth.parallel.copies_of_rows`)."""

    def denoise(x_t: Tensor, t: Tensor, given: Conditioning) -> Tensor:
        if copies_of_rows(len(x_t), x_t.device) == 1:
            return network(x_t, t, given)
        return network(torch.cat([x_t, x_t]), t, _joined(given, given))[:1]

    return denoise


def _joined(one: Conditioning, other: Conditioning) -> Conditioning:
    """The rows of both, one after the other."""
    vector = None
    if one.vector is not None and other.vector is not None:
        vector = torch.cat([one.vector, other.vector])
    coarser, residuals = (
        tuple(torch.cat(pair) for pair in zip(ours, theirs, strict=True))
        for ours, theirs in ((one.coarser, other.coarser), (one.residuals, other.residuals))
    )
    return Conditioning(torch.cat([one.spatial, other.spatial]), coarser, vector, residuals)
