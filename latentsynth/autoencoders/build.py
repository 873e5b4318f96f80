"""Autoencoders from their configuration."""

from __future__ import annotations

from latentsynth.autoencoders.base import Autoencoder
from latentsynth.autoencoders.kl import KLAutoencoder
from latentsynth.autoencoders.vq import VQAutoencoder
from latentsynth.config import KLConfig, VQConfig


def build_autoencoder(config: VQConfig | KLConfig, image_channels: int) -> Autoencoder:
    """A new autoencoder with random weights for images of ``image_channels`` channels."""
    arguments = config.model_dump(exclude={"kind", "downsampling"})
    kind = VQAutoencoder if isinstance(config, VQConfig) else KLAutoencoder
    return kind(image_channels=image_channels, factors=config.factors, **arguments)
