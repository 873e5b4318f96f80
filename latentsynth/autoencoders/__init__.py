"""Autoencoders that compress a volume to latents: vector-quantised and Gaussian (KL)."""

from latentsynth.autoencoders.base import Autoencoder, Moments, Reconstruction
from latentsynth.autoencoders.build import build_autoencoder
from latentsynth.autoencoders.kl import KLAutoencoder
from latentsynth.autoencoders.vq import VQAutoencoder

__all__ = ["Autoencoder", "KLAutoencoder", "Moments", "Reconstruction", "VQAutoencoder", "build_autoencoder"]
