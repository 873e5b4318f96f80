"""Lesions by rule: no network, nothing learnt but what lesions look like on average. A control for every trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy import ndimage

from latentsynth.data.cache.cutting import distance_to
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import ConfigError, DataError
from latentsynth.provenance import Ledger, fingerprint
from latentsynth.randomness import Stream, generator
from latentsynth.synthesizers.base import Synthesizer
from latentsynth.types import Condition, Domain, Generated

_GRAIN_MM = 2.0  # width of the texture's grains
_EDGE_MM = 1.5  # over which the lesion blends into the scan


@dataclass
class RuleBased(Synthesizer):
    """Paints lesions into a scan as smoothed noise around a mean, blended at the edge, as the synthetic tumours of Hu et al.
    (2023, "Label-free liver tumor segmentation", section 3.2): texture, then Gaussian edge.

    Attributes:
        domain: The volumes it paints into.
        means: Mean intensity of every training lesion, ``(N, C)`` in [-1, 1]; a lesion takes those of one at random.
        deviations: Standard deviation of intensities within each, ``(N, C)``.
        ledger: The patients these were measured on.
    """

    domain: Domain
    means: np.ndarray
    deviations: np.ndarray
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    @classmethod
    def fit(cls, domain: Domain, volumes: VolumeCache) -> Self:
        """Measures the lesions of some cases.

        Raises:
            DataError: None of them has a lesion on the grid.
        """
        means, deviations = [], []
        for n in volumes.annotated:
            volume = volumes.volume(n)
            assert volume.mask is not None
            lesion = np.isin(volume.mask, domain.lesion_indices)
            if lesion.any():
                means.append(volume.image[:, lesion].mean(1))
                deviations.append(volume.image[:, lesion].std(1))
        if not means:
            raise DataError("none of the training cases has a lesion on the grid: nothing to measure")
        return cls(domain, np.array(means), np.array(deviations), Ledger.of([case for case, _ in volumes.entries]))

    @property
    def takes_context(self) -> bool:
        return True

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return fingerprint(["rules", self.means.round(5).tolist(), self.deviations.round(5).tolist()])

    def settings(self, **changes: Any) -> dict[str, Any]:
        given = [name for name, value in changes.items() if value is not None]
        if given:
            raise ConfigError(f"{given[0]} means nothing to lesions by rule: leave it out")
        return {}

    def to(self, device: torch.device | str) -> RuleBased:
        return self

    def generate(self, condition: Condition | None, seeds: Sequence[int], **settings: Any) -> Generated:
        """Paints one volume per seed.

        Args:
            condition: Masks ``(B, L, I, J, K)`` and the scans ``(B, C, I, J, K)`` to paint into, as context.
            seeds: One per volume.
            settings: None are known.

        Raises:
            DataError: No scan to paint into.
        """
        self.check(condition, seeds)
        self.settings(**settings)
        if condition is None or condition.context is None:
            raise DataError("lesions by rule are painted into scans: give hosts (`--into`)")
        rows = zip(condition.context.numpy(), condition.mask.argmax(1).numpy(), seeds, strict=True)
        made = [self._painted(image, mask, seed) for image, mask, seed in rows]
        return Generated(torch.from_numpy(np.stack(made)), condition.mask)

    def _painted(self, image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        rng = generator(seed, Stream.RULE)
        spacing = self.grid.spacing_mm
        lesion = np.isin(mask, self.domain.lesion_indices)
        like = rng.integers(len(self.means))
        share = np.where(lesion, 1.0, np.exp(-0.5 * (distance_to(lesion, spacing) / _EDGE_MM) ** 2))
        share[~np.isfinite(share)] = 0
        out = image.copy()
        for channel in range(len(image)):
            grain = ndimage.gaussian_filter(rng.standard_normal(lesion.shape), [_GRAIN_MM / step for step in spacing])
            inside = grain[lesion] if lesion.any() else grain
            texture = (grain - inside.mean()) / max(float(inside.std()), 1e-6)
            painted = self.means[like, channel] + self.deviations[like, channel] * texture
            out[channel] = np.clip(share * painted + (1 - share) * image[channel], -1, 1)
        return out.astype(np.float32)
