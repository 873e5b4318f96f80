"""Named comparisons side by side on this machine: `make bench`, or `python -m benchmarks compare [NAME ...] [--out FILE.json]`.

Variants of a comparison take turns, so that whatever else the machine does hits all of them; the first round warms up and is not
counted. What counts is the ratio to the first variant. Everything runs on phantoms and fresh weights, in one process of torch's
own number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torchio
from monai.data import PersistentDataset
from monai.networks.nets import AutoencoderKL
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacingd,
)
from torch import Tensor

from latentsynth import workers
from latentsynth.autoencoders import build_autoencoder
from latentsynth.autoencoders.space_to_depth import SpaceToDepthDecoder
from latentsynth.config import AugmentConfig, KLConfig
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.diffusion import Denoiser
from latentsynth.diffusion.sampling import build_scheduler, sample, sampler_named
from latentsynth.phantom.cohort import write_cohort
from latentsynth.types import Conditioning, Framing, Grid, Window

ROUNDS = 5
_COPIES = 7  # per case
LABELS, BATCH, SHAPE = 3, 4, (32, 48, 40)
Variants = Mapping[str, Callable[[], int]]  # each call does one round and says how many units it did


@dataclass(frozen=True)
class Timed:
    """One variant of a comparison.

    Attributes:
        comparison: Its name.
        variant: Its own.
        rate: Units per second, median of the rounds.
        low: Slowest round.
        high: Fastest round.
        ratio: Rate beside the first variant's, median of the rounds, each by its neighbour.
    """

    comparison: str
    variant: str
    rate: float
    low: float
    high: float
    ratio: float


def compare(name: str, variants: Variants) -> list[Timed]:
    """Takes turns."""
    rates: dict[str, list[float]] = {variant: [] for variant in variants}
    for round_ in range(ROUNDS + 1):
        for variant, run in variants.items():
            began = time.perf_counter()
            units = run()
            if round_:
                rates[variant].append(units / (time.perf_counter() - began))
    first = np.array(rates[next(iter(variants))])
    return [
        Timed(name, variant, float(np.median(of)), min(of), max(of), float(np.median(np.array(of) / first)))
        for variant, of in rates.items()
    ]  # fmt: skip


def _denoiser(latent_channels: int, schedule: str) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(latent_channels, LABELS, schedule, "v", (48, 96), (False, True), 1, 48, 16)


def training_step(_: Path) -> Variants:
    """Images per second of the denoiser's training: latents kept, encoded in the loop, and as MONAI's tutorial does it."""
    autoencoder = build_autoencoder(KLConfig(), 1).requires_grad_(False)
    latent = autoencoder.latent_shape(SHAPE)
    ours = _denoiser(latent[0], "rectified")
    theirs = AutoencoderKL(
        3, 1, 1, (2, 2, 2), (32, 64, 64), (False, False, False), 3, norm_num_groups=16
    ).requires_grad_(False)
    network, noise_levels = _denoiser(3, "cosine").network, DDPMScheduler(1000, prediction_type="v_prediction")
    image, z = torch.rand(BATCH, 1, *SHAPE), torch.randn(BATCH, *latent)
    given, t = Conditioning(torch.rand(BATCH, LABELS, *latent[1:])), torch.rand(BATCH)

    def cached() -> int:
        ours(z, t, given).square().mean().backward()
        return BATCH

    def encoding() -> int:
        ours(autoencoder.moments(image).mean, t, given).square().mean().backward()
        return BATCH

    def tutorial() -> int:
        z = theirs.encode_stage_2_inputs(image)
        noise, at = torch.randn_like(z), torch.randint(0, 1000, (BATCH,))
        seen = torch.cat([noise_levels.add_noise(z, noise, at), given.spatial], 1)
        target = noise_levels.get_velocity(z, noise, at)
        (network(seen, timesteps=at) - target).square().mean().backward()
        return BATCH

    return {"latents in a cache": cached, "encoded in the loop": encoding, "MONAI's tutorial": tutorial}


def sampling(_: Path) -> Variants:
    """Volumes of latents per second by 20 steps of DDIM on the same weights; both must give the same ones."""
    denoiser = _denoiser(8, "cosine").eval()
    noise, given = torch.randn(BATCH, 8, 8, 12, 10), Conditioning(torch.rand(BATCH, LABELS, 8, 12, 10))
    engine = build_scheduler(sampler_named("ddim", denoiser.schedule), denoiser.schedule, 20)
    theirs = DDIMScheduler(1000, prediction_type="v_prediction", clip_sample=False)
    theirs.num_inference_steps, theirs.alphas_cumprod = 20, engine.alphas_cumprod
    made: dict[str, Tensor] = {}

    def ours() -> int:
        made["ours"] = sample(lambda x, t: denoiser(x, t, given), denoiser.schedule, noise, "ddim", 20)
        return BATCH

    @torch.no_grad()
    def monai() -> int:
        y = noise
        for step in engine.timesteps:
            share = theirs.alphas_cumprod[step]
            angle = torch.atan2((1 - share).sqrt(), share.sqrt()) * 2000 / torch.pi
            y, _ = theirs.step(
                denoiser.network(torch.cat([y, given.spatial], 1), timesteps=angle.expand(BATCH)), step, y
            )
        made["theirs"] = y
        apart = float((made["ours"] - y).abs().max())
        if apart > 1e-4:
            raise AssertionError(f"DDIM of both gives latents {apart:.1e} apart, expected the same")
        return BATCH

    return {"latentsynth": ours, "MONAI's DDIMScheduler": monai}


def decoding(_: Path) -> Variants:
    """Volumes of 96 x 96 x 96 voxels per second, whole and in parts; the same volume, another memory."""
    model = build_autoencoder(KLConfig(latent_channels=8, trunk={"width": 64, "res_blocks": 2}), 1).eval()
    model.latent_mean.zero_()
    model.latent_std.fill_(1)
    z = torch.randn(1, 8, 24, 24, 24)

    @torch.no_grad()
    def decoded(tile: int) -> int:
        with mock.patch.object(SpaceToDepthDecoder, "TILE", tile):
            model.decode(z)
        return 1

    return {"whole": lambda: decoded(24), "in parts of 12 cells": lambda: decoded(12)}


def _phantoms(folder: Path, cases: int) -> tuple[Manifest, Recipe]:
    write_cohort(folder / "phantoms", cases, 0)
    prepare(folder / "phantoms", folder / "manifest.json", seed=0)
    manifest = Manifest.load(folder / "manifest.json")
    ct, mr = Window("fixed", -160.0, 240.0), Window("percentile", 0.5, 99.5)
    grid = Grid((32, 32, 32), (3.0, 3.0, 3.0), (ct, mr))
    return manifest, Recipe(grid, Framing("lesion", "scale", (3,)), manifest.labels, AugmentConfig(rotate_deg=5.0), 0)


def loading(folder: Path) -> Variants:
    """Volumes per second of an epoch after the first: this cache, MONAI's PersistentDataset, TorchIO reading files anew."""
    manifest, recipe = _phantoms(folder, 12)
    cache = VolumeCache(folder / "cache", recipe, manifest.cases)
    cache.build()
    keys = ["image_0", "image_1", "mask"]
    rows = [{"image_0": str(c.images[0]), "image_1": str(c.images[1]), "mask": str(c.mask)} for c in manifest.cases]
    modes = ("bilinear", "bilinear", "nearest")
    steps = Compose([
        LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=recipe.grid.spacing_mm, mode=modes), ResizeWithPadOrCropd(keys, recipe.grid.shape),
        ScaleIntensityRanged(keys[:2], -160, 240, -1, 1, clip=True),
    ])  # fmt: skip
    kept = PersistentDataset(rows, steps, cache_dir=folder / "monai")
    moved = torchio.Compose(
        [torchio.ToCanonical(), torchio.Resample(recipe.grid.spacing_mm), torchio.CropOrPad(recipe.grid.shape)]
    )

    def subject(row: Mapping[str, str]) -> torchio.Subject:
        images = {key: torchio.ScalarImage(row[key]) for key in keys[:2]}
        return torchio.Subject(**images, mask=torchio.LabelMap(row["mask"]))

    def ours() -> int:
        return sum(cache.item(n)["image"].ndim > 0 for n in range(len(cache)))

    def monai() -> int:
        return sum(kept[n]["image_0"].ndim > 0 for n in range(len(kept)))

    def anew() -> int:
        return sum(moved(subject(row))["image_0"].data.ndim > 0 for row in rows)

    return {"cache of latentsynth": ours, "MONAI's PersistentDataset": monai, "TorchIO, from files": anew}


def preparing(folder: Path) -> Variants:
    """Volumes per second that are read, framed, windowed and cached, by number of cores."""
    manifest, recipe = _phantoms(folder, 24)
    runs = iter(range(1000))

    def build(cores: int) -> int:
        cache = VolumeCache(folder / f"cache-{next(runs)}", recipe, manifest.cases, _COPIES)
        # As for a cohort large enough that starting workers is worth it.
        with (
            mock.patch.dict(os.environ, {"LOKY_MAX_CPU_COUNT": str(cores)}),
            mock.patch.multiple(workers, _LOOK_S=0, _WORTH_S=0),
        ):
            cache.build()
        return len(cache)

    most = os.cpu_count() or 1
    return {f"{cores} core{'s' * (cores > 1)}": lambda cores=cores: build(cores) for cores in sorted({1, most})}  # type: ignore[misc]


COMPARISONS = {
    "training step": training_step, "sampling": sampling, "decoding": decoding, "loading": loading, "preparing": preparing,
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(COMPARISONS)}; all without one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(COMPARISONS)
    if unknown:
        parser.error(f"no comparison {', '.join(sorted(unknown))}: choose from {', '.join(COMPARISONS)}")
    rows: list[Timed] = []
    print(
        "| comparison | variant | per second | slowest to fastest | ratio |\n|---|---|---|---|---|",
        flush=True,
    )
    for name in given.names or COMPARISONS:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(name, COMPARISONS[name](Path(folder))):
                rows.append(row)
                print(
                    f"| {name} | {row.variant} | {row.rate:.3g} | {row.low:.3g} to {row.high:.3g} | {row.ratio:.2f} |",
                    flush=True,
                )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    given.out.write_text(
        json.dumps({"machine": machine, "rounds": ROUNDS, "rows": [asdict(row) for row in rows]}, indent=2)
    )
    print(f"\n{machine}; written to {given.out}")
