"""Configurations of runs small enough to train in seconds."""

from __future__ import annotations

from pathlib import Path

import yaml

GRID = {
    "shape": [24, 24, 24],
    "spacing_mm": [8.0, 8.0, 8.0],
    "windows": [{"kind": "fixed", "low": -160.0, "high": 240.0}],
}
SCHEDULE = {
    "batch": 4,
    "lr": 1e-3,
    "lr_warmup_images": 4,
    "ema_halflife_images": 8,
    "log_every_images": 4,
    "save_every_images": 8,
}


def autoencoder_config(workplace: Path, name: str, **changes: object) -> Path:
    """Writes the configuration of a tiny VQ autoencoder with a discriminator that joins half way."""
    values = {
        "run": str(workplace / name),
        "data": {
            "manifest": str(workplace / "manifest.json"),
            "grid": GRID,
            "framing": {"lesion_labels": [3]},
            "cache": str(workplace / "cache"),
        },
        "autoencoder": {"channels": [8, 16], "res_blocks": 1, "latent_channels": 4, "codebook_size": 32},
        "loss": {"adversarial_weight": 0.1, "adversarial_after_images": 16, "discriminator_channels": 8},
        "train": {**SCHEDULE, "images": 32, "validate_every_images": 32, "sample_every_images": 32},
        **changes,
    }
    return _write(workplace / f"{name}.yaml", values)


def ldm_config(workplace: Path, name: str, autoencoder: str, **changes: object) -> Path:
    """Writes the configuration of a tiny latent diffusion model."""
    values = {
        "run": str(workplace / name),
        "autoencoder": str(workplace / autoencoder),
        "denoiser": {
            "channels": [8, 16],
            "attention": [False, True],
            "res_blocks": 1,
            "head_channels": 8,
            "norm_groups": 4,
        },
        "sampling": {"steps": 3},
        "train": {**SCHEDULE, "images": 32, "validate_every_images": 32, "sample_every_images": 32},
        **changes,
    }
    return _write(workplace / f"{name}.yaml", values)


def segmenter_config(workplace: Path, name: str, **changes: object) -> Path:
    """Writes the configuration of a tiny U-Net."""
    manifest = str(workplace / "manifest.json")
    values = {
        "run": str(workplace / name),
        "data": {
            "train": [{"manifest": manifest}],
            "validation": {"manifest": manifest},
            "grid": GRID,
            "framing": {"lesion_labels": [3]},
            "cache": str(workplace / "cache"),
        },
        "network": {"channels": [8, 16], "res_units": 1},
        "train": {**SCHEDULE, "lr": 1e-2, "images": 32, "validate_every_images": 16, "sample_every_images": 32},
        **changes,
    }
    return _write(workplace / f"{name}.yaml", values)


def _write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path
