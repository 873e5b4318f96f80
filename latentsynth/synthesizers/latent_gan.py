"""A GAN on the latents of a frozen autoencoder: one step where diffusion takes many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from latentsynth.autoencoders import Autoencoder
from latentsynth.conditioning import MaskConditioner
from latentsynth.config import GanSamplingConfig
from latentsynth.gans import Generator
from latentsynth.gans.base import Inputs
from latentsynth.parallel import copies_of_rows
from latentsynth.provenance import Ledger
from latentsynth.randomness import Draws
from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.checkpointed import Checkpointed
from latentsynth.synthesizers.gan import check_extras, gan_settings
from latentsynth.types import Condition, Domain, Generated


@dataclass
class LatentGAN(Synthesizer, Checkpointed):
    """A mask-conditioned GAN on latents, ready to sample.

    Attributes:
        domain: The volumes it makes.
        autoencoder: Frozen; owns the latent scale.
        conditioner: Mask to shares of labels per latent cell.
        generator: The averaged weights.
        sampling: Defaults of :meth:`generate`.
        fingerprint: Of the checkpoint, or "unsaved".
        ledger: The patients it has seen, through its autoencoder too.
    """

    kind = "latent_gan"
    part_kinds = MappingProxyType({"autoencoder": Autoencoder, "conditioner": MaskConditioner, "generator": Generator})
    sampling_kind = GanSamplingConfig

    domain: Domain
    autoencoder: Autoencoder
    conditioner: MaskConditioner
    generator: Generator
    sampling: GanSamplingConfig = GanSamplingConfig()  # noqa: RUF009 (frozen)
    fingerprint: str = "unsaved"
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    def to(self, device: torch.device | str) -> LatentGAN:
        for part in (self.autoencoder, self.conditioner, self.generator):
            part.to(device)
        return self

    def settings(self, **changes: Any) -> dict[str, Any]:
        return gan_settings(self.generator, self.sampling, changes)

    @torch.no_grad()
    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        """Makes one volume per seed.

        Args:
            condition: Masks ``(B, L, I, J, K)``; None samples without a mask.
            seeds: One per volume.
            settings: ``truncation``.

        Raises:
            DataError: The condition does not fit the model.
            ConfigError: An impossible setting.
        """
        self.check(condition, seeds)
        truncation = self.settings(**settings)["truncation"]
        device = next(self.generator.parameters()).device
        rows = len(seeds)
        if condition is None:
            condition = Condition(torch.zeros(rows, len(self.domain.labels), *self.grid.shape))
        repeat = copies_of_rows(rows, device)
        spatial = self.conditioner(Condition(condition.mask.repeat(repeat, 1, 1, 1, 1).to(device))).spatial
        draws = Draws.seeded(list(seeds) * repeat, device)
        z = self.generator(Inputs(draws, spatial, truncation=truncation)).image
        white = draws.normal(self.grid.channels, *self.grid.shape)
        return Generated(self.autoencoder.decode(z, white)[:rows].cpu(), condition.mask)

    def check(self, condition: Condition | None, seeds: Sequence[int]) -> None:
        super().check(condition, seeds)
        if condition is not None:
            check_extras(condition)

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        latent = tuple(self.autoencoder.latent_shape(self.grid.shape))
        return {
            **latent_facts(self.autoencoder, self.conditioner, self.domain),
            "generator latents": ((self.generator.config["out_channels"], *self.generator.shape), latent),
            "generator labels": (self.generator.labels, self.conditioner.channels),
        }


def latent_facts(autoencoder: Autoencoder, conditioner: MaskConditioner, domain: Domain) -> dict[str, tuple[Any, Any]]:
    """What must agree between the parts of a model on latents: name to (found, expected)."""
    return {
        "conditioner labels": (conditioner.labels, len(domain.labels)),
        "conditioner factors": (tuple(conditioner.factors), tuple(autoencoder.factors)),
        "autoencoder image channels": (autoencoder.config["image_channels"], domain.grid.channels),
    }
