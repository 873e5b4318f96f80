"""Cohorts from manifests and plain folders; whoever a generator may have seen is refused as a held-out patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.inputs import check_apart, halves, open_cohort
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.types import Case, Labels, Split

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)


def folder(path: Path, files: dict[str, int]) -> Path:
    """A folder of scans, each with the voxels of a seed."""
    path.mkdir()
    for name, seed in files.items():
        nifti.write(path / name, voxels(seed), AFFINE)
    return path


def cohort(name: str, cases: Sequence[Case], ledger: Ledger | None = None) -> Cohort:
    manifest = Manifest(name, ("CT",), Labels((0,)), tuple(cases))
    return Cohort(name, manifest, manifest.cases, ledger or Ledger())


def case(name: str, split: Split = "train", patient: str = "", source: str = "real", scan: str = "") -> Case:
    return Case(
        name, patient or name, (Path(f"{name}.nii.gz"),), None, split, source, voxels=(scan or f"hash of {name}",)
    )


@pytest.mark.parametrize("suffix", ["_0000.nii.gz", ".nii.gz", "_0000.nii", ".nii"])
def test_a_folder_of_one_channel(tmp_path: Path, suffix: str) -> None:
    place = folder(tmp_path / "scans", {f"{name}{suffix}": n for n, name in enumerate(("b", "a", "c_2"))})
    (place / "notes.txt").write_text("no scan")
    found = open_cohort("training patients", place)
    assert [one.case_id for one in found.cases] == [one.patient_id for one in found.cases] == ["a", "b", "c_2"]
    assert found.real
    assert (found.name, len(found.manifest.channels), found.ledger) == ("training patients", 1, Ledger())
    for one, seed in zip(found.cases, (1, 0, 2), strict=True):
        assert one.mask is None
        assert one.voxels == (nifti.canonical_hash(voxels(seed), AFFINE),)
        np.testing.assert_array_equal(nifti.read(one.images[0])[0], voxels(seed))


def test_a_folder_of_two_channels(tmp_path: Path) -> None:
    place = folder(tmp_path / "scans", {f"{name}_{n:04d}.nii.gz": n for name in "ab" for n in range(2)})
    found = open_cohort("training patients", place)
    assert [(one.case_id, [image.name[:6] for image in one.images]) for one in found.cases] == [
        ("a", ["a_0000", "a_0001"]),
        ("b", ["b_0000", "b_0001"]),
    ]
    assert len(found.manifest.channels) == 2


def test_a_folder_of_names_that_end_in_digits(tmp_path: Path) -> None:
    place = folder(tmp_path / "scans", {f"AMOS_{n:04d}.nii.gz": n for n in (1, 2, 7)})
    assert [one.case_id for one in open_cohort("x", place).cases] == ["AMOS_0001", "AMOS_0002", "AMOS_0007"]


def test_samples_of_a_folder_are_nobody(tmp_path: Path) -> None:
    place = folder(tmp_path / "made", {"x.nii.gz": 0, "y.nii.gz": 1})
    found = open_cohort("made", place, real=False)
    assert not found.real
    assert {one.source for one in found.cases} == {"external"}


def test_impossible_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no NIfTI file"):
        open_cohort("x", tmp_path / "empty")
    torn = folder(tmp_path / "torn", {"a_0000.nii.gz": 0, "a_0001.nii.gz": 1, "b_0000.nii.gz": 2})
    with pytest.raises(DataError, match=r"case a in .* has channel numbers"):
        open_cohort("x", torn)


def test_splits_of_a_manifest(tmp_path: Path) -> None:
    """Those that are asked for; all cases of a manifest that has none of them; the ledger beside it."""
    path = tmp_path / "manifest.json"
    cases = [case("a"), case("b", "val"), case("c", "test")]
    Manifest("m", ("CT",), Labels((0,)), tuple(cases)).save(path)
    assert [one.case_id for one in open_cohort("x", path, ("train",)).cases] == ["a"]
    assert [one.case_id for one in open_cohort("x", path, ("val", "test")).cases] == ["b", "c"]
    Manifest("m", ("CT",), Labels((0,)), tuple(cases[1:])).save(path)
    Ledger(voxels=frozenset({"seen"})).save(tmp_path / LEDGER)
    found = open_cohort("x", path, ("train",))
    assert [one.case_id for one in found.cases] == ["b", "c"]
    assert found.ledger.voxels == {"seen"}
    Manifest("m", ("CT",), Labels((0,)), (replace(cases[0], source="model:0"),)).save(path)
    with pytest.raises(DataError, match="holds synthetic cases, and x must be patients"):
        open_cohort("x", path)
    assert not open_cohort("x", path, real=False).real


@pytest.mark.parametrize("patients", [2, 3, 40, 41])
def test_halves_share_no_patient_and_leave_none_out(patients: int) -> None:
    """Two scans of a patient stay together, and neither the order nor the company of other scans matters."""
    cases = [case(f"{n}-{scan}", "val", f"p{n}") for n in range(patients) for scan in range(1 + n % 2)]
    first, second = halves(cohort("held-out", cases))
    groups = [{one.patient_id for one in side.cases} for side in (first, second)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {one.patient_id for one in cases}
    assert sorted(one.case_id for side in (first, second) for one in side.cases) == sorted(one.case_id for one in cases)
    assert abs(len(groups[0]) - len(groups[1])) <= 1
    assert (first.name, second.name) == ("calibration patients", "control patients")
    for order in (cases[::-1], [one for one in cases if one.case_id.endswith("-0")]):
        again = halves(cohort("other name", order))
        assert [{one.patient_id for one in side.cases} for side in again] == groups


def test_one_patient_cannot_be_halved() -> None:
    with pytest.raises(DataError, match="1 held-out patients cannot be split: give at least 38"):
        halves(cohort("held-out", [case("a", patient="p"), case("b", patient="p")]))


def test_held_out_patients_who_were_trained_on_are_refused() -> None:
    train = cohort("train", [case("a"), case("b")])
    fine = [case("c"), case("d")]
    assert check_apart(train, cohort("held-out", fine), []) == []
    for seen in (case("another scan", patient="a"), case("another name", scan="hash of b")):
        with pytest.raises(
            DataError, match=f"1 held-out cases are training patients or the same scans .{seen.case_id}"
        ):
            check_apart(train, cohort("held-out", [*fine, seen]), [])
    unknown = [replace(one, voxels=()) for one in (*fine, *train.cases)]  # no hash is no equal hash
    assert check_apart(cohort("train", unknown[2:]), cohort("held-out", unknown[:2]), []) == []


def test_the_same_scan_under_another_name_is_found_in_a_folder(tmp_path: Path) -> None:
    """Also when saved as float, uncompressed and in another orientation."""
    train = open_cohort("training patients", folder(tmp_path / "train", {"a.nii.gz": 0, "b.nii.gz": 1}))
    place = folder(tmp_path / "held", {"c.nii.gz": 2})
    assert check_apart(train, open_cohort("held-out patients", place), []) == []
    flipped = AFFINE @ np.array([[-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nifti.write(place / "new name.nii", voxels(1)[::-1].astype(np.float32), flipped)
    with pytest.raises(DataError, match=r"1 held-out cases are training patients or the same scans \(new name\)"):
        check_apart(train, open_cohort("held-out patients", place), [])


def test_what_a_ledger_says_of_the_patients() -> None:
    train, heldout = cohort("train", [case("a"), case("b")]), cohort("held-out", [case("c"), case("d")])

    def notes(*seen: str) -> list[str]:
        ledger = Ledger(voxels=frozenset(f"hash of {one}" for one in seen))
        found = check_apart(train, heldout, [cohort("made", [case("s", source="model:0")], ledger)])
        assert {note.about for note in found} <= {"made"}
        return [note.text for note in found]

    assert notes("a", "b") == []
    assert (
        "also saw 1 images" in notes("a", "b", "s")[0]
    )  # one that is a volume of the set is somebody's scan all the same
    with pytest.raises(DataError, match=r"the generator of made was trained on 1 of the held-out cases \(d\)"):
        notes("a", "b", "d")
    (unseen,) = notes("a")
    assert unseen == "made: its generator never saw 1 of the 2 training cases given"
    (others,) = notes("a", "b", "x", "y")
    assert "also saw 2 images that are not among the training cases" in others
    (silent,) = notes()
    assert "no ledger beside it" in silent
    leak = cohort("leaky", [case("t", source="model:1")], Ledger(voxels=frozenset({"hash of c"})))
    with pytest.raises(DataError, match="the generator of leaky"):  # a set without a ledger before it hides nothing
        check_apart(train, heldout, [cohort("silent", [case("s", source="model:0")]), leak])


def test_real_scans_cannot_pose_as_samples(workplace: Path) -> None:
    """Else they would excuse training patients that a report did not look for."""
    with pytest.raises(DataError, match="prepare --synthetic"):
        open_cohort("x", workplace / "manifest.json", real=False)


def test_numbered_scans_are_no_channels(tmp_path: Path) -> None:
    """sample_0000 to sample_0003 look like four channels of one case; whoever knows of one channel says what to do."""
    made = folder(tmp_path / "many", {f"sample_{n:04d}.nii.gz": n for n in range(4)})
    with pytest.raises(DataError, match="name the files sample_0000"):
        open_cohort("x", made, channels=1)
    pairs = folder(tmp_path / "pairs", {f"{name}_{n:04d}.nii.gz": n for name in "ab" for n in range(2)})
    assert [len(case.images) for case in open_cohort("x", pairs).cases] == [2, 2]
