"""CycleGAN: two translators that must undo each other, trained on masks and images of different cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from latentsynth.gans.base import Discriminator, Inputs, Opinion
from latentsynth.gans.translators import ResNetGenerator
from latentsynth.randomness import Draws


class Cycle(NamedTuple):
    """One way round from both ends. Masks stand in [-1, 1] here.

    Attributes:
        image: Painted from the mask.
        mask: Read off the image.
        mask_again: Read off the painted image.
        image_again: Painted from the mask that was read.
        same_image: What the painter makes of an image: it should leave it alone.
        same_mask: What the reader makes of a mask.
    """

    image: Tensor
    mask: Tensor
    mask_again: Tensor
    image_again: Tensor
    same_image: Tensor
    same_mask: Tensor


class Translators(nn.Module):
    """The painter (mask to image) and the reader (image to mask), in one module since they are called in one go.

    Args:
        shape: Grid.
        channels: Image channels.
        labels: Mask labels.
        width: Features of both at full size.
        blocks: Residual blocks of both.
        dropout: Rate of the painter's dropout.
        attention: Whether the painter blends by an attention map.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        labels: int,
        width: int,
        blocks: int,
        dropout: float,
        attention: bool,
    ):
        super().__init__()
        wide = max(channels, labels)  # both must also take what they make: identity
        self.painter = ResNetGenerator(shape, channels, wide, width, blocks, dropout, True, attention)
        self.reader = ResNetGenerator(shape, labels, wide, width, blocks, 0.0)

    def forward(self, draws: Draws, mask: Tensor, image: Tensor) -> Cycle:
        """All that the losses need, from a mask ``(B, L, *shape)`` in 0..1 and an image of other cases."""

        def paint(x: Tensor) -> Tensor:
            return self.painter(Inputs(draws, x)).image

        def read(x: Tensor) -> Tensor:
            return self.reader(Inputs(draws, x)).image

        painted, found = paint(mask), read(image)
        return Cycle(
            painted, found, read(painted), paint((found + 1) / 2), paint(image), read(mask)
        )  # fmt: skip


class CycleDiscriminators(nn.Module):
    """One discriminator of images and one of masks, in one call."""

    def __init__(self, images: Discriminator, masks: Discriminator):
        super().__init__()
        self.images, self.masks = images, masks

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Opinion, Opinion]:
        """Opinions of images and of masks in [-1, 1]."""
        return self.images(image), self.masks(mask)


def cycle_loss(cycle: Cycle, mask: Tensor, image: Tensor, identity: float) -> Tensor:
    """Cycle consistency and identity (Zhu et al. 2017, eq. 2 and sec. 5.2).

    Args:
        cycle: What the translators made.
        mask: The masks in 0..1.
        image: The images.
        identity: Weight of the identity terms relative to the cycle's.
    """
    again = functional.l1_loss(cycle.mask_again, 2 * mask - 1) + functional.l1_loss(cycle.image_again, image)
    same = functional.l1_loss(cycle.same_image, image) + functional.l1_loss(cycle.same_mask, 2 * mask - 1)
    return again + identity * same
