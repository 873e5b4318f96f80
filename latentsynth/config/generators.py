"""Networks of GANs: one section per family of generators, one per kind of discriminator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from latentsynth.config.ldm import DenoiserConfig
from latentsynth.config.numbers import Fraction
from latentsynth.strict import Positive, Strict


class _Pyramid(Strict):
    channels: Positive = Field(16, description="features at full size, doubled at each level below")
    max_channels: Positive = Field(64, description="most features of any level")


class Pix2PixConfig(Strict):
    """pix2pix: mask to image by a U-Net or a residual network."""

    kind: Literal["pix2pix"] = "pix2pix"
    network: Literal["unet", "resnet"] = "unet"
    channels: Positive = Field(16, description="features at full size, doubled at each level below")
    max_channels: Positive = Field(128, description="most features of any level (unet)")
    levels: Positive = Field(4, description="halvings of the grid (unet)")
    blocks: Positive = Field(4, description="residual blocks (resnet)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.3, description="the only noise, in sampling too")


class CycleGANConfig(Strict):
    """CycleGAN: masks and images that belong to different cases, translated both ways."""

    kind: Literal["cyclegan"] = "cyclegan"
    channels: Positive = Field(16, description="features at full size")
    blocks: Positive = Field(4, description="residual blocks")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.3, description="the only noise, in sampling too")
    attention: bool = Field(False, description="blend by an attention map: m G(x) + (1 - m) x")
    cycle_weight: Annotated[float, Field(ge=0)] = Field(10.0, description="of coming back to where it started")
    identity_weight: Annotated[float, Field(ge=0)] = Field(
        0.5, description="of leaving alone what is in the target domain already, relative to cycle_weight"
    )


class SPADEConfig(_Pyramid):
    """SPADE: the mask modulates the normalisation at every scale."""

    kind: Literal["spade"] = "spade"
    max_channels: Positive = Field(128, description="most features of any level")
    hidden: Positive = Field(32, description="features between mask and modulation")
    latent: Positive = Field(64, description="features of the style code")
    style: Literal["vae", "bottleneck", "none"] = Field("vae", description="where the style of a scan comes from")


class LatentGANConfig(DenoiserConfig):
    """One step from noise and mask to a latent of a frozen autoencoder, by a network of the diffusion model's kind."""

    kind: Literal["latent_gan"] = "latent_gan"


Form = Literal["joint", "mask_only"]


class _Annotated(Strict):
    coding: Literal["one_hot", "cuts"] = Field(
        "one_hot", description="labels as a channel each, or as one grey channel"
    )
    latent: Positive = Field(64, description="features of z")


class ProgressiveGANConfig(_Annotated, _Pyramid):
    """Progressive GAN."""

    kind: Literal["progressive_gan"] = "progressive_gan"
    form: Form = Field("joint", description="image and annotation, or the annotation alone")


class StyleGAN1Config(_Annotated, _Pyramid):
    """StyleGAN 1."""

    kind: Literal["stylegan1"] = "stylegan1"
    form: Form = Field("joint", description="image and annotation, or the annotation alone")
    style: Positive = Field(64, description="features of w")
    mapping_layers: Positive = 4


class StyleGAN2Config(_Annotated, _Pyramid):
    """StyleGAN 2."""

    kind: Literal["stylegan2"] = "stylegan2"
    form: Literal["image_given_mask", "joint", "mask_only"] = Field(
        "image_given_mask", description="paint a mask, make image and annotation together, or the annotation alone"
    )
    style: Positive = Field(64, description="features of w")
    mapping_layers: Positive = 4


class StyleGAN3Config(_Annotated):
    """StyleGAN 3-t, slices alone."""

    kind: Literal["stylegan3"] = "stylegan3"
    form: Form = Field("joint", description="image and annotation, or the annotation alone")
    style: Positive = Field(64, description="features of w")
    mapping_layers: Positive = 2
    channels: Positive = Field(64, description="features of layers of up to 64 pixels; finer ones have fewer")
    layers: Positive = Field(8, description="synthesis layers")


GeneratorConfig = Annotated[
    Pix2PixConfig
    | CycleGANConfig
    | SPADEConfig
    | LatentGANConfig
    | ProgressiveGANConfig
    | StyleGAN1Config
    | StyleGAN2Config
    | StyleGAN3Config,
    Field(discriminator="kind"),
]


class PatchConfig(Strict):
    """PatchGANs, which judge neighbourhoods."""

    kind: Literal["patch"] = "patch"
    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="the discriminator's own learning rate")
    channels: Positive = 16
    layers: Positive = 3
    scales: Positive = Field(1, description="one PatchGAN on the image, one on half its size, and so on")
    spectral: bool = Field(False, description="spectral normalisation")


class ResidualConfig(_Pyramid):
    """StyleGAN 2's discriminator, which judges the whole image."""

    kind: Literal["residual"] = "residual"
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="the discriminator's own learning rate")


class GrownConfig(_Pyramid):
    """The discriminator that grows with a growing generator."""

    kind: Literal["grown"] = "grown"
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="the discriminator's own learning rate")


DiscriminatorConfig = Annotated[PatchConfig | ResidualConfig | GrownConfig, Field(discriminator="kind")]


class GanSamplingConfig(Strict):
    """Defaults that a checkpoint samples with; each can be changed at sampling."""

    truncation: Fraction = Field(1.0, description="spread of the latents: 1 as trained, 0 always the mean")
