"""Autoencoders that compress a volume to latents: Gaussian (KL), vector-quantised (VQ) and rounded (FSQ)."""

from latentsynth.autoencoders.base import Autoencoder, Moments, Reconstruction
from latentsynth.autoencoders.build import build_autoencoder
from latentsynth.autoencoders.fsq import FSQAutoencoder
from latentsynth.autoencoders.kl import KLAutoencoder
from latentsynth.autoencoders.vq import VQAutoencoder

__all__ = [
    "Autoencoder",
    "FSQAutoencoder",
    "KLAutoencoder",
    "Moments",
    "Reconstruction",
    "VQAutoencoder",
    "build_autoencoder",
]
