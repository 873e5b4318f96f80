"""Everything that makes volumes, behind one interface."""

from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.build import load_synthesizer
from latentsynth.synthesizers.diffusion import LatentDiffusion

__all__ = ["LatentDiffusion", "Synthesizer", "load_synthesizer"]
