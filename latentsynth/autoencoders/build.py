"""Autoencoders from their configuration."""

from __future__ import annotations

from collections.abc import Callable

from latentsynth.autoencoders.base import Autoencoder
from latentsynth.autoencoders.fsq import FSQAutoencoder
from latentsynth.autoencoders.kl import KLAutoencoder
from latentsynth.autoencoders.vq import VQAutoencoder
from latentsynth.config import AutoencoderConfig

_KINDS: dict[str, Callable[..., Autoencoder]] = {"vq": VQAutoencoder, "kl": KLAutoencoder, "fsq": FSQAutoencoder}


def build_autoencoder(config: AutoencoderConfig, image_channels: int) -> Autoencoder:
    """A new autoencoder with random weights for images of ``image_channels`` channels."""
    arguments = config.model_dump(mode="json", exclude={"kind", "downsampling"})
    return _KINDS[config.kind](image_channels=image_channels, factors=config.factors, **arguments)
