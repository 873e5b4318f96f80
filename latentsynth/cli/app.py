"""The command tree. Each command parses, checks, and calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# Imported for what they add to the tree.
from latentsynth.cli import data, evaluate, experiment, masks, pipeline, privacy, report, sampling, training, viewing  # noqa: F401
from latentsynth.cli.options import LOOK_AROUND, app

__all__ = ["app"]


@app.command(rich_help_panel=LOOK_AROUND)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes")] = Path("demo"),
    volumes: Annotated[int, typer.Option(help="New patients", min=1, max=100_000)] = 8,
    train: Annotated[
        bool, typer.Option("--train", help="Instead: train on phantoms, from scans to measurements, in ten minutes")
    ] = False,
    cases: Annotated[int, typer.Option(help="With --train: phantom patients", min=8, max=100_000)] = 60,
    seed: Annotated[int, typer.Option(help="Seed of everything")] = 0,
) -> None:
    """New patients in a minute, by the models in the package: masks, volumes for them, pictures, a report."""
    from latentsynth.demo import run_demo, run_training_demo

    for file in run_training_demo(out, cases, seed) if train else run_demo(out, volumes, seed):
        typer.echo(file)
    if not train:
        typer.echo(f"look at the volumes: latentsynth view {out}")


@app.command(rich_help_panel=LOOK_AROUND)
def configs(out: Annotated[Path, typer.Option(help="New folder for them")] = Path("configs")) -> None:
    """Write the ready configurations of the package, which the documentation names by configs/, into a folder."""
    from latentsynth.config.ready import write_ready

    typer.echo(write_ready(out))


@app.command(rich_help_panel=LOOK_AROUND)
def doctor() -> None:
    """Print versions, devices, memory, and which attention and precision will be used; say what is missing."""
    from rich.console import Console

    from latentsynth.doctor import examine, write_findings

    write_findings(examine(), Console())
