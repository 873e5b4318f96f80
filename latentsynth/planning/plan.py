"""From a cohort and a machine to ready configurations.

What is measured is measured here: extents and intensities on the training scans, speed on this device with the
networks that the configurations name. The rest are rules, each stated where it is applied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latentsynth import config as configuration
from latentsynth.autoencoders import build_autoencoder
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun
from latentsynth.data.cache.volumes import Recipe
from latentsynth.data.intake.intensities import Choice, propose_window
from latentsynth.data.intake.layouts import few
from latentsynth.data.intake.lesions import Count
from latentsynth.data.intake.survey import Survey, survey
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.planning.layout import Layout, cure, detail_kept, in_mm, lay_out
from latentsynth.planning.machine import Machine, device, rows_per_second, this_machine
from latentsynth.segmentation import build_network
from latentsynth.training.memory import MemoryEstimate, estimate_autoencoder, estimate_ldm, estimate_segmenter
from latentsynth.training.recipes.ldm import build_conditioner, build_denoiser
from latentsynth.types import Case, Conditioning, Domain, Grid, Labels
from latentsynth.workers import cores

_SHARES = (
    0.2,
    0.62,
    0.1,
)  # of the hours for training, for autoencoder, denoiser and segmenter; the rest is for validation
_SELECTOR_SHARE = 0.05  # for the segmenter that chooses among the denoiser's checkpoints
_PREPARING = 0.1  # of the hours, at most, for bringing volumes to the grid, or there are fewer copies
_CACHES = 3  # the autoencoder's, which the denoiser shares, and one for each segmenter
_TOO_FEW = 2_000  # images that teach a denoiser next to nothing
# That a denoiser must have time to see, or the grid gets coarser: with fewer its errors show as cells (docs/results.md).
_FEWEST_IMAGES = 10_000
_SEGMENTER_UNIT = 8  # voxels that the axes of a segmenter of four levels are multiples of
_READ_CASES = 40  # scans read to learn extents and intensities
_TIMED_CELLS = (8, 8, 8)
# Latent channels by the images that the denoiser has time for: more show more, and take longer to learn (docs/results.md).
_CHANNELS = ((0, 4), (4_000, 8), (15_000, 16))
_WIDE_IMAGES = 8_000  # fewer, and a narrower denoiser, which sees more of them in the time, is ahead (docs/results.md)
_DETAIL_CASES = 3  # scans brought to the grid and back, to see what it loses


@dataclass(frozen=True)
class Plan:
    """The proposal.

    Attributes:
        machine: What it was made for.
        facts: Rows (what, value) on the cohort.
        autoencoder: Ready run.
        ldm: Ready run.
        segmenter: Ready run of the segmenter that judges the volumes.
        selector: Ready run of the segmenter by which the diffusion model's checkpoint is chosen: as the other, shorter and
            from another seed, since a score that was chosen by says little of what was chosen.
        speeds: Measured images per second of the three, on this machine.
        memory: Estimates for the three.
        windows: Per channel, the window and why.
        kept: The lesions of the cases that were read, and how many of them the grid holds.
    """

    machine: Machine
    facts: list[tuple[str, str]]
    autoencoder: AutoencoderRun
    ldm: LdmRun
    segmenter: SegmenterRun
    selector: SegmenterRun
    speeds: tuple[float, float, float]
    memory: tuple[MemoryEstimate, MemoryEstimate, MemoryEstimate]
    windows: tuple[Choice, ...]
    kept: Count


def plan_runs(manifest_path: Path, hours: float, crop: Literal["auto", "whole", "lesion"] = "auto") -> Plan:
    """Proposes runs for a cohort on this machine.

    Args:
        manifest_path: Manifest that ``prepare`` wrote.
        hours: Compute for all runs together.
        crop: Where to lay the grid; ``"auto"`` crops on the lesion if it needs less than 40 % of the scan, or if that
            loses fewer lesions.

    Raises:
        DataError: The manifest or one of its scans is unreadable, or it lists no scans.
        ConfigError: ``hours`` is no length of time.
    """
    if not 0 < hours < math.inf:
        raise ConfigError(f"hours {hours:g} is no length of time: give the hours of all runs together, above 0")
    manifest = Manifest.load(manifest_path)
    if not manifest.channels:
        raise DataError(f"{manifest_path} lists masks without images: plan runs for a cohort of scans")
    machine = this_machine()
    training = sorted(manifest.select("train"), key=lambda case: len(case.filled))  # cases of all channels first
    scans = survey(tuple(training[:_READ_CASES]), len(manifest.channels), manifest.labels)
    choices = tuple(propose_window(name, seen) for name, seen in zip(manifest.channels, scans.intensities, strict=True))
    rate = _cells_per_second(machine, len(manifest.labels))
    affordable = hours * 3600 * _SHARES[1] * rate
    cells = affordable / _FEWEST_IMAGES
    layout = lay_out(scans, machine, crop, cells)
    block = len(manifest.channels) * math.prod(layout.factors)
    images = affordable / layout.cells
    channels = _latent_channels(images, block)
    grid = {"shape": layout.shape, "spacing_mm": layout.spacing, "windows": [choice.window for choice in choices]}
    planned = _configurations(manifest_path, machine, layout, grid, channels, images)
    preparation = _prepare(planned, training, manifest.labels, hours)
    left = max(hours - preparation / 3600, hours / 2)
    speeds = _speeds(*_built(planned), manifest.labels)
    for values, share, speed in zip(planned, _SHARES, speeds, strict=True):
        values["train"] |= schedule(_images(left * share, speed))
    first, second, third = _built(planned)
    model = build_autoencoder(first.autoencoder, first.data.grid.channels)
    domain = Domain(first.data.grid, first.data.framing, manifest.labels, manifest.channels, ())
    memory = (
        estimate_autoencoder(first),
        estimate_ldm(second, model, domain),
        estimate_segmenter(third, len(manifest.labels)),
    )
    most = min(machine.voxels, cells * math.prod(layout.factors))
    facts = _facts(manifest, scans, layout, most)
    facts.append(("preparation", f"about {preparation / 60:.2g} minutes of the {hours:g} hours"))
    if second.train.images < _TOO_FEW:
        enough = hours * _TOO_FEW / second.train.images
        facts.append(
            ("too short", f"{hours:g} hours let the denoiser see {second.train.images} images here, from which it learns next to "
             f"nothing: give at least --hours {enough:.2g}, or a machine with a GPU")
        )  # fmt: skip
    if layout.coarser_than(scans.spacing):
        kept = detail_kept(training[:_DETAIL_CASES], first.data.grid, first.data.framing, manifest.labels)
        facts.append(("detail", _coarse(layout, scans, kept)))
    selector = _selector(planned[2], _images(left * _SELECTOR_SHARE, speeds[2]))
    return Plan(machine, facts, first, second, third, selector, speeds, memory, choices, layout.kept)


Values = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _configurations(
    manifest: Path, machine: Machine, layout: Layout, grid: dict[str, Any], channels: int, images: float
) -> Values:
    """Autoencoder, denoiser and segmenter, all but how long they train and on how many copies."""
    name, batch = manifest.stem, machine.batch
    width, blocks = machine.trunk
    framing = {
        "crop": layout.crop,
        "fit": "scale",
    }  # cases that were not read may be larger, and must not end a night's work
    augment = {"shift_mm": 4.0}
    part = [min(n, machine.crop) for n in layout.shape]
    autoencoder = {
        "run": f"runs/{name}-autoencoder",
        "data": {"manifest": str(manifest), "grid": grid, "framing": framing, "augment": augment},
        "autoencoder": {
            "kind": "kl",
            "downsampling": list(layout.factors),
            "latent_channels": channels,
            "trunk": {"width": width, "res_blocks": blocks},
        },
        "decoder_phase": {"share": 0.5},
        "crop": None if part == layout.shape else part,
        "train": {"batch": batch, "lr": 1e-3, "precision": machine.precision},
    }
    ldm = {
        "run": f"runs/{name}-ldm",
        "autoencoder": f"runs/{name}-autoencoder",
        "conditioner": {"detail": 4 if min(layout.factors) == 4 else 2},
        "denoiser": _denoiser(machine, images),
        "diffusion": {"lesion_weight": 2.0},
        "selection": {"segmenter": f"runs/{name}-selection-unet"},
        "train": {"batch": machine.denoiser_batch, "lr": 6e-4, "precision": machine.precision},
    }
    segmenter = {
        "run": f"runs/{name}-unet",
        "data": {
            "train": [{"manifest": str(manifest)}],
            "validation": {"manifest": str(manifest)},
            "grid": {**grid, "shape": _for_segmenter(layout.shape)},
            "framing": framing,
            "augment": augment,
        },
        "train": {"batch": batch, "lr": 2e-3, "precision": machine.precision},
    }
    return autoencoder, ldm, segmenter


def _prepare(planned: Values, training: Sequence[Case], labels: Labels, hours: float) -> float:
    """Sets how many copies of the training cases there are; gives the seconds that bringing them to the grid takes."""
    autoencoder, _, segmenter = planned
    data = configuration.build(AutoencoderRun, autoencoder, "plan").data
    recipe = Recipe(data.grid, data.framing, labels, data.augment, 0)
    timed = training[:_DETAIL_CASES]
    began = time.perf_counter()
    for case in timed:
        recipe.read(case, copy=1)
    per_copy = (time.perf_counter() - began) / len(timed) * _CACHES * len(training) / cores()
    fits = int(hours * 3600 * _PREPARING / per_copy) - 1
    copies = max(0, min(7, 400 // len(training) - 1, fits))
    for values in (autoencoder, segmenter):
        values["data"]["augment"] = {**values["data"]["augment"], "copies": copies}
    return per_copy * (copies + 1)


def _denoiser(machine: Machine, images: float = math.inf) -> dict[str, Any]:
    """The network of a denoiser that has time for so many images."""
    widths = machine.denoiser if images >= _WIDE_IMAGES else machine.narrow
    levels = len(widths)
    return {
        "channels": widths,
        "attention": [False] * (levels - 1) + [True],
        "res_blocks": machine.denoiser_blocks,
        "head_channels": next(n for n in (64, 48, 32) if all(width % n == 0 for width in widths)),
    }


def _selector(segmenter: dict[str, Any], images: int) -> SegmenterRun:
    """The run of the segmenter that chooses, from that of the one that judges."""
    values = {
        **segmenter,
        "run": segmenter["run"].removesuffix("-unet") + "-selection-unet",
        "seed": 1,
        "train": segmenter["train"] | schedule(images),
    }
    return configuration.build(SegmenterRun, values, "plan")


def _images(hours: float, speed: float) -> int:
    """Images that are seen in some hours at so many a second, in hundreds."""
    return max(int(hours * 3600 * speed) // 100 * 100, 100)


def schedule(images: int) -> dict[str, int]:
    """How long to train, and what happens how often."""
    often = max(images // 5, 1)
    return {
        "images": images,
        "lr_warmup_images": max(images // 30, 1),
        "ema_halflife_images": max(images // 15, 1),
        "save_every_images": often,
        "validate_every_images": often,
        "sample_every_images": often,
    }


def _latent_channels(images: float, block: int) -> int:
    """How many channels pay for a denoiser that has time for so many images; at most a quarter of the values of a block."""
    paying = max(channels for fewest, channels in _CHANNELS if images >= fewest)
    return min(paying, max(block // 4, 1))


def _coarse(layout: Layout, scans: Survey, kept: float) -> str:
    """What a grid loses that is coarser than the scans."""
    lost = f"{in_mm(np.array(layout.spacing))} for scans of {in_mm(scans.spacing)}"
    remedy = "give more --hours" + (", or --crop lesion" if layout.crop == "whole" else "")
    return (
        f"the grid is coarser than the scans ({lost}) and keeps {100 * kept:.0f} % of their finest detail, whatever is "
        f"trained on it: {remedy}"
    )


def _facts(manifest: Manifest, scans: Survey, layout: Layout, most: float) -> list[tuple[str, str]]:
    """What the table of a plan says about the cohort."""
    cases, kept = len(manifest.select("train")), layout.kept
    facts = [
        ("training cases", f"{cases}, {min(cases, _READ_CASES)} of them read"),
        ("scan extent", f"{in_mm(np.median(scans.scans, axis=0))}, at most {in_mm(scans.scans.max(axis=0))}"),
        ("lesion extent", in_mm(scans.extents.max(axis=0)) if len(scans.extents) else "no masks"),
        ("scan spacing", in_mm(scans.spacing)),
    ]
    for value in manifest.labels.ignored:
        name = manifest.labels.names[manifest.labels.values.index(value)]
        facts.append(("note", f"label {value} ({name}) marks voxels that nobody annotated: no lesion"))
    if kept.lesions:
        facts.append(("lesions", f"{kept.lesions}, of which the grid holds {kept.held}"))
    if kept.lost:
        lost = f"{kept.lost} lesions ({100 * kept.lost / kept.lesions:.2g} %) are too small for the grid and vanish"
        where = f"in {len(kept.cases)} cases ({few(kept.cases)})"
        facts.append(("warning", f"{lost}, {where}: {cure(scans, layout, most)}"))
    return facts


def _built(values: Values) -> tuple[AutoencoderRun, LdmRun, SegmenterRun]:
    autoencoder, ldm, segmenter = values
    return (
        configuration.build(AutoencoderRun, autoencoder, "plan"),
        configuration.build(LdmRun, ldm, "plan"),
        configuration.build(SegmenterRun, segmenter, "plan"),
    )


def _for_segmenter(shape: list[int]) -> list[int]:
    """The generator's grid, its axes enlarged to what the segmenter can halve."""
    return [max(-(-n // _SEGMENTER_UNIT) * _SEGMENTER_UNIT, 2 * _SEGMENTER_UNIT) for n in shape]


def _cells_per_second(machine: Machine, labels: int) -> float:
    """Latent cells that the denoiser of this machine trains on in a second, timed on few; their channels hardly matter."""
    train = {"batch": machine.denoiser_batch}
    values = {"run": "plan", "autoencoder": "plan", "denoiser": _denoiser(machine), "train": train}
    run = configuration.build(LdmRun, values, "plan")
    return math.prod(_TIMED_CELLS) * _denoiser_speed(run, (8, *_TIMED_CELLS), labels, (4, 4, 4))


def _denoiser_speed(
    run: LdmRun, latent: tuple[int, int, int, int], labels: int, factors: tuple[int, int, int]
) -> float:
    """Images per second that a denoiser trains on."""
    rows = run.train.batch
    width = build_conditioner(run.conditioner, labels, factors).channels
    denoiser = build_denoiser(run, latent[0], width).to(device())
    x = torch.randn(rows, *latent, device=device())
    conditioning = Conditioning(torch.zeros(rows, width, *latent[1:], device=device()))
    t = torch.full((rows,), 0.5, device=device())
    return rows_per_second(denoiser, lambda: denoiser(x, t, conditioning).square().mean(), rows)


def _speeds(
    autoencoder: AutoencoderRun, ldm: LdmRun, segmenter: SegmenterRun, labels: Labels
) -> tuple[float, float, float]:
    """Training images per second of the three networks, timed on this device."""
    grid: Grid = autoencoder.data.grid
    model = build_autoencoder(autoencoder.autoencoder, grid.channels).to(device())
    shown = autoencoder.crop or grid.shape
    image = torch.rand(autoencoder.train.batch, grid.channels, *shown, device=device()) * 2 - 1
    network = build_network(segmenter.network, grid.channels, len(labels)).to(device())
    scan = torch.rand(segmenter.train.batch, grid.channels, *segmenter.data.grid.shape, device=device())
    return (
        rows_per_second(model, lambda: (model(image).image - image).abs().mean(), image.shape[0]),
        _denoiser_speed(ldm, model.latent_shape(grid.shape), len(labels), model.factors),
        rows_per_second(network, lambda: network(scan).square().mean(), scan.shape[0]),
    )
