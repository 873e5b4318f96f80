"""Real cases through an autoencoder and back, written as a cohort: the ceiling of everything its latents can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from latentsynth import checkpoint, outputs
from latentsynth.autoencoders import Autoencoder
from latentsynth.autoencoders.reconstruction import reconstruct
from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, read_mask
from latentsynth.data.exchange.requests import Placed, to_scanner
from latentsynth.data.identity import volume_hash
from latentsynth.data.manifest import Manifest
from latentsynth.data.windows import Limits
from latentsynth.errors import CheckpointError, DataError
from latentsynth.parallel import over_cases
from latentsynth.pretrained import part_fingerprint
from latentsynth.types import Case


def reconstruct_cohort(
    path: Path, manifest: Manifest, cases: Sequence[Case], out: Path, accelerator: Accelerator
) -> Path:
    """Encodes and decodes annotated cases and writes them on their own grids, in scanner units, as samples are written.

    A second call makes what is missing.

    Args:
        path: Run or checkpoint folder of an autoencoder, or of a model that holds one.
        manifest: Where the cases come from.
        cases: Annotated cases.
        out: Output folder.
        accelerator: The processes that share the work.

    Returns:
        The manifest of the reconstructions; each names its patient as parent.

    Raises:
        CheckpointError: No autoencoder there.
        DataError: The cohort does not fit it, or ``out`` holds something else.
    """
    folder = checkpoint.locate(path)
    header = checkpoint.read_header(folder)
    if "autoencoder" not in header.parts:
        raise CheckpointError(f"{folder} holds a checkpoint of kind {header.kind} without an autoencoder: give another")
    domain = header.domain
    if (manifest.channels, manifest.labels.values) != (domain.channels, domain.labels.values):
        raise DataError(
            f"the cohort has channels {manifest.channels} and labels {manifest.labels.values}, the autoencoder was "
            f"trained on {domain.channels} and {domain.labels.values}: give a cohort that has them"
        )
    seen, _ = checkpoint.read_ledger(folder).seen(cases)
    if seen:
        raise DataError(
            f"the autoencoder was trained on {len(seen)} of these {len(cases)} cases ({seen[0].case_id}, ...), which it "
            "reconstructs better than new ones: use patients it never saw"
        )
    print_ = part_fingerprint(folder / "autoencoder")
    _claim(out, {"autoencoder": print_, "cohort": manifest.fingerprint}, accelerator)
    model = Autoencoder.from_pretrained(folder / "autoencoder").to(accelerator.device)
    recipe = Recipe(domain.grid, domain.framing, domain.labels, AugmentConfig(), 0)

    def rebuild(n: int) -> tuple[tuple[Limits, ...], tuple[str, ...]]:
        case = cases[n]
        assert case.mask is not None
        files, volume = _files(out, case, len(domain.channels)), recipe.read(case)
        if not all(file.is_file() for file in files):
            assert volume.mask is not None
            image = reconstruct(model, volume, accelerator.device).numpy()
            values, affine = read_mask(case.mask, domain.labels)
            frame, zoom = recipe.frame(affine, values.shape, values, case.case_id)
            placed = Placed(volume.mask, values, affine, frame, zoom)
            # Back by the case's own windows: unlike a sample, a reconstruction has them.
            scanner = to_scanner(image, placed, replace(domain, limits=volume.limits))
            for file, voxels in zip(files, scanner, strict=True):
                nifti.write(file, voxels, placed.affine)
        return volume.limits, tuple(volume_hash(*nifti.read(file)) for file in files)

    rebuilt = over_cases(accelerator, "reconstructing", cases, rebuild)
    accelerator.wait_for_everyone()
    made = []
    for case, (limits, hashes) in zip(cases, rebuilt, strict=True):
        images = tuple(_files(out, case, len(domain.channels)))
        name = f"reconstructed-{case.case_id}"
        source = f"{print_}:reconstruction"
        made.append(
            Case(
                name, name, images, case.mask, "train", source, (case.patient_id,), image_hashes=hashes,
                mask_hash=case.mask_hash, limits=limits, origin=case.origin,
            )
        )  # fmt: skip
    file = out / "manifest.json"
    if accelerator.is_main_process:
        Manifest(f"{manifest.name} reconstructed", domain.channels, domain.labels, tuple(made)).save(file)
        outputs.finish(out, [*(image for case in made for image in case.images), file])
    accelerator.wait_for_everyone()
    return file


def _files(out: Path, case: Case, channels: int) -> list[Path]:
    return [out / "imagesTr" / f"{case.case_id}_{channel:04d}.nii.gz" for channel in range(channels)]


def _claim(out: Path, recipe: dict[str, str], accelerator: Accelerator) -> None:
    """Opens the folder for this autoencoder and cohort, or refuses one that belongs to others."""
    if accelerator.is_main_process:
        outputs.claim(out, "reconstructions", recipe, ("imagesTr",))
    accelerator.wait_for_everyone()
