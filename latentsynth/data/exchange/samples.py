"""A folder of synthetic volumes on disk.

It is an nnU-Net raw cohort (``imagesTr``, ``labelsTr``, ``dataset.json``) with a JSON sidecar per volume, a manifest and a
contact sheet. ``labelsTr`` holds the masks that were asked for, without the lesions that the model's grid cannot hold, since no
volume shows those; ``masks_given`` the masks as the model got them, in its own voxels. A volume counts as done when its sidecar stands, which is written
last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentsynth import outputs
from latentsynth.data import nifti, windows
from latentsynth.data.exchange.requests import Placed, Request, Shown
from latentsynth.data.identity import scan_hashes, volume_hash
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.files import clear_partial, read_json, write_json
from latentsynth.provenance import LEDGER, sidecar, voxel_hash
from latentsynth.results import write_csv
from latentsynth.types import Case, Domain

KIND = "synthetic volumes"
GIVEN = "masks_given"
PAIRS = "pairs.csv"
FOLDERS = ("imagesTr", "labelsTr", GIVEN, "sidecars")
ORIGINS = "written_from"  # in dataset.json: fingerprints of the manifests that a dataset was written from
FORMAT = 3  # of the sidecars


@dataclass(frozen=True)
class LostLesions:
    """Lesions that were asked for, and that the model never got.

    Attributes:
        volumes: Volumes made.
        short: Those of them whose mask lost a lesion.
        lesions: Lesions asked for, over all volumes.
        lost: How many of them were lost.
    """

    volumes: int
    short: int
    lesions: int
    lost: int

    @classmethod
    def of(cls, out: Path) -> LostLesions:
        """Of the volumes that stand in an output folder."""
        facts = [read_json(file) for file in sorted((out / "sidecars").glob("*.json"))]
        return cls(
            len(facts),
            sum(one["lesions_lost"] > 0 for one in facts),
            sum(one["lesions"] for one in facts),
            sum(one["lesions_lost"] for one in facts),
        )


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
                tuple(facts["voxels"]),
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
    outputs.claim(out, KIND, {"sidecars": FORMAT, **recipe}, FOLDERS)
    for name in FOLDERS:
        clear_partial(out / name)


def finish(out: Path, manifest: Manifest) -> None:
    """Says that a cohort is complete."""
    describe(out, f"{out.name} (synthetic)", manifest)
    outputs.finish(
        out,
        [
            *case_files(out, manifest),
            *(out / GIVEN / f"{case.case_id}.nii.gz" for case in manifest.cases),
            *(out / name for name in ("dataset.json", "manifest.json", LEDGER, "contact_sheet.png")),
            *(file for file in (out / PAIRS,) if file.is_file()),
        ],
    )


def write_pairs(out: Path, manifest: Manifest, hosts: Sequence[Case]) -> None:
    """``pairs.csv``: every healthy counterpart beside the scan that it was made of, and the mask of what was removed."""
    of = {host.case_id: host for host in hosts}
    rows = []
    for case in manifest.cases:
        host = of[read_json(out / "sidecars" / f"{case.case_id}.json")["host"]]
        for channel, healthy, scan in zip(manifest.channels, case.images, host.images, strict=True):
            rows.append((case.case_id, host.case_id, channel, str(healthy.relative_to(out)), str(scan), str(host.mask)))
    write_csv(out / PAIRS, ("healthy", "scan", "channel", "healthy_file", "scan_file", "mask_file"), rows)


def case_files(out: Path, manifest: Manifest) -> list[Path]:
    """Every file of every case of a cohort that was made in a folder."""
    found = []
    for case in manifest.cases:
        found += [*case.images, *([case.mask] if case.mask else []), out / "sidecars" / f"{case.case_id}.json"]
    return found


def describe(out: Path, name: str, manifest: Manifest, **more: Any) -> None:
    """The ``dataset.json`` of an nnU-Net raw cohort, marked as synthetic.

    What nnU-Net 2 asks of it: the number of cases, one file ending, and a label 0 of the name "background". It also asks
    that label values be consecutive, which those of the manifest need not be.
    """
    names = dict(zip(manifest.labels.names, manifest.labels.values, strict=True))
    if "background" not in names:
        names = {"background" if value == 0 else label: value for label, value in names.items()}
    write_json(
        out / "dataset.json",
        {
            "name": name,
            "channel_names": {str(n): channel for n, channel in enumerate(manifest.channels)},
            "labels": names,
            "numTraining": len(manifest.cases),
            "file_ending": ".nii.gz",
            "SYNTHETIC": True,
            **more,
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
    """Images in scanner units, mask as shown and as given, then the sidecar that makes them count."""
    name = name_of(request, seed)
    for channel, image in enumerate(scanner):
        nifti.write(out / "imagesTr" / f"{name}_{channel:04d}.nii.gz", image, placed.affine)
    voxels = scan_hashes([(image, placed.affine) for image in scanner])
    given = placed.given(domain.labels)
    shown = Shown.of(placed.values, given, domain.labels.lesions(domain.framing))
    nifti.write(out / "labelsTr" / f"{name}.nii.gz", shown.values, placed.affine)
    nifti.write(out / GIVEN / f"{name}.nii.gz", given, placed.affine)
    per_image = [
        name for name, window in zip(domain.channels, domain.grid.windows, strict=True) if window.kind == "percentile"
    ]
    write_json(
        _sidecar(out, request, seed),
        sidecar(
            mask=request.mask.name if request.mask else None,
            mask_voxels=voxel_hash(placed.values),
            lesions=shown.lesions,
            lesions_lost=shown.lost,
            parents=list(request.parents),
            voxels=list(voxels),
            image_hashes=[
                volume_hash(image, placed.affine, known) for image, known in zip(scanner, voxels, strict=True)
            ],
            mask_hash=volume_hash(shown.values, placed.affine),
            limits=dict(zip(domain.channels, limits, strict=True)),
            median_window_channels=[] if "host" in facts else per_image,
            **facts,
        ),
    )
