"""Adaptive discriminator augmentation for small cohorts (Karras et al. 2020, "Training generative adversarial networks
with limited data", arXiv 2006.06676).

A discriminator that sees a few dozen scans learns them by heart. Here everything that it sees, real and generated
alike, is moved and shaded at random. No transformation leaks into what the generator learns as long as each is left
out with some probability (ibid., sec. 2.2 and app. C), so the probability follows how far the discriminator overfits.

Where this departs from the paper, volumes are the reason: rotations are small, around one axis, and take the place of
the pair before and after the stretch; resampling is linear instead of by wavelets; colours, filters and cutouts are
left out, since intensities are those of scans and masks have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from latentsynth.randomness import Draws

SHIFT = 1 / 8  # largest translation, of the size of the axis (ibid., app. B)
SCALE = 0.2 * math.log(2)  # standard deviation of log scales, both kinds (ibid.)
ANGLE = math.pi / 8  # largest rotation; the paper turns full circles, but scans all lie the same way
BRIGHTNESS = 0.2  # standard deviation of what is added (ibid.)
CONTRAST = 0.5 * math.log(2)  # standard deviation of log factors (ibid.)

_LINEAR, _REFLECTION = 0, 2  # ATen's numbers of the interpolation and the padding


def augment(images: Tensor, draws: Draws, probability: float, intensity_channels: int | None = None) -> Tensor:
    """Moves and shades each case at random (Karras et al. 2020, sec. 2.2, app. B), differentiable in the images.

    What has to stay aligned, such as image and mask, goes in as channels of one tensor: all channels move together.

    Args:
        images: ``(B, C, *shape)``, two or three axes, intensities in [-1, 1]; results may leave that range, because
            cutting them off could not be undone and would leak.
        draws: All randomness, one row per case. How many numbers it gives depends on the number of axes alone.
        probability: Of each transformation, per case, 0 to 1. At 0 the images come back themselves.
        intensity_channels: How many channels, from the first, are intensities; masks behind them keep their values.
            All, unless given.

    Returns:
        ``(B, C, *shape)``.
    """
    if len(draws) != len(images):
        raise ValueError(f"{len(images)} cases need as many rows of draws, not {len(draws)}")
    matrices = geometry(draws, images.shape[2:], probability)
    brightness, contrast = shades(draws, probability)
    if probability == 0:
        return images
    moved = warp(images, matrices)
    count = images.shape[1] if intensity_channels is None else intensity_channels
    ones = [1] * (images.ndim - 1)
    shaded = (moved[:, :count] + brightness.to(moved).view(-1, *ones)) * contrast.to(moved).view(-1, *ones)
    return torch.cat([shaded, moved[:, count:]], 1)


def geometry(draws: Draws, shape: Sequence[int], probability: float) -> Tensor:
    """One random affine map per case, from places in the result to places in the image (ibid., app. B).

    Composed of, each with the given probability: a mirror or none at even chances (per axis; always mirroring would
    leak, since images that are mirrored as often as not look the same either way round), a scaling, a rotation (around
    a random axis in 3D), a stretch that keeps the volume, and a translation by whole voxels, which blurs nothing.

    Args:
        draws: One row per case.
        shape: The grid, two or three axes.
        probability: Of each, 0 to 1.

    Returns:
        ``(B, d, d + 1)`` matrices in voxels from the centre of the grid, axes in the order of the array.
    """
    dims = len(shape)
    chances = draws.uniform(dims + 4)
    amounts = draws.uniform(dims + 1) * 2 - 1
    normals = draws.normal(dims + 1)
    axis = draws.normal(3)
    scaled, turned, stretched, shifted = (chances[:, dims:] < probability).float().unbind(1)
    mirror = 1 - 2 * (chances[:, :dims] < probability / 2).float()
    # Centred logs keep the volume; the factor restores their spread, so that two axes get (s, 1/s) as in the paper.
    stretch = (normals[:, 1:] - normals[:, 1:].mean(1, keepdim=True)) * math.sqrt(dims / (dims - 1))
    scale = torch.exp(SCALE * normals[:, :1] * scaled[:, None])
    stretch = torch.exp(SCALE * stretch * stretched[:, None])
    rotation = _rotations(axis, ANGLE * amounts[:, dims] * turned, dims)
    size = torch.tensor(shape, device=amounts.device)
    shift = (amounts[:, :dims] * SHIFT * size).round() * shifted[:, None]
    linear = (mirror * scale)[:, :, None] * rotation * stretch[:, None]
    return torch.cat([linear, shift[:, :, None]], 2)


def _rotations(axis: Tensor, angle: Tensor, dims: int) -> Tensor:
    """Rotation matrices ``(B, d, d)`` by Rodrigues' formula, in 2D within the plane, whatever the axis ``(B, 3)``."""
    x, y, z = functional.normalize(axis, dim=1).unbind(1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = [[zero, -one], [one, zero]] if dims == 2 else [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    cross = torch.stack([torch.stack(row, 1) for row in rows], 1)
    # Squares by sums, not by matmul, which mixed precision and TF32 would round.
    square = (cross[:, :, :, None] * cross[:, None]).sum(2)
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    return torch.eye(dims, device=angle.device) + sine * cross + (1 - cosine) * square


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resamples each case by its affine map: linear, mirrored beyond the edges, identities bit for bit.

    Differentiable in the images to any order; not in the matrices.

    Args:
        images: ``(B, C, *shape)``.
        matrices: ``(B, d, d + 1)``, as from :func:`geometry`.

    Returns:
        ``(B, C, *shape)`` in the type of the images, worked out in float32 or better: half precision cannot tell
        neighbouring voxels apart.
    """
    dims = images.ndim - 2
    with torch.autocast(images.device.type, enabled=False):
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        matrices = matrices.to(x)
        # The sampler wants axes from last to first, in units of half the size of each: what is rigid here is not there.
        half = torch.tensor(images.shape[2:], device=x.device).to(x) / 2
        linear = matrices[:, :, :dims] * half / half[:, None]
        theta = torch.cat([linear.flip(1, 2), (matrices[:, :, dims:] / half[:, None]).flip(1)], 2)
        sampled = _Gather.apply(x, functional.affine_grid(theta, list(x.shape), align_corners=False))
        identity = (matrices == torch.eye(dims, dims + 1, device=x.device)).flatten(1).all(1)
        # The grid is only as good as its last bit, so cases that do not move are taken from the images themselves.
        return torch.where(identity.view(-1, *[1] * (dims + 1)), x, sampled).to(images.dtype)


def shades(draws: Draws, probability: float) -> tuple[Tensor, Tensor]:
    """What to add to the intensities of each case, and by what to multiply them then (ibid., app. B).

    Args:
        draws: One row per case.
        probability: Of each of the two, 0 to 1.

    Returns:
        Brightness in units of the intensities and contrast as a factor, ``(B,)`` each: 0 and 1 where left out.
    """
    chosen = (draws.uniform(2) < probability).float()
    brightness, log_contrast = (draws.normal(2) * chosen).unbind(1)
    return brightness * BRIGHTNESS, torch.exp(log_contrast * CONTRAST)


class _Gather(torch.autograd.Function):
    """``grid_sample``, linear in the image, so its gradient is :class:`_Scatter` and the gradient of that is this.

    The gradient penalty differentiates through the resampling twice. Not every supported torch has the derivative of
    ``grid_sample``'s backward pass; these two need none (the way of Karras et al. 2020, code).
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        sampler = torch.grid_sampler_2d if images.ndim == 4 else torch.grid_sampler_3d
        return sampler(images, grid, _LINEAR, _REFLECTION, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grads[0], ctx.saved_tensors[0], ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The transpose of :class:`_Gather`: puts what was gathered back where it came from."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        aten = torch.ops.aten
        spread = aten.grid_sampler_2d_backward if len(shape) == 4 else aten.grid_sampler_3d_backward
        images = grad.new_zeros(()).expand(shape)  # only the shape counts: values would matter to the grid's gradient
        return spread(grad, images, grid, _LINEAR, _REFLECTION, False, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grads[0], ctx.saved_tensors[0]), None, None


def adaptive_state(probability: float = 0.0) -> dict[str, Any]:
    """What :func:`adapt` starts from: plain numbers, for a checkpoint to keep."""
    return {"probability": probability, "signs_sum": 0.0, "signs_count": 0, "updates": 0}


def adapt(
    state: dict[str, Any], signs: Tensor, target: float, ramp_images: int, interval: int = 4, limit: float = 0.8
) -> float:
    """Raises the probability while the discriminator overfits, lowers it while it does not (ibid., sec. 3, eq. 1).

    The measure is r_t = E[sign(D(real))]: 0 where reals cannot be told from fakes, 1 where every real is known.

    Args:
        state: As from :func:`adaptive_state`, changed in place.
        signs: Signs of the logits of this update's reals as the discriminator saw them, from all processes, cases
            first, ``(B,)`` or ``(B, ...)`` where it judges patches.
        target: Of r_t; the paper found 0.6.
        ramp_images: Reals within which the probability can go from 0 to 1; the paper took 500,000.
        interval: Updates between two changes.
        limit: Of the probability; beyond about 0.8 augmentations begin to leak (ibid., sec. 2.2).

    Returns:
        The probability from now on.
    """
    signs = signs.detach()
    state["signs_sum"] += float(signs.double().flatten(1).mean(1).sum() if signs.ndim > 1 else signs.double().sum())
    state["signs_count"] += len(signs)
    state["updates"] += 1
    if state["updates"] % interval == 0:
        measure = state["signs_sum"] / max(1, state["signs_count"])
        direction = (measure > target) - (measure < target)  # 0 for a logit that is not a number
        probability = state["probability"] + direction * state["signs_count"] / ramp_images
        state.update(probability=min(limit, max(0.0, probability)), signs_sum=0.0, signs_count=0)
    return float(state["probability"])
