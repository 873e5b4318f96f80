"""The one place that knows every family of synthesizer by name."""

from __future__ import annotations

from pathlib import Path

from latentsynth import checkpoint
from latentsynth.errors import CheckpointError
from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.diffusion import LatentDiffusion
from latentsynth.synthesizers.gan import GAN
from latentsynth.synthesizers.latent_gan import LatentGAN


def load_synthesizer(path: Path | str) -> Synthesizer:
    """Loads whatever family a checkpoint or run folder holds.

    Raises:
        CheckpointError: It is not a checkpoint, or not one of a synthesizer.
    """
    folder = checkpoint.locate(path)
    kind = checkpoint.read_header(folder).kind
    match kind:
        case "latent_diffusion":
            return LatentDiffusion.from_pretrained(folder)
        case "latent_gan":
            return LatentGAN.from_pretrained(folder)
        case "gan":
            return GAN.from_pretrained(folder)
        case _:
            raise CheckpointError(
                f"{folder} holds a checkpoint of kind {kind}, which makes no volumes: give a generator's"
            )
