"""A folder of synthetic volumes on disk.

It is an nnU-Net raw cohort (``imagesTr``, ``labelsTr``, ``dataset.json``) with a JSON sidecar per volume, a manifest and a
contact sheet. A volume counts as done when its sidecar stands, which is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentsynth.data import nifti, windows
from latentsynth.data.manifest import Manifest
from latentsynth.data.requests import Placed, Request
from latentsynth.errors import DataError
from latentsynth.files import clear_partial, make_folder, read_json, write_json
from latentsynth.provenance import sidecar, voxel_hash
from latentsynth.results import this_command
from latentsynth.types import Case, Domain


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


def name_of(request: Request, seed: int) -> str:
    """Name of a volume's files."""
    return f"{request.name}-s{seed:04d}"


def _sidecar(out: Path, request: Request, seed: int) -> Path:
    return out / "sidecars" / f"{name_of(request, seed)}.json"


def is_done(out: Path, request: Request, seed: int, placed: Placed) -> bool:
    """Whether a volume stands already; refuses one that stands for another mask of the same name."""
    file = _sidecar(out, request, seed)
    if not file.is_file():
        return False
    facts = read_json(file)
    own = request.mask is None and facts["mask"] is None
    if not own and facts["mask_voxels"] != voxel_hash(placed.values):
        raise DataError(f"{file} belongs to another mask named {request.name}: give another --out, or rename the mask")
    return True


def claim(out: Path, recipe: dict[str, Any], domain: Domain) -> None:
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


def write(
    out: Path,
    request: Request,
    seed: int,
    placed: Placed,
    scanner: Sequence[np.ndarray],
    limits: Sequence[windows.Limits],
    domain: Domain,
    facts: dict[str, Any],
) -> None:
    """Images in scanner units, mask, then the sidecar that makes them count."""
    name = name_of(request, seed)
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
            limits=dict(zip(domain.channels, limits, strict=True)),
            median_window_channels=[] if "host" in facts else per_image,
            **facts,
        ),
    )
