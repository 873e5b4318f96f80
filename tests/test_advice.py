"""After a training: what its numbers mean, and a next command that exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny_runs import autoencoder_config, ldm_config, segmenter_config

from latentsynth.cli.advice import advice
from latentsynth.cli.app import app
from latentsynth.config import AutoencoderRun, LdmRun, Run, SegmenterRun, load

GOOD: dict[type[Run], dict[str, float]] = {
    AutoencoderRun: {
        "psnr": 29.31,
        "ssim": 0.9,
        "lesion_error": 0.1,
        "lesion_contrast_kept": 0.98,
        "detail_kept": 0.62,
    },
    SegmenterRun: {"dice": 0.86},
    LdmRun: {"loss": 0.5, "mask_gain": 0.027, "obedience": 0.7, "training_loss": 0.5},
}
POOR = [
    (
        AutoencoderRun,
        {"lesion_contrast_kept": 0.55},
        "Lesions keep 55% of their contrast, and a denoiser cannot show more",
    ),
    (AutoencoderRun, {"psnr": 22.0}, "22.0 dB, a little softer than the scans"),
    (SegmenterRun, {"dice": 0.31}, "too little to measure synthetic volumes with"),
    (LdmRun, {"mask_gain": 0.001}, "it still ignores the mask"),
]


def run(kind: type[Run], folder: Path) -> Any:
    file = {
        AutoencoderRun: lambda: autoencoder_config(folder, "ae"),
        SegmenterRun: lambda: segmenter_config(folder, "unet"),
        LdmRun: lambda: ldm_config(folder, "ldm", "ae"),
    }[kind]()
    return load(kind, file)


def said(kind: type[Run], folder: Path, **changes: float) -> str:
    return " ".join(advice(run(kind, folder), GOOD[kind] | changes).split())


@pytest.mark.parametrize("kind", GOOD)
def test_every_command_that_it_names_exists(kind: type[Run], tmp_path: Path) -> None:
    commands = typer.main.get_command(app)
    named = re.findall(r"`latentsynth ([a-z]+)(?: ([a-z]+))?", said(kind, tmp_path))
    assert named
    for first, second in named:
        group: Any = commands.commands[first]  # type: ignore[attr-defined]
        assert not second or not hasattr(group, "commands") or second in group.commands


@pytest.mark.parametrize(("kind", "changes", "sentence"), POOR)
def test_what_is_poor_is_said_and_what_is_good_is_not(
    kind: type[Run], changes: dict[str, float], sentence: str, tmp_path: Path
) -> None:
    assert sentence in said(kind, tmp_path, **changes)
    assert sentence not in said(kind, tmp_path)


def test_a_cohort_without_masks_says_nothing_of_lesions(tmp_path: Path) -> None:
    assert "esion" not in said(AutoencoderRun, tmp_path, lesion_contrast_kept=float("nan"))
