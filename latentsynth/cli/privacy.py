"""Commands that guard patients: ``memorization``, ``filter``, ``export``, ``pack`` and ``ledger``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentsynth.cli.evaluate import finish
from latentsynth.cli.options import MEASURE, SHARE, Out, app, plain_text, say


@app.command(rich_help_panel=MEASURE)
def memorization(
    train: Annotated[Path, typer.Option(help="Training patients: manifest (its train split) or folder of NIfTI files")],
    heldout: Annotated[Path, typer.Option(help="Patients no generator saw: manifest (its val and test) or folder")],
    samples: Annotated[list[str], typer.Option(help="NAME=MANIFEST or NAME=FOLDER of synthetic volumes; repeatable")],
    out: Out,
    space: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="voxels, registered, parts, ssim, contrastive[:RUN], random[:SEED], torchscript:PATH, onnx:PATH or "
            "bundle:PATH[:LAYER]; repeatable [default: voxels, registered and parts]"
        ),
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run or checkpoint folder whose grid volumes are compared on [default: chosen for them]"),
    ] = None,
    level: Annotated[float, typer.Option(help="Share of unseen patients that may be flagged", min=0, max=1)] = 0.05,
    losses: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="NAME=CSV (columns case,loss) of training and held-out cases: membership inference"),
    ] = None,
    dar2024: Annotated[bool, typer.Option("--dar2024", help="Add the published rule of 2024, beside its null")] = False,
    max_copy_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Exit with code 3 if a set has a higher copy rate, or no feature space is valid", min=0, max=1
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where volumes and trained detectors are kept")] = Path("runs/cache"),
    extractor_images: Annotated[int, typer.Option(help="Images that a copy detector trains on", min=16)] = 16000,
) -> None:
    """Are synthetic volumes copies of the training patients? Calibrated by patients nobody saw, checked by positive controls."""
    from latentsynth.evaluation.cohorts import named
    from latentsynth.evaluation.memorization.evaluate import measure_memorization
    from latentsynth.parallel import start

    result, rate = measure_memorization(
        train, heldout, [named(one) for one in samples], out, start(), space, like, level,
        dict(named(one) for one in losses or []), dar2024, cache, extractor_images,
    )  # fmt: skip
    finish(result, out)
    if max_copy_rate is not None and not rate <= max_copy_rate:
        say(
            f"copy rate {rate:.0%} exceeds --max-copy-rate {max_copy_rate:.0%}"
            if rate == rate
            else "no feature space is valid"
        )
        raise typer.Exit(3)


@app.command("filter", rich_help_panel=SHARE)
def filter_copies(
    samples: Annotated[
        Path, typer.Argument(help="Manifest of synthetic cases, or folder of NIfTI files of any program")
    ],
    out: Annotated[Path, typer.Option(help="Manifest to write, a .json file")],
    report: Annotated[Optional[Path], typer.Option(help="memorization.json made for these files: drops copies")] = None,  # noqa: UP045
    segmenter: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run of a real-trained segmenter: drops volumes in which it does not find the mask"),
    ] = None,
    least_dice: Annotated[
        float, typer.Option(help="Of --segmenter with the mask, mean over labels", min=0, max=1)
    ] = 0.5,
    drop_mask_copies: Annotated[
        bool, typer.Option("--drop-mask-copies", help="With --report: also drop volumes whose mask is a patient's")
    ] = False,
    cache: Annotated[Path, typer.Option(help="Where preprocessed volumes are kept")] = Path("runs/cache"),
) -> None:
    """Drop copies, or volumes that do not show their mask, from a synthetic set, and say which.

    Files stay; a new manifest and NAME_dropped.csv are written.
    """
    if (report is None) == (segmenter is None):
        raise typer.BadParameter(
            "give --report to drop copies, or --segmenter to drop volumes that do not show their mask"
        )
    from latentsynth.parallel import start
    from latentsynth.sharing.filter import filter_disagreeing, filter_set

    if report is not None:
        kept, dropped = filter_set(samples, report, out, drop_mask_copies)
    else:
        assert segmenter is not None
        kept, dropped = filter_disagreeing(samples, segmenter, out, least_dice, cache, start())
    say(f"kept {kept} volumes: {out}\ndropped {dropped}: {out.with_name(f'{out.stem}_dropped.csv')}")


@app.command(rich_help_panel=SHARE)
def export(
    samples: Annotated[
        Path, typer.Argument(help="Manifest of synthetic cases, or folder of NIfTI files of any program")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, for sharing")],
    licence: Annotated[str, typer.Option(help="Under which licence the volumes are shared, for example CC-BY-4.0")],
    report: Annotated[Optional[Path], typer.Option(help="memorization.json made for these files")] = None,  # noqa: UP045
    mask_copies: Annotated[
        bool,
        typer.Option("--publish-mask-copies", help="You may publish patients' annotations; the card says so"),
    ] = False,
    without_privacy_report: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Export all the same, for this REASON, which the card prints"),
    ] = None,
    result: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="JSON of another measurement of these volumes, printed in the card; repeatable"),
    ] = None,
    faces: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--faces/--no-faces", help="Faces can be seen, or not, in the scans that were learnt from; for the card"
        ),
    ] = None,
    accept_licence: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Overrule this licence of the scans, which forbids it: you have a permission; repeatable"),
    ] = None,
) -> None:
    """Pack a synthetic set for sharing: volumes, masks, data card. Refuses without a report on exactly these files."""
    plain_text("--licence", licence)
    plain_text("--without-privacy-report", without_privacy_report)
    from latentsynth.evaluation.inputs import synthetic_set
    from latentsynth.sharing.export import export_set
    from latentsynth.sharing.raw import renumbered

    card = export_set(
        samples, out, licence, report, mask_copies, without_privacy_report, result or [], faces, accept_licence or []
    )
    labels = synthetic_set(samples).labels
    if renumbered(labels)[1] != labels.values:
        say("labels were renumbered to be consecutive, as nnU-Net asks: the card says which")
    say(str(card))


@app.command(rich_help_panel=SHARE)
def pack(
    model: Annotated[Path, typer.Argument(help="Run or checkpoint folder of a model that makes volumes or masks")],
    out: Annotated[Path, typer.Option(help="Folder to write, for sharing; one packed before is packed again")],
    licence: Annotated[Path, typer.Option(help="Text file with the licence of the weights; copied")],
    result: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="JSON of a measurement of its volumes, printed in the card; repeatable"),
    ] = None,
    title: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="First line of the card [default: name of the folder]"),
    ] = None,
    about: Annotated[Optional[Path], typer.Option(help="Text file that is printed under it")] = None,  # noqa: UP045
    accept_licence: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Overrule this licence of the scans, which forbids it: you have a permission; repeatable"),
    ] = None,
) -> None:
    """Pack a model for sharing: half-precision weights, its licence, a card of what was measured. Refuses one that copies."""
    plain_text("--title", title)
    from latentsynth.sharing.pack import pack as write

    say(str(write(model, out, licence, result or [], title or "", about, accept_licence or [])))


@app.command(rich_help_panel=SHARE)
def onnx(
    model: Annotated[Path, typer.Argument(help="Latent diffusion model: run, checkpoint, or one of the package")],
    out: Annotated[Path, typer.Option(help="Folder to write")],
) -> None:
    """Write a model as ONNX files, for programs without torch; each is compared with torch before the folder stands."""
    from latentsynth.sharing.onnx_files import write_onnx
    from latentsynth.synthesizers import LatentDiffusion

    say(str(write_onnx(LatentDiffusion.from_pretrained(model), out)))


@app.command(rich_help_panel=SHARE)
def ledger(
    patient: Annotated[str, typer.Argument(help="A patient's id, or the NIfTI file of a scan")],
    folder: Annotated[Path, typer.Argument(help="Where to look")] = Path("runs"),
) -> None:
    """Where a patient went: which checkpoints, synthetic sets and exports hold one, and through what (a withdrawn consent)."""
    from rich.console import Console

    from latentsynth.sharing.trace import trace

    traces = trace(patient, folder)
    if traces.found:
        traces.table.show(Console())
    else:
        say(f"nothing of {patient} in {traces.looked_at} manifests, ledgers and exports under {folder}")
    if not traces.by_patient:
        say("patient ids were not compared, scans alone: the project's key is missing")
    for file in traces.unread:
        say(f"{file} cannot be read, so it may hold the patient")


@app.command(rich_help_panel=SHARE)
def nnunet(
    real: Annotated[Path, typer.Argument(help="Manifest of the patients, split into train, val and test")],
    samples: Annotated[list[Path], typer.Argument(help="Manifests or folders of synthetic sets")],
    out: Annotated[Path, typer.Option(help="Folder to write, nnUNet_raw/DatasetNNN_NAME")],
    accept_licence: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Overrule this licence of the scans, which forbids it: you have a permission; repeatable"),
    ] = None,
) -> None:
    """Write an nnU-Net dataset of real and synthetic patients, with a split that validates on real ones alone."""
    from latentsynth.sharing.nnunet import write_dataset

    splits = write_dataset(real, samples, out, accept_licence or [])
    say(
        f"{out}\nafter nnUNetv2_plan_and_preprocess copy {splits} into nnUNet_preprocessed/{out.name}, and train fold 0"
    )
