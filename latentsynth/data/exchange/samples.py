"""A folder of synthetic volumes on disk.

It is an nnU-Net raw cohort (``imagesTr``, ``labelsTr``, ``dataset.json``) with a JSON sidecar per volume, a manifest and a
contact sheet. A volume counts as done when its sidecar stands, which is written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentsynth import outputs
from latentsynth.data import nifti, windows
from latentsynth.data.exchange.requests import Placed, Request
from latentsynth.data.identity import volume_hash
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.files import clear_partial, read_json, write_json
from latentsynth.provenance import LEDGER, sidecar, voxel_hash
from latentsynth.types import Case, Domain, Labels

KIND = "synthetic volumes"
FOLDERS = ("imagesTr", "labelsTr", "sidecars")


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
                tuple(facts["image_hashes"]),
                facts["mask_hash"],
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
    outputs.claim(out, KIND, recipe, FOLDERS)
    for name in FOLDERS:
        clear_partial(out / name)
    describe(out, f"{out.name} (synthetic)", domain.channels, domain.labels)


def finish(out: Path, manifest: Manifest) -> None:
    """Says that a cohort is complete."""
    outputs.finish(
        out,
        [
            *case_files(out, manifest),
            *(out / name for name in ("dataset.json", "manifest.json", LEDGER, "contact_sheet.png")),
        ],
    )


def case_files(out: Path, manifest: Manifest) -> list[Path]:
    """Every file of every case of a cohort that was made in a folder."""
    found = []
    for case in manifest.cases:
        found += [*case.images, *([case.mask] if case.mask else []), out / "sidecars" / f"{case.case_id}.json"]
    return found


def describe(out: Path, name: str, channels: Sequence[str], labels: Labels) -> None:
    """The ``dataset.json`` of an nnU-Net raw cohort, marked as synthetic."""
    write_json(
        out / "dataset.json",
        {
            "name": name,
            "channel_names": {str(n): channel for n, channel in enumerate(channels)},
            "labels": {label: value for value, label in zip(labels.values, labels.names, strict=True)},
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
            image_hashes=[volume_hash(voxels, placed.affine) for voxels in scanner],
            mask_hash=volume_hash(placed.values, placed.affine),
            limits=dict(zip(domain.channels, limits, strict=True)),
            median_window_channels=[] if "host" in facts else per_image,
            **facts,
        ),
    )
