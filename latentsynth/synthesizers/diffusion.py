"""Latent diffusion: noise and mask to latents of a frozen autoencoder, latents to a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.autoencoders import Autoencoder
from latentsynth.conditioning import MaskConditioner
from latentsynth.config import SamplingConfig, build
from latentsynth.diffusion import Denoiser, guided, sample
from latentsynth.diffusion.sampling import sampler_named
from latentsynth.errors import CheckpointError, ConfigError
from latentsynth.provenance import Ledger
from latentsynth.synthesizers.base import Synthesizer, seeded_noise
from latentsynth.types import Condition, Conditioning, Domain, Generated

KIND = "latent_diffusion"


@dataclass
class LatentDiffusion(Synthesizer):
    """A mask-conditioned latent diffusion model, ready to sample.

    Attributes:
        domain: The volumes it makes.
        autoencoder: Frozen; owns the latent scale.
        conditioner: Mask to cell fractions.
        denoiser: The averaged weights.
        sampling: Defaults of :meth:`generate`.
        shift: Time shift it was trained with.
        fingerprint: Of the checkpoint, or "unsaved".
        ledger: The patients it has seen, through its autoencoder too.
    """

    domain: Domain
    autoencoder: Autoencoder
    conditioner: MaskConditioner
    denoiser: Denoiser
    sampling: SamplingConfig
    shift: float = 1.0
    fingerprint: str = "unsaved"
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    def to(self, device: torch.device | str) -> LatentDiffusion:
        for part in (self.autoencoder, self.conditioner, self.denoiser):
            part.to(device)
        return self

    def settings(self, **changes: Any) -> dict[str, Any]:
        wanted = {key: value for key, value in changes.items() if value is not None}
        config = build(SamplingConfig, {**self.sampling.model_dump(), **wanted}, "sampling settings")
        sampler_named(config.scheduler, self.denoiser.schedule)  # refuses an unknown name before any work is done
        return config.model_dump(mode="json")

    @torch.no_grad()
    def generate(
        self,
        condition: Condition | None,
        seeds: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> Generated:
        """Makes one volume per seed.

        Args:
            condition: Masks ``(B, L, I, J, K)``; None samples without a mask.
            seeds: One per volume.
            progress: Called with (denoiser calls done, in all).
            settings: ``scheduler``, ``steps``, ``guidance``, ``guidance_interval``.

        Raises:
            DataError: The condition does not fit the model.
            ConfigError: An impossible setting.
        """
        self.check(condition, seeds)
        chosen = SamplingConfig(**self.settings(**settings))
        device = next(self.denoiser.parameters()).device
        rows = len(seeds)
        if condition is None:
            condition = Condition(torch.zeros(rows, len(self.domain.labels), *self.grid.shape))
        # On a CPU torch is several times slower on a batch of one, so a lone volume is made twice.
        repeat = 2 if rows == 1 and device.type == "cpu" else 1
        noise = seeded_noise(seeds, self.autoencoder.latent_shape(self.grid.shape)).repeat(repeat, 1, 1, 1, 1)
        mask = condition.mask.repeat(repeat, 1, 1, 1, 1).to(device)
        wanted = self.conditioner(replace(condition, mask=mask))
        nothing = self.conditioner.dropped(wanted, torch.zeros(rows * repeat, dtype=torch.bool, device=device))

        def denoise_with(conditioning: Conditioning) -> Callable[[Tensor, Tensor], Tensor]:
            return lambda x_t, t: self.denoiser(x_t, t, conditioning)

        denoise = guided(denoise_with(wanted), denoise_with(nothing), chosen.guidance, chosen.guidance_interval)
        z = sample(
            denoise, self.denoiser.schedule, noise.to(device), chosen.scheduler, chosen.steps, self.shift, progress
        )
        return Generated(self.autoencoder.decode(z)[:rows].cpu(), condition.mask)

    def save(self, folder: Path, ledger: Ledger, metrics: Mapping[str, float]) -> checkpoint.Header:
        """Writes the checkpoint folder that :meth:`from_pretrained` reads."""
        settings = {"sampling": self.sampling.model_dump(mode="json"), "shift": self.shift}
        parts = {"autoencoder": self.autoencoder, "conditioner": self.conditioner, "denoiser": self.denoiser}
        return checkpoint.write(folder, KIND, self.domain, settings, parts, ledger, metrics)

    @classmethod
    def from_pretrained(cls, path: Path | str) -> Self:
        """Loads a checkpoint folder, or the one inside a run folder.

        Raises:
            CheckpointError: It is not a latent diffusion checkpoint, or its parts do not belong together.
        """
        folder = checkpoint.locate(path)
        header = checkpoint.read_header(folder, KIND)
        if set(header.parts) != {"autoencoder", "conditioner", "denoiser"}:
            raise CheckpointError(
                f"{folder}/config.json binds parts {sorted(header.parts)}, expected autoencoder, conditioner, denoiser"
            )
        if set(header.settings) != {"sampling", "shift"}:
            raise CheckpointError(
                f"{folder}/config.json: settings {sorted(header.settings)}, expected sampling and shift"
            )
        model = cls(
            header.domain,
            Autoencoder.from_pretrained(folder / "autoencoder"),
            MaskConditioner.from_pretrained(folder / "conditioner"),
            Denoiser.from_pretrained(folder / "denoiser"),
            cls._sampling(header.settings["sampling"], folder),
            float(header.settings["shift"]),
            header.fingerprint,
            checkpoint.read_ledger(folder),
        )
        model._check_parts(folder)
        return model

    @staticmethod
    def _sampling(value: Any, folder: Path) -> SamplingConfig:
        try:
            return build(SamplingConfig, dict(value), f"{folder}/config.json")
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(f"{error}: restore the checkpoint") from error

    def _check_parts(self, folder: Path) -> None:
        """The parts must fit each other and the domain."""
        facts = {
            "conditioner labels": (self.conditioner.labels, len(self.domain.labels)),
            "conditioner factors": (tuple(self.conditioner.factors), tuple(self.autoencoder.factors)),
            "denoiser latent channels": (self.denoiser.config["latent_channels"], self.autoencoder.latent_channels),
            "autoencoder image channels": (self.autoencoder.config["image_channels"], self.grid.channels),
        }
        for name, (found, expected) in facts.items():
            if found != expected:
                raise CheckpointError(
                    f"{folder}: {name} is {found}, expected {expected}: the parts do not fit together"
                )
