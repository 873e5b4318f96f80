"""What a decoder leaves out: the grain that no latent can hold, drawn anew for every volume.

A decoder that is trained on distances gives the mean of all images that a latent may stand for, and a mean is smooth. The
likelihood of an autoencoder is a Gaussian about it (Kingma and Welling 2014, appendix C.2), whose deviation is the size of what is
left. Here that depends on the latents, voxel by voxel, so that edges and bright tissue have more of it than air. Its logarithm is
linear in the decoder's features and is fitted by least squares to that of the squared residuals of training images (Harvey 1976:
multiplicative heteroscedasticity), without any further training. Neighbouring residuals are alike; white noise is filtered
along each axis to be as alike as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

_REACH = 2  # voxels to either side whose residuals are still compared
_TAPS = 2 * _REACH + 3  # of the filter of an axis
_FREQUENCIES = 64
_SMALL = 1e-8  # of the window of 2, squared: less is no residual
_BIAS = 1.2703628454614782  # minus the mean logarithm of a chi-squared variable of one degree of freedom: log 2 + Euler's constant
_NONE = -60.0  # log variance before it is fitted
_RIDGE = 1e-4  # of the mean square of a feature
Residuals = Iterable[tuple[Tensor, Tensor, Tensor]]
"""Of images, one at a time: the decoder's features ``(1, F, i, j, k)``, its image, and the image itself ``(1, C, I, J, K)``."""


class Texture(nn.Module):
    """The deviation of an image about what the decoder gives, and the grain of the noise that is drawn with it.

    Args:
        features: Of the decoder, ``F``.
        image_channels: ``C``.
        cells: Voxels of images to channels of latent cells.
        voxels: The other way round.
        per_cell: Voxels of a cell.
    """

    log_variance: Tensor
    offset: Tensor
    grain: Tensor

    def __init__(self, features: int, image_channels: int, cells: nn.Module, voxels: nn.Module, per_cell: int):
        super().__init__()
        self.cells, self.voxels = cells, voxels
        self.register_buffer("log_variance", torch.zeros(image_channels * per_cell, features, 1, 1, 1))
        self.register_buffer("offset", torch.full((image_channels * per_cell,), _NONE))
        self.register_buffer("grain", torch.zeros(3, image_channels, _TAPS))
        self.grain[..., _TAPS // 2] = 1

    def deviation(self, features: Tensor) -> Tensor:
        """Of each voxel, ``(B, C, I, J, K)``, from features ``(B, F, i, j, k)``."""
        log_variance = functional.conv3d(features, self.log_variance.to(features), self.offset.to(features))
        return self.voxels(torch.exp(0.5 * log_variance.clamp(max=0)))  # type: ignore[no-any-return]

    def grained(self, white: Tensor) -> Tensor:
        """White noise ``(B, C, I, J, K)`` as alike from voxel to voxel as residuals are; each voxel still has variance 1."""
        for axis, taps in enumerate(self.grain.to(white)[..., None, None, None], 2):
            if white.shape[axis] > _TAPS:  # beyond the border the noise goes round: its variance is the same everywhere
                # Not a convolution, whose last digits depend on how many volumes are made together.
                filtered = torch.zeros_like(white)
                for n in range(_TAPS):
                    filtered.add_(white.roll(n - _TAPS // 2, axis).mul_(taps[:, n]))
                white = filtered
        return white

    @torch.no_grad()
    def fit(self, residuals: Callable[[], Residuals]) -> None:
        """Fits it to images, which are gone through twice: for the deviation, then for its level and for the grain.

        Args:
            residuals: Gives them, the same ones at each call.
        """
        self._fit_deviation(residuals())
        self._fit_level_and_grain(residuals())

    def _fit_deviation(self, residuals: Residuals) -> None:
        outputs, width = self.log_variance.shape[:2]
        square, product = torch.zeros(width + 1, width + 1).double(), torch.zeros(width + 1, outputs).double()
        for features, made, image in residuals:
            rows = rearrange(features, "n f i j k -> (n i j k) f").double().cpu()
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            wanted = torch.log(self.cells((image - made).double()) ** 2 + _SMALL) + _BIAS
            square += rows.T @ rows
            product += rows.T @ rearrange(wanted, "n o i j k -> (n i j k) o").cpu()
        ridge = _RIDGE * (square.diagonal()[:-1].mean() + _SMALL) * torch.eye(len(square), dtype=square.dtype)
        ridge[-1, -1] = 0  # the mean is not held back
        found = torch.linalg.solve(square + ridge, product)
        self.log_variance.copy_(found[:-1].T[..., None, None, None])
        self.offset.copy_(found[-1])

    def _fit_level_and_grain(self, residuals: Residuals) -> None:
        channels = self.grain.shape[1]
        left, expected = torch.zeros(channels).double(), torch.zeros(channels).double()
        alike = torch.zeros(3, channels, _REACH + 1).double()
        for features, made, image in residuals:
            deviation = self.deviation(features)
            residual = (image - made).double()
            left += residual.square().sum((0, 2, 3, 4)).cpu()
            expected += deviation.double().square().sum((0, 2, 3, 4)).cpu()
            even = residual / deviation.double().clamp(min=_SMALL**0.5)
            for axis in range(3):
                for lag in range(_REACH + 1):
                    n = even.shape[2 + axis] - lag
                    if n > 0:
                        pair = even.narrow(2 + axis, 0, n) * even.narrow(2 + axis, lag, n)
                        alike[axis, :, lag] += pair.mean((0, 2, 3, 4)).cpu()
        level = torch.log((left / expected).clamp(min=math.exp(_NONE)))  # a channel that is always empty leaves nothing
        self.offset += level.repeat_interleave(len(self.offset) // channels).to(self.offset)
        alike /= alike[..., :1].clone().clamp(min=_SMALL)
        alike[..., 0] = 1
        self.grain.copy_(filter_of(alike))


def filter_of(autocorrelation: Tensor) -> Tensor:
    """Taps ``(..., 7)`` that make white noise of variance 1 this alike at lags 0, 1, 2, with variance 1: ``(..., 3)``.

    A spectrum that the lags leave negative somewhere is cut off there, so that the noise is as alike as can be.
    """
    angles = 2 * math.pi * torch.arange(_FREQUENCIES, dtype=torch.float64) / _FREQUENCIES
    waves = torch.stack([torch.cos(lag * angles) * (1 if lag == 0 else 2) for lag in range(_REACH + 1)])
    amplitude = (autocorrelation.double() @ waves).clamp(min=0).sqrt()
    taps = torch.fft.ifft(amplitude).real.roll(_TAPS // 2, -1)[..., :_TAPS]
    return taps / taps.square().sum(-1, keepdim=True).sqrt()
