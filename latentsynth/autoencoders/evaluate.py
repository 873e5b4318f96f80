"""Scoring an autoencoder on a cohort: one row per case, a table, a CSV file and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from latentsynth import checkpoint
from latentsynth.autoencoders.base import Autoencoder
from latentsynth.autoencoders.reconstruction import (
    CaseScores,
    lost_lesion_warning,
    reconstruct,
    reconstruction_sheet,
    scores,
    summarise,
)
from latentsynth.autoencoders.sharpness import measures, shares, sharpness_table
from latentsynth.config import AugmentConfig
from latentsynth.data.cache.volumes import Recipe
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.progress import bar
from latentsynth.results import Picture, Result, Table, TableCell, close_results, open_results, write_csv
from latentsynth.types import Domain, Split

_COLUMNS = ("psnr", "ssim", "lesion_error", "detail_kept")


def evaluate(path: Path, manifest_path: Path, split: Split, out: Path) -> Result:
    """Scores an autoencoder on the cases of a split.

    Args:
        path: Run or checkpoint folder.
        manifest_path: Manifest of real cases.
        split: Which cases.
        out: Folder for ``reconstruction.json``, ``reconstruction.csv`` and ``reconstruction.png``.

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
    open_results(out)
    recipe = Recipe(domain.grid, domain.framing, manifest.labels, AugmentConfig(), 0)
    cpu = torch.device("cpu")
    rows: dict[str, CaseScores] = {}
    sharp = []
    with bar("reconstructing", len(cases), "cases") as shown:
        for case in cases:
            volume = recipe.read(case)
            image = reconstruct(model, volume, cpu)
            rows[case.case_id] = scores(volume, image, domain)
            sharp.append(shares(volume, image, domain, model.factors))
            shown.advance()
    write_csv(
        out / "reconstruction.csv",
        ("case", *_COLUMNS),
        ((name, *(getattr(row, key) for key in _COLUMNS)) for name, row in sorted(rows.items())),
    )
    order = sorted(rows, key=lambda name: -rows[name].psnr)
    chosen = list(dict.fromkeys((order[0], order[len(order) // 2], order[-1])))
    by_name = {case.case_id: case for case in cases}
    volumes = [recipe.read(by_name[name]) for name in chosen]
    images = [reconstruct(model, volume, cpu) for volume in volumes]
    reconstruction_sheet(out / "reconstruction.png", chosen, volumes, images, domain)
    means = summarise(list(rows.values()))
    warning = lost_lesion_warning(means)
    unverified = "cannot verify that these patients are new to the autoencoder by id: the project key is missing"
    notes = [*([warning] if warning else []), *([] if verified else [unverified])]
    picture = Picture("reconstruction.png", "best, median and worst case: original with mask, original, reconstruction")
    facts = {
        "autoencoder": header.fingerprint,
        "cohort": manifest.fingerprint,
        "means": means,
        "sharpness": _by_channel(np.array(sharp), domain),
    }
    result = Result(
        "reconstruction",
        "Reconstruction by the autoencoder",
        facts,
        (_table(rows, means), sharpness_table(np.array(sharp), domain)),
        (picture,),
        tuple(notes),
        splits=(split,),
    )
    result.save(out)
    close_results(out, result)
    return result


def _by_channel(sharp: np.ndarray, domain: Domain) -> dict[str, dict[str, float | None]]:
    """Geometric means over cases of every measure; None where none could be taken."""
    with np.errstate(invalid="ignore"):
        known = np.isfinite(sharp)
        means = np.exp(np.where(known, sharp, 0).sum(0) / known.sum(0))
    return {
        channel: {
            name: float(value) if np.isfinite(value) else None
            for name, value in zip(measures(domain), row, strict=True)
        }
        for channel, row in zip(domain.channels, means, strict=True)
    }


def _table(rows: dict[str, CaseScores], means: dict[str, float]) -> Table:
    lines: list[tuple[TableCell, ...]] = []
    for key, value in means.items():
        spread = np.array([getattr(row, key) for row in rows.values()]) if key in _COLUMNS else None
        if spread is None or not np.isfinite(spread).any():
            lines.append((key, value, None, None))
        else:
            worst = np.nanmax(spread) if key == "lesion_error" else np.nanmin(spread)
            lines.append((key, value, float(np.nanstd(spread)), float(worst)))
    return Table(f"reconstruction of {len(rows)} cases", ("score", "mean", "sd", "worst"), tuple(lines))
