"""Every family of synthesizer that has checkpoints."""

from __future__ import annotations

from pathlib import Path

from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.checkpointed import load
from latentsynth.synthesizers.diffusion import LatentDiffusion
from latentsynth.synthesizers.gan import GAN
from latentsynth.synthesizers.latent_gan import LatentGAN

FAMILIES: tuple[type[LatentDiffusion | LatentGAN | GAN], ...] = (LatentDiffusion, LatentGAN, GAN)


def load_synthesizer(path: Path | str) -> Synthesizer:
    """Loads whatever family a checkpoint or run folder holds.

    Raises:
        CheckpointError: It is not a checkpoint, or not one of a synthesizer.
    """
    return load(FAMILIES, path, "makes no volumes: give a generator's")
