"""From a configuration to networks: the one place that knows every family of generators by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentsynth.config import (
    DiscriminatorConfig,
    GeneratorConfig,
    GrownConfig,
    LatentGANConfig,
    PatchConfig,
    Pix2PixConfig,
    ProgressiveGANConfig,
    ResidualConfig,
    SPADEConfig,
    StyleGAN1Config,
    StyleGAN2Config,
    StyleGAN3Config,
)
from latentsynth.gans.base import Discriminator, Generator
from latentsynth.gans.discriminators import PatchDiscriminators, ResidualDiscriminator
from latentsynth.gans.latent import LatentGenerator
from latentsynth.gans.progressive import GrownDiscriminator, ProgressiveGenerator, StyleGAN1Generator
from latentsynth.gans.spade import SPADEGenerator
from latentsynth.gans.stylegan2 import StyleGAN2Generator
from latentsynth.gans.stylegan3 import StyleGAN3Generator
from latentsynth.gans.translators import ResNetGenerator, UNetGenerator

_NOT_NETWORK = {"kind", "form", "coding", "network"}


def build_generator(
    config: GeneratorConfig, shape: Sequence[int], out_channels: int, labels: int, placed: bool
) -> Generator:
    """A new generator with random weights.

    Args:
        config: Its section of a run (not of a CycleGAN, which is two; see :mod:`latentsynth.training.recipes.cyclegan`).
        shape: Grid, two axes or three.
        out_channels: Channels it makes.
        labels: Labels of the mask it paints; 0 for one that paints none.
        placed: Whether it should know where slices lie.
    """
    given: dict[str, Any] = config.model_dump(exclude=_NOT_NETWORK)
    match config:
        case Pix2PixConfig(network="unet"):
            given.pop("blocks")
            return UNetGenerator(shape, out_channels, labels, placed=placed, **given)
        case Pix2PixConfig():
            for key in ("levels", "max_channels"):
                given.pop(key)
            return ResNetGenerator(shape, out_channels, labels, placed=placed, **given)
        case SPADEConfig():
            return SPADEGenerator(shape, out_channels, labels, **given)
        case LatentGANConfig():
            return LatentGenerator(shape, out_channels, labels, **given)
        case ProgressiveGANConfig():
            return ProgressiveGenerator(shape, out_channels, placed=placed, **given)
        case StyleGAN1Config():
            return StyleGAN1Generator(shape, out_channels, placed=placed, **given)
        case StyleGAN2Config():
            return StyleGAN2Generator(shape, out_channels, labels, placed=placed, **given)
        case StyleGAN3Config():
            return StyleGAN3Generator(shape, out_channels, placed=placed, **given)
        case _:
            raise ValueError(f"generator of kind {config.kind} is not one network")


def build_discriminator(
    config: DiscriminatorConfig, shape: Sequence[int], in_channels: int, labels: int, placed: bool
) -> Discriminator:
    """A new discriminator with random weights; arguments as :func:`build_generator`, for what it judges."""
    given: dict[str, Any] = config.model_dump(exclude={"kind", "lr"})
    match config:
        case PatchConfig():
            return PatchDiscriminators(shape, in_channels, labels, placed=placed, **given)
        case ResidualConfig():
            return ResidualDiscriminator(shape, in_channels, labels, placed=placed, **given)
        case GrownConfig():
            return GrownDiscriminator(shape, in_channels, labels, placed=placed, **given)
