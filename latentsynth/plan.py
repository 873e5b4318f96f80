"""From a cohort and a machine to ready configurations: grid, windows, networks, batch, length, time and memory.

What is measured is measured here: extents and intensities on the training scans, speed on this device with the
networks that the configurations name. The rest are rules, each stated where it is applied.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from latentsynth import config as configuration
from latentsynth.autoencoders import build_autoencoder
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun
from latentsynth.data.intake.intensities import Choice, propose_window
from latentsynth.data.intake.layouts import few
from latentsynth.data.intake.lesions import Count, count_held
from latentsynth.data.intake.survey import Survey, choose_grid, survey
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.outputs import claim_file, write_marked
from latentsynth.segmentation import build_network
from latentsynth.training.memory import MemoryEstimate, estimate_autoencoder, estimate_ldm, estimate_segmenter
from latentsynth.training.recipes.ldm import build_conditioner, build_denoiser
from latentsynth.types import Conditioning, Domain, Framing, Grid, Labels

KIND = "plan"
_MARGIN_MM = 15.0  # anatomy shown around the largest lesion of a lesion crop
_LESION_SHARE = 0.4  # crop on the lesion if it needs less than this share of the scan's volume
_SHARES = (0.4, 0.5, 0.1)  # of the hours, for autoencoder, denoiser and segmenter
_SEGMENTER_UNIT = 8  # voxels that the axes of a segmenter of four levels are multiples of
_NEARLY_ALL = 0.95  # of the lesions, which a finer grid is looked for to hold
_READ_CASES = 40  # scans read to learn extents and intensities


@dataclass(frozen=True)
class Machine:
    """How large a model this machine trains: voxels of a volume, feature channels, batch, memory in GiB."""

    name: str
    voxels: int
    autoencoder: tuple[int, ...]
    denoiser: tuple[int, ...]
    batch: int
    memory_gib: float
    precision: Literal["no", "bf16"]


@dataclass(frozen=True)
class Plan:
    """The proposal.

    Attributes:
        machine: What it was made for.
        facts: Rows (what, value) on the cohort.
        autoencoder: Ready run.
        ldm: Ready run.
        segmenter: Ready run of the segmenter that judges the volumes.
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
    scans = survey(manifest.select("train")[:_READ_CASES], len(manifest.channels), manifest.labels)
    layout = _lay_out(scans, machine, crop)
    shape, spacing, factors = layout.shape, layout.spacing, layout.factors
    choices = [propose_window(name, seen) for name, seen in zip(manifest.channels, scans.intensities, strict=True)]
    windows = [choice.window for choice in choices]
    name = manifest_path.stem
    halvings = max(factors).bit_length() - 1
    batch = machine.batch
    augment = {"copies": max(0, min(7, 400 // len(manifest.select("train")) - 1)), "shift_mm": 4.0}
    autoencoder: dict[str, Any] = {
        "run": f"runs/{name}-vq",
        "data": {
            "manifest": str(manifest_path),
            "grid": {"shape": shape, "spacing_mm": spacing, "windows": windows},
            "framing": {"crop": layout.crop, "fit": layout.fit},
            "augment": augment,
        },
        "autoencoder": {
            "kind": "vq",
            "downsampling": list(factors),
            "channels": machine.autoencoder[:halvings],
            "codebooks": 4,
        },
        "train": {"batch": batch, "lr": 1e-3, "precision": machine.precision},
    }
    ldm: dict[str, Any] = {
        "run": f"runs/{name}-ldm",
        "autoencoder": f"runs/{name}-vq",
        "denoiser": {
            "channels": machine.denoiser,
            "attention": [False] * (len(machine.denoiser) - 1) + [True],
        },
        "train": {"batch": 2 * batch, "lr": 5e-4, "precision": machine.precision},
    }
    segmenter: dict[str, Any] = {
        "run": f"runs/{name}-unet",
        "data": {
            "train": [{"manifest": str(manifest_path)}],
            "validation": {"manifest": str(manifest_path)},
            "grid": {"shape": _for_segmenter(shape), "spacing_mm": spacing, "windows": windows},
            "framing": autoencoder["data"]["framing"],
            "augment": augment,
        },
        "train": {"batch": batch, "lr": 2e-3, "precision": machine.precision},
    }
    planned = (autoencoder, ldm, segmenter)
    first, second, third = _built(*planned)
    speeds = _speeds(first, second, third, manifest.labels)
    for values, part, speed in zip(planned, _SHARES, speeds, strict=True):
        images = max(int(hours * 3600 * part * speed) // 100 * 100, 100)
        often = max(images // 5, 1)
        values["train"] |= {
            "images": images,
            "lr_warmup_images": max(images // 30, 1),
            "ema_halflife_images": max(images // 15, 1),
            "save_every_images": often,
            "validate_every_images": often,
            "sample_every_images": often,
        }
    first, second, third = _built(*planned)
    model = build_autoencoder(first.autoencoder, first.data.grid.channels)
    domain = Domain(first.data.grid, first.data.framing, manifest.labels, manifest.channels, ())
    memory = (
        estimate_autoencoder(first),
        estimate_ldm(second, model, domain),
        estimate_segmenter(third, len(manifest.labels)),
    )
    facts = _facts(manifest, scans, layout, machine)
    return Plan(machine, facts, first, second, third, speeds, memory, tuple(choices), layout.kept)


@dataclass(frozen=True)
class _Layout:
    """A grid, where it is laid, and which lesions it holds."""

    crop: Literal["whole", "lesion"]
    shape: list[int]
    spacing: list[float]
    factors: tuple[int, int, int]
    kept: Count

    @property
    def fit(self) -> Literal["error", "scale"]:
        return "scale" if self.crop == "lesion" else "error"


def _lay_out(scans: Survey, machine: Machine, crop: Literal["auto", "whole", "lesion"]) -> _Layout:
    """The grid; where the crop is left open, of both the one that loses fewer lesions."""
    scan_extent = scans.scans.max(axis=0)
    lesion_extent = scans.extents.max(axis=0) + 2 * _MARGIN_MM if len(scans.extents) else scan_extent
    share = float(np.prod(np.minimum(lesion_extent, scan_extent)) / np.prod(scan_extent))
    order: tuple[Literal["whole", "lesion"], ...] = (
        ("lesion", "whole") if share < _LESION_SHARE else ("whole", "lesion")
    )
    found = []
    for where in order if crop == "auto" else (crop,):
        extent = lesion_extent if where == "lesion" else scan_extent
        shape, spacing, factors = choose_grid(extent, scans.spacing, machine.voxels, len(machine.denoiser) - 1)
        layout = _Layout(where, shape, spacing, factors, Count(0, 0, ()))
        found.append(replace(layout, kept=_kept(scans, layout)))
        if not found[-1].kept.lost:
            break
    return min(found, key=lambda layout: layout.kept.lost)  # the first of equals


def _kept(scans: Survey, layout: _Layout, finer: float = 1.0) -> Count:
    """The lesions that a layout holds, or would hold at a finer spacing over the same extent."""
    i, j, k = (math.ceil(n * finer) for n in layout.shape)
    a, b, c = (edge / finer for edge in layout.spacing)
    return count_held(scans.lesions, Grid((i, j, k), (a, b, c)), Framing(layout.crop, layout.fit))


def _facts(manifest: Manifest, scans: Survey, layout: _Layout, machine: Machine) -> list[tuple[str, str]]:
    """What the table of a plan says about the cohort."""
    cases, kept = len(manifest.select("train")), layout.kept
    facts = [
        ("training cases", f"{cases}, {min(cases, _READ_CASES)} of them read"),
        ("scan extent", _mm(scans.scans.max(axis=0))),
        ("lesion extent", _mm(scans.extents.max(axis=0)) if len(scans.extents) else "no masks"),
        ("scan spacing", _mm(scans.spacing)),
    ]
    for value in manifest.labels.ignored:
        name = manifest.labels.names[manifest.labels.values.index(value)]
        facts.append(("note", f"label {value} ({name}) marks voxels that nobody annotated: no lesion"))
    if kept.lesions:
        facts.append(("lesions", f"{kept.lesions}, of which the grid holds {kept.held}"))
    if kept.lost:
        lost = f"{kept.lost} lesions ({100 * kept.lost / kept.lesions:.2g} %) are too small for the grid and vanish"
        where = f"in {len(kept.cases)} cases ({few(kept.cases)})"
        facts.append(("warning", f"{lost}, {where}: {_cure(scans, layout, machine)}"))
    return facts


def _cure(scans: Survey, layout: _Layout, machine: Machine) -> str:
    """The coarsest spacing, in steps of a tenth, over the same extent that holds nearly all lesions."""
    finer = 1.1
    while layout.spacing[0] / finer > 0.9 * scans.spacing.min():
        if _kept(scans, layout, finer).held >= _NEARLY_ALL * layout.kept.lesions:
            voxels = math.prod(layout.shape) * finer**3 / 1e6
            return (
                f"{_mm(np.array(layout.spacing) / finer)} would hold {100 * _NEARLY_ALL:.0f} % of all, with {voxels:.2g} "
                f"million voxels; this machine trains {machine.voxels / 1e6:.2g}"
            )
        finer *= 1.1
    return "no grid over this extent holds nearly all; crop the scans, or leave these lesions out of the masks"


def _built(
    autoencoder: dict[str, Any], ldm: dict[str, Any], segmenter: dict[str, Any]
) -> tuple[AutoencoderRun, LdmRun, SegmenterRun]:
    return (
        configuration.build(AutoencoderRun, autoencoder, "plan"),
        configuration.build(LdmRun, ldm, "plan"),
        configuration.build(SegmenterRun, segmenter, "plan"),
    )


def _for_segmenter(shape: list[int]) -> list[int]:
    """The generator's grid, its axes enlarged to what the segmenter can halve."""
    return [max(-(-n // _SEGMENTER_UNIT) * _SEGMENTER_UNIT, 2 * _SEGMENTER_UNIT) for n in shape]


def this_machine() -> Machine:
    """The class of this machine: a CPU, or a GPU by its memory."""
    if not torch.cuda.is_available():
        import psutil

        return Machine("CPU", 80_000, (16, 64, 64), (64, 128), 8, psutil.virtual_memory().available / 2**30, "no")
    memory = torch.cuda.mem_get_info()[1] / 2**30
    precision: Literal["no", "bf16"] = "bf16" if torch.cuda.is_bf16_supported() else "no"
    if memory < 40:
        return Machine(torch.cuda.get_device_name(), 128**3, (32, 64, 128), (128, 256, 256), 4, memory, precision)
    return Machine(torch.cuda.get_device_name(), 176**3, (64, 128, 128), (256, 256, 512), 8, memory, precision)


def _speeds(
    autoencoder: AutoencoderRun, ldm: LdmRun, segmenter: SegmenterRun, labels: Labels
) -> tuple[float, float, float]:
    """Training images per second of the three networks, timed on this device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grid: Grid = autoencoder.data.grid
    model = build_autoencoder(autoencoder.autoencoder, grid.channels).to(device)
    image = torch.rand(autoencoder.train.batch, grid.channels, *grid.shape, device=device) * 2 - 1
    latent = model.latent_shape(grid.shape)
    width = build_conditioner(ldm.conditioner, len(labels), model.factors).channels
    denoiser = build_denoiser(ldm, latent[0], width).to(device)
    rows = ldm.train.batch
    x = torch.randn(rows, *latent, device=device)
    conditioning = Conditioning(torch.zeros(rows, width, *latent[1:], device=device))
    t = torch.full((rows,), 0.5, device=device)
    network = build_network(segmenter.network, grid.channels, len(labels)).to(device)
    scan = torch.rand(segmenter.train.batch, grid.channels, *segmenter.data.grid.shape, device=device)
    return (
        rows_per_second(model, lambda: (model(image).image - image).abs().mean(), image.shape[0]),
        rows_per_second(denoiser, lambda: denoiser(x, t, conditioning).square().mean(), rows),
        rows_per_second(network, lambda: network(scan).square().mean(), scan.shape[0]),
    )


def rows_per_second(module: nn.Module, loss: Callable[[], torch.Tensor], rows: int) -> float:
    """Rows per second of forward and backward; the first of three steps only warms up."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        loss().backward()
        module.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return rows / min(took[1:])


def write_plan(plan: Plan, out: Path, console: Console) -> None:
    """Prints the proposal and writes ``NAME_vq.yaml``, ``NAME_ldm.yaml`` and ``NAME_unet.yaml`` into ``out``."""
    name = plan.autoencoder.run.name.removesuffix("-vq")
    runs = (plan.autoencoder, plan.ldm, plan.segmenter)
    files = plan_files(name, out)
    for file in files:  # all or none
        claim_file(file, KIND)
    for file, run in zip(files, runs, strict=True):
        write_marked(file, configuration.dump(run), KIND)
    grid, framing = plan.autoencoder.data.grid, plan.autoencoder.data.framing
    table = Table("what", "proposal", title=f"plan for {name} on {plan.machine.name}")
    for what, value in plan.facts:
        table.add_row(what, value)
    table.add_row("grid", f"{' x '.join(map(str, grid.shape))} at {_mm(np.array(grid.spacing_mm))}, {_where(framing)}")
    for channel, (window, choice) in enumerate(zip(grid.windows, plan.windows, strict=True)):
        cut = "" if choice.cut is None else f"; {100 * choice.cut:.2g} % of the lesions' voxels at an end"
        why = "; ".join(choice.reasons)
        table.add_row(f"window {channel}", f"{window.kind} {window.low:g} to {window.high:g}{cut} ({why})")
    table.add_row("downsampling", " x ".join(map(str, plan.autoencoder.autoencoder.factors)))
    for what, run, speed, memory in zip(
        ("autoencoder", "diffusion", "segmenter"), runs, plan.speeds, plan.memory, strict=True
    ):
        hours = run.train.images / speed / 3600
        table.add_row(
            what,
            f"{memory.parameters / 1e6:.1f} M weights, batch {run.train.batch}, {run.train.images} images at "
            f"{speed:.1f}/s: {hours:.2f} h, about {memory.gib:.1f} GiB of {plan.machine.memory_gib:.0f}",
        )
    console.print(table)
    for file, verb in zip(files, ("autoencoder", "ldm", "segmenter"), strict=True):
        console.print(f"latentsynth train {verb} {file}", soft_wrap=True)


def plan_files(name: str, out: Path) -> tuple[Path, Path, Path]:
    """The configurations of a plan: autoencoder, diffusion model, segmenter."""
    vq, ldm, unet = (out / f"{name}_{kind}.yaml" for kind in ("vq", "ldm", "unet"))
    return vq, ldm, unet


def _where(framing: Framing) -> str:
    return "centred on the scan" if framing.crop == "whole" else f"centred on the lesion, larger ones: {framing.fit}"


def _mm(lengths: np.ndarray) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"
