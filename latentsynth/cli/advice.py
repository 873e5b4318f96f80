"""What a training's scores mean and what to run next, in a paragraph for somebody who trains a generator for the first time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

from latentsynth.config import AutoencoderRun, LdmRun, Run, SegmenterRun

_HARD_TO_TELL_DB = 28.0  # from here on reconstructions and scans are hard to tell apart by eye (docs/results.md)
_CONTRAST = 0.9  # of lesions; with less a denoiser cannot show them as they are
_DICE = 0.5  # below it a segmenter says little of others' volumes
_GAIN = 0.005  # share of the loss that the mask explains, below which it is as good as ignored
_WIDTH = 100


def advice(config: Run, scores: Mapping[str, float]) -> str:
    """The paragraph; "" for a kind of run that has none.

    Args:
        config: The run.
        scores: On validation patients, as its training returned them.
    """
    run = config.run
    if isinstance(config, AutoencoderRun):
        text = _of_autoencoder(run, scores)
    elif isinstance(config, SegmenterRun):
        text = _of_segmenter(run, scores)
    elif isinstance(config, LdmRun):
        text = _of_denoiser(run, scores)
    else:
        return ""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _of_autoencoder(run: Path, scores: Mapping[str, float]) -> str:
    decibels, detail = scores["psnr"], scores["detail_kept"]
    contrast = scores.get("lesion_contrast_kept", math.nan)
    near = "hard to tell from the scans by eye" if decibels >= _HARD_TO_TELL_DB else "a little softer than the scans"
    text = f"Volumes of patients that it has not seen come back at {decibels:.1f} dB, {near}, with {detail:.0%} of their finest detail."
    if contrast < _CONTRAST:
        text += (
            f" Lesions keep {contrast:.0%} of their contrast, and a denoiser cannot show more: raise autoencoder.latent_channels, "
            "loss.lesion_weight or train.images before you go on."
        )
    elif contrast == contrast:
        text += f" Lesions keep {contrast:.0%} of their contrast."
    return (
        f"{text} The pictures are in {run / 'samples'}. Next, the segmenter that chooses among checkpoints and the denoiser: "
        "`latentsynth train segmenter`, `latentsynth train ldm`."
    )


def _of_segmenter(run: Path, scores: Mapping[str, float]) -> str:
    dice = scores["dice"]
    text = f"On patients that it has not seen it finds the labels with a Dice of {dice:.2f} (1 is perfect)."
    if dice < _DICE:
        text += (
            " That is too little to measure synthetic volumes with: train longer (train.images), or on more patients."
        )
    return f"{text} Its score on real scans is what volumes are held to: `latentsynth evaluate obedience --segmenter {run}`."


def _of_denoiser(run: Path, scores: Mapping[str, float]) -> str:
    gain, obedience = scores["mask_gain"], scores.get("obedience")
    text = f"Knowing the mask explains {gain:.1%} of the validation loss"
    text += " (next to nothing: it still ignores the mask; train longer)." if gain < _GAIN else "."
    if obedience is not None:
        text += f" A segmenter finds the masks in unguided samples with a Dice of {obedience:.2f}; compare with its score on real scans."
    return (
        f"{text} Losses of different autoencoders cannot be compared; look at the pictures in {run / 'samples'}. Next: "
        f"`latentsynth sample {run}` for masks of test patients, then `latentsynth evaluate obedience` and `latentsynth memorization`."
    )
