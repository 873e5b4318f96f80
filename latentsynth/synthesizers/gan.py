"""GANs on voxels: volumes in one pass, or slice by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from latentsynth.config import GanSamplingConfig, build
from latentsynth.config.generators import AnyForm
from latentsynth.errors import ConfigError, DataError
from latentsynth.gans import Annotation, Generator
from latentsynth.gans.annotation import Coding, SliceAxis
from latentsynth.gans.base import Inputs, slice_places
from latentsynth.parallel import copies_of_rows
from latentsynth.provenance import Ledger
from latentsynth.randomness import Draws
from latentsynth.synthesizers.base import Synthesizer
from latentsynth.synthesizers.checkpointed import Checkpointed
from latentsynth.types import Condition, Domain, Generated


@dataclass
class GAN(Synthesizer, Checkpointed):
    """A generator of any voxel family, ready to sample.

    Attributes:
        domain: The volumes it makes.
        generator: The averaged weights.
        form: ``image_given_mask``; ``joint``: image and annotation; ``mask_only``: annotation, the image left empty.
        annotation: How labels stand in channels.
        slice_axis: Axis along which slices are stacked; None for a generator of volumes.
        sampling: Defaults of :meth:`generate`.
        fingerprint: Of the checkpoint, or "unsaved".
        ledger: The patients it has seen.
    """

    kind = "gan"
    part_kinds = MappingProxyType({"generator": Generator})
    sampling_kind = GanSamplingConfig
    facts = MappingProxyType({"form": AnyForm, "coding": Coding, "slice_axis": SliceAxis})

    domain: Domain
    generator: Generator
    form: str
    annotation: Annotation
    slice_axis: int | None = None
    sampling: GanSamplingConfig = GanSamplingConfig()  # noqa: RUF009 (frozen)
    fingerprint: str = "unsaved"
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    @property
    def makes_masks(self) -> bool:
        return self.form != "image_given_mask"

    @property
    def makes_images(self) -> bool:
        return self.form != "mask_only"

    @property
    def coding(self) -> Coding:
        """How labels stand in channels, by name."""
        return self.annotation.coding

    @property
    def takes_style(self) -> bool:
        return self.generator.encodes_style and not self.makes_masks

    def to(self, device: torch.device | str) -> GAN:
        self.generator.to(device)
        return self

    def settings(self, **changes: Any) -> dict[str, Any]:
        return gan_settings(self.generator, self.sampling, changes)

    @torch.no_grad()
    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        """Makes one volume per seed.

        Args:
            condition: Masks ``(B, L, I, J, K)``, and for a model with a style encoder reference scans
                ``(B, C, I, J, K)`` as ``style``; None leaves it to the model.
            seeds: One per volume. A model of slices uses one latent for all slices of a volume.
            settings: ``truncation``.

        Raises:
            DataError: The condition does not fit the model, or the model makes its own masks.
            ConfigError: An impossible setting.
        """
        self.check(condition, seeds)
        truncation = self.settings(**settings)["truncation"]
        rows = len(seeds)
        mask = None if condition is None else condition.mask
        style = None if condition is None else condition.style
        channels = self._channels(seeds, mask, style, truncation)
        count = self._image_channels
        image = channels[:, :count] if count else channels.new_full((rows, self.grid.channels, *self.grid.shape), -1.0)
        if self.makes_masks:
            shown = self.annotation.decode(channels[:, count:])
        else:
            shown = torch.zeros(rows, len(self.domain.labels), *self.grid.shape) if mask is None else mask
        return Generated(image.clamp(-1, 1), shown)

    def invalid_labels(self, seeds: Sequence[int]) -> Tensor:
        """Share of voxels of each sample that name no label clearly, ``(B,)``; for models that make masks."""
        with torch.no_grad():
            channels = self._channels(seeds, None, None, 1.0)
        return self.annotation.invalid(channels[:, self._image_channels :])

    @property
    def _image_channels(self) -> int:
        """How many of the generator's channels are the image; the rest is annotation."""
        return self.grid.channels if self.makes_images else 0

    def _channels(self, seeds: Sequence[int], mask: Tensor | None, style: Tensor | None, truncation: float) -> Tensor:
        """All that the generator makes, ``(B, T, I, J, K)``."""
        if self.slice_axis is None:
            return self._volumes(seeds, mask, style, truncation)
        given = [[None] * len(seeds) if x is None else list(x) for x in (mask, style)]
        stacks = zip(seeds, *given, strict=True)
        return torch.stack([self._stack(seed, m, s, truncation) for seed, m, s in stacks])

    def _volumes(self, seeds: Sequence[int], mask: Tensor | None, style: Tensor | None, truncation: float) -> Tensor:
        """Channels ``(B, T, I, J, K)`` of a generator of volumes."""
        device = next(self.generator.parameters()).device
        repeat = copies_of_rows(len(seeds), device)
        mask, style = (None if x is None else x.repeat(repeat, 1, 1, 1, 1).to(device) for x in (mask, style))
        draws = Draws.seeded(list(seeds) * repeat, device)
        made = self.generator(Inputs(draws, mask, style=style, truncation=truncation))
        return made.image[: len(seeds)].float().cpu()

    def _stack(self, seed: int, mask: Tensor | None, style: Tensor | None, truncation: float) -> Tensor:
        """Channels ``(T, I, J, K)`` of one volume, all its slices from the same latent."""
        assert self.slice_axis is not None
        device = next(self.generator.parameters()).device
        count = self.grid.shape[self.slice_axis]
        slices = None if mask is None else mask.movedim(1 + self.slice_axis, 0).to(device)
        if style is not None:  # one look for the whole volume: that of the reference's middle slice
            style = style.select(1 + self.slice_axis, count // 2).expand(count, -1, -1, -1).to(device)
        place = slice_places(count, device)
        made = self.generator(
            Inputs(Draws.seeded([seed] * count, device), slices, style=style, place=place, truncation=truncation)
        )
        return made.image.float().cpu().movedim(0, 1 + self.slice_axis)

    def check(self, condition: Condition | None, seeds: Sequence[int]) -> None:
        if condition is not None and self.makes_masks:
            raise DataError("this model makes its own masks: leave the condition None (`latentsynth sample --count`)")
        super().check(condition, seeds)
        if condition is None:
            return
        check_extras(condition, self.generator.encodes_style)
        expected = (len(seeds), self.grid.channels, *self.grid.shape)
        if condition.style is not None and tuple(condition.style.shape) != expected:
            raise DataError(
                f"condition.style has shape {tuple(condition.style.shape)}, expected {expected}: one reference scan per seed"
            )

    @classmethod
    def _arguments(cls, facts: dict[str, Any], domain: Domain) -> dict[str, Any]:
        coding = facts.pop("coding")
        return {**facts, "annotation": Annotation(domain.labels.values, coding)}

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        shape = tuple(n for at, n in enumerate(self.grid.shape) if at != self.slice_axis)
        made = self._image_channels + (self.annotation.channels if self.makes_masks else 0)
        labels = 0 if self.makes_masks else len(self.domain.labels)
        # CycleGAN's painter takes images too, so it may be wider than its masks.
        wide = max(labels, self.grid.channels) if labels else 0
        return {
            "generator grid": (tuple(self.generator.shape), shape),
            "generator channels": (self.generator.config["out_channels"], made),
            "generator labels": (self.generator.labels, wide if self.generator.labels == wide else labels),
        }


def gan_settings(generator: Generator, defaults: GanSamplingConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling settings, changed as asked and checked.

    Raises:
        ConfigError: An unknown setting, an impossible value, or truncation for a family without a latent.
    """
    wanted = {key: value for key, value in changes.items() if value is not None}
    config = build(GanSamplingConfig, {**defaults.model_dump(), **wanted}, "sampling settings")
    if config.truncation != 1 and not generator.truncates:
        raise ConfigError(
            f"truncation {config.truncation:g}: {type(generator).__name__} has no latent to truncate; leave it at 1"
        )
    return config.model_dump(mode="json")


def check_extras(condition: Condition, style: bool = False) -> None:
    """Refuses what a mask-conditioned GAN was not trained on.

    Raises:
        DataError: Context, covariates, or a style for a family that takes none.
    """
    for name in ("context", "covariates", *(() if style else ("style",))):
        if getattr(condition, name) is not None:
            raise DataError(f"this model takes no {name}: leave Condition.{name} None")
