"""Networks of the adversarial family and their losses. No files, no cohorts: tensors in, tensors out.

Importing a module of networks makes them known to :func:`build_generator` and :func:`build_discriminator`.
"""

from latentsynth.gans import discriminators, latent, progressive, spade, stylegan2, stylegan3, translators  # noqa: F401
from latentsynth.gans.annotation import Annotation
from latentsynth.gans.base import Discriminator, Generator, Opinion, Painted
from latentsynth.gans.build import build_discriminator, build_generator, builds

__all__ = [
    "Annotation",
    "Discriminator",
    "Generator",
    "Opinion",
    "Painted",
    "build_discriminator",
    "build_generator",
    "builds",
]
