"""Who does what: every patient in one role, whatever the order of listing, and subsets inside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from latentsynth.config import MemorizationStudy, build
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.experiments.roles import Roles
from latentsynth.types import Case, Labels

PATIENTS = [f"p{n:02d}" for n in range(40)]


def scans() -> list[Case]:
    """Forty patients, the first ten scanned three times."""
    return [
        Case(f"{patient}-{visit}", patient, (Path(f"/{patient}-{visit}.nii.gz"),), Path(f"/{patient}.nii.gz"))
        for n, patient in enumerate(PATIENTS)
        for visit in range(3 if n < 10 else 1)
    ]


def draw(folder: Path, cases: Sequence[Case] | None = None, **changes: Any) -> Roles:
    manifest = folder / "cohort.json"
    Manifest("cohort", ("CT",), Labels((0, 1)), tuple(cases or scans())).save(manifest)
    values = {
        "folder": folder / "study", "manifest": manifest, "models": {"diffusion": {}}, "sizes": (2, 5, "all"),
        "grid": {"shape": (16, 16, 16), "spacing_mm": (2.0, 2.0, 2.0), "windows": ({"kind": "percentile"},)},
    }  # fmt: skip
    return Roles.draw(build(MemorizationStudy, {**values, **changes}))


def members(path: Path) -> dict[str, set[str]]:
    """Patients of a manifest by split."""
    cases = Manifest.load(path).cases
    return {split: {c.patient_id for c in cases if c.split == split} for split in ("train", "val", "test")}


@pytest.mark.parametrize("seed", range(5))
def test_everybody_has_one_role(tmp_path: Path, seed: int) -> None:
    roles = draw(tmp_path, seed=seed)
    groups = [roles.pool, tuple(roles.outside), roles.heldout]
    assert sorted(patient for group in groups for patient in group) == PATIENTS
    assert [len(group) for group in groups] == [16, 12, 12]
    assert set(roles.outside.values()) == {"train", "val"}


def test_roles_are_drawn_anew_by_the_seed_alone(tmp_path: Path) -> None:
    """Neither by the order of cases nor by the split that the manifest has."""
    cases = scans()
    moved = [replace(case, split="test" if case.patient_id < "p20" else "val") for case in cases]
    first, *same = (draw(tmp_path, order) for order in (cases, cases[::-1], cases[7:] + cases[:7], moved))
    for other in same:
        assert (other.pool, other.outside, other.heldout) == (first.pool, first.outside, first.heldout)
        assert all(other.subset(size, 3) == first.subset(size, 3) for size in (2, 5, "all"))
    assert set(draw(tmp_path, seed=1).pool) != set(first.pool)


@pytest.mark.parametrize("seed", range(5))
def test_subsets_of_a_seed_are_nested(tmp_path: Path, seed: int) -> None:
    roles = draw(tmp_path)
    sizes: list[int | str] = [*range(1, 17), "all"]
    subsets = [set(roles.subset(size, seed)) for size in sizes]
    assert [len(subset) for subset in subsets] == [*range(1, 17), 16]
    assert all(small <= large for small, large in pairwise(subsets))
    assert subsets[-1] == set(roles.pool)
    assert set(roles.subset(5, seed)) != set(roles.subset(5, seed + 1))


def test_no_model_sees_a_held_out_patient(tmp_path: Path) -> None:
    roles = draw(tmp_path)
    train = roles.subset(5, 0)
    generator, autoencoder = members(roles.write("n5-s0", train)), members(roles.outside_manifest())
    detector, heldout = members(roles.detector_manifest()), members(roles.heldout_manifest())
    monitor = {patient for patient, part in roles.outside.items() if part == "val"}
    fitted = set(roles.outside) - monitor
    assert generator == {"train": set(train), "val": monitor, "test": set()}
    assert autoencoder == {"train": fitted, "val": monitor, "test": set()}
    assert detector == {"train": fitted | set(roles.pool), "val": monitor, "test": set()}
    assert heldout == {"train": set(), "val": monitor, "test": set(roles.heldout)}


def test_all_scans_of_a_patient_stay_together(tmp_path: Path) -> None:
    roles = draw(tmp_path)
    written = [roles.outside_manifest(), roles.heldout_manifest(), roles.write("pool", roles.pool)]
    visits: dict[str, int] = {}
    for path in written:
        cases = [c for c in Manifest.load(path).cases if c.split != "val" or path == written[0]]
        for case in cases:
            visits[case.patient_id] = visits.get(case.patient_id, 0) + 1
    assert visits == {patient: 3 if n < 10 else 1 for n, patient in enumerate(PATIENTS)}


def test_a_manifest_is_written_once(tmp_path: Path) -> None:
    """Another machine may be reading it."""
    roles = draw(tmp_path)
    path = roles.outside_manifest()
    before = path.stat()
    assert draw(tmp_path).outside_manifest() == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    draw(tmp_path, seed=1).outside_manifest()
    assert path.stat().st_ino != before.st_ino


def test_a_size_beyond_the_pool_is_refused(tmp_path: Path) -> None:
    assert len(draw(tmp_path, sizes=(16,)).pool) == 16
    with pytest.raises(DataError, match=r"ask for 17 patients, the pool has 16: raise roles\.pool, or use all"):
        draw(tmp_path, sizes=(2, 17, "all"))


@pytest.mark.parametrize("change", [{"source": "external"}, {"source": "abc:0", "parents": ("p00",)}, {"mask": None}])
def test_who_is_no_annotated_patient_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    cases = scans()
    cases[-2] = replace(cases[-2], **change)
    with pytest.raises(DataError, match=r"1 cases that are synthetic or without a mask \(p38-0\)"):
        draw(tmp_path, cases)
