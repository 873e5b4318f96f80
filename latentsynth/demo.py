"""What can be seen without data: new patients by the models in the package, and the whole road on phantoms.

Everything by the functions that a user would call for scans of their own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from latentsynth import config as configuration
from latentsynth import outputs
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun

if TYPE_CHECKING:
    from latentsynth.data.exchange.requests import Request
    from latentsynth.synthesizers import Synthesizer

GROWING = "growing.webp"
_SIZES = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
MASKS, VOLUMES = "hippocampus-masks", "hippocampus"  # in the package

_GRID = {
    "shape": [32, 32, 32],
    "spacing_mm": [3.0, 3.0, 3.0],
    "windows": [{"kind": "fixed", "low": -160.0, "high": 240.0}, {"kind": "percentile", "low": 0.5, "high": 99.5}],
}


def demo_configs(out: Path, seed: int) -> tuple[AutoencoderRun, LdmRun, SegmenterRun]:
    """The training runs of the demo: autoencoder, diffusion model, and the segmenter that judges it."""
    autoencoder: dict[str, Any] = {
        "run": str(out / "autoencoder"),
        "seed": seed,
        "data": {
            "manifest": str(out / "manifest.json"),
            "grid": _GRID,
            "framing": {"crop": "lesion", "fit": "scale", "lesion_labels": [3]},
            "augment": {"copies": 3, "flip_axes": [], "rotate_deg": 5.0, "shift_mm": 4.0},
            "cache": str(out / "cache"),
        },
        "autoencoder": {"latent_channels": 8, "trunk": {"width": 48, "res_blocks": 1}},
        "loss": {"lesion_weight": 4.0},
        "train": {
            "images": 1600,
            "batch": 8,
            "lr": 1.0e-3,
            "lr_warmup_images": 160,
            "ema_halflife_images": 200,
            "validate_every_images": 800,
            "sample_every_images": 800,
            "save_every_images": 400,
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
            "batch": 4,
            "lr": 1.0e-3,
            "lr_warmup_images": 640,
            "ema_halflife_images": 800,
            "validate_every_images": 3200,
            "sample_every_images": 3200,
            "save_every_images": 2000,
        },
    }
    data = autoencoder["data"]
    segmenter = {
        "run": str(out / "segmenter"),
        "seed": seed,
        "data": {
            "train": [{"manifest": data["manifest"]}],
            "validation": {"manifest": data["manifest"]},
            **{key: data[key] for key in ("grid", "framing", "augment", "cache")},
        },
        "network": {"channels": [16, 32, 64], "res_units": 1},
        "train": {
            "images": 1600,
            "batch": 8,
            "lr": 3.0e-3,
            "lr_warmup_images": 80,
            "ema_halflife_images": 160,
            "validate_every_images": 400,
            "sample_every_images": 1600,
            "save_every_images": 800,
        },
    }
    return (
        configuration.build(AutoencoderRun, autoencoder),
        configuration.build(LdmRun, ldm),
        configuration.build(SegmenterRun, segmenter),
    )


def run_demo(out: Path, volumes: int, seed: int) -> tuple[Path, ...]:
    """New masks, volumes for them, and one mask growing, by the models in the package; run again, it goes on where it stopped.

    Args:
        out: Folder for everything.
        volumes: How many.
        seed: Of the first mask and the first volume.

    Returns:
        The contact sheet, a moving picture of one mask growing, and the report.
    """
    from latentsynth.data.exchange.requests import requests
    from latentsynth.evaluation.report import write_report
    from latentsynth.masks import Wanted, make_masks
    from latentsynth.masks.learnt import load_mask_maker
    from latentsynth.parallel import start
    from latentsynth.synthesis import synthesize
    from latentsynth.synthesizers import load_synthesizer

    outputs.claim(out, "demo")
    make_masks(load_mask_maker(MASKS), volumes, out / "masks", Wanted(), seed, volumes)
    asked = requests(out / "masks" / "manifest.json", "train")
    model, accelerator = load_synthesizer(VOLUMES), start()
    synthesize(model, asked, out / "volumes", accelerator, seed=seed)
    if accelerator.is_main_process and not (out / GROWING).is_file():
        growing(out / GROWING, model, asked[0], seed)
    return out / "volumes" / "contact_sheet.png", out / GROWING, write_report(out, out / "report.html")


def growing(path: Path, model: Synthesizer, request: Request, seed: int) -> Path:
    """Writes a moving picture of one mask that grows about its middle, painted from one seed: what the mask alone decides.

    Args:
        path: Where to write; ends in .gif or .webp.
        model: Paints masks.
        request: The mask at its own size.
        seed: Of every volume.
    """
    from latentsynth.animations import sequence
    from latentsynth.data.exchange.requests import place
    from latentsynth.figures import Legend, Tile

    placed = place(request, model.domain)
    masks = [replace(placed, index=scaled(placed.index, size)) for size in _SIZES]
    made = model.paint(masks, [seed] * len(masks), **model.settings()).image.numpy()
    tiles = [
        Tile(f"seed {seed}, mask at {size:.0%} of its size", image, mask.index)
        for size, image, mask in zip(_SIZES, made, masks, strict=True)
    ]
    return sequence(path, tiles[::-1], Legend.of(model.domain))


def scaled(index: np.ndarray, size: float) -> np.ndarray:
    """A label map, larger or smaller about the middle of what it labels."""
    middle = np.argwhere(index > 0).mean(0)
    return ndimage.affine_transform(index, np.full(3, 1 / size), middle - middle / size, order=0)


def run_training_demo(out: Path, cases: int, seed: int) -> tuple[Path, Path]:
    """Walks the road; run again, it goes on where it stopped.

    Args:
        out: Folder for everything.
        cases: Phantom patients.
        seed: Seed of everything.

    Returns:
        The contact sheet (held-out patients beside volumes sampled from their masks), and the report.
    """
    from rich.console import Console

    from latentsynth.data.exchange.requests import requests
    from latentsynth.data.intake.prepare import prepare
    from latentsynth.data.intake.prepare import write_report as write_report_of
    from latentsynth.evaluation.cohorts import Cohort
    from latentsynth.evaluation.obedience.evaluate import evaluate_obedience
    from latentsynth.evaluation.report import write_report
    from latentsynth.parallel import start
    from latentsynth.phantom.cohort import write_cohort
    from latentsynth.roundtrip import reconstruct_cohort
    from latentsynth.synthesis import synthesize
    from latentsynth.synthesizers import load_synthesizer
    from latentsynth.training.recipes.autoencoder import train_autoencoder
    from latentsynth.training.recipes.ldm import train_ldm
    from latentsynth.training.recipes.segmenter import train_segmenter

    console = Console()
    outputs.claim(out, "demo")
    autoencoder, ldm, segmenter = demo_configs(out, seed)
    manifest = out / "manifest.json"
    if not manifest.is_file():
        write_cohort(out / "cohort", cases, seed)
        report = prepare(out / "cohort", manifest, seed=seed)
        write_report_of(report, console)
    runs = {"autoencoder": autoencoder, "ldm": ldm, "segmenter": segmenter}
    for name, run in runs.items():  # so that the same can be done step by step
        outputs.write_marked(out / f"{name}.yaml", configuration.dump(run), "demo")
    trainings = (partial(train_autoencoder, autoencoder), partial(train_ldm, ldm), partial(train_segmenter, segmenter))
    for name, train in zip(runs, trainings, strict=True):
        scores = ", ".join(f"{key} {value:.4g}" for key, value in train().items())
        console.print(f"{name}, on validation patients: {scores}")
    accelerator = start()
    model = load_synthesizer(ldm.run)
    synthesize(model, requests(manifest, "test"), out / "samples", accelerator, per_mask=3, seed=seed)
    real = Cohort.load("real", manifest, ("test",), annotated=True)
    rebuilt = reconstruct_cohort(autoencoder.run, real.manifest, real.cases, out / "reconstructed", accelerator)
    references = [real, Cohort.load("reconstructed", rebuilt)]
    samples = [Cohort.load("samples", out / "samples" / "manifest.json")]
    evaluate_obedience(segmenter.run, samples, references, out / "obedience", accelerator).show(console)
    return out / "samples" / "contact_sheet.png", write_report(out, out / "report.html")
