"""How well an autoencoder keeps a case, in numbers and in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentsynth.autoencoders.base import Autoencoder
from latentsynth.data.cache.volumes import Volume
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.metrics.band_power import detail_slope
from latentsynth.metrics.reconstruction import contrast_kept, lesion_contrast, lesion_error, psnr, ssim
from latentsynth.types import Domain

LESION_KEPT = 0.6  # below this share of its contrast, a lesion is as good as gone for what is trained on the latents


@torch.no_grad()
def reconstruct(model: Autoencoder, volume: Volume, device: torch.device) -> Tensor:
    """Encodes and decodes one volume, deterministically.

    Returns:
        Shape ``(C, I, J, K)`` in [-1, 1], on the CPU.
    """
    image = torch.from_numpy(volume.image)[None].to(device)
    return model.decode_raw(model.moments(image).mean)[0].float().cpu()


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case.

    Attributes:
        psnr: In dB.
        ssim: Structural similarity.
        lesion_error: Mean absolute error inside the lesion, in units of [-1, 1]; not a number without a lesion.
        detail_kept: Slope of the reconstruction's finest octave on the original's: 1 keeps it, 0 loses it, and noise does
            not raise it; not a number where the original has none.
        contrast: Lesion contrast per channel, in units of [-1, 1], of the original.
        contrast_after: Of the reconstruction.
    """

    psnr: float
    ssim: float
    lesion_error: float
    detail_kept: float
    contrast: tuple[float, ...]
    contrast_after: tuple[float, ...]


def scores(volume: Volume, reconstruction: Tensor, domain: Domain) -> CaseScores:
    """Scores of one case; ``reconstruction`` has shape ``(C, I, J, K)``."""
    a, b = torch.from_numpy(volume.image)[None], reconstruction[None]
    lesion = torch.from_numpy(lesion_of(volume, domain))[None]
    return CaseScores(
        float(psnr(a, b)),
        float(ssim(a, b)),
        float(lesion_error(a, b, lesion)),
        detail_slope(volume.image, reconstruction.numpy(), domain.grid.spacing_mm),
        tuple(lesion_contrast(a, lesion)[0].tolist()),
        tuple(lesion_contrast(b, lesion)[0].tolist()),
    )


def summarise(rows: Sequence[CaseScores]) -> dict[str, float]:
    """Means over cases, and ``lesion_contrast_kept`` pooled over cases and channels (1 keeps the lesions, 0 loses them)."""
    errors = [row.lesion_error for row in rows if np.isfinite(row.lesion_error)]
    details = [row.detail_kept for row in rows if np.isfinite(row.detail_kept)]
    kept = contrast_kept(
        torch.tensor([row.contrast for row in rows]), torch.tensor([row.contrast_after for row in rows])
    )
    return {
        "psnr": float(np.mean([row.psnr for row in rows])),
        "ssim": float(np.mean([row.ssim for row in rows])),
        "lesion_error": float(np.mean(errors)) if errors else float("nan"),
        "lesion_contrast_kept": float(kept),
        "detail_kept": float(np.mean(details)) if details else float("nan"),
    }


def lesion_of(volume: Volume, domain: Domain) -> np.ndarray:
    """Boolean lesion mask of a volume, ``(I, J, K)``; empty where it is not annotated."""
    if volume.mask is None:
        return np.zeros(volume.image.shape[1:], dtype=bool)
    return np.isin(volume.mask, domain.lesion_indices)


def reconstruction_sheet(
    path: Path, names: Sequence[str], volumes: Sequence[Volume], reconstructions: Sequence[Tensor], domain: Domain
) -> Path:
    """Writes a picture: originals beside reconstructions, with the scores of each case."""
    rows = []
    for name, volume, image in zip(names, volumes, reconstructions, strict=True):
        s = scores(volume, image, domain)
        text = f"reconstruction: {s.psnr:.1f} dB, SSIM {s.ssim:.3f}"
        rows.append([Tile(name, volume.image, volume.mask), Tile(name, volume.image), Tile(text, image.numpy(), None)])
    return contact_sheet(
        path, rows, Legend.of(domain), "original with mask, original, reconstruction", domain.lesion_indices
    )


def lost_lesion_warning(metrics: dict[str, float]) -> str | None:
    """A warning if an autoencoder's validation scores say that it loses the lesion, else None."""
    kept = metrics.get("lesion_contrast_kept", float("nan"))
    if not kept < LESION_KEPT:
        return None
    return (
        f"this autoencoder keeps only {kept:.0%} of the lesions' contrast on validation patients (PSNR "
        f"{metrics['psnr']:.1f} dB, error inside the lesion {metrics['lesion_error']:.3f} of a window 2 wide): a diffusion "
        "model trained on its latents cannot show them. Train it longer, lower autoencoder.downsampling, raise "
        "autoencoder.latent_channels or loss.lesion_weight"
    )
