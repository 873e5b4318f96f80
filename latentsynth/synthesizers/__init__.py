"""Everything that makes volumes, behind one interface."""

from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.build import load_synthesizer
from latentsynth.synthesizers.chained import Chained
from latentsynth.synthesizers.diffusion import LatentDiffusion
from latentsynth.synthesizers.gan import GAN
from latentsynth.synthesizers.latent_gan import LatentGAN

__all__ = ["GAN", "Chained", "LatentDiffusion", "LatentGAN", "Synthesizer", "load_synthesizer"]
