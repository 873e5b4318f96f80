"""The command tree. Each command parses, checks, and calls one function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional, TypeVar

import typer

from latentsynth import config as configuration

app = typer.Typer(
    help="Synthetic annotated 3D scans from a few dozen real ones. Add --debug to any command for tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
train_app = typer.Typer(help="Train a model. The same command again resumes it.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure a model.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")

ConfigT = TypeVar("ConfigT", bound=configuration.Run)
ConfigFile = Annotated[Path, typer.Argument(help="YAML file; configs/ has ready ones", show_default=False)]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
    typer.Argument(help="key=value changes, for example train.images=1000", show_default=False),
]
Check = Annotated[bool, typer.Option("--check", help="Print the resolved configuration and stop.")]


def _resolve(kind: type[ConfigT], file: Path, overrides: list[str] | None, check: bool) -> ConfigT:
    """Loads a configuration; with ``check``, prints it and ends the command."""
    config = configuration.load(kind, file, overrides or [])
    if check:
        typer.echo(configuration.dump(config), nl=False)
        raise typer.Exit
    return config


def _say(text: str) -> None:
    """Prints from one process of a launch only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


@train_app.command("autoencoder")
def train_autoencoder(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a VQ or KL autoencoder on volumes."""
    resolved = _resolve(configuration.AutoencoderRun, config, overrides, check)
    from latentsynth.training.autoencoder import train_autoencoder as train

    _finished(train(resolved), resolved)


@train_app.command("ldm")
def train_ldm(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Train a mask-conditioned latent diffusion model on the latents of a trained autoencoder."""
    resolved = _resolve(configuration.LdmRun, config, overrides, check)
    from latentsynth.training.ldm import train_ldm as train

    _finished(train(resolved), resolved)


def _finished(scores: dict[str, float], config: configuration.Run) -> None:
    _say("validation: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    _say(f"checkpoint: {config.run / 'checkpoint'}")


@app.command()
def encode(config: ConfigFile, overrides: Overrides = None, check: Check = False) -> None:
    """Write the latents that `train ldm CONFIG` will train on, if they are not there yet."""
    resolved = _resolve(configuration.LdmRun, config, overrides, check)
    from latentsynth.training.encode import encode as write
    from latentsynth.training.encode import encoded_cohort
    from latentsynth.training.launch import start

    cohort = encoded_cohort(resolved.autoencoder, resolved.data)
    write(cohort, start())
    _say(f"latents: {cohort.training.folder}")


@app.command()
def sample(
    checkpoint: Annotated[Optional[Path], typer.Argument(help="Run folder or checkpoint folder")] = None,  # noqa: UP045
    masks: Annotated[Optional[Path], typer.Option(help="NIfTI mask, folder of masks, or manifest")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option(help="Output folder")] = None,  # noqa: UP045
    split: Annotated[Optional[str], typer.Option(help="Split of a manifest: train, val or test [default: val]")] = None,  # noqa: UP045
    per_mask: Annotated[int, typer.Option(help="Volumes per mask", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="First seed")] = 0,
    batch: Annotated[int, typer.Option(help="Volumes made together", min=1)] = 2,
    steps: Annotated[Optional[int], typer.Option(help="Sampling steps [default: as trained]", min=1)] = None,  # noqa: UP045
    guidance: Annotated[Optional[float], typer.Option(help="Guidance scale [default: as trained]", min=0)] = None,  # noqa: UP045
    scheduler: Annotated[Optional[str], typer.Option(help="See --list-schedulers [default: as trained]")] = None,  # noqa: UP045
    fit: Annotated[Optional[str], typer.Option(help="Lesion larger than the grid: error or scale [as trained]")] = None,  # noqa: UP045
    list_schedulers: Annotated[
        bool, typer.Option("--list-schedulers", help="Which scheduler serves which schedule")
    ] = False,
) -> None:
    """Sample volumes from masks: NIfTI in scanner units on each mask's own grid. A second run continues the first."""
    if list_schedulers:
        return _print_schedulers()
    missing = [name for name, v in (("CHECKPOINT", checkpoint), ("--masks", masks), ("--out", out)) if v is None]
    if checkpoint is None or masks is None or out is None:
        raise typer.BadParameter(f"missing {', '.join(missing)}")
    _one_of("--fit", fit, ("error", "scale"))
    _one_of("--split", split, ("train", "val", "test"))
    from latentsynth.data.requests import requests
    from latentsynth.synthesis import synthesize
    from latentsynth.synthesizers import load_synthesizer
    from latentsynth.training.launch import start

    model = load_synthesizer(checkpoint)
    wanted = requests(masks, split)  # type: ignore[arg-type]
    manifest = synthesize(
        model, wanted, out, start(), per_mask, seed, batch, fit,  # type: ignore[arg-type]
        scheduler=scheduler, steps=steps, guidance=guidance,
    )  # fmt: skip
    _say(f"{len(manifest.cases)} volumes: {out / 'manifest.json'}\npicture: {out / 'contact_sheet.png'}")


def _one_of(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{option} {value!r}: choose one of {', '.join(choices)}")


def _print_schedulers() -> None:
    from rich.console import Console
    from rich.table import Table

    from latentsynth.diffusion import sampler_table

    table = Table("scheduler", "noise schedule", "served by (diffusers)", "denoiser calls per step")
    for name, schedule, kind, calls in sampler_table():
        table.add_row(name, schedule, kind, str(calls))
    Console().print(table)


@app.command()
def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write (nnU-Net raw layout)")],
    cases: Annotated[int, typer.Option(help="Patients", min=1)] = 24,
    seed: Annotated[int, typer.Option(help="Which cohort")] = 0,
    channels: Annotated[int, typer.Option(help="1: CT; 2: CT and MR", min=1, max=2)] = 2,
    size: Annotated[int, typer.Option(help="Voxels along each axis", min=24)] = 48,
) -> None:
    """Write a procedural cohort: abdomens with liver, kidneys and lesions, no two patients alike."""
    from latentsynth.data.phantom import write_cohort

    spacing = 192 / size  # the same anatomy at any resolution
    write_cohort(out, cases, seed, shape=(size,) * 3, spacing_mm=(spacing,) * 3, channels=channels)
    typer.echo(f"{cases} cases: {out}")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="nnU-Net raw or Decathlon folder, or a CSV/JSONL of paths")],
    out: Annotated[Path, typer.Option(help="Manifest to write, a .json file")],
    layout: Annotated[Optional[str], typer.Option(help="nnunet, decathlon or table [default: recognised]")] = None,  # noqa: UP045
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
) -> None:
    """Check a cohort and write its manifest, split by patient. Problems come as one table, and nothing is written."""
    from rich.console import Console

    from latentsynth.data.prepare import prepare as check_and_write
    from latentsynth.data.prepare import write_report

    report = check_and_write(
        source, out, layout=layout, patient=patient, split_file=split_file, fractions=fractions, seed=seed,
        skip_invalid=skip_invalid, allow_unlabelled=allow_unlabelled,
    )  # fmt: skip
    write_report(report, Console())
    if report.manifest is None:
        raise typer.Exit(1)


@app.command()
def plan(
    manifest: Annotated[Path, typer.Argument(help="Manifest that `prepare` wrote")],
    out: Annotated[Path, typer.Option(help="Folder for the ready configurations")] = Path("configs/planned"),
    hours: Annotated[float, typer.Option(help="Compute to plan for, hours on this machine", min=0.01)] = 1.0,
    crop: Annotated[
        str, typer.Option(help="whole or lesion; auto decides by the lesions' share of the scans")
    ] = "auto",
) -> None:
    """Propose grid, windows, networks, batch and length for a cohort on this machine, and write ready configurations."""
    _one_of("--crop", crop, ("auto", "whole", "lesion"))
    from rich.console import Console

    from latentsynth.plan import plan_runs, write_plan

    write_plan(plan_runs(manifest, hours, crop), out, Console())  # type: ignore[arg-type]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes")] = Path("demo"),
    cases: Annotated[int, typer.Option(help="Phantom patients", min=8)] = 60,
    seed: Annotated[int, typer.Option(help="Seed of everything")] = 0,
) -> None:
    """The whole road on phantoms, in minutes: cohort, autoencoder, diffusion model, volumes from held-out masks."""
    from latentsynth.demo import run_demo

    typer.echo(run_demo(out, cases, seed))


@app.command()
def doctor() -> None:
    """Print versions, devices, memory, and which attention and precision will be used; say what is missing."""
    from rich.console import Console

    from latentsynth.doctor import examine, write_findings

    write_findings(examine(), Console())


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    checkpoint: Annotated[Path, typer.Argument(help="Run or checkpoint folder of an autoencoder")],
    manifest: Annotated[Path, typer.Argument(help="Manifest of real cases")],
    out: Annotated[Path, typer.Option(help="Folder for the table and the picture")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "val",
) -> None:
    """Score an autoencoder on patients it never saw: PSNR, SSIM, error inside the lesion, contrast kept."""
    _one_of("--split", split, ("train", "val", "test"))
    from rich.console import Console

    from latentsynth.autoencoders.evaluate import evaluate, write_scores

    write_scores(evaluate(checkpoint, manifest, split), out, Console())  # type: ignore[arg-type]
