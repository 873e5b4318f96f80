"""Sampling volumes for masks: masks on any grid in, NIfTI in scanner units on the same grid out, resumable, sharded.

The output folder is an nnU-Net raw cohort (``imagesTr``, ``labelsTr``, ``dataset.json``) with a JSON sidecar per
volume, a manifest and a contact sheet. A volume counts as done when its sidecar stands, which is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti, windows
from latentsynth.data.frames import Frame, resample
from latentsynth.data.manifest import Manifest
from latentsynth.data.requests import Placed, Request, place, to_scanner, volume_seed
from latentsynth.data.volumes import Recipe, to_index
from latentsynth.errors import DataError
from latentsynth.figures import Tile, contact_sheet
from latentsynth.files import clear_partial, make_folder, read_json, write_json
from latentsynth.progress import bar
from latentsynth.provenance import LEDGER, Ledger, sidecar, voxel_hash
from latentsynth.results import this_command
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Case, Domain, Fit, Framing

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
    styles: Sequence[Case] = (),
    **settings: Any,
) -> Manifest:
    """Makes ``per_mask`` volumes for every mask and writes them as a cohort. A second call makes what is missing.

    A model that makes its own masks takes one request without a mask; each of its volumes counts as a patient.

    Args:
        model: Any synthesizer.
        masks: What to make.
        out: Output folder.
        accelerator: The processes that share the work.
        per_mask: Volumes per mask; number n has seed ``seed + n``.
        seed: First seed.
        batch: Volumes made together; no volume depends on it.
        fit: Overrides what to do with a lesion that does not fit the grid.
        styles: Reference scans whose look to take in turn, for a model that takes one: the volume of seed s gets style
            ``s`` modulo their number.
        settings: Sampling settings of the model.

    Returns:
        The manifest of everything in ``out``.

    Raises:
        DataError: Masks for a model that makes its own, or the reverse; a mask is wrong (checked before any volume is
            made); or ``out`` holds volumes of another checkpoint or other settings.
        ConfigError: An impossible setting.
    """
    chosen = model.settings(**settings)
    domain = model.domain
    _check_asked(model, masks, styles)
    placed = [place(request, domain, fit) for request in masks]
    looks = [read_style(case, domain) for case in styles]
    recipe = {
        "checkpoint": model.fingerprint,
        "settings": chosen,
        "styles": [[case.case_id, voxel_hash(look.numpy())] for case, look in zip(styles, looks, strict=True)],
    }
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
            style = torch.stack([looks[s % len(looks)] for _, s in part]) if looks else None
            made = model.paint(where, seeds, style, **chosen)
            for row, ((m, s), p) in enumerate(zip(part, where, strict=True)):
                facts = {"checkpoint": model.fingerprint, "settings": chosen, "seed": s, "noise_seed": seeds[row]}
                request, p = masks[m], _own_mask(p, made.mask[row], domain) if model.makes_masks else p
                if styles:
                    taken = styles[s % len(styles)]
                    facts["style"] = taken.case_id
                    request = replace(request, parents=(*request.parents, taken.patient_id, *taken.parents))
                _write(out, request, s, p, made.image[row].numpy(), domain, {**facts, "zoom": p.zoom})
                shown.advance()
    accelerator.wait_for_everyone()
    manifest = collect(out, domain)
    if accelerator.is_main_process:
        manifest.save(out / "manifest.json")
        (model.ledger | Ledger.of(manifest.cases)).save(out / LEDGER)  # for whoever trains on these volumes
        shown_each = _SHOWN_EACH * (_SHOWN if model.makes_masks else 1)
        _sheet(out, masks, placed, [seed + n for n in range(min(per_mask, shown_each))], domain)
    accelerator.wait_for_everyone()
    return manifest


def read_style(case: Case, domain: Domain) -> Tensor:
    """A reference scan on the model's grid, centred: ``(C, I, J, K)`` in [-1, 1].

    Raises:
        DataError: A file is unreadable, or the scan has another number of channels.
    """
    if len(case.images) != domain.grid.channels:
        raise DataError(
            f"style {case.case_id} has {len(case.images)} channels, the model makes {domain.grid.channels}: give one "
            "file per channel"
        )
    recipe = Recipe(domain.grid, Framing(), domain.labels, AugmentConfig(), 0)
    return torch.from_numpy(recipe.read(replace(case, mask=None)).image)


def _check_asked(model: Synthesizer, masks: Sequence[Request], styles: Sequence[Case]) -> None:
    given = any(request.mask is not None for request in masks)
    if given and model.makes_masks:
        raise DataError("this model makes its own masks: give --count instead of --masks")
    if not model.makes_masks and (not masks or any(request.mask is None for request in masks)):
        raise DataError("this model paints masks: give --masks, or a --mask-model that makes them")
    if styles and not model.takes_style:
        raise DataError("this model takes no reference scan: leave --style out, or give a SPADE model with an encoder")
    if getattr(model, "form", "") == "mask_only":
        raise DataError("this model makes masks without images: give it as --mask-model of one that paints them")


def _own_mask(placed: Placed, mask: Tensor, domain: Domain) -> Placed:
    """The place of a volume whose mask the model made: one-hot ``(L, I, J, K)``."""
    index = mask.argmax(0).numpy().astype(np.uint8)
    return replace(placed, index=index, values=np.array(domain.labels.values, np.int16)[index])


def collect(out: Path, domain: Domain) -> Manifest:
    """The manifest of every finished volume in an output folder."""
    cases = []
    for file in sorted((out / "sidecars").glob("*.json")):
        facts = read_json(file)
        name = file.stem
        # Volumes of one mask are one patient; a model that makes its own masks makes a patient each time.
        patient = name if facts["mask"] is None else name.rpartition("-s")[0]
        images = tuple(out / "imagesTr" / f"{name}_{c:04d}.nii.gz" for c in range(len(domain.channels)))
        cases.append(
            Case(
                name,
                f"synthetic-{patient}",
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
    facts = read_json(file)
    own = request.mask is None and facts["mask"] is None
    if not own and facts["mask_voxels"] != voxel_hash(placed.values):
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
        differing = [key for key in recipe if found.get(key, []) != recipe[key]]
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
    per_image = [
        name for name, window in zip(domain.channels, domain.grid.windows, strict=True) if window.kind == "percentile"
    ]
    write_json(
        _sidecar(out, request, seed),
        sidecar(
            mask=request.mask.name if request.mask else None,
            mask_voxels=voxel_hash(placed.values),
            parents=list(request.parents),
            voxels=nifti.canonical_hash(scanner[0], placed.affine),
            limits=dict(zip(domain.channels, domain.limits, strict=True)),
            median_window_channels=per_image,
            **facts,
        ),
    )


def _sheet(out: Path, masks: Sequence[Request], placed: Sequence[Placed], seeds: Sequence[int], domain: Domain) -> None:
    """Picture of the first masks: the real scan where there is one, and the samples, read back from disk."""
    rows = []
    for request, p in list(zip(masks, placed, strict=True))[:_SHOWN]:
        tiles = [_tile(f"{request.name}, real", request.images, p.frame, p.index, domain)] if request.images else []
        for seed in seeds:
            name = _name(request, seed)
            files = [out / "imagesTr" / f"{name}_{c:04d}.nii.gz" for c in range(len(domain.channels))]
            index = p.index
            if request.mask is None:
                index = to_index(nifti.read(out / "labelsTr" / f"{name}.nii.gz")[0].astype(np.int16), domain.labels)
            tiles.append(_tile(f"{request.name}, sample {seed}", files, p.frame, index, domain, domain.limits))
        rows += [tiles] if request.mask else [tiles[n : n + _SHOWN_EACH] for n in range(0, len(tiles), _SHOWN_EACH)]
    contact_sheet(
        out / "contact_sheet.png", rows, domain.grid.spacing_mm, f"{out.name}: masks outlined", domain.lesion_indices
    )


def _tile(
    title: str,
    files: Sequence[Path],
    frame: Frame,
    index: np.ndarray,
    domain: Domain,
    limits: Sequence[windows.Limits] | None = None,
) -> Tile:
    channels = []
    for n, file in enumerate(files):
        voxels, affine = nifti.read(file)
        between = limits[n] if limits else windows.limits(domain.grid.windows[n], voxels, str(file))
        channels.append(windows.normalise(resample(voxels, affine, frame, between[0]), between))
    return Tile(title, np.stack(channels), index)
