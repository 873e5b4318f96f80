"""Training a GAN: which generator, which discriminator, which game."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from latentsynth.config.autoencoder import PerceptualConfig
from latentsynth.config.data import AugmentConfig, DataConfig
from latentsynth.config.generators import (
    AnyForm,
    DiscriminatorConfig,
    Family,
    GanSamplingConfig,
    GeneratorConfig,
    PatchConfig,
)
from latentsynth.config.ldm import ConditionerConfig, LatentDataConfig
from latentsynth.config.mask_generators import MaskDataConfig
from latentsynth.config.numbers import Fraction, NotNegative
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict, chosen, members
from latentsynth.types import Framing, Grid


class GameConfig(Strict):
    """What the players play for; 0 leaves a term out. Every term works with every family but CycleGAN."""

    loss: Literal["hinge", "least_squares", "non_saturating", "relativistic", "wasserstein"] = "hinge"
    l1: NotNegative = Field(0.0, description="weight of the distance to the real image of the same mask")
    lesion_weight: Annotated[float, Field(ge=1)] = Field(1.0, description="weight of lesion voxels in l1")
    feature_matching: NotNegative = Field(0.0, description="weight of the distance in the discriminator's features")
    perceptual: PerceptualConfig | None = None
    divergence: NotNegative = Field(0.0, description="weight of the style code's divergence from a standard normal")
    r1: NotNegative = Field(0.0, description="gamma of the gradient penalty on real images")
    r2: NotNegative = Field(0.0, description="gamma of the gradient penalty on fake images")
    r1_every: Positive = Field(1, description="steps between uses of r1 and r2, each so many times as strong")
    gradient_penalty: NotNegative = Field(0.0, description="weight of the penalty between real and fake (WGAN-GP)")
    drift: NotNegative = Field(0.0, description="weight of the squared logits of real images")
    path_length: NotNegative = Field(0.0, description="weight of path length regularisation")
    path_length_every: Positive = Field(4, description="steps between its uses, each so many times as strong")
    mixing: Fraction = Field(0.0, description="probability of two styles in one image")
    pool: int = Field(0, ge=0, description="earlier fakes that the discriminator is shown again, half of the time")
    noise: NotNegative = Field(0.0, description="deviation of the noise on what the discriminator sees")
    noise_decay: Fraction = Field(0.0, description="share of that noise that goes at every step")
    augment_target: Fraction = Field(
        0.0, description="adaptive augmentation holds the mean sign of real logits here (0.6); 0 augments nothing"
    )
    augment_ramp_images: Positive = Field(20_000, description="images over which its probability could rise to 1")
    discriminator_steps: Positive = Field(1, description="moves of the discriminator per move of the generator")
    grow_images: Positive = Field(
        2_000, description="images per stage of a growing network: so many fading, so many not"
    )


class GanDataConfig(Strict):
    """What to train on. A GAN on latents takes grid and framing from its autoencoder, and the rest where left out."""

    manifest: Path | None = None
    grid: Grid | None = None
    framing: Framing | None = None
    augment: AugmentConfig | None = None
    cache: Path | None = None

    def volumes(self) -> DataConfig:
        """As voxel models take it; without intensity windows, masks alone."""
        kind = DataConfig if self.grid is None or self.grid.windows else MaskDataConfig
        return kind.model_validate(self.model_dump(exclude_none=True))

    def latents(self) -> LatentDataConfig:
        """As latent models take it."""
        return LatentDataConfig(manifest=self.manifest, augment=self.augment, cache=self.cache)


class GanRun(Run):
    """Training a GAN. Wherever it is silent, the published settings of the generator's family hold."""

    data: GanDataConfig = GanDataConfig()
    autoencoder: Path | None = Field(None, description="of a latent_gan: run folder or checkpoint, frozen")
    spatial_dims: Literal[2, 3] = Field(3, description="3: volumes; 2: slices, stacked to volumes when sampling")
    slice_axis: Literal[0, 1, 2] = Field(2, description="axis along which slices are stacked: 2 for axial ones")
    conditioner: ConditionerConfig = ConditionerConfig()
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig = PatchConfig()
    game: GameConfig = GameConfig()
    sampling: GanSamplingConfig = GanSamplingConfig()

    @model_validator(mode="before")
    @classmethod
    def _published(cls, values: Any) -> Any:
        """The family's published settings wherever the user is silent."""
        family = chosen(cls, "generator", values)
        return values if family is None else _filled(values, family.published)

    @property
    def latent(self) -> bool:
        """Whether it works on the latents of an autoencoder."""
        return self.generator.space == "latents"

    @property
    def form(self) -> AnyForm:
        """What the generator makes."""
        return self.generator.form

    @model_validator(mode="after")
    def _consistent(self) -> GanRun:
        self._check_data()
        self._check_network()
        self._check_game()
        self._check_growth()
        return self

    def _check_data(self) -> None:
        """What it is trained on, and in which space."""
        kind = self.generator.kind
        if self.conditioner.context:
            raise ValueError("conditioner.context is for diffusion models: leave it out")
        if self.conditioner.patch:
            raise ValueError("conditioner.patch is for diffusion models: leave it out")
        if self.latent:
            if self.autoencoder is None:
                raise ValueError(f"generator.kind {kind} needs autoencoder: the run folder of a trained one")
            if self.data.grid is not None or self.data.framing is not None:
                raise ValueError(f"data.grid and data.framing come from the autoencoder of a {kind}: leave them out")
        else:
            if self.autoencoder is not None:
                on_latents = _kinds(lambda family: family.space == "latents")
                raise ValueError(f"autoencoder is for generator.kind {_either(on_latents)} alone: leave it out")
            missing = [name for name in ("manifest", "grid") if getattr(self.data, name) is None]
            if missing:
                raise ValueError(f"data.{missing[0]} is missing: say what to train on")
            if self.data.grid is not None and not self.data.grid.windows and self.form != "mask_only":
                raise ValueError("data.grid.windows is empty: give one per channel; only form mask_only does without")

    def _check_network(self) -> None:
        """Whether networks, sampling and start suit each other."""
        family = self.generator
        if self.spatial_dims not in family.dims:
            if self.spatial_dims == 2:
                raise ValueError(f"a {family.kind} works on volumes: spatial_dims must be 3")
            raise ValueError(f"{family.kind} makes slices: give spatial_dims: 2")
        if family.growing != self.discriminator.growing:
            growing = ", ".join(_kinds(lambda family: family.growing))
            raise ValueError(f"discriminator.kind grown and a growing generator ({growing}) go together")
        if self.sampling.truncation != 1 and not family.truncates:
            raise ValueError(f"sampling.truncation: {family.kind} has no latent to truncate; leave it at 1")
        if self.train.gradient_checkpointing:
            raise ValueError(
                "train.gradient_checkpointing is not available for GANs: lower train.batch or raise accumulation"
            )
        if self.init_from is not None and family.no_start:
            raise ValueError(f"init_from is not available for {family.kind}: {family.no_start}")

    def _check_game(self) -> None:
        """Whether the family knows the terms that are played for."""
        family, game = self.generator, self.game
        if game.path_length and not family.has_layer_styles:
            styled = _either(_kinds(lambda family: family.has_layer_styles))
            raise ValueError(f"game.path_length needs a generator with styles per layer: {styled}")
        if self.form != "image_given_mask" and (game.l1 or game.perceptual or game.feature_matching):
            raise ValueError(
                "game.l1, game.perceptual and game.feature_matching compare with the image of the same mask: this form has none"
            )
        if game.loss in ("relativistic", "wasserstein") and game.augment_target:
            raise ValueError(
                f"game.augment_target needs logits with a middle, and game.loss {game.loss} has none: set it to 0"
            )
        if game.loss == "relativistic" and family.recipe == "cycle":
            raise ValueError(
                f"game.loss relativistic pairs fakes with real images, which a {family.kind} has none of: choose another"
            )
        plain, known = GameConfig(), family.terms
        unused = [key for key in GameConfig.model_fields if getattr(game, key) != getattr(plain, key)]
        unused = [] if known is None else [key for key in unused if key not in known]
        if known is not None and unused:
            name, terms = type(family).__name__.removesuffix("Config"), " and ".join(f"game.{term}" for term in known)
            raise ValueError(f"game.{unused[0]} is no part of {name}'s game, which knows {terms} alone")

    def _check_growth(self) -> None:
        """A growing network must have time to reach its full size."""
        if self.data.grid is None or not self.generator.growing:
            return
        sizes = [n for axis, n in enumerate(self.data.grid.shape) if self.spatial_dims == 3 or axis != self.slice_axis]
        halvings = max(_halvings(n) for n in sizes)
        needed = 2 * halvings * self.game.grow_images
        if self.train.images < needed:
            raise ValueError(
                f"train.images {self.train.images} ends before the network is full-grown: give at least {needed}, or fewer "
                "game.grow_images"
            )


def _filled(values: Mapping[str, Any], published: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same values, with published settings wherever they are silent."""
    filled = dict(values)
    for section, settings in published.items():
        given = values.get(section, {})
        if not isinstance(given, dict):
            continue
        if section == "discriminator" and given.get("kind", settings["kind"]) != settings["kind"]:
            continue  # another network: its own defaults
        filled[section] = {**settings, **given}
    return filled


def makers_of_masks() -> str:
    """The families that can learn from masks alone, by name, for people."""
    forms = {kind: family.model_fields.get("form") for kind, family in members(GanRun, "generator").items()}
    return _either([kind for kind, form in forms.items() if form and "mask_only" in get_args(form.annotation)])


def _kinds(asked: Callable[[type[Family]], bool]) -> list[str]:
    """The families of which something is true, by name."""
    return [kind for kind, family in members(GanRun, "generator").items() if asked(family)]


def _either(kinds: Sequence[str]) -> str:
    *others, last = kinds
    return f"{', '.join(others)} or {last}" if others else last


def _halvings(voxels: int) -> int:
    """How often an axis can be halved to no less than 4, as the pyramids of the networks are."""
    return 1 + _halvings(voxels // 2) if voxels % 2 == 0 and voxels >= 8 else 0
