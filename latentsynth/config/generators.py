"""Networks of GANs: one section per family of generators, one per kind of discriminator.

A family is described here and nowhere else: its settings, what others ask of it, and what the published systems set,
which is used wherever a configuration is silent. Learning rates, momenta, losses and weights are theirs. Sizes and
batches are not: those belong to the data and machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from latentsynth.config.ldm import DenoiserConfig
from latentsynth.config.numbers import Fraction
from latentsynth.strict import Positive, Strict

Form = Literal["joint", "mask_only"]
AnyForm = Literal["image_given_mask", "joint", "mask_only"]
Coding = Literal["one_hot", "cuts"]
Published = Mapping[str, Mapping[str, Any]]


class Family(Strict):
    """A family of generators: its settings, and what others ask of it. A GAN also says its ``form`` and ``coding``.

    Attributes:
        recipe: What trains it: a ``game`` with a discriminator, a game with the way back (``cycle``), or for masks alone a
            ``vae`` or ``diffusion``.
        space: Whether it makes voxels, or latents of a frozen autoencoder.
        dims: Axes of what it makes: 2 are slices, 3 volumes.
        growing: Whether it starts on a small grid and grows, which takes a discriminator that does too.
        has_layer_styles: Whether each layer has a style, as path lengths need.
        truncates: Whether it has a latent whose spread can be cut in sampling.
        terms: Terms of the game that it knows; None are all.
        no_start: Why it cannot start from another checkpoint; empty if it can.
        published: What the published system sets, by section of a run.
    """

    recipe: ClassVar[Literal["game", "cycle", "vae", "diffusion"]] = "game"
    space: ClassVar[Literal["voxels", "latents"]] = "voxels"
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    growing: ClassVar[bool] = False
    has_layer_styles: ClassVar[bool] = False
    truncates: ClassVar[bool] = True
    terms: ClassVar[tuple[str, ...] | None] = None
    no_start: ClassVar[str] = ""
    published: ClassVar[Published] = {}


_TRAIN = {"lr_schedule": "constant", "lr_warmup_images": 0, "grad_clip": 1000.0}


class Painter(Family):
    """A family that paints the masks it is given."""

    form: ClassVar[AnyForm] = "image_given_mask"
    coding: ClassVar[Coding] = "one_hot"


class _Pyramid(Strict):
    channels: Positive = Field(16, description="features at full size, doubled at each level below")
    max_channels: Positive = Field(64, description="most features of any level")


class Pix2PixConfig(Painter):
    """pix2pix: mask to image by a U-Net or a residual network."""

    # Platscher et al. 2022, their code: least squares, L1, pool of 50, noise of 0.2 on what the discriminator sees.
    published: ClassVar[Published] = {
        "discriminator": {"kind": "patch", "lr": 2e-4, "layers": 3},
        "game": {"loss": "least_squares", "l1": 10.0, "pool": 50, "noise": 0.2, "noise_decay": 1e-3},
        "train": {**_TRAIN, "lr": 2e-4, "betas": [0.5, 0.999]},
    }
    truncates = False

    kind: Literal["pix2pix"] = "pix2pix"
    network: Literal["unet", "resnet"] = "unet"
    channels: Positive = Field(16, description="features at full size, doubled at each level below")
    max_channels: Positive = Field(128, description="most features of any level (unet)")
    levels: Positive = Field(4, description="halvings of the grid (unet)")
    blocks: Positive = Field(4, description="residual blocks (resnet)")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.3, description="the only noise, in sampling too")


class CycleGANConfig(Painter):
    """CycleGAN: masks and images that belong to different cases, translated both ways."""

    # Zhu et al. 2017, sec. 4: least squares, pool of 50.
    published: ClassVar[Published] = {
        "discriminator": {"kind": "patch", "lr": 2e-4, "layers": 3},
        "game": {"loss": "least_squares", "pool": 50},
        "train": {**_TRAIN, "lr": 2e-4, "betas": [0.5, 0.999]},
    }
    recipe = "cycle"
    truncates = False
    terms = ("loss", "pool")
    no_start = "its checkpoint holds one of its two translators"

    kind: Literal["cyclegan"] = "cyclegan"
    channels: Positive = Field(16, description="features at full size")
    blocks: Positive = Field(4, description="residual blocks")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.3, description="the only noise, in sampling too")
    attention: bool = Field(False, description="blend by an attention map: m G(x) + (1 - m) x")
    cycle_weight: Annotated[float, Field(ge=0)] = Field(10.0, description="of coming back to where it started")
    identity_weight: Annotated[float, Field(ge=0)] = Field(
        0.5, description="of leaving alone what is in the target domain already, relative to cycle_weight"
    )


class SPADEConfig(_Pyramid, Painter):
    """SPADE: the mask modulates the normalisation at every scale."""

    # Park et al. 2019; Amirrajab et al. 2022, their code: hinge, features, two time-scales, two discriminators.
    published: ClassVar[Published] = {
        "discriminator": {"kind": "patch", "lr": 4e-4, "layers": 3, "scales": 2, "spectral": True},
        "game": {"loss": "hinge", "feature_matching": 10.0, "divergence": 0.05, "l1": 10.0},
        "train": {**_TRAIN, "lr": 1e-4, "betas": [0.0, 0.9]},
    }

    kind: Literal["spade"] = "spade"
    max_channels: Positive = Field(128, description="most features of any level")
    hidden: Positive = Field(32, description="features between mask and modulation")
    latent: Positive = Field(64, description="features of the style code")
    style: Literal["vae", "bottleneck", "none"] = Field("vae", description="where the style of a scan comes from")


class LatentGANConfig(DenoiserConfig, Painter):
    """One step from noise and mask to a latent of a frozen autoencoder, by a network of the diffusion model's kind."""

    # Huang et al. 2024: relativistic pairs, R1 and R2. No L1, which gives one answer per mask; rates chosen on validation patients
    # of `hippocampus` (docs/results.md).
    published: ClassVar[Published] = {
        "discriminator": {"kind": "residual", "lr": 2e-3, "channels": 32, "max_channels": 64},
        "game": {"loss": "relativistic", "r1": 1.0, "r2": 1.0, "r1_every": 8},
        "train": {**_TRAIN, "lr": 1e-4, "betas": [0.0, 0.99]},
    }
    space = "latents"
    dims = (3,)

    kind: Literal["latent_gan"] = "latent_gan"


class Annotating(Family):
    """A family that can make annotations of its own; what it makes is its ``form``."""

    coding: Coding = Field("one_hot", description="labels as a channel each, or as one grey channel")
    latent: Positive = Field(64, description="features of z")


class ProgressiveGANConfig(Annotating, _Pyramid):
    """Progressive GAN."""

    # Karras et al. 2018: Wasserstein, gradient penalty of 10, drift of 0.001.
    published: ClassVar[Published] = {
        "discriminator": {"kind": "grown", "lr": 1e-3},
        "game": {"loss": "wasserstein", "gradient_penalty": 10.0, "drift": 1e-3},
        "train": {**_TRAIN, "lr": 1e-3, "betas": [0.0, 0.99]},
    }
    growing = True
    truncates = False

    kind: Literal["progressive_gan"] = "progressive_gan"
    form: Form = Field("joint", description="image and annotation, or the annotation alone")


class StyleGAN1Config(Annotating, _Pyramid):
    """StyleGAN 1."""

    # Karras et al. 2019: non-saturating, R1 of 10 at every step, mixing of 0.9.
    published: ClassVar[Published] = {
        "discriminator": {"kind": "grown", "lr": 1e-3},
        "game": {"loss": "non_saturating", "r1": 10.0, "r1_every": 1, "mixing": 0.9},
        "train": {**_TRAIN, "lr": 1e-3, "betas": [0.0, 0.99]},
    }
    growing = True
    has_layer_styles = True

    kind: Literal["stylegan1"] = "stylegan1"
    form: Form = Field("joint", description="image and annotation, or the annotation alone")
    style: Positive = Field(64, description="features of w")
    mapping_layers: Positive = 4


# Karras et al. 2020 (StyleGAN 2 and its training on limited data): R1 every 16 steps, adaptive augmentation.
_GAME = {"loss": "non_saturating", "r1": 8.0, "r1_every": 16, "augment_target": 0.6, "mixing": 0.9}
_STYLEGAN: dict[str, Mapping[str, Any]] = {
    "discriminator": {"kind": "residual", "lr": 2e-3},
    "train": {**_TRAIN, "lr": 2e-3, "betas": [0.0, 0.99]},
}


class StyleGAN2Config(Annotating, _Pyramid):
    """StyleGAN 2."""

    published: ClassVar[Published] = {**_STYLEGAN, "game": {**_GAME, "path_length": 2.0, "path_length_every": 4}}
    has_layer_styles = True

    kind: Literal["stylegan2"] = "stylegan2"
    form: AnyForm = Field(
        "image_given_mask", description="paint a mask, make image and annotation together, or the annotation alone"
    )
    style: Positive = Field(64, description="features of w")
    mapping_layers: Positive = 4


class StyleGAN3Config(Annotating):
    """StyleGAN 3-t, slices alone."""

    published: ClassVar[Published] = {**_STYLEGAN, "game": {**_GAME, "mixing": 0.0}}
    dims = (2,)

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


class _Judge(Strict):
    growing: ClassVar[bool] = False


class PatchConfig(_Judge):
    """PatchGANs, which judge neighbourhoods."""

    kind: Literal["patch"] = "patch"
    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="the discriminator's own learning rate")
    channels: Positive = 16
    layers: Positive = 3
    scales: Positive = Field(1, description="one PatchGAN on the image, one on half its size, and so on")
    spectral: bool = Field(False, description="spectral normalisation")


class ResidualConfig(_Judge, _Pyramid):
    """StyleGAN 2's discriminator, which judges the whole image."""

    kind: Literal["residual"] = "residual"
    lr: Annotated[float, Field(gt=0)] = Field(2e-3, description="the discriminator's own learning rate")


class GrownConfig(_Judge, _Pyramid):
    """The discriminator that grows with a growing generator."""

    growing = True

    kind: Literal["grown"] = "grown"
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="the discriminator's own learning rate")


DiscriminatorConfig = Annotated[PatchConfig | ResidualConfig | GrownConfig, Field(discriminator="kind")]


class GanSamplingConfig(Strict):
    """Defaults that a checkpoint samples with; each can be changed at sampling."""

    truncation: Fraction = Field(1.0, description="spread of the latents: 1 as trained, 0 always the mean")
