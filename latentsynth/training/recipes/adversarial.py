"""The game of a generator and a discriminator, whatever their family. Families differ in networks and weights alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate.utils import gather, reduce
from torch import Tensor, nn

from latentsynth.config import GameConfig, GanRun
from latentsynth.gans.augment import adapt, adaptive_state, augment
from latentsynth.gans.base import Discriminator, Generator, Inputs, Opinion, Painted, beside
from latentsynth.gans.losses import (
    accuracy,
    discriminator_loss,
    feature_matching,
    generator_loss,
    gradient_penalty,
    middle,
    path_lengths,
    split,
    squared_gradient,
)
from latentsynth.randomness import Draws, Stream
from latentsynth.training.loop import Batch, Modules, Player
from latentsynth.training.recipes.pool import from_pool
from latentsynth.training.recipes.reconstruction import feature_distance, load_perceptual
from latentsynth.training.recipes.scenes import Scene, Scenes

_MEMORY = 0.99  # of running means


@dataclass
class Game:
    """Both players' losses, over one description of what they are shown.

    Attributes:
        config: The run.
        scenes: What they are shown.
        state: What the discriminator's side remembers: the pool, the augmentation's probability, its accuracy. Given to
            its player as state, so it is checkpointed.
    """

    config: GanRun
    scenes: Scenes
    state: dict[str, Any] = field(default_factory=lambda: {**adaptive_state(), "accuracy": 0.5})

    def __post_init__(self) -> None:
        perceptual = self.config.game.perceptual
        self.perceptual = load_perceptual(perceptual.path) if perceptual else None

    @property
    def terms(self) -> GameConfig:
        """Losses and weights."""
        return self.config.game

    def players(self, generator: Generator, discriminator: Discriminator) -> list[Player]:
        """The two, generator first: its average is what is kept."""
        return [
            Player(
                "generator", {"generator": generator}, self.generator_loss, self.config.train.lr,
                every=self.terms.discriminator_steps,
            ),
            Player(
                "discriminator", {"discriminator": discriminator}, self.discriminator_loss, self.config.discriminator.lr,
                state=self.state,
            ),
        ]  # fmt: skip

    def generator(self, modules: Modules) -> Generator:
        """The generator among its player's modules."""
        return cast(Generator, modules["generator"])

    def step(self, batch: Batch) -> int:
        """Which step of the run this is."""
        return int(batch["seen"]) // self.config.train.batch

    def generator_loss(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's opinion of fakes, and how far they are from the real ones of the same masks."""
        terms, scene = self.terms, self._scene(modules, batch)
        made = self._make(modules["generator"], scene, batch, Stream.MAKE)
        batch["fake"] = made.image.detach()  # what the discriminator judges next
        compared = bool(terms.feature_matching) or terms.loss == "relativistic"
        images = [made.image, scene.real] if compared else [made.image]
        # Both are moved alike, or they could not be compared.
        opinion = self._discriminate(modules["discriminator"], images, scene, batch, Stream.MOVE_FAKE, alike=True)
        fake, *rest = split(opinion, len(images))
        logs = {"adversarial": generator_loss(terms.loss, fake.logits, rest[0].logits if rest else ())}
        total = logs["adversarial"]

        def add(name: str, weight: float, value: Tensor) -> None:
            nonlocal total
            logs[name] = value
            total = total + weight * value

        if terms.feature_matching:
            add("features", terms.feature_matching, feature_matching(fake, rest[0]))
        if terms.l1:
            weight = 1 + (terms.lesion_weight - 1) * scene.lesion
            add("l1", terms.l1, ((made.image - scene.real).abs() * weight).mean() / weight.mean())
        if self.perceptual is not None and terms.perceptual is not None:
            add("perceptual", terms.perceptual.weight, feature_distance(self.perceptual, made.image, scene.real))
        if terms.divergence and made.divergence is not None:
            add("divergence", terms.divergence, made.divergence.mean())
        move = self.step(batch) // terms.discriminator_steps
        if terms.path_length and made.styles is not None and move % terms.path_length_every == 0:
            add("path_length", terms.path_length * terms.path_length_every, self._path_length(made, batch, state))
        return total, logs

    def discriminator_loss(
        self, modules: Modules, batch: Batch, state: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Real and fake in one call, as distributed wrappers require, and what keeps the discriminator from running away."""
        terms, scene = self.terms, self._scene(modules, batch)
        fake = batch.get("fake")
        if fake is None:
            with torch.no_grad():
                fake = self._make(modules["generator"], scene, batch, Stream.MAKE_AGAIN).image
        fake, fake_mask, fake_place = self._from_pool(fake, scene, batch, state)
        due = self.step(batch) % terms.r1_every == 0
        real = scene.real.detach().clone().requires_grad_(due and bool(terms.r1))
        fake = fake.detach().requires_grad_(due and bool(terms.r2))
        images, masks, places = [real, fake], [scene.mask, fake_mask], [scene.place, fake_place]
        if terms.gradient_penalty:
            share = self._draws(batch, Stream.MIX).uniform(*[1] * (real.ndim - 1)).to(real)
            images.append(torch.lerp(fake, scene.real, share).requires_grad_())
            masks.append(scene.mask)
            places.append(scene.place)
        opinion = self._discriminate(modules["discriminator"], images, scene, batch, Stream.MOVE_ALL, masks, places)
        on_real, on_fake, *rest = split(opinion, len(images))
        total = discriminator_loss(terms.loss, on_real.logits, on_fake.logits)
        right = accuracy(terms.loss, on_real.logits, on_fake.logits)
        logs = {"accuracy": right, "augment": total.new_tensor(state["probability"])}
        for name, gamma, logits, image in (
            ("r1", terms.r1, on_real.logits, real),
            ("r2", terms.r2, on_fake.logits, fake),
        ):
            if due and gamma:
                logs[name] = squared_gradient(logits, image)
                total = total + gamma / 2 * terms.r1_every * logs[name]
        if terms.gradient_penalty:
            logs["gradient_penalty"] = gradient_penalty(rest[0].logits, images[2])
            total = total + terms.gradient_penalty * logs["gradient_penalty"]
        if terms.drift:
            total = total + terms.drift * torch.stack([one.square().mean() for one in on_real.logits]).mean()
        remember(state, "accuracy", right)
        if terms.augment_target:
            signs = torch.cat([(one.detach().flatten(1) - middle(terms.loss)).sign() for one in on_real.logits], 1)
            adapt(state, gather(signs.contiguous()), terms.augment_target, terms.augment_ramp_images)
        return total, logs

    def _scene(self, modules: Modules, batch: Batch) -> Scene:
        """The batch's scene, described once a step; networks that grow are brought to their size."""
        if "scene" not in batch:
            batch["scene"] = self.scenes(batch)
        level = grown_level(int(batch["seen"]), self.terms.grow_images)
        for module in modules.values():
            network = cast(Generator | Discriminator, getattr(module, "module", module))  # inside a wrapper
            network.grow(level)
        scene: Scene = batch["scene"]
        return scene

    def _draws(self, batch: Batch, stream: Stream, part: int = 0) -> Draws:
        return Draws.keyed(self.config.seed, batch["position"], stream, part)

    def _make(self, generator: nn.Module, scene: Scene, batch: Batch, stream: Stream) -> Painted:
        inner = getattr(generator, "module", generator)
        style = scene.real if inner.encodes_style else None
        made: Painted = generator(
            Inputs(self._draws(batch, stream), scene.mask, style=style, place=scene.place, mixing=self.terms.mixing)
        )
        return made

    def _discriminate(
        self,
        discriminator: nn.Module,
        images: list[Tensor],
        scene: Scene,
        batch: Batch,
        stream: Stream,
        masks: list[Tensor | None] | None = None,
        places: list[Tensor | None] | None = None,
        alike: bool = False,
    ) -> Opinion:
        """An opinion of runs of images, each with its masks and places, after noise and augmentation."""
        parts = len(images)
        image = torch.cat(images)
        mask, place = (
            torch.cat([one for one in given if one is not None]) if given[0] is not None else None
            for given in (masks or [scene.mask] * parts, places or [scene.place] * parts)
        )
        if self.terms.noise:
            sigma = self.terms.noise * (1 - self.terms.noise_decay) ** self.step(batch)
            draws = self._draws(batch, Stream.DISCRIMINATOR_NOISE, stream)
            noise = [draws.normal(*image.shape[1:]) for _ in range(parts)]
            image = image + sigma * torch.cat(noise).to(image)
        if self.state["probability"]:
            together = beside(image, mask)
            together = torch.cat([
                augment(part, self._draws(batch, stream, 0 if alike else n), self.state["probability"], self.scenes.intensity_channels)
                for n, part in enumerate(together.chunk(parts), 1)
            ])  # fmt: skip
            image, mask = together[:, : image.shape[1]], None if mask is None else together[:, image.shape[1] :]
        opinion: Opinion = discriminator(image, mask, place, parts=parts)
        return opinion

    def _from_pool(
        self, fake: Tensor, scene: Scene, batch: Batch, state: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Fakes, some of them earlier ones, with the masks and places that they were made for."""
        if not self.terms.pool:
            return fake, scene.mask, scene.place
        together = beside(fake, scene.mask, scene.place)
        together = from_pool(state, together, batch, self.terms.pool, self.config.seed)
        channels, labels = fake.shape[1], 0 if scene.mask is None else scene.mask.shape[1]
        mask = together[:, channels : channels + labels] if labels else None
        place = None if scene.place is None else together[:, -1].flatten(1)[:, 0]
        return together[:, :channels], mask, place

    def _path_length(self, made: Painted, batch: Batch, state: dict[str, Any]) -> Tensor:
        """Squared distance of path lengths from their running mean (Karras et al. 2020, eq. 4)."""
        assert made.styles is not None
        noise = self._draws(batch, Stream.PATH).normal(*made.image.shape[1:]).to(made.image)
        lengths = path_lengths(made.image, made.styles, noise)
        return (lengths - remember(state, "path_mean", lengths.mean())).square().mean()


def remember(state: dict[str, Any], key: str, latest: Tensor) -> float:
    """The running mean of a number over steps and processes, kept in ``state``; it starts with its first value."""
    value = float(reduce(latest.detach(), "mean"))
    state[key] = _MEMORY * state.get(key, value) + (1 - _MEMORY) * value
    return float(state[key])


def grown_level(images_seen: int, per_stage: int) -> float:
    """How many levels are in use: one for a stage, then by turns a stage of fading the next in and one without change.

    Karras et al. 2018, app. A.
    """
    stage = images_seen / per_stage
    whole, rest = divmod(max(stage - 1, 0.0), 2)
    return whole + min(rest, 1.0)
