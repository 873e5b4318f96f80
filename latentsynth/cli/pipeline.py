"""The command ``run``: the whole road."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentsynth.cli.options import LOOK_AROUND, app, plain_text, say


@app.command("run", rich_help_panel=LOOK_AROUND)
def run_road(
    source: Annotated[
        Path, typer.Argument(metavar="SCANS", help="Folder or table of scans, or a manifest of `prepare`")
    ],
    out: Annotated[Path, typer.Option(help="Folder for everything")],
    hours: Annotated[float, typer.Option(help="For everything, on this machine", min=0.05, max=10_000)] = 8.0,
    seed: Annotated[int, typer.Option(help="Of splits, masks and volumes")] = 0,
    licence: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Under which the exported set may be shared, for example CC-BY-4.0 [default: none, it is to look at]"
        ),
    ] = None,
    scans_licence: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of the scans, for example CC-BY-4.0 [default: as dataset.json says]"),
    ] = None,
    scans_credit: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Whom the scans are owed to, with --scans-licence"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing")] = False,
) -> None:
    """From a folder of scans to models, new patients and a report. Run again, it goes on where it stopped.

    Every stage is a command that could have been typed: they stand in OUT/commands.sh.
    """
    for option, value in (("--licence", licence), ("--scans-licence", scans_licence), ("--scans-credit", scans_credit)):
        plain_text(option, value)
    if scans_credit is not None and scans_licence is None:
        raise typer.BadParameter("--scans-credit needs --scans-licence")
    from latentsynth.pipeline.runner import forecast, run

    if dry_run:
        from rich.console import Console
        from rich.table import Table

        table = Table("stage", "hours", "what it does")
        for row in forecast(source, out, hours):
            table.add_row(*row)
        Console().print(table)
        return
    outcome = run(source, out, hours, seed, licence, scans_licence, scans_credit)
    took = sum(outcome.seconds.values()) / 3600
    say(f"done in {took:.2f} of {hours:g} h: {outcome.report}")
    if outcome.failed:
        say(f"could not be done: {', '.join(outcome.failed)}; what was wrong stands above")
        raise typer.Exit(1)
