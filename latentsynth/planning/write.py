"""A plan as a table and as configurations on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from latentsynth import config as configuration
from latentsynth.outputs import claim_file, write_marked
from latentsynth.planning.layout import in_mm
from latentsynth.planning.plan import Plan
from latentsynth.types import Framing

KIND = "plan"


def write_plan(plan: Plan, out: Path, console: Console) -> None:
    """Prints the proposal and writes its configurations (:func:`plan_files`)."""
    name = plan.autoencoder.run.name.removesuffix("-autoencoder")
    runs = (plan.autoencoder, plan.selector, plan.ldm, plan.segmenter)
    files = plan_files(name, out)
    for file in files:  # all or none
        claim_file(file, KIND)
    for file, run in zip(files, runs, strict=True):
        write_marked(file, configuration.dump(run), KIND)
    grid, framing = plan.autoencoder.data.grid, plan.autoencoder.data.framing
    table = Table("what", "proposal", title=f"plan for {name} on {plan.machine.name}")
    for what, value in plan.facts:
        table.add_row(what, value)
    table.add_row(
        "grid", f"{' x '.join(map(str, grid.shape))} at {in_mm(np.array(grid.spacing_mm))}, {_where(framing)}"
    )
    for channel, (window, choice) in enumerate(zip(grid.windows, plan.windows, strict=True)):
        cut = "" if choice.cut is None else f"; {100 * choice.cut:.2g} % of the lesions' voxels at an end"
        why = "; ".join(choice.reasons)
        table.add_row(f"window {channel}", f"{window.kind} {window.low:g} to {window.high:g}{cut} ({why})")
    table.add_row("downsampling", " x ".join(map(str, plan.autoencoder.autoencoder.factors)))
    for what, run, speed, memory in zip(
        ("autoencoder", "diffusion", "segmenter"),
        (plan.autoencoder, plan.ldm, plan.segmenter),
        plan.speeds,
        plan.memory,
        strict=True,
    ):
        hours = run.train.images / speed / 3600
        table.add_row(
            what,
            f"{memory.parameters / 1e6:.1f} M weights, batch {run.train.batch}, {run.train.images} images at "
            f"{speed:.1f}/s: {hours:.2f} h, about {memory.gib:.1f} GiB of {plan.machine.memory_gib:.0f}",
        )
    console.print(table)
    for file, verb in zip(files, ("autoencoder", "segmenter", "ldm", "segmenter"), strict=True):
        console.print(f"latentsynth train {verb} {file}", soft_wrap=True)


def plan_files(name: str, out: Path) -> tuple[Path, Path, Path, Path]:
    """The configurations of a plan, in the order in which they are trained.

    Autoencoder, segmenter that chooses among the diffusion model's checkpoints, diffusion model, segmenter that judges.
    """
    autoencoder, selector, ldm, unet = (
        out / f"{name}_{kind}.yaml" for kind in ("autoencoder", "selection_unet", "ldm", "unet")
    )
    return autoencoder, selector, ldm, unet


def _where(framing: Framing) -> str:
    return (
        f"centred on the {'scan' if framing.crop == 'whole' else 'lesion'}, lesions that reach beyond it: {framing.fit}"
    )
