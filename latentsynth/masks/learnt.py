"""The one place that knows every family of trained mask generators by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentsynth.masks.label_vae import LabelVAEMaker
from latentsynth.masks.mask_diffusion import MaskDiffusionMaker
from latentsynth.masks.mask_gan import MaskGANMaker
from latentsynth.masks.slice_vae import SliceVAEMaker
from latentsynth.masks.trained import TrainedMaker
from latentsynth.synthesizers.checkpointed import load

FAMILIES: tuple[type[TrainedMaker], ...] = (SliceVAEMaker, LabelVAEMaker, MaskGANMaker, MaskDiffusionMaker)


def load_mask_maker(path: Path | str, **sampling: Any) -> TrainedMaker:
    """Loads whatever family of mask generator a checkpoint or run folder holds.

    Args:
        path: Which.
        sampling: Settings of the family's sampling other than those it was trained with, for example
            ``exact_volume=True`` for a diffusion model.

    Raises:
        CheckpointError: It is not a checkpoint, or not one of a mask generator.
        ConfigError: An unknown setting or an impossible value.
    """
    wanted = "makes no masks alone: give one of `latentsynth train masks`"
    return load(FAMILIES, path, wanted, **sampling)
