"""What every autoencoder can do, and the latent scale, which lives here and nowhere else.

Three spaces: *image* in [-1, 1]; *raw latents*, whatever the encoder produces; *latents* ``z``, whitened per channel to
mean 0 and deviation 1, which is all that a diffusion model or a latent GAN ever sees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from latentsynth.autoencoders.principal import principal_components
from latentsynth.autoencoders.space_to_depth import (
    Axes,
    ResidualBlock,
    SpaceToDepth,
    SpaceToDepthDecoder,
    SpaceToDepthEncoder,
)
from latentsynth.autoencoders.tiling import tiled
from latentsynth.errors import CheckpointError, TrainingError
from latentsynth.parallel import at_least_two
from latentsynth.pretrained import Pretrained, recompute

# Cells of a part and of its surroundings, for MONAI's trunk. Its normalisations look at the whole volume, so that parts differ
# from it; what they differ by is measured in benchmarks/large_volumes.py.
_RESNET = (24, 4)


@dataclass
class Moments:
    """Gaussian over raw latents; what the latent cache stores.

    Attributes:
        mean: Shape ``(B, c, i, j, k)``.
        deviation: Standard deviation, same shape; zero for a deterministic encoder.
    """

    mean: Tensor
    deviation: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """``mean + deviation * noise``."""
        return self.mean + self.deviation * noise


@dataclass
class Reconstruction:
    """One pass through an autoencoder while it trains.

    Attributes:
        image: Shape ``(B, C, I, J, K)``.
        bottleneck_loss: The bottleneck's own term, weighted, a scalar.
        perplexity: How many codes of a codebook are in use, a scalar; the number of latent channels for a Gaussian
            bottleneck, where it has no meaning.
    """

    image: Tensor
    bottleneck_loss: Tensor
    perplexity: Tensor


class Autoencoder(Pretrained, ABC):
    """Compresses ``(B, C, I, J, K)`` images to ``(B, c, i, j, k)`` latents and back."""

    encoder: nn.Module
    decoder: nn.Module
    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, latent_channels: int, factors: tuple[int, int, int]):
        super().__init__()
        self.factors = factors
        self.latent_channels = latent_channels
        # Not a number until fitted, so that latents of an unfitted scale cannot pass for data.
        self.register_buffer("latent_mean", torch.full((latent_channels,), torch.nan))
        self.register_buffer("latent_std", torch.full((latent_channels,), torch.nan))
        self._scaled = False

    @abstractmethod
    def moments(self, image: Tensor) -> Moments:
        """Image in [-1, 1] to a Gaussian over raw latents; a large one in parts, see :meth:`encoded`."""

    def bottleneck(self, raw: Tensor) -> Tensor:
        """Raw latents as the decoder takes them in."""
        return raw

    def decode_raw(self, raw: Tensor) -> Tensor:
        """Raw latents to an image in [-1, 1]; large ones in parts, see :meth:`decoded`."""
        return self.decoded(self.bottleneck(raw)).clamp(-1, 1)

    def encoded(self, image: Tensor) -> Tensor:
        """What the encoder gives.

        Without gradients a large image goes through it in parts (:mod:`latentsynth.autoencoders.tiling`), and a lone one
        twice where that is faster (:func:`latentsynth.parallel.copies_of_rows`).
        """
        return self._through(self.encoder, self.encoder, image, self.factors, (1, 1, 1))

    def decoded(self, raw: Tensor) -> Tensor:
        """What the decoder gives, in parts as :meth:`encoded`."""
        return self._through(self.decoder, self.decoder, raw, (1, 1, 1), self.factors)

    def _through(
        self, call: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor, taken: Axes, given: Axes
    ) -> Tensor:
        """What ``call``, of a network, gives."""
        if torch.is_grad_enabled():
            return call(x)
        tile, reach = _RESNET
        if isinstance(network, SpaceToDepthEncoder | SpaceToDepthDecoder):
            tile, reach = network.TILE, network.reach
        return tiled(partial(at_least_two, call), x, taken, given, tile, reach)

    @abstractmethod
    def forward(self, image: Tensor, noise: Tensor | None = None, level: Tensor | None = None) -> Reconstruction:
        """The training pass.

        Args:
            image: Shape ``(B, C, I, J, K)``.
            noise: Standard normal, shaped like the latents; None decodes the mean.
            level: Shape ``(B,)``. If given, the decoder alone is trained, on latents :meth:`disturbed` by the noise.
        """

    @torch.no_grad()
    def disturbed(self, image: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Raw latents with more noise than the encoder's own, cut off from the encoder (Zheng et al. 2025, noise-augmented decoding).

        A sampler's latents are never exact, and their errors are independent from cell to cell. A decoder that has seen noise
        makes of them what is likely, where another paints every cell's error as a block.

        Args:
            image: Shape ``(B, C, I, J, K)``.
            noise: Standard normal, shaped like the latents.
            level: Deviation of the noise as a share of each channel's deviation over its case, ``(B,)``: larger latents are
                no way out.
        """
        moments = self.moments(image)
        spread = moments.mean.std(dim=(2, 3, 4), correction=0, keepdim=True)
        added = level.view(-1, 1, 1, 1, 1) * spread
        return Moments(moments.mean, torch.sqrt(moments.deviation**2 + added**2)).sample(noise)

    spread = 1.0  # standard deviation of the raw latents that a trunk starts with

    def start_from(self, images: Iterable[Tensor]) -> None:
        """Starts a space-to-depth trunk from the principal components of blocks of images; another keeps its weights.

        Args:
            images: Training images, ``(B, C, I, J, K)`` each.

        Raises:
            TrainingError: There are none, or their blocks vary in too few directions.
        """
        if isinstance(self.encoder, SpaceToDepthEncoder) and isinstance(self.decoder, SpaceToDepthDecoder):
            blocks = SpaceToDepth(self.factors)
            components = principal_components((blocks(image) for image in images), self.latent_channels)
            self.encoder.start_from(components, self.spread)
            self.decoder.start_from(components, self.spread)

    @property
    def last_layer(self) -> nn.Parameter:
        """Weights of the decoder's last convolution, where the adversarial weight is balanced."""
        return [weight for weight in self.decoder.parameters() if weight.ndim > 1][-1]

    def code_usage(self, image: Tensor) -> Tensor | None:
        """How often each code is used for some images, ``(codebooks, codes)``; None for a model without a codebook."""
        return None

    @property
    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing recomputes."""
        own: list[nn.Module] = [module for module in self.modules() if isinstance(module, ResidualBlock)]
        return own or [*self.encoder.blocks, *self.decoder.blocks]  # type: ignore[misc]

    def checkpoint_gradients(self) -> None:
        """Recomputes each block's activations in the backward pass instead of keeping them: less memory, more time."""
        for block in self.blocks:
            recompute(block)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """``(c, i, j, k)`` of an image of ``shape``.

        Raises:
            TrainingError: ``shape`` is not divisible by the downsampling factors.
        """
        if any(n % f for n, f in zip(shape, self.factors, strict=True)):
            raise TrainingError(f"shape {shape} is not divisible by downsampling {self.factors}: choose a grid that is")
        i, j, k = (n // f for n, f in zip(shape, self.factors, strict=True))
        return (self.latent_channels, i, j, k)

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Image to latents; the mean of the moments unless ``noise`` is given."""
        moments = self.moments(image)
        return self.whiten(moments.mean if noise is None else moments.sample(noise))

    def decode(self, z: Tensor, white: Tensor | None = None) -> Tensor:
        """Latents to an image in [-1, 1].

        Args:
            z: Shape ``(B, c, i, j, k)``.
            white: Standard normal, shaped like the image: draws one of the images that the latents may stand for
                (:mod:`latentsynth.autoencoders.texture`), where a space-to-depth trunk was trained to its end. None, and any
                other trunk, gives their mean.

        Raises:
            CheckpointError: The scale was never fitted.
        """
        self._require_scale()
        raw = z * _channelwise(self.latent_std) + _channelwise(self.latent_mean)
        if white is None or not isinstance(self.decoder, SpaceToDepthDecoder):
            return self.decode_raw(raw)
        both = self._through(self.decoder.with_deviation, self.decoder, self.bottleneck(raw), (1, 1, 1), self.factors)
        mean, deviation = both.chunk(2, 1)
        drawn = self.decoder.texture.grained(white.to(mean)) * deviation
        return drawn.add_(mean).clamp_(-1, 1)  # in place: volumes may be large

    def fit_texture(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """Fits what is drawn about a decoder's mean to images, ``(1, C, I, J, K)`` each; a trunk without it stays as it is.

        Args:
            images: Gives them, the same ones at each call.
        """
        decoder = self.decoder
        if not isinstance(decoder, SpaceToDepthDecoder):
            return

        @torch.no_grad()
        def residuals() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for image in images():
                raw = self.bottleneck(self.moments(image).mean)
                features = decoder.features(raw)
                yield features, decoder.image(raw, features).clamp(-1, 1), image

        decoder.texture.fit(residuals)

    def whiten(self, raw: Tensor) -> Tensor:
        """Raw latents to latents.

        Raises:
            CheckpointError: The scale was never fitted.
        """
        self._require_scale()
        return (raw - _channelwise(self.latent_mean)) / _channelwise(self.latent_std)

    def _require_scale(self) -> None:
        if self._scaled:  # asking the device once is enough: a step of training must not wait for it
            return
        if not bool((torch.isfinite(self.latent_std) & (self.latent_std > 0)).all()):
            raise CheckpointError("the latent scale of this autoencoder was never fitted: finish its training first")
        self._scaled = True

    @torch.no_grad()
    def fit_latent_stats(self, moments: Iterable[Moments]) -> None:
        """Sets the latent scale from the moments of many images.

        The variance is that of the sampled latents: the variance of the means plus the mean of the variances.

        Raises:
            TrainingError: A latent is not finite, a channel is constant, or there is nothing to fit.
        """
        count, total, square = 0, torch.zeros(self.latent_channels), torch.zeros(self.latent_channels)
        for batch in moments:
            mean = rearrange(batch.mean, "b c i j k -> c (b i j k)").double().cpu()
            variance = rearrange(batch.deviation, "b c i j k -> c (b i j k)").double().cpu() ** 2
            count += mean.shape[1]
            total = total + mean.sum(1)
            square = square + (mean**2 + variance).sum(1)
        if not count:
            raise TrainingError("no latents to fit the latent scale on: give at least one training case")
        centre = total / count
        deviation = (square / count - centre**2).clamp_min(0).sqrt()
        if not bool(torch.isfinite(centre).all() and torch.isfinite(deviation).all()):
            raise TrainingError("latents are not finite: lower train.lr, or raise autoencoder.kl_weight")
        if bool((deviation < 1e-6).any()):
            dead = torch.nonzero(deviation < 1e-6).flatten().tolist()
            raise TrainingError(
                f"latent channels {dead} are constant: train longer or lower autoencoder.latent_channels"
            )
        self.latent_mean.copy_(centre)
        self.latent_std.copy_(deviation)


def _channelwise(values: Tensor) -> Tensor:
    return rearrange(values, "c -> 1 c 1 1 1")
