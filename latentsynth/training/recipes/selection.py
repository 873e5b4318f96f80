"""Which of a diffusion model's checkpoints is kept, and what the curves of its validation say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from latentsynth import checkpoint
from latentsynth.config import SelectionConfig
from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import ConfigError
from latentsynth.metrics.surfaces import mean_dice
from latentsynth.segmentation.segmenter import Segmenter
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Condition, Domain

_TOGETHER = 2  # volumes sampled at once; one alone is slow on a CPU
_RISEN = 0.01  # a loss that rises by less is taken for level
_STILL_FALLING = 0.01  # share of the loss, lost over the last third, above which training has not converged


@dataclass(frozen=True)
class Obedience:
    """How far a segmenter finds the masks of validation patients in samples made for them.

    Attributes:
        segmenter: Of the same grid and windows.
        volumes: Validation volumes.
        entries: Those whose masks are used.
        seed: Of the samples: the same at every validation.
    """

    segmenter: Segmenter
    volumes: VolumeCache
    entries: Sequence[int]
    seed: int

    @classmethod
    def load(cls, config: SelectionConfig, volumes: VolumeCache, domain: Domain, seed: int) -> Obedience | None:
        """What the configuration asks for; None if it names no segmenter.

        Raises:
            ConfigError: The segmenter has another grid, other windows, channels or labels; or no validation case has a mask.
            CheckpointError: There is no segmenter.
        """
        if config.segmenter is None:
            return None
        segmenter = Segmenter.from_pretrained(config.segmenter)
        theirs, ours = segmenter.domain, domain
        for what, found, wanted in (
            ("spacing", theirs.grid.spacing_mm, ours.grid.spacing_mm),
            ("windows", theirs.grid.windows, ours.grid.windows),
            ("channels", theirs.channels, ours.channels),
            ("labels", theirs.labels.values, ours.labels.values),
        ):
            if found != wanted:
                raise ConfigError(
                    f"selection.segmenter {config.segmenter} was trained on {what} {found}, this model has {wanted}: "
                    "train one on the same, or leave it out to choose by validation loss"
                )
        entries = volumes.annotated[: config.cases]
        if not entries:
            raise ConfigError("selection.segmenter needs masks of validation patients, and none has one: leave it out")
        return cls(segmenter, volumes, entries, seed)

    def of(self, model: Synthesizer, **settings: Any) -> float:
        """Mean Dice, 0 to 1, of the segmenter on samples for the masks, over cases and labels."""

        def made(condition: Condition, entries: Sequence[int]) -> torch.Tensor:
            return model.generate(condition, [self.seed + n for n in entries], **settings).image

        return self._mean(made, model.takes_context)

    def of_scans(self) -> float:
        """The same on the validation scans themselves."""
        return self._mean(lambda condition, _: cast(torch.Tensor, condition.context), context=True)

    def _mean(self, made: Callable[[Condition, Sequence[int]], torch.Tensor], context: bool) -> float:
        """Mean Dice on what is made for the masks, given the scans beside them or not."""
        scores = []
        for start in range(0, len(self.entries), _TOGETHER):
            part = self.entries[start : start + _TOGETHER]
            items = [self.volumes.item(n) for n in part]
            image, mask = (torch.stack([item[name] for item in items]) for name in ("image", "mask"))
            images = made(Condition(mask, image if context else None), part)
            for sampled, index in zip(images, mask.argmax(1).numpy(), strict=True):
                found = self.segmenter.on_grid(sampled.numpy())
                scores.append(mean_dice(index, found, len(self.segmenter.domain.labels)))
        known = [score for score in scores if np.isfinite(score)]
        return float(np.mean(known)) if known else 0.0


def choose_guidance(
    obedience: Obedience, model: Synthesizer, scales: Sequence[float]
) -> tuple[float, dict[float, float]]:
    """The least guidance scale by which a model shows masks as well as scans show theirs, or else the best.

    More than enough exaggerates lesions, and costs variety.

    Returns:
        The scale, and the mean Dice by each.
    """
    found = {scale: obedience.of(model, guidance=scale) for scale in sorted(scales)}
    enough = obedience.of_scans()
    return next((scale for scale, dice in found.items() if dice >= enough), max(found, key=lambda s: found[s])), found


def merit(scores: Mapping[str, float]) -> float:
    """What checkpoints are compared by, larger is better: obedience where it was measured, else the negative loss."""
    return scores["obedience"] if "obedience" in scores else -scores["loss"]


def deserves(scores: Mapping[str, float], folder: Path, kind: str) -> bool:
    """Whether weights of these scores should stand in place of the checkpoint that stands, if one does."""
    if not folder.is_dir():
        return True
    return merit(scores) >= merit(checkpoint.read_header(folder, kind).metrics)


@dataclass(frozen=True)
class Convergence:
    """What the validation losses of a run say.

    Attributes:
        best_images: Images seen when the loss on validation patients was least.
        falling: Share of the loss that the last third of training took away; negative where it rose.
        copying_since: Images seen since when the loss on validation patients has risen while that on training patients
            fell, as in a model that comes to know its training patients by heart; None if it has not.
    """

    best_images: int
    falling: float
    copying_since: int | None

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Convergence | None:
        """From the lines of a run's metrics; None with fewer than three validations."""
        curve = [
            (int(line["images_seen"]), float(line["val/loss"]), float(line["val/training_loss"]))
            for line in lines
            if line.get("val/loss") is not None and line.get("val/training_loss") is not None
        ]
        if len(curve) < 3:
            return None
        best = min(range(len(curve)), key=lambda n: curve[n][1])
        images, least, training = curve[best]
        _, last, training_last = curve[-1]
        before = curve[max(len(curve) - 1 - max(len(curve) // 3, 1), 0)][1]
        copying = last > least * (1 + _RISEN) and training_last < training
        return cls(images, (before - last) / before, images if copying else None)

    @property
    def converged(self) -> bool:
        """Whether the last third brought next to nothing."""
        return self.falling < _STILL_FALLING

    def told(self) -> str:
        """One line for people."""
        if self.copying_since is not None:
            return (
                f"since {self.copying_since} images the loss on validation patients rises while that on training patients "
                "falls: the model starts to copy its training patients; more patients or augmentation help, more images do not"
            )
        if self.converged:
            return f"converged: the last third of training changed the validation loss by {self.falling:.1%}"
        return f"not converged: the last third of training still lowered the validation loss by {self.falling:.1%}; raise train.images"
