"""Losses of mask generators. Every random number is keyed by (seed, position), so one process and many draw the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentsynth.config import LabelVAEConfig, MaskDiffusionConfig, SliceVAEConfig
from latentsynth.diffusion import TimeSampler, denoising_loss, schedule_named, target_weight
from latentsynth.diffusion.times import automatic_shift
from latentsynth.masks.label_vae import vae_terms
from latentsynth.masks.mask_diffusion import MaskAttributes
from latentsynth.randomness import VALIDATION, Stream, generator, keyed_noise, keyed_uniform
from latentsynth.training.loop import Batch, Modules

_COUNT_UNKNOWN = 0.5  # the count is seldom asked for, so half of the cases train without


@dataclass(frozen=True)
class VAELoss:
    """Cross-entropy summed over cells, divergence per latent coordinate, and Dice (Amirrajab et al. 2022: no Dice).

    Attributes:
        config: Weights, and how slices are drawn.
        seed: Of the run.
    """

    config: SliceVAEConfig | LabelVAEConfig
    seed: int

    def __call__(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        positions, mask = batch["position"], batch["mask"]
        each = 1
        if isinstance(self.config, SliceVAEConfig):
            each = self.config.slices_per_case
            mask = self._slices(mask.movedim(2 + self.config.slice_axis, 1), positions, each)
        noise = keyed_noise(self.seed, positions, (each, self.config.latent), Stream.MASK_LATENT).flatten(0, 1).to(mask)
        logits, mean, log_variance = modules["vae"](mask, noise)
        terms = vae_terms(logits, mask, mean, log_variance)
        divergence = terms["divergence"].clamp_min(self.config.free_bits).sum()
        total = terms["cross_entropy"] + self.config.beta * divergence + self.config.dice * terms["dice"]
        return total, {**terms, "divergence": terms["divergence"].sum()}

    def _slices(self, stacks: Tensor, positions: Tensor, count: int) -> Tensor:
        """Some slices of each case between the first and the last that hold a label: ``(B, K, L, ...)`` to ``(B n, L, ...)``."""
        chosen = []
        for stack, position in zip(stacks, positions.tolist(), strict=True):
            filled = stack[:, 1:].flatten(1).any(1).nonzero().flatten()
            first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, len(stack) - 1)
            draw = torch.from_numpy(generator(self.seed, Stream.MASK_SLICE, position).random(count))
            chosen.append(stack[(first + (draw * (last - first + 1)).long()).to(stack.device)])
        return torch.cat(chosen)


class MaskDenoiserLoss:
    """The denoiser's loss on distance maps, with attributes that are sometimes left out: all, the volume, or the count."""

    def __init__(self, config: MaskDiffusionConfig, attributes: MaskAttributes, cells: int, seed: int):
        wanted = config.diffusion
        self.config, self.attributes, self.seed = config, attributes, seed
        shift = automatic_shift(cells) if wanted.shift == "auto" else wanted.shift
        self.times = TimeSampler(wanted.time, wanted.time_mean, wanted.time_std, shift)
        self.schedule = schedule_named(wanted.schedule)

    def __call__(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        positions, p = batch["position"], self.config.diffusion.condition_dropout
        t = self.times(keyed_uniform(self.seed, positions, Stream.MASK_TIME))
        kept = keyed_uniform(self.seed, positions, Stream.MASK_DROP) >= p
        volume = kept & (keyed_uniform(self.seed, positions, Stream.MASK_FORGET_VOLUME) >= p)
        count = kept & (keyed_uniform(self.seed, positions, Stream.MASK_FORGET_COUNT) >= _COUNT_UNKNOWN)
        return self.losses(modules["denoiser"], batch, positions, t, kept, volume, count).mean(), {}

    def losses(
        self,
        denoiser: nn.Module,
        batch: Batch,
        positions: Tensor,
        t: Tensor,
        organs: Tensor,
        volume: Tensor,
        count: Tensor,
    ) -> Tensor:
        """A loss per case ``(B,)`` at times ``t``; of each attribute, whether the case is told it."""
        x, t = batch["maps"], t.to(batch["maps"])

        def told(values: Tensor, keep: Tensor) -> Tensor:
            return torch.where(keep.to(values.device), values, torch.nan)

        shares = batch["organs"] * organs.to(x).view(-1, 1, 1, 1, 1) if self.attributes.organs else None
        conditioning = self.attributes(told(batch["volume_ml"], volume), told(batch["lesions"], count), shares)
        noise = keyed_noise(self.seed, positions, tuple(x.shape[1:]), Stream.MASK_NOISE).to(x)
        weight = target_weight(self.config.diffusion.prediction, self.schedule, t)
        return denoising_loss(denoiser, x, conditioning, self.schedule, t, noise, weight)

    @torch.no_grad()
    def score(self, denoiser: nn.Module, item: Batch, case: int, rows: int = 4) -> dict[str, float]:
        """Loss of one case over evenly spread times, told everything; ``attribute_gain`` is the share of it that knowing removes."""
        device = next(denoiser.parameters()).device
        batch = {key: value.to(device).expand(rows, *value.shape).contiguous() for key, value in item.items()}
        positions = torch.arange(rows) + VALIDATION + case * rows
        t = self.times((torch.arange(rows) + 0.5) / rows)
        known, unknown = (
            float(self.losses(denoiser, batch, positions, t, *[torch.full((rows,), keep)] * 3).mean())
            for keep in (True, False)
        )
        return {"loss": known, "attribute_gain": 1 - known / unknown}
