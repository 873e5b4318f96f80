"""Commands that run grids of cells: ``experiment ...``."""

from __future__ import annotations

from typing import Annotated

import typer

from latentsynth import config as configuration
from latentsynth.cli.evaluate import finish
from latentsynth.cli.options import Check, ConfigFile, Overrides, experiment_app, resolve


@experiment_app.command("memorization")
def experiment_memorization(
    config: ConfigFile,
    overrides: Overrides = None,
    check: Check = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print cells and estimated hours, and stop")] = False,
) -> None:
    """Does diffusion memorize more than a GAN? Trains both on nested subsets at equal compute, and measures them.

    The same command again goes on. Start it on several machines that share the folder: each takes cells of its own.
    """
    resolved = resolve(configuration.MemorizationStudy, config, overrides, check)
    from latentsynth.experiments.memorization import Study

    study = Study(resolved)
    if dry_run:
        from rich.console import Console

        return study.grid().show(Console())
    finish(study.run(), resolved.folder)
