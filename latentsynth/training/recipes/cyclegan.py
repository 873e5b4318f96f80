"""CycleGAN's game: translators both ways, a discriminator at either end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from latentsynth.config import CycleGANConfig, GanRun
from latentsynth.gans import Generator, build_discriminator
from latentsynth.gans.cyclegan import Cycle, CycleDiscriminators, Translators, cycle_loss
from latentsynth.gans.losses import accuracy, discriminator_loss, generator_loss, split
from latentsynth.randomness import Draws, Stream
from latentsynth.training.loop import Batch, Modules, Player
from latentsynth.training.recipes.adversarial import remember
from latentsynth.training.recipes.pool import from_pool
from latentsynth.training.recipes.scenes import Scenes


@dataclass
class CycleGame:
    """Both players' losses (Zhu et al. 2017, eq. 3).

    Attributes:
        config: The run.
        scenes: What the players are shown; image and mask of a scene belong to different cases.
        state: Pools and accuracy, checkpointed.
    """

    config: GanRun
    scenes: Scenes
    state: dict[str, Any] = field(
        default_factory=lambda: {"accuracy": 0.5, "probability": 0.0, "images": {}, "masks": {}}
    )

    @property
    def network(self) -> CycleGANConfig:
        """The generator's section."""
        return cast(CycleGANConfig, self.config.generator)

    def players(self, shape: Sequence[int], channels: int, labels: int) -> list[Player]:
        """Translators first: their average is what is kept."""
        net = self.network
        translators = Translators(shape, channels, labels, net.channels, net.blocks, net.dropout, net.attention)
        discriminators = CycleDiscriminators(
            *(build_discriminator(self.config.discriminator, shape, n, 0, False) for n in (channels, labels))
        )
        return [
            Player("generator", {"translators": translators}, self.generator_loss, self.config.train.lr),
            Player(
                "discriminator", {"discriminators": discriminators}, self.discriminator_loss, self.config.discriminator.lr,
                state=self.state,
            ),
        ]  # fmt: skip

    def generator(self, modules: Modules) -> Generator:
        """The painter among the translators."""
        return cast(Translators, modules["translators"]).painter

    def generator_loss(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Fool both discriminators, and come back to where it started."""
        scene = self.scenes(batch)
        assert scene.mask is not None
        draws = Draws.keyed(self.config.seed, batch["position"], Stream.TRANSLATE)
        cycle: Cycle = modules["translators"](draws, scene.mask, scene.real)
        on_image, on_mask = modules["discriminators"](cycle.image, cycle.mask)
        kind = self.config.game.loss
        adversarial = generator_loss(kind, on_image.logits) + generator_loss(kind, on_mask.logits)
        back = cycle_loss(cycle, scene.mask, scene.real, self.network.identity_weight)
        batch["scene"], batch["fakes"] = scene, (cycle.image.detach(), cycle.mask.detach())
        return adversarial + self.network.cycle_weight * back, {"adversarial": adversarial, "cycle": back}

    def discriminator_loss(
        self, modules: Modules, batch: Batch, state: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Each discriminator on its own side, with a pool of earlier fakes each."""
        scene, kind, size = batch["scene"], self.config.game.loss, self.config.game.pool
        fakes = [
            from_pool(state[name], fake, batch, size, self.config.seed)
            for name, fake in zip(("images", "masks"), batch["fakes"], strict=True)
        ]
        reals = [scene.real, 2 * scene.mask - 1]
        opinions = modules["discriminators"](
            *(torch.cat([real, fake]) for real, fake in zip(reals, fakes, strict=True))
        )
        losses, right = [], []
        for opinion in opinions:
            on_real, on_fake = split(opinion, 2)
            losses.append(discriminator_loss(kind, on_real.logits, on_fake.logits))
            right.append(accuracy(kind, on_real.logits, on_fake.logits))
        mean = torch.stack(right).mean()
        remember(state, "accuracy", mean)
        return torch.stack(losses).sum(), {"accuracy": mean}
