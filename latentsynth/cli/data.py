"""Commands that look after cohorts: ``phantom``, ``prepare`` and ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentsynth.cli.masks import between
from latentsynth.cli.options import LOOK_AROUND, PREPARE, app, expression, one_of, plain_text


@app.command(rich_help_panel=LOOK_AROUND)
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write (nnU-Net raw layout)")],
    cases: Annotated[int, typer.Option(help="Patients", min=1, max=100_000)] = 24,
    seed: Annotated[int, typer.Option(help="Which cohort")] = 0,
    channels: Annotated[int, typer.Option(help="1: CT; 2: CT and MR", min=1, max=2)] = 2,
    size: Annotated[int, typer.Option(help="Voxels along each axis", min=24, max=512)] = 48,
    lesions: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="LOW:HIGH, lesions per patient, of 3 to 30 mm, some touching [default: one to three larger ones]"
        ),
    ] = None,
) -> None:
    """Write a procedural cohort: abdomens with liver, kidneys and lesions, no two patients alike."""
    from latentsynth.phantom.cohort import write_cohort

    spacing = 192 / size  # the same anatomy at any resolution
    count = between("--lesions", lesions)
    if count is not None and any(n % 1 for n in count):
        raise typer.BadParameter(f"--lesions {lesions!r} counts lesions: give whole numbers, for example 1:20")
    many = None if count is None else (int(count[0]), int(count[1]))
    write_cohort(out, cases, seed, shape=(size,) * 3, spacing_mm=(spacing,) * 3, channels=channels, many=many)
    typer.echo(f"{cases} cases: {out}")


@app.command(rich_help_panel=PREPARE)
def prepare(
    source: Annotated[
        Path,
        typer.Argument(help="Folder (nnU-Net, Decathlon, BraTS, BIDS, pairs), MONAI data list, or CSV/JSONL of paths"),
    ],
    out: Annotated[Optional[Path], typer.Option(help="Manifest to write, a .json file")] = None,  # noqa: UP045
    layout: Annotated[
        str | None,
        typer.Option(
            help="nnunet, decathlon, brats (a folder per case), bids, pairs, table, or masks (a folder of masks without images) "
            "[default: recognised]"
        ),
    ] = None,
    patient: Annotated[str | None, typer.Option(help="Regular expression that finds the patient in a case id")] = None,
    split_file: Annotated[Optional[Path], typer.Option(help="JSON {split: [case ids]} or CSV case,split")] = None,  # noqa: UP045
    fractions: Annotated[tuple[float, float, float], typer.Option(help="Shares of patients: train val test")] = (
        0.7,
        0.15,
        0.15,
    ),
    seed: Annotated[int, typer.Option(help="Which random split")] = 0,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Leave out cases with problems")] = False,
    allow_unlabelled: Annotated[bool, typer.Option("--allow-unlabelled", help="Accept cases without a mask")] = False,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="The cases are volumes that some program made, not patients")
    ] = False,
    resample: Annotated[
        bool, typer.Option("--resample", help="Resample channels that lie on another grid than the first onto it")
    ] = False,
    fill_missing: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Channel that is empty where a case lacks it; repeatable. Such cases train, and nothing is measured on them"
        ),
    ] = None,
    healthy: Annotated[
        str | None,
        typer.Option(
            help="Regular expression, searched in the ids of cases without a mask: those that match have no lesion"
        ),
    ] = None,
    several_masks: Annotated[
        str | None,
        typer.Option(
            help="What several masks of one scan (files, or channels) are: union (one label) or labels (one each)"
        ),
    ] = None,
    licence: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Licence of the scans, for example CC-BY-4.0 [default: what dataset.json says]"),
    ] = None,
    credit: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Whom the scans are owed to, with --licence [default: reference of dataset.json]"),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare",
            help="Look for scans of two patients that are all but the same; such patients share a split",
        ),
    ] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say how the source is understood, read no scan and write nothing")
    ] = False,
) -> None:
    """Check a cohort and write its manifest, split by patient. Problems come as one table, and nothing is written."""
    expression("--patient", patient)
    expression("--healthy", healthy)
    if several_masks is not None:
        one_of("--several-masks", several_masks, ("union", "labels"))
    plain_text("--licence", licence)
    plain_text("--credit", credit)
    if credit is not None and licence is None:
        raise typer.BadParameter("--credit needs --licence: what dataset.json says is taken as a whole or not at all")
    if explain:
        _explain(source, layout, patient)
        return
    if out is None:
        raise typer.BadParameter("give --out, the manifest to write, or --explain to see how the source is understood")
    from rich.console import Console

    from latentsynth.data.intake.prepare import prepare as check_and_write
    from latentsynth.data.intake.prepare import write_report
    from latentsynth.types import Origin

    report = check_and_write(
        source, out, layout=layout, patient=patient, split_file=split_file, fractions=fractions, seed=seed,
        skip_invalid=skip_invalid, allow_unlabelled=allow_unlabelled, synthetic=synthetic, resample=resample,
        fill_missing=fill_missing or (), healthy=healthy, several_masks=several_masks, compare=compare,
        origin=None if licence is None else Origin(licence, credit or ""),
    )  # fmt: skip
    write_report(report, Console())
    if report.manifest is None:
        raise typer.Exit(1)


def _explain(source: Path, layout: str | None, patient: str | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from latentsynth.data.intake.prepare import explain

    table = Table(show_header=False)
    for what, value in explain(source, layout, patient):
        table.add_row(Text(what), Text(value))
    Console().print(table)


@app.command(rich_help_panel=PREPARE)
def plan(
    manifest: Annotated[Path, typer.Argument(help="Manifest that `prepare` wrote")],
    out: Annotated[Path, typer.Option(help="Folder for the ready configurations")] = Path("configs/planned"),
    hours: Annotated[
        float, typer.Option(help="Compute to plan for, hours on this machine", min=0.01, max=100_000)
    ] = 1.0,
    crop: Annotated[
        str, typer.Option(help="whole or lesion; auto decides by the lesions' share of the scans")
    ] = "auto",
) -> None:
    """Propose grid, windows, networks, batch and length for a cohort on this machine, and write ready configurations."""
    one_of("--crop", crop, ("auto", "whole", "lesion"))
    from rich.console import Console

    from latentsynth.planning import plan_runs, write_plan

    write_plan(plan_runs(manifest, hours, crop), out, Console())  # type: ignore[arg-type]
