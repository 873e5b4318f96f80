"""Networks of the adversarial family and their losses. No files, no cohorts: tensors in, tensors out."""

from latentsynth.gans.annotation import Annotation
from latentsynth.gans.base import Discriminator, Generator, Opinion, Painted
from latentsynth.gans.build import build_discriminator, build_generator

__all__ = [
    "Annotation",
    "Discriminator",
    "Generator",
    "Opinion",
    "Painted",
    "build_discriminator",
    "build_generator",
]
