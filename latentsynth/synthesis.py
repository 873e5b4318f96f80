"""Sampling volumes for masks: masks on any grid in, NIfTI in scanner units on the same grid out, resumable, sharded.

The output folder is an nnU-Net raw cohort (``imagesTr``, ``labelsTr``, ``dataset.json``) with a JSON sidecar per
volume, a manifest and a contact sheet. A volume counts as done when its sidecar stands, which is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from accelerate import Accelerator

from latentsynth.data import nifti, windows
from latentsynth.data.frames import resample
from latentsynth.data.manifest import Manifest
from latentsynth.data.requests import Placed, Request, place, to_scanner, volume_seed
from latentsynth.errors import DataError
from latentsynth.figures import Tile, contact_sheet
from latentsynth.files import clear_partial, make_folder, read_json, write_json
from latentsynth.progress import bar
from latentsynth.provenance import LEDGER, Ledger, sidecar, voxel_hash
from latentsynth.results import this_command
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Case, Domain, Fit

_SHOWN = 6  # masks on the contact sheet
_SHOWN_EACH = 3  # volumes per mask on it


def synthesize(
    model: Synthesizer,
    masks: Sequence[Request],
    out: Path,
    accelerator: Accelerator,
    per_mask: int = 1,
    seed: int = 0,
    batch: int = 2,
    fit: Fit | None = None,
    **settings: Any,
) -> Manifest:
    """Makes ``per_mask`` volumes for every mask and writes them as a cohort. A second call makes what is missing.

    Args:
        model: Any synthesizer.
        masks: What to make.
        out: Output folder.
        accelerator: The processes that share the work.
        per_mask: Volumes per mask; number n has seed ``seed + n``.
        seed: First seed.
        batch: Volumes made together; no volume depends on it.
        fit: Overrides what to do with a lesion that does not fit the grid.
        settings: Sampling settings of the model.

    Returns:
        The manifest of everything in ``out``.

    Raises:
        DataError: A mask is wrong (checked before any volume is made), or ``out`` holds volumes of another checkpoint
            or other settings.
        ConfigError: An impossible setting.
    """
    chosen = model.settings(**settings)
    domain = model.domain
    placed = [place(request, domain, fit) for request in masks]
    recipe = {"checkpoint": model.fingerprint, "settings": chosen}
    if accelerator.is_main_process:
        _claim(out, recipe, domain)
    accelerator.wait_for_everyone()
    model.to(accelerator.device)
    jobs = [(m, seed + n) for m in range(len(masks)) for n in range(per_mask)]
    todo = [job for job in jobs if not _done(out, masks[job[0]], job[1], placed[job[0]])]
    accelerator.wait_for_everyone()  # every process must have looked before any of them writes
    mine = todo[accelerator.process_index :: accelerator.num_processes]
    with bar("sampling", len(mine), "volumes", accelerator.is_main_process) as shown:
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            where = [placed[m] for m, _ in part]
            seeds = [volume_seed(s, p) for (_, s), p in zip(part, where, strict=True)]
            images = model.paint(where, seeds, **chosen)
            for (m, s), p, noise_seed, image in zip(part, where, seeds, images, strict=True):
                facts = {**recipe, "seed": s, "noise_seed": noise_seed, "zoom": p.zoom}
                _write(out, masks[m], s, p, image, domain, facts)
                shown.advance()
    accelerator.wait_for_everyone()
    manifest = collect(out, domain)
    if accelerator.is_main_process:
        manifest.save(out / "manifest.json")
        (model.ledger | Ledger.of(manifest.cases)).save(out / LEDGER)  # for whoever trains on these volumes
        _sheet(out, masks, placed, [seed + n for n in range(min(per_mask, _SHOWN_EACH))], domain)
    accelerator.wait_for_everyone()
    return manifest


def collect(out: Path, domain: Domain) -> Manifest:
    """The manifest of every finished volume in an output folder."""
    cases = []
    for file in sorted((out / "sidecars").glob("*.json")):
        facts = read_json(file)
        name = file.stem
        images = tuple(out / "imagesTr" / f"{name}_{c:04d}.nii.gz" for c in range(len(domain.channels)))
        cases.append(
            Case(
                name,
                f"synthetic-{name.rpartition('-s')[0]}",  # volumes of one mask are one patient
                images,
                out / "labelsTr" / f"{name}.nii.gz",
                "train",
                f"{facts['checkpoint']}:{facts['seed']}",
                tuple(facts["parents"]),
                facts["voxels"],
                limits=tuple((float(low), float(high)) for low, high in (facts["limits"][c] for c in domain.channels)),
            )
        )
    return Manifest(out.name, domain.channels, domain.labels, tuple(cases))


def _name(request: Request, seed: int) -> str:
    return f"{request.name}-s{seed:04d}"


def _sidecar(out: Path, request: Request, seed: int) -> Path:
    return out / "sidecars" / f"{_name(request, seed)}.json"


def _done(out: Path, request: Request, seed: int, placed: Placed) -> bool:
    """Whether a volume stands already; refuses one that stands for another mask of the same name."""
    file = _sidecar(out, request, seed)
    if not file.is_file():
        return False
    if read_json(file)["mask_voxels"] != voxel_hash(placed.values):
        raise DataError(f"{file} belongs to another mask named {request.name}: give another --out, or rename the mask")
    return True


def _claim(out: Path, recipe: dict[str, Any], domain: Domain) -> None:
    """Opens the output folder for this checkpoint and these settings, or refuses one that belongs to others."""
    make_folder(out)
    for name in ("imagesTr", "labelsTr", "sidecars"):
        clear_partial(make_folder(out / name))
    file = out / "synthesis.json"
    if file.is_file():
        found = read_json(file)
        differing = [key for key in recipe if found.get(key) != recipe[key]]
        if differing:
            raise DataError(
                f"{out} holds volumes made with other {' and '.join(differing)}: give another --out, "
                "or the same checkpoint and settings to continue"
            )
    elif any((out / "sidecars").iterdir()):
        raise DataError(f"{out} holds volumes but no synthesis.json: give another --out")
    write_json(file, {**recipe, "command": this_command()})
    write_json(
        out / "dataset.json",
        {
            "name": f"{out.name} (synthetic)",
            "channel_names": {str(n): name for n, name in enumerate(domain.channels)},
            "labels": {name: value for value, name in zip(domain.labels.values, domain.labels.names, strict=True)},
            "file_ending": ".nii.gz",
            "SYNTHETIC": True,
        },
    )


def _write(
    out: Path, request: Request, seed: int, placed: Placed, image: np.ndarray, domain: Domain, facts: dict[str, Any]
) -> None:
    """Images, mask, then the sidecar that makes them count."""
    name = _name(request, seed)
    scanner = to_scanner(image, placed, domain)
    for channel, voxels in enumerate(scanner):
        nifti.write(out / "imagesTr" / f"{name}_{channel:04d}.nii.gz", voxels, placed.affine)
    nifti.write(out / "labelsTr" / f"{name}.nii.gz", placed.values, placed.affine)
    orientation = nib.orientations.io_orientation(placed.affine)
    canonical = nib.orientations.apply_orientation(scanner[0], orientation)
    per_image = [
        name for name, window in zip(domain.channels, domain.grid.windows, strict=True) if window.kind == "percentile"
    ]
    write_json(
        _sidecar(out, request, seed),
        sidecar(
            mask=request.mask.name,
            mask_voxels=voxel_hash(placed.values),
            parents=list(request.parents),
            voxels=voxel_hash(canonical),
            limits=dict(zip(domain.channels, domain.limits, strict=True)),
            median_window_channels=per_image,
            **facts,
        ),
    )


def _sheet(out: Path, masks: Sequence[Request], placed: Sequence[Placed], seeds: Sequence[int], domain: Domain) -> None:
    """Picture of the first masks: the real scan where there is one, and the samples, read back from disk."""
    rows = []
    for request, p in list(zip(masks, placed, strict=True))[:_SHOWN]:
        tiles = [_tile(f"{request.name}, real", request.images, p, domain, None)] if request.images else []
        for seed in seeds:
            name = _name(request, seed)
            files = [out / "imagesTr" / f"{name}_{c:04d}.nii.gz" for c in range(len(domain.channels))]
            tiles.append(_tile(f"{request.name}, sample {seed}", files, p, domain, domain.limits))
        rows.append(tiles)
    contact_sheet(
        out / "contact_sheet.png", rows, domain.grid.spacing_mm, f"{out.name}: masks outlined", domain.lesion_indices
    )


def _tile(
    title: str, files: Sequence[Path], placed: Placed, domain: Domain, limits: Sequence[windows.Limits] | None
) -> Tile:
    channels = []
    for n, file in enumerate(files):
        voxels, affine = nifti.read(file)
        between = limits[n] if limits else windows.limits(domain.grid.windows[n], voxels, str(file))
        channels.append(windows.normalise(resample(voxels, affine, placed.frame, between[0]), between))
    return Tile(title, np.stack(channels), placed.index)
