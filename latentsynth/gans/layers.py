"""Layers of the StyleGAN line, for slices and volumes alike."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CONV = {2: functional.conv2d, 3: functional.conv3d}
GAIN = math.sqrt(2)  # restores unit variance behind a leaky ReLU of slope 0.2


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps unit variance (Karras et al. 2019, code)."""
    return functional.leaky_relu(x, 0.2) * GAIN


class Linear(nn.Module):
    """Linear layer with equalised learning rate (Karras et al. 2018, sec. 4.1): unit weights, scaled when used.

    Args:
        inputs: Features in.
        outputs: Features out.
        bias: Initial bias.
        rate: Learning rate of the weights relative to the rest.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate = rate
        self.scale = rate / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        return functional.linear(x, self.weight * self.scale, self.bias * self.rate)


class Conv(nn.Module):
    """Convolution with equalised learning rate, stride 1, grid size kept.

    Args:
        dims: 2 or 3.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Edge of the kernel, odd.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int = 3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * dims))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(inputs * kernel**dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, *shape)`` to ``(B, outputs, *shape)``."""
        pad = self.weight.shape[-1] // 2
        return CONV[x.ndim - 2](x, self.weight * self.scale, self.bias, padding=pad)


class ModulatedConv(nn.Module):
    """Convolution whose weights are scaled per case by a style (Karras et al. 2020, eqs. 1 to 3).

    Scaling the input by the style and the output by the demodulation is the same map as scaling the weights, and needs
    no convolution per case.

    Args:
        dims: 2 or 3.
        inputs: Channels in.
        outputs: Channels out.
        style: Features of the style vector.
        kernel: Edge of the kernel, odd.
        demodulate: Whether outputs are brought back to unit variance; the layer that makes the image does not.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, style: int, kernel: int = 3, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * dims))
        self.affine = Linear(style, inputs, bias=1.0)
        self.demodulate = demodulate
        self.scale = 1 / math.sqrt(inputs * kernel**dims)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``(B, inputs, *shape)`` and styles ``(B, style)`` to ``(B, outputs, *shape)``."""
        ones = [1] * (x.ndim - 2)
        s = self.affine(w)
        weight = self.weight * self.scale
        y = CONV[x.ndim - 2](x * s.view(*s.shape, *ones), weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return y
        squares = weight.square().flatten(2).sum(2)  # (outputs, inputs)
        d = torch.rsqrt(functional.linear(s.square(), squares) + 1e-8)
        return y * d.view(*d.shape, *ones)


class Mapping(nn.Module):
    """Latent, and where a slice lies, to a style (Karras et al. 2019, sec. 2).

    The place is added behind the layers: they learn a hundred times slower, and truncation must not move slices.

    Args:
        latent: Features of z.
        style: Features of w.
        layers: Depth.
        placed: Whether it is told where slices lie.
        rate: Relative learning rate of its weights.
    """

    def __init__(self, latent: int, style: int, layers: int, placed: bool, rate: float = 0.01):
        super().__init__()
        self.register_buffer("mean", torch.zeros(style))
        self.mean: Tensor
        self.latent = latent
        widths = [latent, *[style] * layers]
        self.place = Linear(_PLACE, style) if placed else None
        self.layers = nn.ModuleList(Linear(a, b, rate=rate) for a, b in pairwise(widths))

    def forward(self, z: Tensor, place: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """z ``(B, latent)`` to w ``(B, style)``; in training the mean style is tracked (decay 0.998)."""
        x = normalise(z)
        for layer in self.layers:
            x = activate(layer(x))
        if self.training and torch.is_grad_enabled():
            self.mean.copy_(self.mean.lerp(everybodys_mean(x), 0.002))
        x = x if truncation == 1 else torch.lerp(self.mean, x, truncation)
        if self.place is not None:
            where = torch.zeros(len(z), device=z.device) if place is None else place
            x = x + self.place(place_features(where).to(x))
        return x


def everybodys_mean(x: Tensor) -> Tensor:
    """Mean over the batches of all processes, without gradient: what networks track must not differ between them."""
    mean = x.detach().to(torch.promote_types(x.dtype, torch.float32)).mean(0)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean = mean / torch.distributed.get_world_size()
    return mean


_PLACE = 4


def place_features(place: Tensor) -> Tensor:
    """Places in [-1, 1] as ``(B, 4)`` sines and cosines, of which neighbours share most."""
    angles = place[:, None] * torch.tensor([0.5, 1.0], device=place.device) * math.pi
    return torch.cat([angles.sin(), angles.cos()], 1)


def normalise(x: Tensor) -> Tensor:
    """Each case and place to unit mean square over channels (Karras et al. 2018, sec. 4.2)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def batch_deviation(x: Tensor, parts: int = 1, group: int = 4) -> Tensor:
    """Appends a channel: how much the cases of a group differ, so that a collapse can be seen (ibid., sec. 3).

    Args:
        x: ``(B, C, *shape)``.
        parts: Equal runs of the batch that must not be mixed.
        group: Largest number of cases compared, unless their number has no such divisor.
    """
    extra = []
    for part in x.chunk(parts):
        size = max((n for n in range(2, group + 1) if len(part) % n == 0), default=len(part))
        grouped = part.unflatten(0, (size, -1))
        deviation = (grouped.var(0, correction=0) + 1e-8).sqrt().flatten(1).mean(1)
        extra.append(deviation.repeat(size).view(-1, 1, *[1] * (x.ndim - 2)).expand(-1, 1, *x.shape[2:]))
    return torch.cat([x, torch.cat(extra)], 1)
