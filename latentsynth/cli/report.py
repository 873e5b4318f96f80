"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentsynth.cli.options import MEASURE, app


@app.command(rich_help_panel=MEASURE)
def report(
    source: Annotated[Path, typer.Argument(help="Run folder, or a folder of runs, synthetic cohorts and results")],
    out: Annotated[Optional[Path], typer.Option(help="HTML file [default: report.html in the folder]")] = None,  # noqa: UP045
) -> None:
    """Write one self-contained HTML page: curves, pictures, obedience, fidelity, segmentation, and the commands."""
    from latentsynth.evaluation.report import write_report

    typer.echo(str(write_report(source, out or source / "report.html")))
