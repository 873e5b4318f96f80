"""Label maps for many scans: made once, of one checkpoint, with the right millilitres."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator
from helpers import GEOMETRIES, contents, lesion_mask
from positive_controls import boxes, painted, positive_controls

from latentsynth import labelling
from latentsynth.data import nifti
from latentsynth.data.intake.scans import scans
from latentsynth.errors import DataError
from latentsynth.labelling import label_scans
from latentsynth.segmentation import Segmenter
from latentsynth.types import Case


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """A scan on every geometry, with a small lesion of label 4 and a box of label 1."""
    made = []
    for name, (affine, shape) in GEOMETRIES.items():
        values = lesion_mask(affine, shape, 8.0) + boxes(shape, {1: np.s_[:4, :5, :6]})
        made.append(painted(tmp_path / "scans", name, values, affine))
    return made


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that are segmented, as they are."""
    done: list[str] = []
    segment = Segmenter.segment

    def counted(self: Segmenter, case: Case, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        done.append(case.case_id)
        return segment(self, case, whole)

    monkeypatch.setattr(Segmenter, "segment", counted)
    return done


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}


def test_maps_are_made_once_and_a_lost_one_is_made_again(
    cases: list[Case], segmented: list[str], tmp_path: Path, cpu: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", positive_controls()
    files = label_scans(model, cases, out, cpu)
    assert files == [out / f"{case.case_id}.nii.gz" for case in cases]
    assert segmented == [case.case_id for case in cases]
    assert contents(out) == sorted(
        [*(file.name for file in files), ".lock", "contact_sheet.png", "output.json", "volumes.csv"]
    )
    maps = {file: nifti.read_labels(file) for file in files}
    for case, (labels, affine) in zip(cases, maps.values(), strict=True):
        expected, where = model.segment(case)
        assert np.array_equal(labels, expected)
        assert np.allclose(affine, where, atol=1e-4)
        assert np.allclose(affine, nifti.read(case.images[0])[1], atol=1e-4)
    before = times(out)
    segmented.clear()
    monkeypatch.setattr(labelling, "contact_sheet", lambda *arguments: None)  # drawn once is enough
    assert label_scans(model, cases, out, cpu) == files
    assert segmented == []
    assert times(out) == before
    files[1].unlink()
    label_scans(model, cases, out, cpu)
    assert segmented == [cases[1].case_id]
    assert {name for name, time in times(out).items() if before[name] != time} == {files[1].name}
    assert np.array_equal(nifti.read_labels(files[1])[0], maps[files[1]][0])


def test_the_table_holds_the_millilitres_of_the_maps(cases: list[Case], tmp_path: Path, cpu: Accelerator) -> None:
    label_scans(positive_controls(), cases, tmp_path / "out", cpu)
    with (tmp_path / "out" / "volumes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == [case.case_id for case in cases]
    assert set(rows[0]) == {"case", "lesion 1_ml", "lesion 4_ml"}
    spacings = {"oblique": (2, 2, 2), "LPS": (2, 2, 2), "anisotropic": (1, 1.5, 4)}
    for row in rows:
        labels = nifti.read_labels(tmp_path / "out" / f"{row['case']}.nii.gz")[0]
        voxel_ml = math.prod(spacings[row["case"]]) / 1000
        for value in (1, 4):
            assert float(row[f"lesion {value}_ml"]) == pytest.approx((labels == value).sum() * voxel_ml, rel=1e-5)
    box_ml = 4 * 5 * 6 * 8 / 1000  # of the two scans whose grid is the segmenter's
    assert float(rows[0]["lesion 1_ml"]) == float(rows[1]["lesion 1_ml"]) == pytest.approx(box_ml, rel=1e-5)


def test_a_folder_of_another_checkpoint_is_refused_and_left_alone(
    cases: list[Case], tmp_path: Path, cpu: Accelerator
) -> None:
    out, model = tmp_path / "out", positive_controls()
    label_scans(model, cases[:1], out, cpu)
    before, listing = times(out), contents(out)
    other = positive_controls()
    other.fingerprint = "another"
    with pytest.raises(DataError, match="label maps made with other checkpoint"):
        label_scans(other, cases, out, cpu)
    assert times(out) == before
    assert contents(out) == listing
    label_scans(model, cases[:2], out, cpu)  # its own goes on
    assert len(times(out)) == 2


def test_a_bad_scan_leaves_no_map_of_its_own(cases: list[Case], tmp_path: Path, cpu: Accelerator) -> None:
    cases[1].images[1].write_bytes(b"nothing")
    with pytest.raises(DataError, match="LPS_0001"):
        label_scans(positive_controls(), cases, tmp_path / "out", cpu)
    assert set(times(tmp_path / "out")) == {"oblique.nii.gz"}


def test_a_folder_of_scans_is_segmented_as_its_cases_are(cases: list[Case], tmp_path: Path, cpu: Accelerator) -> None:
    found = scans(tmp_path / "scans" / "images", 2)
    assert {case.case_id for case in found} == set(GEOMETRIES)
    files = label_scans(positive_controls(), found, tmp_path / "out", cpu)
    expected = {case.case_id: positive_controls().segment(case)[0] for case in cases}
    assert all(np.array_equal(nifti.read_labels(file)[0], expected[nifti.stem(file)]) for file in files)


def test_other_scans_of_the_same_names_are_refused(cases: list[Case], tmp_path: Path, cpu: Accelerator) -> None:
    """The first scan's label map is not the second's."""
    out = tmp_path / "out"
    label_scans(positive_controls(), cases[:1], out, cpu)
    affine, shape = GEOMETRIES[cases[0].case_id]
    other = painted(tmp_path / "elsewhere", cases[0].case_id, lesion_mask(affine, shape, 5.0), affine)
    with pytest.raises(DataError, match="was not made from"):
        label_scans(positive_controls(), [other], out, cpu)


def test_a_file_that_stands_there_is_no_label_map(cases: list[Case], tmp_path: Path, cpu: Accelerator) -> None:
    out = tmp_path / "out"
    out.mkdir()
    file = out / f"{cases[0].case_id}.nii.gz"
    file.write_bytes(b"somebody's")
    with pytest.raises(DataError, match="which are not of this command"):
        label_scans(positive_controls(), cases, out, cpu)
    assert file.read_bytes() == b"somebody's"


def test_what_a_killed_process_left_is_cleared(cases: list[Case], tmp_path: Path, cpu: Accelerator) -> None:
    leftover = tmp_path / "out" / ".partial-abc"
    leftover.mkdir(parents=True)
    label_scans(positive_controls(), cases[:1], tmp_path / "out", cpu)
    assert not leftover.exists()
