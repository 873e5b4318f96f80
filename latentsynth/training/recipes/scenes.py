"""What a GAN is shown of a training batch: real targets, the masks they show, where slices lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentsynth.autoencoders import Autoencoder, Moments
from latentsynth.conditioning import MaskConditioner
from latentsynth.gans.annotation import Annotation
from latentsynth.gans.base import slice_places
from latentsynth.randomness import Stream, keyed_noise
from latentsynth.tensors import summed
from latentsynth.training.loop import Batch
from latentsynth.types import Condition


@dataclass(frozen=True)
class Scene:
    """One batch as a game of two sees it.

    Attributes:
        real: Targets, ``(B, T, *shape)``.
        mask: What the generator paints, ``(B, L, *shape)``, or None for one that makes its own.
        place: Where slices lie, ``(B,)`` in [-1, 1], or None for volumes.
        lesion: 1 inside lesions, ``(B, 1, *shape)``.
    """

    real: Tensor
    mask: Tensor | None
    place: Tensor | None
    lesion: Tensor


class Scenes(Protocol):
    """Turns batches into scenes."""

    @property
    def intensity_channels(self) -> int:
        """Channels of the targets that are intensities; the rest are labels or latents."""

    def __call__(self, batch: Batch) -> Scene:
        """The scene of a batch; the same for the same positions."""


@dataclass(frozen=True)
class VoxelScenes:
    """Voxels, whole volumes or one slice of each.

    Attributes:
        lesions: One-hot indices of lesion labels.
        channels: Image channels.
        form: ``image_given_mask``, ``joint`` or ``mask_only``.
        annotation: How labels stand in channels where the generator makes them.
        slices: How many slices a volume has, where one of each is shown; None for volumes.
    """

    lesions: list[int]
    channels: int
    form: str
    annotation: Annotation
    slices: int | None

    @property
    def intensity_channels(self) -> int:
        """Image channels among the targets."""
        return 0 if self.form == "mask_only" else self.channels

    def __call__(self, batch: Batch) -> Scene:
        """Images and one-hot masks ``(B, C or L, *shape)`` to targets."""
        image, mask, place = batch["image"], batch["mask"], None
        if self.slices is not None:
            place = slice_places(self.slices, image.device)[batch["slice"]].to(image)
        parts = [] if self.form == "mask_only" else [image]
        if self.form != "image_given_mask":
            parts.append(self.annotation.encode(mask))
        given = mask if self.form == "image_given_mask" else None
        return Scene(torch.cat(parts, 1), given, place, summed(mask, self.lesions))


@dataclass(frozen=True)
class LatentScenes:
    """Latents of a frozen autoencoder, drawn anew from the cached moments each time, as the diffusion model sees them."""

    seed: int
    autoencoder: Autoencoder
    conditioner: MaskConditioner
    lesions: list[int]

    @property
    def intensity_channels(self) -> int:
        """None: latents are no intensities."""
        return 0

    def __call__(self, batch: Batch) -> Scene:
        """Moments and one-hot masks to whitened latents and what the conditioner makes of the masks."""
        mean = batch["mean"]
        noise = keyed_noise(self.seed, batch["position"], tuple(mean.shape[1:]), Stream.GAN_LATENT).to(mean)
        given = self.conditioner(Condition(batch["mask"]))
        lesion = summed(self.conditioner.cell_fractions(given), self.lesions)
        real = self.autoencoder.whiten(Moments(mean, batch["deviation"]).sample(noise))
        return Scene(real, given.spatial, None, lesion)
