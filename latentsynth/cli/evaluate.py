"""Commands that measure: ``evaluate ...``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from latentsynth.cli.options import SPLITS, Out, evaluate_app, one_of

if TYPE_CHECKING:
    from latentsynth.results import Result

RealSplit = Annotated[
    str,
    typer.Option("--split", help="Split of the real cases: choose models on val; tell results on test, once; or train"),
]


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    checkpoint: Annotated[Path, typer.Argument(help="Run or checkpoint folder of an autoencoder")],
    manifest: Annotated[Path, typer.Argument(help="Manifest of real cases")],
    out: Out,
    split: RealSplit = "val",
) -> None:
    """Score an autoencoder on patients it never saw: PSNR, SSIM, error inside the lesion, contrast kept."""
    one_of("--split", split, SPLITS)
    from latentsynth.autoencoders.evaluate import evaluate

    finish(evaluate(checkpoint, manifest, split, out), out)  # type: ignore[arg-type]


@evaluate_app.command("segmenter")
def evaluate_segmenter(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Run or checkpoint folder of a segmenter, or folder of label maps CASE.nii.gz of another"),
    ],
    manifest: Annotated[Path, typer.Argument(help="Manifest of annotated cases")],
    out: Out,
    split: RealSplit = "val",
    region: Annotated[
        str, typer.Option(help="scan: the whole field of view; crop: the grid as training laid it; auto: as trained")
    ] = "auto",
    tolerance_mm: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Tolerance of the surface Dice [default: the longest voxel edge, median over cases]", min=0),
    ] = None,
) -> None:
    """Score a segmenter on patients it never saw: Dice, surface Dice, HD95, lesions found, volume, by lesion size."""
    one_of("--split", split, SPLITS)
    one_of("--region", region, ("auto", "scan", "crop"))
    from latentsynth.evaluation.segmentation.evaluate import evaluate_segmenter as evaluate
    from latentsynth.parallel import start

    finish(evaluate(checkpoint, manifest, out, start(), split, region, tolerance_mm), out)  # type: ignore[arg-type]


def finish(result: Result, out: Path) -> None:
    """Prints a result, from one process of a launch only, and where its files are."""
    if os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console

    console = Console()
    result.show(console if console.is_terminal else Console(width=150))  # tables of a log are not squeezed
    for name in (f"{result.kind}.json", *(picture.file for picture in result.pictures)):
        typer.echo(str(out / name))


@evaluate_app.command("utility")
def evaluate_utility(
    real: Annotated[Path, typer.Option(help="Manifest of annotated patients that no arm was trained on")],
    predictions: Annotated[
        list[str],
        typer.Option(help="ARM=FOLDER of label maps CASE.nii.gz; repeatable, also for further trainings of one arm"),
    ],
    baseline: Annotated[str, typer.Option(help="The arm that all others are compared with")],
    out: Out,
    split: RealSplit = "val",
) -> None:
    """Does training on synthetic patients help another program's segmenter? Arms compared by the label maps that it made."""
    one_of("--split", split, SPLITS)
    from latentsynth.evaluation.cohorts import Cohort
    from latentsynth.experiments.utility.predictions import compare_predictions
    from latentsynth.parallel import start

    arms: dict[str, list[Path]] = {}
    for text in predictions:
        arm, equals, folder = text.partition("=")
        if not equals or not arm.strip() or not Path(folder).is_dir():
            raise typer.BadParameter(f"--predictions {text!r}: give ARM=FOLDER, a folder of label maps")
        arms.setdefault(arm, []).append(Path(folder))
    cohort = Cohort.load("patients", real, (split,), annotated=True)  # type: ignore[arg-type]
    finish(compare_predictions(cohort, arms, baseline, out, start()), out)


@evaluate_app.command("obedience")
def evaluate_obedience(
    segmenter: Annotated[
        Path,
        typer.Option(
            help="Run or checkpoint folder of a segmenter trained on real patients, or folder of label maps CASE.nii.gz that another found"
        ),
    ],
    samples: Annotated[list[str], typer.Option(help="Manifest of synthetic cases, or NAME=MANIFEST; repeatable")],
    out: Out,
    real: Annotated[Optional[Path], typer.Option(help="Manifest of real cases, to compare with")] = None,  # noqa: UP045
    split: RealSplit = "val",
    autoencoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run or checkpoint folder: also score the real cases after its reconstruction"),
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With label maps: run or checkpoint folder whose grid they are compared on"),
    ] = None,
) -> None:
    """Do volumes show the masks they were made for? A real-trained segmenter re-segments them, beside its controls."""
    one_of("--split", split, SPLITS)
    if autoencoder is not None and real is None:
        raise typer.BadParameter("--autoencoder reconstructs real cases: give --real too")
    from latentsynth.evaluation.cohorts import Cohort, named
    from latentsynth.evaluation.obedience.evaluate import evaluate_obedience as evaluate
    from latentsynth.parallel import start
    from latentsynth.results import open_results
    from latentsynth.roundtrip import reconstruct_cohort

    accelerator = start()
    references = []
    if real is not None:
        patients = Cohort.load("real", real, (split,), annotated=True)  # type: ignore[arg-type]
        references.append(patients)
        if autoencoder is not None:
            if accelerator.is_main_process:
                open_results(out)
            made = reconstruct_cohort(
                autoencoder, patients.manifest, patients.cases, out / "reconstructed", accelerator
            )
            references.append(Cohort.load("reconstructed", made))
    cohorts = [Cohort.load(name, path, annotated=True) for name, path in map(named, samples)]
    finish(evaluate(segmenter, cohorts, references, out, accelerator, like), out)


@evaluate_app.command("fidelity")
def evaluate_fidelity(
    real: Annotated[Path, typer.Option(help="Manifest of real cases")],
    samples: Annotated[list[str], typer.Option(help="NAME=MANIFEST of synthetic cases; repeatable")],
    out: Out,
    split: RealSplit = "val",
    extractor: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="random[:SEED], contrastive[:RUN], torchscript:PATH, onnx:PATH or bundle:PATH[:LAYER]; repeatable "
            "[default: random and contrastive]"
        ),
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Run or checkpoint folder whose grid volumes are compared on [default: chosen for the scans]"
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Where volumes and trained extractors are kept")] = Path("runs/cache"),
    extractor_images: Annotated[int, typer.Option(help="Images that a contrastive extractor trains on", min=16)] = 6000,
    cell: Annotated[
        Optional[tuple[int, int, int]],  # noqa: UP045
        typer.Option(
            help="Voxels of the grid per latent cell along each axis, whose traces are looked for [default: those of --like]"
        ),
    ] = None,
) -> None:
    """How close do synthetic volumes come to real ones? Frechet, KID, recall, diversity, sharpness, beside the floor."""
    one_of("--split", split, SPLITS)
    from latentsynth.data.manifest import Manifest
    from latentsynth.evaluation import features
    from latentsynth.evaluation.cohorts import Cohort, named
    from latentsynth.evaluation.fidelity.evaluate import check_cohorts
    from latentsynth.evaluation.fidelity.evaluate import evaluate_fidelity as evaluate
    from latentsynth.evaluation.fidelity.sharpness import latent_cell
    from latentsynth.parallel import start

    accelerator = start()
    grid, framing = features.comparison_space(like, Manifest.load(real))
    # Around lesions, a case without one would show other anatomy than the volumes it is compared with.
    lesions = framing.crop == "lesion"
    patients = Cohort.load("real", real, (split,), annotated=lesions)  # type: ignore[arg-type]
    cohorts = [Cohort.load(name, path, annotated=lesions) for name, path in map(named, samples)]
    check_cohorts(patients, cohorts)
    extractors = features.load_extractors(
        extractor or ["random", "contrastive"], real, grid, framing, cache, extractor_images
    )
    caches = {
        cohort.name: features.volumes(cohort, grid, framing, patients.manifest.labels, cache, accelerator)
        for cohort in (patients, *cohorts)
    }
    finish(evaluate(patients, cohorts, caches, extractors, out, accelerator, cell or latent_cell(like)), out)


@evaluate_app.command("masks")
def evaluate_masks(
    real: Annotated[Path, typer.Option(help="Manifest of annotated real cases; their images are not read")],
    samples: Annotated[list[str], typer.Option(help="NAME=MANIFEST of synthetic masks; repeatable")],
    out: Out,
    split: RealSplit = "val",
    train: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Manifest whose train split the generators learnt from; repeatable [default: --real]"),
    ] = None,
    lesion_labels: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Label value that counts as lesion; repeatable [default: all but background]"),
    ] = None,
) -> None:
    """Are synthetic masks like real ones? Volume, surface, pieces, place, coverage, and copies of training masks."""
    one_of("--split", split, SPLITS)
    from latentsynth.evaluation.cohorts import Cohort, named
    from latentsynth.evaluation.masks.evaluate import evaluate_masks as evaluate
    from latentsynth.parallel import start

    patients = Cohort.load("real", real, (split,), annotated=True)  # type: ignore[arg-type]
    learnt = [Cohort.load("training patients", path, ("train",), annotated=True) for path in train or [real]]
    cohorts = [Cohort.load(name, path, annotated=True) for name, path in map(named, samples)]
    finish(evaluate(patients, learnt, cohorts, out, start(), lesion_labels or []), out)


@evaluate_app.command("edges")
def evaluate_edges(
    real: Annotated[Path, typer.Option(help="Manifest of real annotated cases")],
    samples: Annotated[list[str], typer.Option(help="NAME=MANIFEST of synthetic cases; repeatable")],
    like: Annotated[Path, typer.Option(help="Run or checkpoint folder of the generator, whose grid is compared on")],
    out: Out,
    split: RealSplit = "val",
    cache: Annotated[Path, typer.Option(help="Where preprocessed volumes are kept")] = Path("runs/cache"),
) -> None:
    """Do painted lesions end as real ones do? The gradient across the border, beside that of real lesions."""
    one_of("--split", split, SPLITS)
    from latentsynth.evaluation import features
    from latentsynth.evaluation.cohorts import Cohort, named
    from latentsynth.evaluation.edges import evaluate_edges as evaluate
    from latentsynth.parallel import start

    patients = Cohort.load("real", real, (split,), annotated=True)  # type: ignore[arg-type]
    grid, framing = features.comparison_space(like, patients.manifest)
    cohorts = [Cohort.load(name, path, annotated=True) for name, path in map(named, samples)]
    finish(evaluate(patients, cohorts, grid, framing, out, start(), cache), out)


@evaluate_app.command("reading")
def evaluate_reading(
    real: Annotated[Path, typer.Option(help="Manifest of patients, best those that the generator never saw")],
    samples: Annotated[Path, typer.Option(help="Manifest of synthetic volumes")],
    out: Out,
    split: RealSplit = "val",
    count: Annotated[int, typer.Option(help="Volumes of each kind", min=2, max=500)] = 20,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run or checkpoint folder whose grid volumes are shown on [default: chosen for them]"),
    ] = None,
    outlined: Annotated[bool, typer.Option("--outlined", help="Draw the masks' outlines")] = False,
    seed: Annotated[int, typer.Option(help="Of the choice and the order")] = 0,
) -> None:
    """A page for blinded readers: real and synthetic volumes in random order. `evaluate readers` scores their answers."""
    one_of("--split", split, SPLITS)
    from latentsynth.evaluation.cohorts import Cohort
    from latentsynth.evaluation.reader import write_reading

    patients = Cohort.load("real", real, (split,), annotated=True)  # type: ignore[arg-type]
    made = Cohort.load("synthetic", samples, annotated=True)
    reading = write_reading(patients, made, out, count, like, seed, outlined)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{reading.page}: {reading.volumes} volumes of each kind, for the reader")
        typer.echo(f"{reading.key}: which is which, for whoever scores the answers")


@evaluate_app.command("readers")
def evaluate_readers(
    key: Annotated[Path, typer.Argument(help="reading_key.json that stands beside the page")],
    answers: Annotated[list[Path], typer.Argument(help="CSV files that readers saved from the page, one each")],
    out: Out,
) -> None:
    """Could readers tell synthetic volumes from real ones? Sensitivity and specificity with exact intervals."""
    from latentsynth.evaluation.reader import score_reading

    finish(score_reading(key, answers, out), out)
