"""The whole road on phantoms: cohort, manifest, autoencoder, latent diffusion, volumes from held-out masks.

Everything a user would do with scans of their own, by the same functions, in minutes on two CPU cores.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from latentsynth import config as configuration
from latentsynth.config import AutoencoderRun, LdmRun
from latentsynth.files import write_text

_GRID = {
    "shape": [32, 32, 32],
    "spacing_mm": [3.0, 3.0, 3.0],
    "windows": [{"kind": "fixed", "low": -160.0, "high": 240.0}, {"kind": "percentile", "low": 0.5, "high": 99.5}],
}


def demo_configs(out: Path, seed: int) -> tuple[AutoencoderRun, LdmRun]:
    """The two training runs of the demo."""
    autoencoder = {
        "run": str(out / "autoencoder"),
        "seed": seed,
        "data": {
            "manifest": str(out / "manifest.json"),
            "grid": _GRID,
            "framing": {"crop": "lesion", "fit": "scale", "lesion_labels": [3]},
            "augment": {"copies": 3, "flip_axes": [], "rotate_deg": 5.0, "shift_mm": 4.0},
            "cache": str(out / "cache"),
        },
        "autoencoder": {"channels": [16, 48], "res_blocks": 1, "codebooks": 4, "codebook_size": 128},
        "loss": {"lesion_weight": 4.0},
        "train": {
            "images": 4800,
            "batch": 8,
            "lr": 3.0e-3,
            "lr_warmup_images": 320,
            "ema_halflife_images": 400,
            "validate_every_images": 2400,
            "sample_every_images": 2400,
            "save_every_images": 1000,
        },
    }
    ldm = {
        "run": str(out / "ldm"),
        "seed": seed,
        "autoencoder": str(out / "autoencoder"),
        "denoiser": {"channels": [48, 96], "attention": [False, True], "res_blocks": 1, "head_channels": 48},
        "diffusion": {"lesion_weight": 2.0},
        "train": {
            "images": 6400,
            "batch": 16,
            "lr": 1.0e-3,
            "lr_warmup_images": 640,
            "ema_halflife_images": 800,
            "validate_every_images": 3200,
            "sample_every_images": 3200,
            "save_every_images": 2000,
        },
    }
    return configuration.build(AutoencoderRun, autoencoder), configuration.build(LdmRun, ldm)


def run_demo(out: Path, cases: int, seed: int) -> Path:
    """Walks the road; run again, it goes on where it stopped.

    Args:
        out: Folder for everything.
        cases: Phantom patients.
        seed: Seed of everything.

    Returns:
        The contact sheet: held-out patients beside volumes sampled from their masks.
    """
    from rich.console import Console

    from latentsynth.data.phantom import write_cohort
    from latentsynth.data.prepare import prepare, write_report
    from latentsynth.data.requests import requests
    from latentsynth.synthesis import synthesize
    from latentsynth.synthesizers import load_synthesizer
    from latentsynth.training.autoencoder import train_autoencoder
    from latentsynth.training.launch import start
    from latentsynth.training.ldm import train_ldm

    console = Console()
    autoencoder, ldm = demo_configs(out, seed)
    if not (out / "manifest.json").is_file():
        write_cohort(out / "cohort", cases, seed)
        report = prepare(out / "cohort", out / "manifest.json", seed=seed)
        write_report(report, console)
    for name, run in (("autoencoder", autoencoder), ("ldm", ldm)):  # so that the same can be done step by step
        write_text(out / f"{name}.yaml", configuration.dump(run))
    for train in (partial(train_autoencoder, autoencoder), partial(train_ldm, ldm)):
        scores = ", ".join(f"{name} {value:.4g}" for name, value in train().items())
        console.print(f"on validation patients: {scores}")
    model = load_synthesizer(ldm.run)
    held_out = requests(out / "manifest.json", "test")[:4]
    synthesize(model, held_out, out / "samples", start(), per_mask=3, seed=seed)
    return out / "samples" / "contact_sheet.png"
