"""Configurations of runs small enough to train in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        "autoencoder": {
            "kind": "vq",
            "trunk": {"width": 16, "res_blocks": 1},
            "latent_channels": 4,
            "codebook_size": 32,
        },
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


# What makes each family tiny; the rest is its published settings.
_WIDTH = {"channels": 4, "max_channels": 8}
_STYLES = {**_WIDTH, "latent": 8, "style": 8, "mapping_layers": 2}
_JUDGE = {**_WIDTH, "lr": 5e-3}  # weights of unit size move slowly
_FAST = {"lr": 5e-3}
GANS: dict[str, dict[str, Any]] = {
    "pix2pix": {
        "generator": {"kind": "pix2pix", "channels": 8, "max_channels": 16, "levels": 2},
        "discriminator": {"channels": 4, "layers": 2},
    },
    "spade": {
        "generator": {"kind": "spade", "channels": 4, "max_channels": 16, "hidden": 8, "latent": 8},
        "discriminator": {"channels": 4, "layers": 2},
    },
    "cyclegan": {
        "generator": {"kind": "cyclegan", "channels": 4, "blocks": 1},
        "discriminator": {"channels": 4, "layers": 2},
    },
    "latent_gan": {
        "generator": {
            "kind": "latent_gan", "channels": [8, 16], "attention": [False, False], "head_channels": 8, "norm_groups": 4,
        },
        "discriminator": {"channels": 8, "max_channels": 16},
        "game": {"loss": "non_saturating", "r1": 0.1, "r2": 0.0, "l1": 5.0},  # so that seconds of training teach something
    },
    "stylegan2": {
        "generator": {"kind": "stylegan2", **_STYLES},
        "discriminator": _JUDGE,
        "train": _FAST,
        "game": {"r1_every": 2, "path_length_every": 2, "augment_ramp_images": 100},
    },
    "stylegan2_joint": {
        "generator": {"kind": "stylegan2", "form": "joint", **_STYLES},
        "discriminator": _JUDGE,
        "train": _FAST,
        "game": {"r1": 0.5, "augment_target": 0, "path_length": 0},
    },
    "progressive_gan": {
        "spatial_dims": 2,
        "generator": {"kind": "progressive_gan", **_WIDTH, "latent": 8},
        "discriminator": _JUDGE,
        "train": _FAST,
        "game": {"grow_images": 8},
    },
    "stylegan1": {
        "spatial_dims": 2,
        "generator": {"kind": "stylegan1", **_STYLES},
        "discriminator": _JUDGE,
        "train": _FAST,
        "game": {"grow_images": 8, "r1": 0.1},
    },
    "stylegan3": {
        "spatial_dims": 2,
        "generator": {"kind": "stylegan3", "channels": 8, "latent": 8, "style": 8, "layers": 4},
        "discriminator": _JUDGE,
        "train": _FAST,
    },
}  # fmt: skip


def gan_config(workplace: Path, name: str, family: str, autoencoder: str = "", **changes: object) -> Path:
    """Writes the configuration of a tiny GAN; sections of ``changes`` replace those of the family."""
    schedule = {**SCHEDULE, "lr_warmup_images": 0, "images": 32, "validate_every_images": 32, "sample_every_images": 32}
    data = {
        "manifest": str(workplace / "manifest.json"),
        "grid": GRID,
        "framing": {"lesion_labels": [3]},
        "cache": str(workplace / "cache"),
    }
    source = {"autoencoder": str(workplace / autoencoder)} if family == "latent_gan" else {"data": data}
    own = GANS[family]
    values = {"run": str(workplace / name), **source, **own, "train": {**schedule, **own.get("train", {})}, **changes}
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


# As with GANs; a section beside them where the family needs one.
MASK_GENERATORS: dict[str, dict[str, Any]] = {
    "slice_vae": {"kind": "slice_vae", "channels": [8, 8], "hidden": 16, "latent": 4, "beta": 0.1, "slices": 6},
    "label_vae": {"kind": "label_vae", "channels": [8, 8], "hidden": 16, "latent": 4, "beta": 0.1},
    "mask_diffusion": {
        "kind": "mask_diffusion", "coarsen": 2, "patch": 1, "reach_mm": 30, "sampling": {"steps": 4},
        "denoiser": {"channels": [16, 16], "attention": [False, False], "head_channels": 16, "res_blocks": 1},
    },
    "gan": {"kind": "progressive_gan", "form": "mask_only", "channels": 4, "max_channels": 8, "latent": 8},
}  # fmt: skip
_BESIDE: dict[str, dict[str, Any]] = {
    "gan": {"discriminator": {"channels": 4, "max_channels": 8}, "game": {"grow_images": 4}},
}


def masks_config(workplace: Path, family: str, name: str, **train: Any) -> Path:
    """Writes the configuration of a tiny generator of masks."""
    values = {
        "run": str(workplace / name),
        "data": {
            "manifest": str(workplace / "manifest.json"),
            "grid": {key: GRID[key] for key in ("shape", "spacing_mm")},
            "framing": {"lesion_labels": [3]},
            "cache": str(workplace / "cache"),
        },
        "generator": MASK_GENERATORS[family],
        "train": {**SCHEDULE, "images": 32, "validate_every_images": 32, "sample_every_images": 32, **train},
        **_BESIDE.get(family, {}),
    }
    return _write(workplace / f"{name}.yaml", values)


def extractor_config(workplace: Path, name: str) -> Path:
    """Writes the configuration of a tiny contrastive extractor."""
    values = {
        "run": str(workplace / name),
        "data": {"manifest": str(workplace / "manifest.json"), "grid": GRID, "cache": str(workplace / "cache")},
        "channels": [8, 16],
        "projection": 16,
        "train": {**SCHEDULE, "images": 32, "validate_every_images": 32, "sample_every_images": 32},
    }
    return _write(workplace / f"{name}.yaml", values)


def on_two_processes(folder: Path, *arguments: object) -> None:
    """Gives ``training/worker.py`` its arguments on two processes of a CPU, which leave digests in a folder."""
    tests = Path(__file__).parent
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += [
        "--config_file",
        str(tests.parent / "configs/accelerate/cpu_2_processes.yaml"),
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [*launch, str(tests / "training" / "worker.py"), str(folder), *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path
