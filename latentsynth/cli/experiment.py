"""Commands that run grids of cells: ``experiment ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentsynth import config as configuration
from latentsynth.cli.evaluate import finish
from latentsynth.cli.options import Check, ConfigFile, Out, Overrides, experiment_app, resolve

if TYPE_CHECKING:
    from latentsynth.experiments.study import Study

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print cells and estimated hours, and stop")]


@experiment_app.command("memorization")
def experiment_memorization(
    config: ConfigFile, overrides: Overrides = None, check: Check = False, dry_run: DryRun = False
) -> None:
    """Does diffusion memorize more than a GAN? Trains both on nested subsets at equal compute, and measures them.

    The same command again goes on. Start it on several machines that share the folder: each takes cells of its own.
    """
    resolved = resolve(configuration.MemorizationStudy, config, overrides, check)
    from latentsynth.experiments.memorization.study import Memorization

    _run(Memorization(resolved), dry_run)


@experiment_app.command("utility")
def experiment_utility(
    config: ConfigFile, overrides: Overrides = None, check: Check = False, dry_run: DryRun = False
) -> None:
    """Does training on synthetic patients help? Trains segmenters on declared mixtures, judges them on real patients.

    The same command again goes on. Start it on several machines that share the folder: each takes cells of its own.
    """
    resolved = resolve(configuration.UtilityStudy, config, overrides, check)
    from latentsynth.experiments.utility.study import Utility

    _run(Utility(resolved), dry_run)


@experiment_app.command("ranks")
def experiment_ranks(
    studies: Annotated[list[Path], typer.Argument(help="Folders of finished utility studies, one data set each")],
    out: Out,
    size: Annotated[str, typer.Option(help="Which size of the real subset: a number, or all")] = "all",
) -> None:
    """Which arm is best over data sets? Friedman's test and Nemenyi's critical difference, from five data sets on."""
    from latentsynth.experiments.ranks import rank_studies

    finish(rank_studies(studies, out, size), out)


def _run(study: Study, dry_run: bool) -> None:
    if dry_run:
        from rich.console import Console

        return study.grid().show(Console())
    finish(study.run(), study.folder)
