"""Latent diffusion: noise and mask to latents of a frozen autoencoder, latents to a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from latentsynth.autoencoders import Autoencoder
from latentsynth.conditioning import ContextConditioner, MaskConditioner
from latentsynth.config import SamplingConfig, build
from latentsynth.data.cache.cutting import Cut
from latentsynth.data.exchange.hosts import Blend
from latentsynth.diffusion import Denoiser, autoguided, guided, patchwise, sample
from latentsynth.diffusion.guidance import ConditionedDenoise, Denoise, two_rows
from latentsynth.errors import ConfigError, DataError
from latentsynth.pretrained import Pretrained
from latentsynth.provenance import Ledger, fingerprint
from latentsynth.randomness import Draws
from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.checkpointed import Checkpointed
from latentsynth.synthesizers.latent_gan import latent_facts
from latentsynth.types import Condition, Conditioning, Domain, Generated


@dataclass
class LatentDiffusion(Synthesizer, Checkpointed):
    """A mask-conditioned latent diffusion model, ready to sample.

    Attributes:
        domain: The volumes it makes.
        autoencoder: Frozen; owns the latent scale.
        conditioner: Mask to cell fractions.
        denoiser: The averaged weights.
        sampling: Defaults of :meth:`generate`.
        fingerprint: Of the checkpoint, or "unsaved".
        ledger: The patients it has seen, through its autoencoder too.
        guide: A worse denoiser to guide away from, in place of no condition; see :meth:`guided_by`.
    """

    kind = "latent_diffusion"
    part_kinds = MappingProxyType({"autoencoder": Autoencoder, "conditioner": MaskConditioner, "denoiser": Denoiser})
    sampling_kind = SamplingConfig

    domain: Domain
    autoencoder: Autoencoder
    conditioner: MaskConditioner
    denoiser: Denoiser
    sampling: SamplingConfig
    fingerprint: str = "unsaved"
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)
    guide: Denoiser | None = None

    def __post_init__(self) -> None:
        self.sampling = self.sampling.resolved(self.denoiser.schedule.flow)

    def to(self, device: torch.device | str) -> LatentDiffusion:
        for part in (self.autoencoder, self.conditioner, self.denoiser, self.guide):
            if part is not None:
                part.to(device)
        return self

    def guided_by(self, other: LatentDiffusion) -> LatentDiffusion:
        """The same model, guided away from an earlier or smaller one of the same latents and conditions (autoguidance).

        Raises:
            DataError: Theirs are other latents or conditions.
        """
        ours, theirs = self.autoencoder.state_dict(), other.autoencoder.state_dict()
        same = (
            ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].to(ours[name])) for name in ours),
            _settings(self.conditioner) == _settings(other.conditioner),
            self.denoiser.config["schedule"] == other.denoiser.config["schedule"],
        )
        if not all(same):
            raise DataError(
                "the guide has another autoencoder, other conditions or another noise schedule than the model: give an earlier "
                "or smaller checkpoint that was trained on the same latents (`early` in the run folder)"
            )
        named = fingerprint([self.fingerprint, other.fingerprint])
        return replace(self, guide=other.denoiser, fingerprint=named, ledger=self.ledger | other.ledger)

    def settings(self, **changes: Any) -> dict[str, Any]:
        wanted = {key: value for key, value in changes.items() if value is not None}
        config = build(SamplingConfig, self.sampling.with_changes(wanted), "sampling settings")
        return config.resolved(self.denoiser.schedule.flow).model_dump(mode="json")

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
            settings: ``scheduler``, ``steps``, ``shift``, ``guidance``, ``guidance_interval``, ``patch_overlap``,
                ``grain``.

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
        draws = Draws.seeded(seeds)
        noise = draws.normal(*self.autoencoder.latent_shape(self.grid.shape))
        white = chosen.grain * draws.normal(self.grid.channels, *self.grid.shape)
        mask = condition.mask.to(device)
        wanted = self.conditioner(replace(condition, mask=mask, context=None, cut=None), self._cut(condition))
        denoise = self._denoise(wanted, chosen)
        z = sample(
            denoise,
            self.denoiser.schedule,
            noise.to(device),
            chosen.scheduler,
            chosen.steps,
            chosen.grid_shift,
            progress,
        )
        made = self.autoencoder.decode(z, white).cpu()
        return Generated(made, condition.mask, self._shown(condition.context, white))

    def _denoise(self, wanted: Conditioning, chosen: SamplingConfig) -> Denoise:
        """The denoiser with its condition, and guided as chosen."""
        network = self._of_volumes(self.denoiser, chosen.patch_overlap)
        if chosen.guidance == 1:
            return lambda x_t, t: network(x_t, t, wanted)
        if self.guide is not None:
            worse = self._of_volumes(self.guide, chosen.patch_overlap)
            return autoguided(network, worse, wanted, chosen.guidance, chosen.guidance_interval)
        nothing = self.conditioner.dropped(
            wanted, torch.zeros(len(wanted.spatial), dtype=torch.bool, device=wanted.spatial.device)
        )
        return guided(network, wanted, nothing, chosen.guidance, chosen.guidance_interval)

    def _of_volumes(self, denoiser: Denoiser, overlap: float) -> ConditionedDenoise:
        """A denoiser of whole volumes."""
        network = two_rows(denoiser)
        return network if self.conditioner.patch is None else patchwise(network, self.conditioner.patch, overlap)

    @property
    def takes_context(self) -> bool:
        return self.conditioner.takes_context

    @property
    def removes_lesions(self) -> bool:
        return isinstance(self.conditioner, ContextConditioner) and self.conditioner.decoys > 0

    def blend(self, margin_mm: float | None = None) -> Blend:
        if not isinstance(self.conditioner, ContextConditioner):
            return super().blend(margin_mm)
        # Within the cut it has not seen the scan, and what it shows of a cell beside the cut depends on the cut.
        cut = self.conditioner.cut_margin_mm
        cell = max(n * mm for n, mm in zip(self.autoencoder.factors, self.grid.spacing_mm, strict=True))
        if margin_mm is not None and margin_mm < cut + cell:
            raise ConfigError(
                f"margin {margin_mm:g} mm is too narrow for this model: it does not see the scan within {cut:g} mm of the "
                f"lesion, and its cells measure {cell:g} mm: give at least {cut + cell:g}, or none"
            )
        return Blend(cut, cut + 2 * cell if margin_mm is None else margin_mm)

    def _shown(self, scan: Tensor | None, white: Tensor) -> Tensor | None:
        """Scans through the autoencoder, on the CPU; with the grain of the volume, which is not added to the scan's own then."""
        if scan is None:
            return None
        device = next(self.autoencoder.parameters()).device
        return self.autoencoder.decode(self.autoencoder.encode(scan.to(device)), white).cpu()

    def _cut(self, condition: Condition) -> Tensor | None:
        """Latents of the scans to paint into, their lesions cut out as in training."""
        if condition.context is None:
            return None
        if not isinstance(self.conditioner, ContextConditioner):
            raise DataError("this model cannot paint into a scan: train one with conditioner.context=true")
        cut = Cut(tuple(self.domain.lesion_indices), self.conditioner.cut_margin_mm, self.grid.spacing_mm)
        hidden = condition.cut
        if hidden is None:
            hidden = condition.mask[:, self.domain.lesion_indices].sum(1) > 0
        rows = zip(condition.context.numpy(), hidden.numpy(), strict=True)
        images = torch.stack([torch.from_numpy(cut.out_of(image, inside)) for image, inside in rows])
        device = next(self.autoencoder.parameters()).device
        return self.autoencoder.encode(images.to(device))

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        channels = (self.denoiser.config["latent_channels"], self.autoencoder.latent_channels)
        facts = latent_facts(self.autoencoder, self.conditioner, self.domain)
        return {**facts, "denoiser latent channels": channels}


def _settings(part: Pretrained) -> dict[str, Any]:
    """What a part was built with."""
    return {key: value for key, value in part.config.items() if not key.startswith("_")}
