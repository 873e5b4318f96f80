"""Scoring an autoencoder on a cohort: one row per case, a table, a CSV file and a picture."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.autoencoders.base import Autoencoder
from latentsynth.autoencoders.reconstruction import CaseScores, reconstruct, reconstruction_sheet, scores, summarise
from latentsynth.config import AugmentConfig
from latentsynth.data.manifest import Manifest
from latentsynth.data.volumes import Recipe, Volume
from latentsynth.errors import DataError
from latentsynth.files import atomic_path, make_folder
from latentsynth.progress import bar
from latentsynth.types import Domain, Split

_SHOWN = 3  # best, median and worst case


@dataclass(frozen=True)
class ReconstructionScores:
    """Scores of every case, and the volumes of the cases to show."""

    domain: Domain
    rows: dict[str, CaseScores]
    shown: dict[str, tuple[Volume, Tensor]]
    verified: bool


def evaluate(path: Path, manifest_path: Path, split: Split) -> ReconstructionScores:
    """Scores an autoencoder on the cases of a split.

    Raises:
        DataError: The autoencoder has seen a patient of the split (val and test), or the cohort does not fit it.
        CheckpointError: ``path`` holds no autoencoder.
    """
    folder = checkpoint.locate(path)
    header = checkpoint.read_header(folder, "autoencoder")
    model = Autoencoder.from_pretrained(folder / "autoencoder")
    manifest = Manifest.load(manifest_path)
    domain = header.domain
    if manifest.channels != domain.channels:
        raise DataError(
            f"{manifest_path} has channels {manifest.channels}, the autoencoder was trained on {domain.channels}"
        )
    cases = manifest.select(split)
    seen, verified = checkpoint.read_ledger(folder).seen(cases)
    if seen and split != "train":
        names = ", ".join(case.case_id for case in seen[:3])
        raise DataError(
            f"the autoencoder was trained on {len(seen)} of these cases ({names}, ...): use patients it never saw"
        )
    recipe = Recipe(domain.grid, domain.framing, manifest.labels, AugmentConfig(), 0)
    rows: dict[str, CaseScores] = {}
    with bar("reconstructing", len(cases), "cases") as shown:
        for case in cases:
            volume = recipe.read(case)
            rows[case.case_id] = scores(volume, reconstruct(model, volume, torch.device("cpu")), domain)
            shown.advance()
    order = sorted(rows, key=lambda name: rows[name].psnr)
    chosen = {order[-1], order[len(order) // 2], order[0]}
    pictures = {}
    for case in cases:
        if case.case_id in chosen:
            volume = recipe.read(case)
            pictures[case.case_id] = (volume, reconstruct(model, volume, torch.device("cpu")))
    return ReconstructionScores(domain, rows, pictures, verified)


def write_scores(result: ReconstructionScores, out: Path, console: Console) -> None:
    """Prints the summary and writes ``reconstruction.csv`` and ``reconstruction.png`` into ``out``."""
    make_folder(out)
    with atomic_path(out / "reconstruction.csv") as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "psnr", "ssim", "lesion_error"])
        for name, row in sorted(result.rows.items()):
            writer.writerow([name, f"{row.psnr:.4f}", f"{row.ssim:.5f}", f"{row.lesion_error:.5f}"])
    names = sorted(result.shown, key=lambda name: -result.rows[name].psnr)
    volumes, images = [result.shown[n][0] for n in names], [result.shown[n][1] for n in names]
    reconstruction_sheet(out / "reconstruction.png", names, volumes, images, result.domain)
    table = Table("score", "mean", "sd", "worst", title=f"reconstruction of {len(result.rows)} cases")
    spread = {
        key: np.array([getattr(row, key) for row in result.rows.values()]) for key in ("psnr", "ssim", "lesion_error")
    }
    for key, value in summarise(list(result.rows.values())).items():
        rest = (f"{np.nanstd(spread[key]):.3g}", f"{_worst(key, spread[key]):.4g}") if key in spread else ("", "")
        table.add_row(key, f"{value:.4g}", *rest)
    console.print(table)
    if not result.verified:
        console.print("cannot verify that these patients are new to the autoencoder by id: the project key is missing")
    console.print(
        f"per case: {out / 'reconstruction.csv'}\npicture (best, median, worst): {out / 'reconstruction.png'}"
    )


def _worst(key: str, values: np.ndarray) -> float:
    return float(np.nanmax(values) if key == "lesion_error" else np.nanmin(values))
