"""The translation-equivariant generator StyleGAN 3-t (Karras et al. 2021, arXiv 2106.12423), for slices.

Each map stands for a continuous signal that it samples: all start from sine waves known everywhere, and whatever a
layer does keeps the signal below a cutoff that its grid can carry. So the image moves with its input, by any fraction
of a pixel, and detail cannot stick to the grid. No code of its authors is used.

Lengths are in output pixels and frequencies in cycles per output pixel, the same on both axes whatever their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.config import StyleGAN3Config
from latentsynth.errors import ConfigError
from latentsynth.gans.base import Generator, Inputs, Painted
from latentsynth.gans.build import builds
from latentsynth.gans.layers import GAIN, Linear, Mapping, ModulatedConv, everybodys_mean
from latentsynth.pretrained import register_to_config

_MARGIN = 10  # samples around the image on each side, so that the zeros beyond hardly reach it (sec. 3.2, config E)
_TAPS = 6  # filter length in samples of the slower grid (ibid.)
_CRITICAL = 2  # last layers, which use the grid up to its limit, at the price of some aliasing (sec. 3.2, config T)
_FIRST_CUTOFF = 2.0  # of the input, in cycles per shorter side (ibid.)
_FIRST_STOP = 2.0**2.1
_LAST_STOP = 2.0**0.3  # relative to the last cutoff
_WIDEST = 32.0  # cycles per shorter side up to which layers have all channels; then channels x cutoff is constant
_OUTPUT_SCALE = 0.25  # untrained images then lie within [-1, 1] but for a few pixels


class Band(NamedTuple):
    """What the maps behind one layer can carry.

    Attributes:
        cutoff: Frequencies below it are kept.
        stop: Frequencies above it are suppressed where the grid has room for that.
        rate: Samples per output pixel, a power of two.
        grid: Samples per axis, margins included.
    """

    cutoff: float
    stop: float
    rate: float
    grid: tuple[int, ...]

    @property
    def half_width(self) -> float:
        """Half of the filter's transition band: as soft as the grid allows (sec. 3.2, config T)."""
        return max(self.stop, self.rate / 2) - self.cutoff


def schedule(shape: Sequence[int], layers: int) -> list[Band]:
    """The bands before the first layer and behind every layer (sec. 3.2, config T).

    Cutoffs and stops grow geometrically to those of the full grid, which the last two layers share; the rate is the
    least power of two that holds the stop.

    Args:
        shape: Output grid, which the last band has without margins.
        layers: Synthesis layers.
    """
    short = min(shape)
    first, last = (_FIRST_CUTOFF / short, _FIRST_STOP / short), (0.5, 0.5 * _LAST_STOP)
    bands = []
    for i in range(layers + 1):
        # The first layer keeps the band of the input; the last two are critically sampled.
        progress = min(max(i - 1, 0) / (layers - _CRITICAL), 1)
        cutoff, stop = (a * (b / a) ** progress for a, b in zip(first, last, strict=True))
        rate = 2.0 ** math.ceil(math.log2(min(2 * stop, 1)))
        margin = 0 if i == layers else 2 * _MARGIN
        bands.append(Band(cutoff, stop, rate, tuple(math.ceil(n * rate) + margin for n in shape)))
    return bands


def low_pass(band: Band, factor: int) -> Tensor:
    """Kaiser-windowed sinc (app. C) of sum one, ``(6 * factor,)``, for samples ``factor`` times denser than the band's.

    The number of taps is even for all factors, so filters up and down together shift by whole samples.
    """
    taps = signal.firwin(_TAPS * factor, band.cutoff, width=2 * band.half_width, fs=band.rate * factor)
    return torch.from_numpy(taps).float()


def _filter(x: Tensor, taps: Tensor, stride: int, up: bool, crop: Sequence[int] = (0, 0)) -> Tensor:
    """Filters every channel along both axes; ``up`` puts zeros between the samples first, else some are dropped after.

    One axis at a time; the second, whose strides cost most, while the rows are few.
    """
    channels = x.shape[1]
    for axis in (1, 0) if up else (0, 1):
        sizes, strides, pads = (-1, 1), (stride, 1), (crop[0], 0)
        if axis == 1:
            sizes, strides, pads = (1, -1), (1, stride), (0, crop[1])
        kernel = taps.view(sizes).expand(channels, 1, -1, -1).contiguous()
        if up:
            x = functional.conv_transpose2d(x, kernel, stride=strides, padding=pads, groups=channels)
        else:
            x = functional.conv2d(x, kernel, stride=strides, groups=channels)
    return x


class FilteredActivation(nn.Module):
    """Leaky ReLU on a finer grid, then a low-pass filter back to the next layer's grid (sec. 2.1; sec. 3.2, config F).

    The bends that a pointwise nonlinearity makes hold frequencies without end. On the finer grid most of them are still
    told apart from the signal, so that they can be taken out before they alias.

    Args:
        before: Band of the maps that come in.
        after: Band of the maps that go out.
    """

    def __init__(self, before: Band, after: Band):
        super().__init__()
        fine = 2 * max(before.rate, after.rate)
        self.up, self.down = round(fine / before.rate), round(fine / after.rate)
        # All grids share their centre, so both edges of the finer one give up the same whole number of samples.
        sizes = zip(before.grid, after.grid, strict=True)
        self.crop = [((n - 1 + _TAPS) * self.up - (m - 1 + _TAPS) * self.down) // 2 for n, m in sizes]
        self.register_buffer("rise", low_pass(before, self.up) * self.up, persistent=False)
        self.register_buffer("fall", low_pass(after, self.down), persistent=False)
        self.rise: Tensor
        self.fall: Tensor

    def upsample(self, x: Tensor) -> Tensor:
        """``(B, C, *before.grid)`` to the finer grid, which reaches as far out as :meth:`downsample` needs."""
        return _filter(x, self.rise, self.up, True, self.crop)

    def downsample(self, x: Tensor) -> Tensor:
        """From the finer grid to ``(B, C, *after.grid)``."""
        return _filter(x, self.fall, self.down, False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *before.grid)`` to ``(B, C, *after.grid)``; beyond its grid x counts as zero."""
        return self.downsample(functional.leaky_relu(self.upsample(x), 0.2)) * GAIN  # GAIN here, where it costs least


class FourierInput(nn.Module):
    """Mixed sine waves below the first cutoff (sec. 3.1), turned and moved by the style (sec. 3.2, config H).

    Args:
        style: Features of w.
        channels: Waves, and channels out.
        band: Band of the maps that come out.
        unit: Length that a translation is measured in, in output pixels.
    """

    def __init__(self, style: int, channels: int, band: Band, unit: float):
        super().__init__()
        radius, angle = band.cutoff * torch.rand(channels).sqrt(), 2 * math.pi * torch.rand(channels)  # over the disc
        self.register_buffer("frequencies", radius * torch.stack([angle.cos(), angle.sin()]))
        self.register_buffer("phases", torch.rand(channels))
        self.frequencies: Tensor
        self.phases: Tensor
        self.band, self.unit = band, unit
        self.move = Linear(style, 4)  # cosine and sine of a turn, and a translation; at first none
        nn.init.zeros_(self.move.weight)
        with torch.no_grad():
            self.move.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.mix = Linear(channels, channels)

    def forward(self, w: Tensor, offset: Tensor | None = None) -> Tensor:
        """``(B, style)``, and how far to shift the signal, ``(B, 2)`` output pixels, to ``(B, channels, *grid)``."""
        moves = self.move(w).float()
        cosine, sine = functional.normalize(moves[:, :2], dim=1).T[:, :, None]
        shift = moves[:, 2:] * self.unit + (0 if offset is None else offset)
        f0, f1 = self.frequencies  # elementwise, as phases are too fine for the half precision of a matrix product
        turned = torch.stack([cosine * f0 - sine * f1, sine * f0 + cosine * f1], 1)  # (B, 2, channels)
        phases = self.phases - (turned * shift[:, :, None]).sum(1)
        y0, y1 = (
            (torch.arange(n, device=w.device) - (n - 1) / 2)[:, None] / self.band.rate * turned[:, axis, None, :]
            for axis, n in enumerate(self.band.grid)
        )
        waves = math.sqrt(2) * torch.sin(2 * math.pi * (y0[:, :, None] + y1[:, None] + phases[:, None, None]))
        return self.mix(waves).movedim(-1, 1).contiguous()


class SynthesisLayer(nn.Module):
    """Convolution modulated by a style, bias and filtered nonlinearity (fig. 4).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        style: Features of w.
        before: Band of the maps that come in.
        after: Band of the maps that go out.
    """

    def __init__(self, inputs: int, outputs: int, style: int, before: Band, after: Band):
        super().__init__()
        self.scale = TrackedScale()
        self.conv = ModulatedConv(2, inputs, outputs, style)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.activation = FilteredActivation(before, after)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """``(B, inputs, *before.grid)`` and styles ``(B, style)`` to ``(B, outputs, *after.grid)``."""
        return self.activation(self.conv(self.scale(x), w) + self.bias[:, None, None])


class TrackedScale(nn.Module):
    """Divides by a running root mean square (decay 0.999), which demodulation assumes to be 1 (sec. 3.1, config D)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("square", torch.ones(()))
        self.square: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; tracked in training, behind the use, so that no case sees the others of its batch."""
        y = x * torch.rsqrt(self.square)
        if self.training and torch.is_grad_enabled():
            self.square.copy_(self.square.lerp(everybodys_mean(x.float().square().flatten()), 0.001))
        return y


@builds(StyleGAN3Config)
class StyleGAN3Generator(Generator):
    """Latent to a slice, equivariant to translation (Karras et al. 2021, configuration T).

    Args:
        shape: Output grid, two axes of at least 8.
        out_channels: Channels of the image.
        latent: Features of z.
        style: Features of w.
        mapping_layers: Depth of the mapping from z to w.
        channels: Channels of the widest layers.
        layers: Synthesis layers, at least 3.
        placed: Whether it is told where slices lie.
        labels: 0, as it takes no mask.

    Raises:
        ConfigError: It cannot make such grids, or is asked to take masks.
    """

    truncates = True

    @register_to_config
    def __init__(
        self,
        shape: Sequence[int],
        out_channels: int,
        latent: int = 64,
        style: int = 64,
        mapping_layers: int = 2,
        channels: int = 64,
        layers: int = 8,
        placed: bool = False,
        labels: int = 0,
    ):
        super().__init__()
        if len(shape) != 2 or min(shape) < 8:
            raise ConfigError(f"StyleGAN 3 makes slices of at least 8 x 8, not grids {tuple(shape)}: use StyleGAN 2")
        if layers <= _CRITICAL:
            raise ConfigError(f"StyleGAN 3 needs at least {_CRITICAL + 1} layers, got {layers}")
        if labels:
            raise ConfigError(f"StyleGAN 3 takes no mask, got {labels} labels: set 0, or use another generator")
        self.shape = tuple(shape)
        bands = schedule(shape, layers)
        widths = [max(1, round(channels * min(1.0, _WIDEST / (band.cutoff * min(shape))))) for band in bands]
        self.mapping = Mapping(latent, style, mapping_layers, placed)
        self.input = FourierInput(style, widths[0], bands[0], min(shape))
        self.synthesis = nn.ModuleList(
            SynthesisLayer(widths[i], widths[i + 1], style, bands[i], bands[i + 1]) for i in range(layers)
        )
        self.scale = TrackedScale()
        self.output = ModulatedConv(2, widths[-1], out_channels, style, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def synthesise(self, w: Tensor, offset: Tensor | None = None) -> Tensor:
        """Styles to images ``(B, out_channels, *shape)`` (fig. 4), which no last function bounds: it would alias.

        Args:
            w: ``(B, style)``.
            offset: ``(B, 2)``, how far to move what is shown, in pixels along each axis.
        """
        x = self.input(w, offset)
        for layer in self.synthesis:
            x = layer(x, w)
        return (self.output(self.scale(x), w) + self.bias[:, None, None]) * _OUTPUT_SCALE

    def forward(self, inputs: Inputs) -> Painted:
        """See :meth:`Generator.forward`; there is no mixing of latents and no noise per pixel (sec. 3.1)."""
        if inputs.mask is not None or inputs.style is not None:
            raise ValueError("StyleGAN 3 takes neither a mask nor a reference image")
        return Painted(
            self.synthesise(self.mapping(inputs.draws.normal(self.mapping.latent), inputs.place, inputs.truncation))
        )
