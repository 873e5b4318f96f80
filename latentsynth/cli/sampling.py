"""Commands that make volumes and label maps: ``sample`` and ``segment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentsynth.cli.options import MAKE, MOST, SPLITS, app, one_of, say
from latentsynth.types import Grid


@app.command(rich_help_panel=MAKE)
def sample(
    checkpoint: Annotated[Optional[Path], typer.Argument(help="Run folder or checkpoint folder")] = None,  # noqa: UP045
    masks: Annotated[Optional[Path], typer.Option(help="NIfTI mask, folder of masks, or manifest")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="Output folder")] = None,  # noqa: UP045
    split: Annotated[Optional[str], typer.Option(help="Split of a manifest: train, val or test [default: val]")] = None,  # noqa: UP045
    per_mask: Annotated[int, typer.Option(help="Volumes per mask", min=1, max=10_000)] = 1,
    count: Annotated[
        int | None, typer.Option(help="Volumes of a model that makes its own masks", min=1, max=MOST)
    ] = None,
    mask_model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run or checkpoint folder of a model that makes the masks which CHECKPOINT paints"),
    ] = None,
    style: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Scans whose look to take (SPADE): NIfTI, folder of CASE_0000.nii.gz ..., or manifest"),
    ] = None,
    into: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Real scans to paint the lesions into: NIfTI, folder of CASE_0000.nii.gz ..., or manifest"),
    ] = None,
    margin_mm: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="With --into: beyond this distance from the lesion the scan stays as it is [default: what the model needs]",
            min=0,
        ),
    ] = None,
    remove: Annotated[
        bool,
        typer.Option("--remove", help="With --into: put healthy tissue in place of the scans' own lesions; no --masks"),
    ] = False,
    seed: Annotated[int, typer.Option(help="First seed")] = 0,
    batch: Annotated[int, typer.Option(help="Volumes made together", min=1)] = 2,
    steps: Annotated[Optional[int], typer.Option(help="Sampling steps [default: as trained]", min=1)] = None,  # noqa: UP045
    shift: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Time shift of the sampling grid; below 1, more steps near the data [default: as trained]"),
    ] = None,
    guidance: Annotated[Optional[float], typer.Option(help="Guidance scale [default: as trained]", min=0)] = None,  # noqa: UP045
    guide: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Guide away from this worse checkpoint of the same latents (`RUN/early`) in place of from no mask, with --guidance"
        ),
    ] = None,
    grain: Annotated[Optional[float], typer.Option(help="Grain, 0 for none [default: as trained]", min=0)] = None,  # noqa: UP045
    scheduler: Annotated[Optional[str], typer.Option(help="See --list-schedulers [default: as trained]")] = None,  # noqa: UP045
    truncation: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Spread of a GAN's latents [default: as trained]", min=0, max=1),
    ] = None,
    fit: Annotated[Optional[str], typer.Option(help="Lesion larger than the grid: error or scale [as trained]")] = None,  # noqa: UP045
    list_schedulers: Annotated[
        bool, typer.Option("--list-schedulers", help="Which scheduler serves which schedule")
    ] = False,
) -> None:
    """Sample volumes from masks: NIfTI in scanner units on each mask's own grid. A second run continues the first.

    A model that makes its own masks, or one with --mask-model, takes --count in place of --masks.
    """
    if list_schedulers:
        return _print_schedulers()
    asked = masks or count or (into if remove else None)
    missing = [n for n, v in (("CHECKPOINT", checkpoint), ("--masks or --count", asked), ("--out", out)) if v is None]
    if checkpoint is None or asked is None or out is None:
        raise typer.BadParameter(f"missing {', '.join(missing)}")
    if masks is not None and (count is not None or mask_model is not None):
        raise typer.BadParameter("--masks says what to paint; --count and --mask-model leave it to a model: give one")
    unused = [n for n, v in (("--per-mask", per_mask != 1), ("--split", split), ("--fit", fit)) if v] if count else []
    if unused:
        raise typer.BadParameter(f"{unused[0]} is about given masks, and --count gives none: leave it out")
    if remove and (into is None or masks is not None or count is not None):
        raise typer.BadParameter(
            "--remove takes the scans of --into with their own masks: give neither --masks nor --count"
        )
    one_of("--fit", fit, ("error", "scale"))
    one_of("--split", split, SPLITS)
    from latentsynth.data.exchange.requests import Request, requests, requests_of
    from latentsynth.data.intake.scans import scans
    from latentsynth.parallel import start
    from latentsynth.synthesis import synthesize
    from latentsynth.synthesizers import Chained, LatentDiffusion, Synthesizer, load_synthesizer

    model: Synthesizer
    if guide is None:
        model = load_synthesizer(checkpoint)
    else:
        model = LatentDiffusion.from_pretrained(checkpoint).guided_by(LatentDiffusion.from_pretrained(guide))
    if mask_model is not None:
        model = Chained(load_synthesizer(mask_model), model)
    styles = scans(style, model.grid.channels) if style is not None else []
    hosts = scans(into, model.grid.channels, split if remove else None) if into is not None else []  # type: ignore[arg-type]
    asked_for = [Request("new", None)] if masks is None else requests(masks, split)  # type: ignore[arg-type]
    wanted = requests_of(hosts) if remove else asked_for
    manifest = synthesize(
        model, wanted, out, start(), count or per_mask, seed, batch, fit, styles, hosts, margin_mm, remove,  # type: ignore[arg-type]
        scheduler=scheduler, steps=steps, shift=shift, guidance=guidance, grain=grain, truncation=truncation,
    )  # fmt: skip
    _say_what_was_lost(out, model.grid)
    say(f"{len(manifest.cases)} volumes: {out / 'manifest.json'}\npicture: {out / 'contact_sheet.png'}")


def _say_what_was_lost(out: Path, grid: Grid) -> None:
    """How many lesions of the masks no volume in a folder shows, if any."""
    from latentsynth.data.exchange import samples

    lost = samples.LostLesions.of(out)
    if lost.lost:
        voxel = " x ".join(f"{edge:.3g}" for edge in grid.spacing_mm)
        say(
            f"{lost.lost} of {lost.lesions} lesions were lost, in {lost.short} of {lost.volumes} volumes: too small for the model's "
            f"voxels of {voxel} mm. labelsTr leaves them out; {samples.GIVEN} holds the masks that the model got"
        )


def _print_schedulers() -> None:
    from rich.console import Console
    from rich.table import Table

    from latentsynth.diffusion import sampler_table

    table = Table("scheduler", "noise schedule", "served by (diffusers)", "denoiser calls per step")
    for name, schedule, kind, calls in sampler_table():
        table.add_row(name, schedule, kind, str(calls))
    Console().print(table)


@app.command(rich_help_panel=MAKE)
def segment(
    checkpoint: Annotated[Path, typer.Argument(help="Run or checkpoint folder of a segmenter")],
    images: Annotated[Path, typer.Option(help="NIfTI file, folder of CASE_0000.nii.gz ..., or manifest")],
    out: Annotated[Path, typer.Option(help="Folder for the label maps")],
    split: Annotated[Optional[str], typer.Option(help="Split of a manifest [default: all]")] = None,  # noqa: UP045
) -> None:
    """Segment scans: label maps as NIfTI on each scan's own grid. A second run continues the first."""
    one_of("--split", split, SPLITS)
    from latentsynth.data.intake.scans import scans
    from latentsynth.labelling import label_scans
    from latentsynth.parallel import start
    from latentsynth.segmentation import Segmenter

    model = Segmenter.from_pretrained(checkpoint)
    files = label_scans(model, scans(images, model.domain.grid.channels, split), out, start())  # type: ignore[arg-type]
    say(f"{len(files)} label maps: {out}\nvolumes: {out / 'volumes.csv'}\npicture: {out / 'contact_sheet.png'}")
