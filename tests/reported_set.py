"""A synthetic set with positive controls, and the memorization report on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator

from latentsynth.data import nifti
from latentsynth.data.identity import volume_hash
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.evaluation.memorization.evaluate import measure_memorization
from latentsynth.phantom.cohort import write_cohort
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.results import checksum
from latentsynth.types import Case

COPIES = ("Meier-1-s0000", "Meier-4-s0001", "Meier-6-s0000")  # as a model's samples are named: by the mask's patient
MASK_COPY = "Meier-8-s0000"
FRESH = tuple(f"Huber-{n}-s0000" for n in range(5))


def times(folder: Path) -> dict[Path, int]:
    """All files below a folder, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Reported:
    """A folder with patients, a synthetic set, and reports.

    Attributes:
        folder: Everything.
        real: Manifest of the patients.
        samples: Manifest of fresh volumes, three copies of training scans, and one volume of a training mask.
        fresh: Manifest of the same without copies.
        report: On ``samples``.
        clean: On ``fresh``.
    """

    folder: Path
    real: Path
    samples: Path
    fresh: Path
    report: Path
    clean: Path

    def copy(self, folder: Path, fresh: bool = False) -> Path:
        """The manifest of a copy of a set that a test may change."""
        shutil.copytree(self.samples.parent, folder)
        path = folder / self.samples.name
        if fresh:
            whole = Manifest.load(path)
            replace(whole, cases=whole.cases[: len(FRESH)]).save(path)
            shutil.copyfile(self.fresh.with_name(LEDGER), folder / LEDGER)
        return path


def altered(report: Path, out: Path, **changes: Any) -> Path:
    """A report that says something else."""
    value = json.loads(report.read_text())
    value["facts"] |= changes
    value["checksum"] = checksum(value)
    out.write_text(json.dumps(value))
    return out


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory, cpu: Accelerator, workplace: Path) -> Reported:
    """Phantoms: 12 trained on, 18 held out, 9 volumes as a model would have made them."""
    folder = tmp_path_factory.mktemp("archive-of-patients")
    for name, count, seed, parts in (("real", 30, 1, (0.4, 0.3, 0.3)), ("other", 6, 3, (1.0, 0.0, 0.0))):
        write_cohort(folder / name, count, seed=seed, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0), channels=1)
        prepare(folder / name, folder / f"{name}.json", fractions=parts, progress=False)
    real, other = (Manifest.load(folder / f"{name}.json") for name in ("real", "other"))
    train_first = (*real.select("train"), *real.select("val", "test"))
    named = [replace(case, case_id=f"scan-{n}", patient_id=f"Meier-{n}") for n, case in enumerate(train_first)]
    real = replace(real, cases=tuple(named))
    real.save(folder / "patients.json")
    train, stranger = real.select("train"), other.cases
    cases = [
        _sample(folder / "samples", name, stranger[n], stranger[n % 3], mark=n // 3) for n, name in enumerate(FRESH)
    ]
    cases += [
        _sample(folder / "samples", name, train[int(name.split("-")[1])], stranger[0], mark=2 + n)
        for n, name in enumerate(COPIES)
    ]
    mine = train[8]
    cases.append(_sample(folder / "samples", MASK_COPY, stranger[5], mine, (mine.patient_id,)))
    paths = [_set(folder / "samples", real, cases, train), _set(folder / "fresh", real, cases[: len(FRESH)], train)]
    reports = []
    for samples in paths:
        out = folder / f"report-{samples.parent.name}"
        measure_memorization(
            folder / "patients.json", folder / "patients.json", [("made", samples)], out, cpu, ("voxels",), level=0.1,
            cache=folder / "cache",
        )  # fmt: skip
        reports.append(out / "memorization.json")
    return Reported(folder, folder / "patients.json", *paths, *reports)


def _sample(folder: Path, name: str, image: Case, mask: Case, parents: tuple[str, ...] = (), mark: int = 0) -> Case:
    """A synthetic case: the scan of one, the annotation of another, under a name that names a patient.

    Volumes of one mask weigh as one: a mark of one voxel tells those apart that stand for different masks.
    """
    assert mask.mask is not None
    files = (folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz")
    nifti.write(files[0], *nifti.read(image.images[0]))
    values, affine = nifti.read_labels(mask.mask)
    values = values.astype(np.int16)
    if mark:
        values[0, 0, mark] = values.max()
    nifti.write(files[1], values, affine)
    mask_hash = volume_hash(values, affine) if mark else mask.mask_hash
    return Case(
        name, f"synthetic-{name}", files[:1], files[1], "train", "abc123:0", parents, image.voxels, image.image_hashes,
        mask_hash,
    )  # fmt: skip


def _set(folder: Path, like: Manifest, cases: Sequence[Case], train: Sequence[Case]) -> Path:
    """The set's manifest, and beside it the ledger of whom its generator saw."""
    path = folder / "manifest.json"
    replace(like, name=folder.name, cases=tuple(cases)).save(path)
    (Ledger.of(train) | Ledger.used(parent for case in cases for parent in case.parents)).save(folder / LEDGER)
    return path
