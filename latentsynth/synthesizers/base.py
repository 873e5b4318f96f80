"""The one interface of everything that makes volumes: all that anything downstream may know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from latentsynth.data.cache.volumes import one_hot
from latentsynth.data.exchange.hosts import Blend
from latentsynth.data.exchange.requests import Placed, Request, place, place_array, to_scanner, volume_seed
from latentsynth.errors import DataError
from latentsynth.provenance import Ledger
from latentsynth.types import Condition, Domain, Fit, Generated, Grid

_MARGIN_MM = 6.0  # over which lesions give way to the scan, for a model that asks for no more


class Synthesizer(ABC):
    """Makes volumes from conditions and seeds.

    Attributes:
        domain: The volumes it makes.
        fingerprint: Names its weights and settings in sidecars.
        ledger: The patients it has seen.
    """

    domain: Domain
    fingerprint: str
    ledger: Ledger = Ledger()

    @property
    def makes_masks(self) -> bool:
        """Whether it makes its own masks and takes none."""
        return False

    @property
    def makes_images(self) -> bool:
        """Whether its volumes have an image, and not a mask alone."""
        return True

    @property
    def takes_style(self) -> bool:
        """Whether it renders masks in the look of a reference scan."""
        return False

    @property
    def takes_context(self) -> bool:
        """Whether it can paint lesions into a given scan."""
        return False

    @property
    def removes_lesions(self) -> bool:
        """Whether it has learnt to put healthy tissue in place of the lesions of a given scan."""
        return False

    def blend(self, margin_mm: float | None = None) -> Blend:
        """How its lesions are blended into scans.

        Args:
            margin_mm: Distance from the lesion from which on the scan stays as it is; None takes 6 mm, or what the model needs.

        Raises:
            ConfigError: The model needs a wider margin.
        """
        return Blend(0.0, _MARGIN_MM if margin_mm is None else margin_mm)

    @property
    def grid(self) -> Grid:
        """The voxel grid of its volumes."""
        return self.domain.grid

    @abstractmethod
    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        """Makes one volume per seed.

        Args:
            condition: What to make, a batch of ``len(seeds)``; None leaves it to the model.
            seeds: Volume b depends on ``(condition[b], seeds[b])`` alone, whatever else is in the batch.
            settings: What the family lets a caller change; see :meth:`settings`.

        Raises:
            DataError: The condition does not fit the model.
        """

    @abstractmethod
    def settings(self, **changes: Any) -> dict[str, Any]:
        """The sampling settings, changed as asked and checked; what sidecars record.

        Raises:
            ConfigError: An unknown setting or an impossible value.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Synthesizer:
        """Moves the weights."""

    def paint(
        self,
        placed: Sequence[Placed],
        seeds: Sequence[int],
        style: Tensor | None = None,
        context: Tensor | None = None,
        cut: Tensor | None = None,
        **settings: Any,
    ) -> Generated:
        """Volumes for masks that were placed on the model's grid; a model that makes masks uses none of them.

        Args:
            placed: One per volume.
            seeds: One per volume.
            style: Reference scans ``(B, C, I, J, K)`` for a model that takes them, or None.
            context: Scans ``(B, C, I, J, K)`` to paint into, for a model that takes them, or None.
            cut: What of the scans is replaced, boolean ``(B, I, J, K)``; None replaces where the masks have lesions.
            settings: Sampling settings; see :meth:`settings`.

        Raises:
            DataError: A style or a scan for a model that takes none.
        """
        if context is not None and not self.takes_context:
            raise DataError("this model cannot paint into a scan: train one with conditioner.context=true")
        if style is not None and not self.takes_style:
            raise DataError("this model takes no reference scan: leave the style out")
        if self.makes_masks:
            return self.generate(None, list(seeds), **settings)
        labels = len(self.domain.labels)
        mask = torch.stack([one_hot(torch.from_numpy(p.index), labels) for p in placed])
        return self.generate(Condition(mask, context, style=style, cut=cut), list(seeds), **settings)

    def __call__(
        self,
        mask: Path | str | tuple[np.ndarray, np.ndarray],
        seed: int = 0,
        fit: Fit | None = None,
        **settings: Any,
    ) -> list[nib.Nifti1Image]:
        """One synthetic scan for one mask, in memory; the same volume that ``latentsynth sample`` writes.

        Args:
            mask: Path of a label map, or its voxels and affine.
            seed: The same mask and seed give the same scan.
            fit: Overrides what to do with a lesion that does not fit the grid.
            settings: Sampling settings; see :meth:`settings`.

        Returns:
            One nibabel image per channel, in scanner units on the mask's own grid.

        Raises:
            DataError: The mask is unreadable, empty, has an unknown label, or does not fit; or the model makes its own.
        """
        if self.makes_masks:
            raise DataError(
                "this model makes its own masks: call generate(None, seeds), or `latentsynth sample --count`"
            )
        if isinstance(mask, tuple):
            placed = place_array(np.asarray(mask[0]), np.asarray(mask[1]), self.domain, "the mask", fit)
        else:
            placed = place(Request("mask", Path(mask)), self.domain, fit)
        made = self.paint([placed], [volume_seed(seed, placed)], **self.settings(**settings))
        image = made.image[0].numpy()
        return [nib.Nifti1Image(channel, placed.affine) for channel in to_scanner(image, placed, self.domain)]

    def check(self, condition: Condition | None, seeds: Sequence[int]) -> None:
        """Refuses a condition that does not fit the model.

        Raises:
            DataError: Wrong batch, label count or grid.
        """
        if condition is None:
            return
        expected = (len(seeds), len(self.domain.labels), *self.grid.shape)
        if tuple(condition.mask.shape) != expected:
            raise DataError(
                f"condition.mask has shape {tuple(condition.mask.shape)}, expected {expected} "
                "(seeds, labels, grid): resample the mask to the model's grid"
            )
