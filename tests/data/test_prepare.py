"""Every check catches the fault planted for it and passes the clean cohort; splits keep patients together."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.exchange.requests import requests_of
from latentsynth.data.identity import check_files, turned_hash
from latentsynth.data.intake.checks import check_case, disagreement
from latentsynth.data.intake.prepare import PrepareReport, prepare, write_report
from latentsynth.data.intake.splits import read_split_file, split_patients
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.types import Case, Framing, Grid, Labels, Window

SHAPE = (8, 9, 10)
AFFINE = np.array([[1.0, 0, 0, -4], [0, 1.5, 0, 7], [0, 0, 2, -30], [0, 0, 0, 1]])
NAMES = [f"P{patient:02d}_{visit}" for patient in range(5) for visit in "ab"]
PATIENT = r"^(P\d+)_"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """nnU-Net raw: five patients with two cases each, CT and PET, labels 0, 1, 2."""
    folder = tmp_path / "source"
    for number, name in enumerate(NAMES):
        rng = np.random.default_rng(number)
        mask = np.zeros(SHAPE, np.uint8)
        mask[1:4, 2:5, 3:6] = 1
        mask[2, 3, 4] = 2
        for channel in range(2):
            nifti.write(image_of(folder, name, channel), rng.normal(size=SHAPE).astype(np.float32), AFFINE)
        nifti.write(mask_of(folder, name), mask, AFFINE)
    facts = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "tumour": 1, "core": 2}}
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def image_of(folder: Path, name: str, channel: int = 0) -> Path:
    return folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz"


def mask_of(folder: Path, name: str) -> Path:
    return folder / "labelsTr" / f"{name}.nii.gz"


def run(source: Path, out: Path | None = None, *, patient: str | None = PATIENT, **options: Any) -> PrepareReport:
    out = out or source.parent / "manifest.json"
    return prepare(source, out, patient=patient, progress=False, **options)


def text_of(report: PrepareReport, width: int = 4000) -> str:
    stream = io.StringIO()
    write_report(report, Console(file=stream, width=width))
    return stream.getvalue()


# Faults to plant: each changes one file of the case P01_a (or adds one).

NAME = "P01_a"


Change = Callable[[np.ndarray], np.ndarray]


def edit(path: Path, change: Change = lambda v: v, affine: np.ndarray | None = None) -> None:
    """Writes a file again without latentsynth's help, so that wrong headers and shapes stay as they are."""
    voxels, old = nifti.read(path)
    nib.save(nib.Nifti1Image(change(np.array(voxels)), old if affine is None else affine), path)


def moved(mm: float) -> np.ndarray:
    shift = np.zeros((4, 4))
    shift[0, 3] = mm
    return AFFINE + shift


def one(value: float, dtype: type = np.float32) -> Change:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(dtype)
        voxels[3, 3, 3] = value
        return voxels

    return change


def drop_images(folder: Path) -> None:
    for channel in range(2):
        image_of(folder, NAME, channel).unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scaled(edge: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 1] = edge
    return affine


def respace(folder: Path, edge: float) -> None:
    for path in (image_of(folder, NAME), image_of(folder, NAME, 1), mask_of(folder, NAME)):
        edit(path, affine=scaled(edge))


def flatten(path: Path) -> None:
    image = nib.Nifti1Image(nifti.read(path)[0], None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code="scanner")
    nib.save(image, path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated image": (lambda f: truncate(image_of(f, NAME)), "not a readable NIfTI"),
    "truncated mask": (lambda f: truncate(mask_of(f, NAME)), "not a readable NIfTI"),
    "no NIfTI": (lambda f: image_of(f, NAME).write_text("hello"), "not a readable NIfTI"),
    "2D": (lambda f: edit(image_of(f, NAME), lambda v: v[:, :, 0]), "2 axes"),
    "4D": (lambda f: edit(image_of(f, NAME, 1), lambda v: np.stack([v, v], -1)), "4 axes"),
    "2D mask": (lambda f: edit(mask_of(f, NAME), lambda v: v[:, :, 4]), "2 axes"),
    "complex": (lambda f: edit(image_of(f, NAME), lambda v: v.astype(np.complex64)), "complex64"),
    "NaN": (lambda f: edit(image_of(f, NAME, 1), one(np.nan)), "NaN or infinity in 1 voxels"),
    "infinity": (lambda f: edit(image_of(f, NAME), one(-np.inf)), "NaN or infinity in 1 voxels"),
    "NaN in mask": (lambda f: edit(mask_of(f, NAME), one(np.nan)), "NaN or infinity in 1 voxels"),
    "shifted mask": (lambda f: edit(mask_of(f, NAME), affine=moved(0.5)), "corners 0.5 mm away"),
    "shifted channel": (lambda f: edit(image_of(f, NAME, 1), affine=moved(0.5)), "corners 0.5 mm away"),
    "mask of other shape": (lambda f: edit(mask_of(f, NAME), lambda v: v[:-1]), "shape (7, 9, 10)"),
    "channel of other shape": (lambda f: edit(image_of(f, NAME, 1), lambda v: v[:-1]), "shape (7, 9, 10)"),
    "flipped mask": (lambda f: edit(mask_of(f, NAME), affine=AFFINE @ np.diag([-1, 1, 1, 1])), "corners 14 mm"),
    "unknown label": (lambda f: edit(mask_of(f, NAME), one(7)), "unknown labels [7]"),
    "fraction": (lambda f: edit(mask_of(f, NAME), one(0.5)), "fractions from 0 to 2"),
    "negative label": (lambda f: edit(mask_of(f, NAME), one(-1)), "values from -1 to 2"),
    "huge label": (lambda f: edit(mask_of(f, NAME), one(40000)), "values from 0 to 40000"),
    "no mask": (lambda f: mask_of(f, NAME).unlink(), "no mask"),
    "fine spacing": (lambda f: respace(f, 0.001), "spacing 1 x 0.001 x 2 mm"),
    "coarse spacing": (lambda f: respace(f, 50), "spacing 1 x 50 x 2 mm"),
    "flat affine": (lambda f: flatten(image_of(f, NAME)), "no inverse"),
    "one channel missing": (lambda f: image_of(f, NAME, 1).unlink(), "does not exist"),
    "one channel too many": (
        lambda f: nifti.write(image_of(f, NAME, 2), np.indices(SHAPE)[0].astype(np.int16), AFFINE),
        "3 images",
    ),
    "channel twice": (lambda f: shutil.copy(image_of(f, NAME), image_of(f, NAME, 1)), "the same voxels as P01_a_0000"),
    "mask without images": (lambda f: drop_images(f), "does not exist"),
}


def test_clean_cohort_passes(source: Path) -> None:
    report = run(source)
    assert not report.problems
    assert report.manifest is not None
    assert len(report.manifest.cases) == 10
    assert [*report.volumes_per_patient] == [2, 2, 2]
    assert report.manifest.labels == Labels((0, 1, 2), ("background", "tumour", "core"))
    assert report.facts[NAME].shape == SHAPE
    assert report.facts[NAME].spacing_mm == (1, 1.5, 2)
    assert report.facts[NAME].label_voxels == {0: 693, 1: 26, 2: 1}
    assert all([len(scan) for scan in case.voxels] == [32] * len(case.images) for case in report.manifest.cases)
    assert Manifest.load(report.path) == report.manifest


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(source: Path, fault: str) -> None:
    plant, found = FAULTS[fault]
    plant(source)
    report = run(source)
    assert {problem.case_id for problem in report.problems} == {NAME}
    hits = [problem for problem in report.problems if found in problem.found]
    assert hits
    assert all(hit.file and hit.expected and hit.cure for hit in hits)
    assert NAME in hits[0].file
    assert report.manifest is None
    assert not report.path.exists()


def test_label_values_that_were_rounded_are_the_whole_numbers_they_stand_for(source: Path) -> None:
    edit(mask_of(source, NAME), lambda v: v.astype(np.float32) * np.float32(0.9999))
    edit(mask_of(source, "P02_b"), one(0.99))  # a soft mask is none
    report = run(source, skip_invalid=True)
    assert [problem.case_id for problem in report.problems] == ["P02_b"]
    assert report.facts[NAME].label_voxels == {0: 693, 1: 26, 2: 1}
    assert report.manifest
    case = next(case for case in report.manifest.cases if case.case_id == NAME)
    assert case.mask is not None
    check_files(case, mask=nifti.read_labels(case.mask))


def test_affines_may_differ_in_the_last_digits(source: Path) -> None:
    edit(mask_of(source, NAME), affine=moved(0.005) + 1e-7)
    assert not run(source).problems
    assert not disagreement((512, 512, 300), AFFINE, (512, 512, 300), AFFINE * (1 + 1e-6))
    assert disagreement(
        (512, 512, 300), AFFINE, (512, 512, 300), AFFINE * (1 + 1e-4)
    )  # small per voxel, but it adds up


def test_a_trailing_axis_of_one_is_accepted(source: Path) -> None:
    edit(image_of(source, NAME), lambda v: v[..., None])
    edit(mask_of(source, NAME), lambda v: v[..., None].astype(np.float64))
    assert not run(source).problems


def flipped_copy(source: Path, to: str) -> None:
    """The scan of P01_a under another name, stored with one axis reversed, two swapped and wider numbers."""
    voxels, affine = nifti.read(image_of(source, NAME))
    turn = np.array([[1, -1], [0, 1], [2, 1]])
    image = nib.Nifti1Image(voxels.astype(np.float64), affine).as_reoriented(turn)
    assert image.shape != voxels.shape
    other, mask = image_of(source, to, 1), mask_of(source, to)
    nib.save(image, image_of(source, to))
    for path in (other, mask):  # the other files of the case stay on its grid
        nib.save(nib.Nifti1Image.load(path).as_reoriented(turn), path)


def test_scan_of_two_patients_is_a_leak_in_any_orientation(source: Path) -> None:
    flipped_copy(source, "P03_a")
    report = run(source)
    assert {problem.case_id for problem in report.problems} == {NAME, "P03_a"}
    assert all("the same voxels" in problem.found for problem in report.problems)
    assert report.manifest is None
    assert not report.path.exists()
    kept = run(source, skip_invalid=True)
    assert kept.manifest
    assert {c.case_id for c in kept.manifest.cases} == set(NAMES) - {NAME, "P03_a"}
    assert any("every copy" in note for note in kept.notes)


TURNS: dict[str, Change] = {
    "mirrored": lambda v: v[::-1],
    "mirrored twice": lambda v: v[:, ::-1, ::-1],
    "other axes first": lambda v: v.transpose(2, 0, 1),
    "slices in reverse, axes exchanged": lambda v: v.transpose(1, 0, 2)[:, :, ::-1],
    "whole numbers shifted": lambda v: (v - v.min()).astype(np.uint16),
}


@pytest.mark.parametrize("turn", TURNS)
def test_scan_of_two_patients_is_a_leak_without_its_header(source: Path, turn: str) -> None:
    whole = np.rint(1000 * np.random.default_rng(5).normal(size=SHAPE)).astype(np.int16)
    nifti.write(image_of(source, NAME), whole, AFFINE)
    for file in (image_of(source, "P03_a"), image_of(source, "P03_a", 1), mask_of(source, "P03_a")):
        voxels = whole if file == image_of(source, "P03_a") else nifti.read(file)[0]
        nib.save(nib.Nifti1Image(TURNS[turn](voxels), np.eye(4)), file)
    found = {problem.case_id: problem.found for problem in run(source).problems}
    assert set(found) == {NAME, "P03_a"}
    assert all("the same voxels" in text for text in found.values())


def test_a_scan_whose_header_scaled_its_numbers_is_found_without_it(source: Path) -> None:
    stored = np.random.default_rng(5).integers(0, 4000, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.0123, -3)
    nib.save(image, image_of(source, NAME))
    content = bytearray(gzip.decompress(image_of(source, NAME).read_bytes()))
    content[112:120] = np.array([0.0123, -3], "<f4").tobytes()
    content[352:] = stored.tobytes(order="F")
    image_of(source, NAME).write_bytes(gzip.compress(bytes(content)))
    assert nifti.read(image_of(source, NAME))[0].max() < 50
    nifti.write(image_of(source, "P03_a"), stored, AFFINE)
    problems = run(source).problems
    assert sorted(problem.case_id for problem in problems) == [NAME, "P03_a"]
    assert all("the same voxels" in problem.found for problem in problems)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.sampled_from([3, 4])] * 3),
    seed=st.integers(0, 99),
    order=st.permutations(range(3)),
    mirrored=st.sets(st.integers(0, 2)),
)
def test_the_hash_of_voxels_alone_forgets_turns_and_nothing_else(
    shape: tuple[int, int, int], seed: int, order: list[int], mirrored: set[int]
) -> None:
    scan = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    assert turned_hash(np.flip(scan, tuple(mirrored)).transpose(order)) == turned_hash(scan)
    other = scan.copy()
    other[0, 0, 0], other[1, 1, 1] = scan[1, 1, 1], scan[0, 0, 0]
    assert turned_hash(other) != turned_hash(scan)


def test_a_second_channel_leaks_too(source: Path) -> None:
    shutil.copy(image_of(source, NAME, 1), image_of(source, "P03_a", 1))
    assert {problem.case_id for problem in run(source).problems} == {NAME, "P03_a"}


def formed(
    sform: np.ndarray | None, qform: np.ndarray | None, pixdim: tuple[float, ...], unit: str = "mm"
) -> Callable[[np.ndarray], bytes]:
    """A file of some voxels whose header says just this; what is None has code 0."""

    def make(voxels: np.ndarray) -> bytes:
        image = nib.Nifti1Image(voxels, None)
        image.set_qform(qform, 1 if qform is not None else 0)
        image.set_sform(sform, 1 if sform is not None else 0)
        image.header.set_xyzt_units(unit)
        content = bytearray(image.to_bytes())
        # nibabel writes no spacing of 0, and never no form at all.
        content[80:92] = np.array(pixdim, "<f4").tobytes()
        content[252:256] = np.array([qform is not None, sform is not None], "<i2").tobytes()
        return bytes(content)

    return make


def cube(*edges: float) -> np.ndarray:
    return np.diag([*edges, 1.0])


HEADERS: dict[str, tuple[Callable[[np.ndarray], bytes], tuple[int, int, int], str]] = {
    "sform against qform": (formed(cube(1, 1, 1), cube(0.5, 0.5, 5), (0.5, 0.5, 5)), (8, 9, 10), "contradiction"),
    "sform against pixdim": (formed(cube(1, 1, 1), None, (1, 1, 5)), (8, 9, 10), "contradiction"),
    "sform mirrored against qform": (formed(cube(1, 1, 2), cube(-1, 1, 2), (1, 1, 2)), (8, 9, 10), "contradiction"),
    "no form": (formed(None, None, (2, 2, 2)), (8, 9, 10), "no orientation"),
    "no spacing": (formed(None, None, (0, 0, 0)), (8, 9, 10), "no spacing"),
    "no spacing beside a qform": (formed(None, cube(2, 2, 2), (2, 2, 0)), (8, 9, 10), "no spacing"),
    "placeholder": (formed(cube(1, 1, 1), None, (1, 1, 1)), (40, 40, 8), "placeholder spacing"),
    "micrometres": (formed(cube(2, 2, 2), None, (2, 2, 2), "micron"), (8, 9, 10), "other units"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_what_a_header_leaves_open_is_said_with_all_its_forms(tmp_path: Path, case: str) -> None:
    make, shape, doubt = HEADERS[case]
    mask = np.zeros(shape, np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    (tmp_path / "a.nii").write_bytes(make(np.random.default_rng(0).normal(size=shape).astype(np.float32)))
    (tmp_path / "m.nii").write_bytes(make(mask))
    (tmp_path / "t.csv").write_text("image,mask\na.nii,m.nii\n")
    report = run(tmp_path / "t.csv", patient=None)
    said = [note for note in report.notes if f"header with {doubt}" in note]
    assert len(said) == 1
    assert all(word in said[0] for word in ("a.nii and 1 files more", "sform", "qform", "pixdim"))
    assert report.facts["a"].remarks[0].doubt == doubt


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_spacing_in_the_table_goes_before_the_headers_in_every_later_reading(tmp_path: Path, kind: str) -> None:
    mask = np.zeros((40, 40, 8), np.uint8)
    mask[2:4, 2:4, 2:4] = 1
    make = formed(cube(1, 1, 1), cube(0.5, 0.5, 5), (0.5, 0.5, 5))
    for name in "ab":
        scan = np.random.default_rng(ord(name)).integers(0, 99, (40, 40, 8)).astype(np.int16)
        (tmp_path / f"{name}.nii").write_bytes(make(scan))
        (tmp_path / f"{name}_m.nii").write_bytes(make(mask))
    rows = [{"image": "a.nii", "mask": "a_m.nii", "spacing": [0.5, 0.5, 5]}, {"image": "b.nii", "mask": "b_m.nii"}]
    (tmp_path / "t.csv").write_text("image;mask;spacing\na.nii;a_m.nii;0.5 x 0.5 x 5\n")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows[:1])))
    report = run(tmp_path / f"t.{kind}", tmp_path / "out" / "m.json", patient=None)
    assert not any("header" in note for note in report.notes)
    assert any("spacing of the table" in note for note in report.notes)
    case = Manifest.load(tmp_path / "out" / "m.json").cases[0]
    assert case.mask is not None
    image, drawn = nifti.read(case.images[0]), nifti.read(case.mask)
    check_files(case, [image], drawn)
    for voxels, affine in (image, drawn):
        assert nib.affines.voxel_sizes(affine).tolist() == [0.5, 0.5, 5]
        assert voxels.shape == (40, 40, 8)
    np.testing.assert_array_equal(image[0], nifti.read(tmp_path / "a.nii")[0])
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))  # one of two
    other = run(tmp_path / "t.jsonl", tmp_path / "out" / "m.json", patient=None)
    assert other.manifest
    assert other.manifest.cases[1].images == (tmp_path / "b.nii",)
    (tmp_path / "out" / "m_respaced" / "scans" / "b_0000.nii.gz").write_text("mine")
    with pytest.raises(DataError, match="m_respaced"):
        run(tmp_path / "t.jsonl", tmp_path / "out" / "m.json", patient=None)


@pytest.mark.parametrize("spacing", ["1 x 1", "1 x 1 x 0", "a x b x c", "1 x 1 x inf", "-1 1 1"])
def test_a_spacing_that_is_none_is_refused_with_its_line(tmp_path: Path, spacing: str) -> None:
    (tmp_path / "t.csv").write_text(f"image,spacing\na.nii,{spacing}\n")
    with pytest.raises(DataError, match=r"line 2 has spacing .* 0.5 x 0.5 x 5"):
        run(tmp_path / "t.csv", patient=None)


def test_forms_of_two_places_are_no_contradiction(source: Path) -> None:
    image = nib.Nifti1Image(nifti.read(image_of(source, NAME))[0], AFFINE)
    image.set_qform(moved(30.0), 1)  # of the scanner, while the sform is that of an atlas
    nib.save(image, image_of(source, NAME))
    assert not any("header" in note for note in run(source).notes)


@pytest.mark.parametrize(("name", "says"), [("ignore", True), ("Ignore", True), ("unannotated", True), ("rim", False)])
def test_voxels_that_nobody_annotated_are_no_lesion_and_are_counted(source: Path, name: str, says: bool) -> None:
    facts = json.loads((source / "dataset.json").read_text())
    facts["labels"] = {"background": 0, "tumour": 1, "core": 2, name: 3}
    (source / "dataset.json").write_text(json.dumps(facts))

    def border(voxels: np.ndarray) -> np.ndarray:
        voxels[6:] = 3  # a quarter
        return voxels

    edit(mask_of(source, NAME), border)
    report = run(source)
    assert report.manifest
    assert report.manifest.labels.lesions(Framing()) == ((1, 2) if says else (1, 2, 3))
    assert len(report.facts[NAME].lesion_voxels) == (1 if says else 2)
    said = [note for note in report.notes if "nobody annotated" in note]
    assert len(said) == says
    assert not says or ("25 to 25 %" in said[0] and NAME in said[0])
    edit(mask_of(source, NAME), lambda v: np.where(v == 3, v, 0))
    empty = run(source).problems
    assert [problem.found for problem in empty] == (["no lesion beside voxels that nobody annotated"] if says else [])


def test_a_label_255_without_a_name_is_doubted_beside_small_ones(source: Path, tmp_path: Path) -> None:
    edit(mask_of(source, NAME), lambda v: np.where(v == 2, 255, v).astype(np.uint8))
    table = tmp_path / "t.csv"
    table.write_text(f"image,mask\n{image_of(source, NAME)},{mask_of(source, NAME)}\n")
    assert any("label 255 beside [0, 1]" in note for note in run(table, patient=None).notes)
    edit(mask_of(source, NAME), lambda v: np.where(v, 255, 0).astype(np.uint8))
    assert not any("255" in note for note in run(table, patient=None).notes)  # a mask of black and white


def test_lesions_that_half_the_resolution_loses_are_counted(source: Path) -> None:
    edit(mask_of(source, NAME), one(1, np.uint8))  # inside the one lesion
    assert not any("smaller than" in note for note in run(source).notes)

    def dots(voxels: np.ndarray) -> np.ndarray:
        voxels[6, 7, 8] = voxels[0, 8, 9] = 1
        return voxels

    edit(mask_of(source, NAME), dots)
    report = run(source)
    assert any(note.startswith(f"2 of {len(NAMES) + 2} lesions are smaller") and NAME in note for note in report.notes)
    assert sorted(report.facts[NAME].lesion_voxels) == [1, 1, 27]


def test_scan_twice_in_one_patient_is_only_said(source: Path) -> None:
    flipped_copy(source, "P01_b")
    report = run(source)
    assert not report.problems
    assert report.manifest
    assert any("same scan 2 times in patient P01" in note for note in report.notes)
    assert len(run(source, patient=None).problems) == 2  # without the expression they are two patients


def test_absent_channels_filled_with_zeros_are_refused_by_name_and_are_no_leak(source: Path) -> None:
    files = [image_of(source, name, 1) for name in ("P01_a", "P02_a")]
    for file in files:
        edit(file, np.zeros_like)
    report = run(source)
    assert [problem.file for problem in report.problems] == [str(file) for file in files]
    assert all("one value throughout (0)" in problem.found for problem in report.problems)
    kept = run(source, skip_invalid=True)
    assert kept.manifest
    assert {c.case_id for c in kept.manifest.cases} == set(NAMES) - {"P01_a", "P02_a"}


def test_a_missing_channel_is_filled_where_asked_and_its_patients_only_train(source: Path) -> None:
    image_of(source, "P01_a", 1).unlink()
    edit(image_of(source, "P02_a", 1), np.zeros_like)
    asked = run(source).problems
    assert all("--fill-missing PET" in problem.cure for problem in asked)
    report = run(source, fill_missing=["PET"])
    assert report.manifest
    assert Manifest.load(report.path) == report.manifest
    cases = {case.case_id: case for case in report.manifest.cases}
    assert {name for name, case in cases.items() if case.filled} == {"P01_a", "P02_a"}
    assert all(case.split == "train" for name, case in cases.items() if name[:3] in {"P01", "P02"})
    assert cases["P02_a"].images[1] == image_of(source, "P02_a", 1)  # holds nothing already
    zeros, affine = nifti.read(cases["P01_a"].images[1])
    assert not zeros.any()
    assert not disagreement(SHAPE, AFFINE, zeros.shape, affine)
    assert any("PET was never scanned in 2 of 10 cases (P01_a, P02_a)" in note for note in report.notes)
    image_of(source, "P01_a", 1).write_bytes(b"")
    assert [p.case_id for p in run(source, fill_missing=["PET"]).problems] == ["P01_a"]  # damaged is not missing


def test_a_filled_channel_is_empty_to_loaders_and_no_window_is_taken_from_it(source: Path, tmp_path: Path) -> None:
    image_of(source, "P01_a", 1).unlink()
    manifest = run(source, fill_missing=["PET"]).manifest
    assert manifest
    for window in (Window("percentile"), Window("fixed", -3, 3)):
        recipe = Recipe(Grid((8, 8, 8), (1, 1.5, 2), (window, window)), Framing(), manifest.labels, AugmentConfig(), 0)
        cache = VolumeCache(tmp_path / "cache", recipe, manifest.cases)
        with pytest.warns(UserWarning, match="channel 1 of 1 of 10 cases was never scanned"):
            cache.build()
        images = {case.case_id: cache.volume(n).image for n, (case, _) in enumerate(cache.entries)}
        assert (images["P01_a"][1] == -1).all()
        assert images["P01_a"][0].std() > 0.1
        others = VolumeCache(tmp_path / "cache", recipe, [case for case in manifest.cases if not case.filled])
        assert cache.median_limits()[1] == others.median_limits()[1]


@pytest.mark.parametrize(("name", "says"), [("CT", "first channel"), ("T2", "expected PET")])
def test_what_cannot_be_filled_is_refused_in_words(source: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(source, fill_missing=[name])


def test_a_filled_channel_is_never_measured_on(source: Path, tmp_path: Path) -> None:
    image_of(source, "P01_a", 1).unlink()
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"test": ["P01_a", "P01_b"], "train": [n for n in NAMES if n[:3] != "P01"]}))
    report = run(source, fill_missing=["PET"], split_file=split)
    assert [problem.found for problem in report.problems] == ["a filled channel in split test"]
    manifest = run(source, fill_missing=["PET"]).manifest
    assert manifest
    with pytest.raises(DataError, match="move its patient to train"):
        manifest.with_splits(dict.fromkeys(NAMES, "test"))
    out = tmp_path / "m.json"
    manifest.save(out)
    assert "P01_a" not in {case.case_id for case in Cohort.load("real", out, ("train",)).cases}
    assert "P01_a" in {case.case_id for case in Cohort.load("real", out, ("train",), filled=True).cases}
    for name in NAMES:
        image_of(source, name, 1).unlink(missing_ok=True)
    with pytest.raises(DataError, match="no case has a scan of PET"):
        run(source, fill_missing=["PET"])


def test_healthy_cases_are_counted_and_every_split_keeps_lesions(source: Path) -> None:
    for name in NAMES[:4]:
        edit(mask_of(source, name), lambda v: v * 0)
    for name in NAMES[4:6]:
        mask_of(source, name).unlink()
    assert len(run(source).problems) == 2
    report = run(source, patient=None, healthy="^P0[0-2]", fractions=(0.5, 0.25, 0.25))
    assert report.manifest
    lesioned = {name: bool(report.facts[name].lesion_voxels) for name in NAMES}
    assert [name for name in NAMES if not lesioned[name]] == NAMES[:6]
    for split in ("train", "val", "test"):
        held = [lesioned[case.case_id] for case in report.manifest.cases if case.split == split]
        assert True in held
        assert False in held
    assert any(note.startswith("without a lesion: 6 cases") for note in report.notes)
    assert {case.case_id for case in report.manifest.cases if case.healthy} == set(NAMES[:6])
    assert {request.name for request in requests_of(report.manifest.cases)} == set(NAMES[6:])
    assert {case.case_id for case in report.manifest.masks_alone().cases} == set(NAMES[6:])
    made = next(case for case in report.manifest.cases if case.case_id == NAMES[4])
    assert made.mask is not None
    assert nifti.read_labels(made.mask)[0].shape == SHAPE
    for name in NAMES:
        if mask_of(source, name).is_file():
            edit(mask_of(source, name), lambda v: v * 0)
    with pytest.raises(DataError, match="every mask is empty"):
        run(source, healthy="")


def test_duplicated_ids_are_caught(source: Path, tmp_path: Path) -> None:
    rows = [{"case": "A", "images": [str(image_of(source, n))], "mask": str(mask_of(source, n))} for n in NAMES[:2]]
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    problems = run(table, patient=None).problems
    assert [problem.found for problem in problems] == ["the case id A 2 times"]
    with pytest.raises(DataError, match="none of the 2 cases"):
        run(table, patient=None, skip_invalid=True)


def test_missing_masks_need_consent(source: Path) -> None:
    mask_of(source, NAME).unlink()
    report = run(source, allow_unlabelled=True)
    assert not report.problems
    assert report.manifest
    assert next(case for case in report.manifest.cases if case.case_id == NAME).mask is None
    assert any(NAME in note and "without a mask: 1 cases" in note for note in report.notes)


def test_case_ids_can_be_file_names() -> None:
    case = Case("../a", "p", (Path("missing.nii"),), None)
    problems, facts = check_case(case, ("CT",), None, allow_unlabelled=True)
    assert [problem.found for problem in problems] == ["a case id with a slash or dots", "does not exist"]
    assert facts.voxels == ("",)
    assert facts.shape is None


def test_patient_expression_that_misses_a_case(source: Path) -> None:
    report = run(source, patient="P0[0-3]")
    assert {p.case_id for p in report.problems} == {"P04_a", "P04_b"}
    assert {p.found for p in report.problems} == {"no patient"}


def test_default_patients_are_said_aloud(source: Path) -> None:
    report = run(source, patient=None)
    assert [*report.volumes_per_patient] == [1, 1, 1]
    assert any("a patient of its own" in note for note in report.notes)
    assert not any("a patient of its own" in note for note in run(source).notes)


def test_undeclared_labels_are_the_union_of_the_masks(source: Path) -> None:
    facts = json.loads((source / "dataset.json").read_text())
    (source / "dataset.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "labels"}))
    edit(mask_of(source, NAME), one(9, np.uint8))
    edit(mask_of(source, "P02_a"), lambda v: v * 0 + 4)
    report = run(source)
    assert report.manifest
    assert report.manifest.labels.values == (0, 1, 2, 4, 9)


# What is written ------------------------------------------------------------------------------------------------


def test_skip_invalid_writes_only_the_good(source: Path) -> None:
    truncate(image_of(source, NAME))
    mask_of(source, "P02_b").unlink()
    report = run(source, skip_invalid=True)
    assert report.manifest
    assert {c.case_id for c in report.manifest.cases} == set(NAMES) - {NAME, "P02_b"}
    assert Manifest.load(report.path) == report.manifest
    assert any("left out 2 of 10" in note for note in report.notes)


def test_nothing_left_is_an_error(source: Path) -> None:
    for name in NAMES:
        mask_of(source, name).unlink()
    with pytest.raises(DataError, match=r"none of the 10 cases .* no mask"):
        run(source, skip_invalid=True)
    assert not (source.parent / "manifest.json").exists()


def test_manifest_moves_with_its_folder(source: Path, tmp_path: Path) -> None:
    report = run(source, source / "lists" / "manifest.json")
    moved_to = tmp_path / "elsewhere" / "moved"
    moved_to.parent.mkdir()
    source.rename(moved_to)
    loaded = Manifest.load(moved_to / "lists" / "manifest.json")
    assert report.manifest
    assert loaded.fingerprint == report.manifest.fingerprint
    assert all(path.is_file() for case in loaded.cases for path in (*case.images, case.mask) if path)
    assert str(tmp_path) not in (moved_to / "lists" / "manifest.json").read_text()
    again = run(moved_to)
    assert again.manifest
    assert again.manifest.fingerprint == loaded.fingerprint


def test_fingerprint_follows_one_voxel(source: Path) -> None:
    before = run(source)
    edit(image_of(source, NAME), lambda v: one(float(v[3, 3, 3]) + 0.01)(v))
    after = run(source)
    assert before.manifest
    assert after.manifest
    assert before.manifest.fingerprint != after.manifest.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda f: edit(mask_of(f, NAME), one(2, np.uint8)),
        lambda f: edit(image_of(f, NAME, 1), one(0.5)),
        lambda f: respace(f, 1.501),
    ],
    ids=["one mask voxel", "one voxel of the second channel", "spacing"],
)
def test_fingerprint_follows_mask_other_channels_and_affine(source: Path, change: Callable[[Path], None]) -> None:
    before = run(source).manifest
    change(source)
    after = run(source).manifest
    assert before
    assert after
    assert before.fingerprint != after.fingerprint
    changed = {b.case_id for b, a in zip(before.cases, after.cases, strict=True) if b.content != a.content}
    assert NAME in changed
    assert [case.voxels[0] for case in before.cases] == [
        case.voxels[0] for case in after.cases
    ]  # the first channel is the same
    assert len({case.content for case in after.cases}) == len(NAMES)
    assert Manifest.load(source.parent / "manifest.json").cases == after.cases


def test_fingerprint_does_not_follow_the_way_of_storing(source: Path) -> None:
    before = run(source).manifest
    for path in (image_of(source, NAME), image_of(source, NAME, 1), mask_of(source, NAME)):
        voxels, affine = nifti.read(path)
        image = nib.Nifti1Image(voxels.astype(np.float64), affine)
        nib.save(image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])), path)
    after = run(source).manifest
    assert before
    assert after
    assert before.fingerprint == after.fingerprint


def test_linked_files_keep_their_names(source: Path, tmp_path: Path) -> None:
    """git-annex and DVC keep the contents elsewhere, under a hash, and may link to another place tomorrow."""
    store = tmp_path / "store"
    store.mkdir()
    for number, path in enumerate(sorted(source.rglob("*.nii.gz"))):
        path.rename(store / f"{number}.nii.gz")
        path.symlink_to(store / f"{number}.nii.gz")
    manifest = run(source, source / "manifest.json").manifest
    text = (source / "manifest.json").read_text()
    assert f"imagesTr/{NAME}_0000.nii.gz" in text
    assert "store" not in text
    assert Manifest.load(source / "manifest.json") == manifest
    (tmp_path / "alias").symlink_to(source)  # a linked folder on the way
    run(tmp_path / "alias", tmp_path / "manifest.json")
    assert f'"alias/imagesTr/{NAME}_0000.nii.gz"' in (tmp_path / "manifest.json").read_text()


def test_a_manifest_in_a_linked_folder_finds_its_files_by_both_names(source: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "far" / "away" / "scratch"
    scratch.mkdir(parents=True)
    (tmp_path / "runs").symlink_to(scratch)
    run(source, tmp_path / "runs" / "manifest.json")
    for folder in (tmp_path / "runs", scratch):
        cases = Manifest.load(folder / "manifest.json").cases
        assert all(path.is_file() for case in cases for path in (*case.images, case.mask) if path)


def test_progress_is_a_line_in_a_log(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare(source, source.parent / "manifest.json", patient=PATIENT)
    assert "checking scans: 10/10 cases" in capfd.readouterr().err
    run(source)
    assert not capfd.readouterr().err


def test_only_a_manifest_is_replaced(source: Path, tmp_path: Path) -> None:
    kept = (source / "dataset.json").read_text()
    for out, words in [(source, "a folder"), (source / "dataset.json", "is not of this command")]:
        with pytest.raises(DataError, match=words):
            run(source, out)
    assert (source / "dataset.json").read_text() == kept
    run(source, seed=1)
    assert run(source, seed=2).manifest == Manifest.load(tmp_path / "manifest.json")


def test_unwritable_place_is_refused_before_reading(source: Path) -> None:
    truncate(image_of(source, NAME))
    with pytest.raises(DataError, match="cannot write"):
        run(source, source / "dataset.json" / "manifest.json")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        run(tmp_path / "empty")


# Splits ---------------------------------------------------------------------------------------------------------


def test_splits_are_by_patient_and_seeded(source: Path) -> None:
    def splits(**options: Any) -> dict[str, str]:
        manifest = run(source, **options).manifest
        assert manifest
        for case in manifest.cases:
            assert case.split == next(c.split for c in manifest.cases if c.patient_id == case.patient_id)
        return {case.case_id: case.split for case in manifest.cases}

    first = splits()
    assert set(first.values()) == {"train", "val", "test"}
    assert first == splits()
    assert first != splits(seed=1)


def test_split_does_not_depend_on_order_or_global_state() -> None:
    patients = [f"patient {n}" for n in range(40)]
    state = random.getstate()
    expected = split_patients(patients, seed=3)
    for seed in range(5):
        shuffled = random.Random(seed).sample(patients, 40) + patients[:7]
        random.seed(seed)
        np.random.seed(seed)
        assert split_patients(shuffled, seed=3) == expected
    random.setstate(state)
    split_patients(patients)
    assert random.getstate() == state
    counts = [list(expected.values()).count(split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert counts == [28, 6, 6]
    assert len({tuple(sorted(split_patients(patients, seed=s).items())) for s in range(10)}) == 10


@pytest.mark.parametrize("total", range(1, 30))
@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.9, 0.1, 0.0), (0.98, 0.01, 0.01), (0.1, 0.45, 0.45)])
def test_small_cohorts_split_sensibly(total: int, fractions: tuple[float, float, float]) -> None:
    found = list(split_patients([str(n) for n in range(total)], fractions).values())
    assert len(found) == total
    assert "train" in found
    assert total < 3 or "val" in found
    assert ("test" in found) == (fractions[2] > 0) or total < 3


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.5, 0.5)])
def test_wrong_fractions_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="add up to 1"):
        split_patients(["a"], fractions)


def test_split_file_is_honoured(source: Path, tmp_path: Path) -> None:
    wanted = {name: "val" if "P00" in name else "test" if "P01" in name else "train" for name in NAMES}
    as_json = tmp_path / "splits.json"
    as_json.write_text(json.dumps({s: [n for n in NAMES if wanted[n] == s] for s in ("train", "val", "test")}))
    as_csv = tmp_path / "splits.csv"
    as_csv.write_text("case,split\n" + "".join(f"{n},{s}\n" for n, s in wanted.items()))
    for path in (as_json, as_csv):
        assert read_split_file(path) == wanted
        manifest = run(source, split_file=path).manifest
        assert manifest
        assert {case.case_id: case.split for case in manifest.cases} == wanted
    truncate(image_of(source, NAME))  # a case left out later is still a case that the file may name
    assert run(source, split_file=as_json, skip_invalid=True).manifest


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s["train"].append("stranger"), "unknown cases stranger"),
        (lambda s: s["train"].remove("P00_a"), "misses cases P00_a"),
        (lambda s: s["val"].append("P00_a"), "P00_a into two splits"),
        (lambda s: s["val"].append(s["train"].pop(0)), "patients P00 are in two splits"),
        (lambda s: s.update(holdout=[]) or s["holdout"].append("P00_a"), "'holdout'"),
        (lambda s: s.update(train="P00_a"), "no JSON object of lists"),
    ],
)
def test_wrong_split_files_are_refused(source: Path, tmp_path: Path, change: Callable, word: str) -> None:
    splits = {"train": list(NAMES), "val": []}
    change(splits)
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DataError, match=word):
        run(source, split_file=tmp_path / "splits.json")


def test_splits_of_a_table_are_used(source: Path, tmp_path: Path) -> None:
    def table(split_of: Callable[[str], str]) -> Path:
        lines = [f"{n},{n[:3]},{image_of(source, n)},{mask_of(source, n)},{split_of(n)}" for n in NAMES]
        (tmp_path / "table.csv").write_text("\n".join(["case,patient,image,mask,split", *lines]))
        return tmp_path / "table.csv"

    manifest = run(table(lambda n: "test" if "P04" in n else "train"), patient=None).manifest
    assert manifest
    assert {c.case_id for c in manifest.select("test")} == {"P04_a", "P04_b"}
    with pytest.raises(DataError, match="P00, P01"):
        run(table(lambda n: "test" if n.endswith("b") else "train"), patient=None)


# Report ---------------------------------------------------------------------------------------------------------


def test_report_shows_every_problem_in_full(source: Path) -> None:
    truncate(image_of(source, NAME))
    mask_of(source, "P02_b").unlink()
    report = run(source)
    text = text_of(report)
    for problem in report.problems:
        for cell in (problem.file.removeprefix(f"{source}/"), problem.found, problem.expected, problem.cure):
            assert cell in text
    assert "2 problems" in text
    assert "nothing was written" in text
    narrow = text_of(report, width=60)
    assert "…" not in narrow
    assert "\\[" not in narrow


def test_report_sums_up_the_cohort(source: Path) -> None:
    report = run(source)
    text = text_of(report)
    assert report.manifest
    for words in (report.manifest.fingerprint, str(report.path), "tumour: in 10 cases", "8 x 9 x 10", "1 x 1.5 x 2"):
        assert words in text
    assert "least 2, median 2, most 2" in text
    assert "nothing was written" not in text


@pytest.mark.parametrize("how", ["flag", "dataset.json"])
def test_what_a_program_made_is_never_real(source: Path, tmp_path: Path, how: str) -> None:
    """Our own samples say so in their dataset.json; those of other programs need the flag."""
    assert {case.source for case in run(source, tmp_path / "real.json").manifest.cases} == {"real"}  # type: ignore[union-attr]
    if how == "dataset.json":
        value = json.loads((source / "dataset.json").read_text())
        (source / "dataset.json").write_text(json.dumps({**value, "SYNTHETIC": True}))
    report = run(source, tmp_path / "made.json", synthetic=how == "flag")
    assert {case.source for case in Manifest.load(tmp_path / "made.json").cases} == {"external"}
    assert any("synthetic" in note for note in report.notes)


def test_two_channels_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    file = source / "dataset.json"
    names = json.loads(file.read_text())["channel_names"]
    assert len(names) > 1
    file.write_text(json.dumps({**json.loads(file.read_text()), "channel_names": dict.fromkeys(names, "MR")}))
    with pytest.raises(DataError, match="two channels one name"):
        run(source, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()
