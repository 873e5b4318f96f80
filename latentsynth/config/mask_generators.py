"""Training a generator of masks alone: what it learns from, and one section per family."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from latentsynth.config.data import DataConfig
from latentsynth.config.generators import Family
from latentsynth.config.ldm import DenoiserConfig, DiffusionConfig, SamplingConfig
from latentsynth.config.numbers import NotNegative
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict


class MaskDataConfig(DataConfig):
    """Masks to train on and the grid they are brought to; images are left aside."""

    @model_validator(mode="after")
    def _images(self) -> MaskDataConfig:
        if self.grid.windows:
            raise ValueError("grid.windows: a model of masks alone looks at no image, leave the windows out")
        if self.augment.changes_voxels:
            raise ValueError(
                "augment: elastic_mm, gamma, noise and bias need an image; masks alone take moves, scale and flips"
            )
        return self


class _VAEConfig(Family):
    """The network: config of :class:`latentsynth.masks.label_vae.LabelVAE`, and the weights of its loss."""

    recipe = "vae"
    unit_of: ClassVar[str] = "channels, one halving each"

    channels: tuple[Positive, ...] = Field((16, 32, 64, 64), description="features, one entry per halving of the grid")
    hidden: Positive = Field(256, description="features between the convolutions and the latent")
    latent: Positive = Field(16, description="latent coordinates")
    beta: NotNegative = Field(15.0, description="weight of the divergence from a standard normal")
    free_bits: NotNegative = Field(0.0, description="nats per latent coordinate that cost nothing")
    dice: NotNegative = Field(0.0, description="weight of 1 - soft Dice, beside the cross-entropy summed over cells")

    @property
    def unit(self) -> int:
        """Voxels that each axis of a slice or volume must be a multiple of."""
        return int(2 ** len(self.channels))


class SliceSamplingConfig(Strict):
    """How a slice VAE samples unless told otherwise."""

    method: Literal["copula", "truncated_normal"] = Field(
        "copula", description="copula keeps the marginals of the population; truncated_normal as published"
    )
    correlated: bool = Field(True, description="False draws every latent coordinate of every slice by itself")
    population: str = Field("", description="class that is sampled; empty takes all training cases")


class SliceVAEConfig(_VAEConfig):
    """VAE of slices whose latents are sampled together, slice by slice along an axis."""

    coarse: ClassVar[bool] = False

    kind: Literal["slice_vae"] = "slice_vae"
    slice_axis: Literal[0, 1, 2] = Field(2, description="axis along which slices are cut: 2 for axial ones")
    slices: Positive = Field(32, description="slices that every case is interpolated to before it is described")
    slices_per_case: Positive = Field(8, description="slices of a case that one training step looks at")
    classes: dict[str, tuple[str, ...]] = Field(
        {}, description="case ids of each class that can be sampled; none given: thirds by lesion volume"
    )
    sampling: SliceSamplingConfig = SliceSamplingConfig()


class LabelSamplingConfig(Strict):
    """How a label VAE samples unless told otherwise."""

    spread: Annotated[float, Field(gt=0)] = Field(1.0, description="deviation of the latents: 1 as trained")


class LabelVAEConfig(_VAEConfig):
    """VAE of whole label volumes, sampled from its prior."""

    slice_axis: ClassVar[None] = None

    kind: Literal["label_vae"] = "label_vae"
    latent: Positive = Field(32, description="latent coordinates")
    beta: NotNegative = Field(5.0, description="weight of the divergence from a standard normal")
    free_bits: NotNegative = Field(0.1, description="nats per latent coordinate that cost nothing")
    dice: NotNegative = Field(500.0, description="weight of 1 - soft Dice, beside the cross-entropy summed over voxels")
    coarse: bool = Field(True, description="decode at half size and interpolate: several times cheaper")
    sampling: LabelSamplingConfig = LabelSamplingConfig()


class MaskSamplingConfig(SamplingConfig):
    """How a mask diffusion model samples unless told otherwise."""

    exact_volume: bool = Field(
        False,
        description="move the border of each mask until its volume is the one asked for, instead of where it fell",
    )


class MaskDiffusionConfig(Family):
    """Diffusion of distance maps, told organs, lesion volume and lesion count."""

    recipe = "diffusion"
    unit_of: ClassVar[str] = "coarsen, generator.patch and the levels of generator.denoiser.channels"
    slice_axis: ClassVar[None] = None

    kind: Literal["mask_diffusion"] = "mask_diffusion"
    coarsen: Literal[1, 2, 4] = Field(2, description="voxels per cell of the distance map along each axis")
    patch: Literal[1, 2, 4] = Field(2, description="cells per axis that the network sees as channels of one")
    reach_mm: Annotated[float, Field(gt=0)] = Field(
        20.0, description="distance from the border that the map saturates at"
    )
    denoiser: DenoiserConfig = DenoiserConfig(channels=(64, 96))
    diffusion: DiffusionConfig = DiffusionConfig()
    sampling: MaskSamplingConfig = MaskSamplingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> MaskDiffusionConfig:
        if self.diffusion.lesion_weight != 1:
            raise ValueError(
                "diffusion.lesion_weight is not available for masks, which are lesions alone: leave it at 1"
            )
        self.sampling.resolved(self.diffusion.flow)  # refuses a shift that sampling would not heed
        return self

    @property
    def unit(self) -> int:
        """Voxels along each axis that the network's smallest level makes one cell of."""
        return int(self.coarsen * self.patch * 2 ** (len(self.denoiser.channels) - 1))


MaskGeneratorConfig = Annotated[
    SliceVAEConfig | LabelVAEConfig | MaskDiffusionConfig,
    Field(discriminator="kind"),
]


class MaskRun(Run):
    """Training a generator of masks alone; GANs of masks have the settings of any GAN, with ``form: mask_only``."""

    may_change: ClassVar[tuple[str, ...]] = ("train", "generator.sampling")

    data: MaskDataConfig
    generator: MaskGeneratorConfig

    @model_validator(mode="after")
    def _divisible(self) -> MaskRun:
        shape = self.data.grid.shape
        unit, axis = self.generator.unit, self.generator.slice_axis
        bad = [n for at, n in enumerate(shape) if at != axis and n % unit]
        if bad:
            raise ValueError(
                f"data.grid.shape {shape}: {bad[0]} does not divide by {unit} (generator.{self.generator.unit_of}): pad the grid "
                "to a multiple"
            )
        if self.init_from is not None:
            raise ValueError("init_from is not available for generators of masks: they train in minutes")
        if self.train.gradient_checkpointing:
            raise ValueError("train.gradient_checkpointing is not available for generators of masks: lower train.batch")
        return self
