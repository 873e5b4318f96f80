"""One cohort, in every layout that people have: the same scans, the same patients, the same masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from latentsynth.data import nifti
from latentsynth.data.identity import volume_hash
from latentsynth.data.intake.conversion import read_other
from latentsynth.data.intake.layouts import recognise
from latentsynth.data.intake.prepare import explain, prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError

SHAPE = (9, 8, 7)
AFFINE = np.array([[0, -1.5, 0, 10], [2.0, 0, 0, -20], [0, 0, 3.0, 30], [0, 0, 0, 1]])  # turned, and no cube
CASES = ("00005-000", "00005-101", "00006-000", "00009-000", "00011-000", "00020-000")
CHANNELS = ("t1n", "t1c", "t2w", "t2f")


def scan(case: str, channel: int) -> np.ndarray:
    """A channel of a made-up case."""
    return np.random.default_rng([int(case.replace("-", "")), channel]).integers(0, 900, SHAPE).astype(np.int16)


def mask(case: str) -> np.ndarray:
    """Its mask, of labels 1 to 3."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:7, 2:6, 2:5] = 2
    drawn[3:5, 3:5, 2:4] = 1
    drawn[5, 4, 3] = 3
    return np.roll(drawn, len(case) % 2, axis=0)


def put(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(path, voxels, AFFINE)


def brats_new(folder: Path) -> None:
    for case in CASES:
        name = f"BraTS-GLI-{case}"
        for number, channel in enumerate(CHANNELS):
            put(folder / "TrainingData" / name / f"{name}-{channel}.nii.gz", scan(case, number))
        put(folder / "TrainingData" / name / f"{name}-seg.nii.gz", mask(case))
    (folder / "mapping.csv").write_text("BraTS,Site\nBraTS-GLI-00005,1\n")  # not a table of scans


def brats_old(folder: Path) -> None:
    for number, case in enumerate(CASES):
        name = f"BraTS20_Training_{number:03d}"
        for n, channel in enumerate(("t1", "t1ce", "t2", "flair")):
            put(folder / name / f"{name}_{channel}.nii", scan(case, n))
        put(folder / name / f"{name}_seg.nii", np.where(mask(case) == 3, 4, mask(case)))


def bids(folder: Path) -> None:
    (folder / "derivatives" / "manual").mkdir(parents=True)
    (folder / "dataset_description.json").write_text('{"Name": "made up", "BIDSVersion": "1.9.0"}')
    for case in CASES:
        subject, session = (f"{word}-{part}" for word, part in zip(("sub", "ses"), case.split("-"), strict=True))
        stem = f"{subject}_{session}"
        for n, channel in enumerate(("T1w", "ce-gd_T1w", "T2w", "FLAIR")):
            put(folder / subject / session / "anat" / f"{stem}_{channel}.nii.gz", scan(case, n))
        derived = folder / "derivatives" / "manual" / subject / session / "anat"
        put(derived / f"{stem}_space-orig_label-lesion_dseg.nii.gz", mask(case))
        put(derived / f"{stem}_desc-brain_mask.nii.gz", np.ones(SHAPE, np.uint8))
    (folder / "derivatives" / "manual" / "desc-lesion_dseg.tsv").write_text(
        "index\tname\n0\tbackground\n1\tcore\n2\toedema\n3\tenhancing\n"
    )


def as_other(path: Path, voxels: np.ndarray) -> None:
    """Writes with SimpleITK, in its own world."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(voxels.transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path))


def data_list(folder: Path) -> None:
    entries = []
    for case in CASES:
        images = [f"scans/{case}_{n:04d}.nii.gz" for n in range(4)]
        for n, name in enumerate(images):
            put(folder / name, scan(case, n))
        put(folder / f"{case}_seg.nii.gz", mask(case))
        entries.append({"image": images, "label": f"{case}_seg.nii.gz", "fold": 0})
    (folder / "dataset.json").write_text(json.dumps({"training": entries}))


def four_axes(folder: Path) -> None:
    entries = []
    for case in CASES:
        together = np.stack([scan(case, n) for n in range(4)], axis=-1)
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(together, AFFINE), folder / "imagesTr" / f"{case}.nii.gz")
        put(folder / "labelsTr" / f"{case}.nii.gz", mask(case))
        entries.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (folder / "dataset.json").write_text(json.dumps({"modality": modality, "training": entries}))


def nnunet_nrrd(folder: Path) -> None:
    for case in CASES:
        for n in range(4):
            as_other(folder / "imagesTr" / f"{case}_{n:04d}.nrrd", scan(case, n))
        as_other(folder / "labelsTr" / f"{case}.nrrd", mask(case))
    names = {"0": "a", "1": "b", "2": "c", "3": "d"}
    labels = {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}
    facts = {"channel_names": names, "labels": labels, "regions_class_order": [2, 1, 3], "file_ending": ".nrrd"}
    (folder / "dataset.json").write_text(json.dumps(facts))


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "BraTS since 2023": (brats_new, "brats", 5),  # of which two are visits of one patient
    "BraTS 2020": (brats_old, "brats", 6),
    "BIDS": (bids, "bids", 5),
    "MONAI data list": (data_list, "decathlon", 6),
    "Decathlon, channels along a fourth axis": (four_axes, "decathlon", 6),
    "nnU-Net 2, NRRD and regions": (nnunet_nrrd, "nnunet", 6),
}


def prepared(folder: Path, out: Path) -> Manifest:
    report = prepare(folder, out, progress=False)
    assert not report.problems, report.problems
    assert report.manifest is not None
    return report.manifest


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_scans(tmp_path: Path, name: str) -> None:
    build, layout, patients = LAYOUTS[name]
    source = tmp_path / "source"
    source.mkdir()
    build(source)
    assert recognise(source) == layout
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    manifest = prepared(source, tmp_path / "made" / "manifest.json")
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert len(manifest.channels) == 4
    assert len(manifest.cases) == len(CASES)
    assert len({case.patient_id for case in manifest.cases}) == patients
    # What is read of every case is what was made, in place: by content, whatever the files are called.
    order = (3, 0, 2, 1) if layout == "bids" else range(4)  # by name there: FLAIR, T1w, T2w, ce-gd_T1w
    wanted = {tuple(volume_hash(scan(case, n), AFFINE) for n in order) for case in CASES}
    found = {tuple(volume_hash(*nifti.read(path)) for path in case.images) for case in manifest.cases}
    assert found == wanted
    for case in manifest.cases:
        assert case.mask is not None
        drawn, affine = nifti.read_labels(case.mask)
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
        assert int((drawn > 0).sum()) == int((mask(CASES[0]) > 0).sum())


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("BraTS since 2023", ("background", "necrotic tumour core", "oedema", "enhancing tumour")),
        ("BraTS 2020", ("background", "necrotic tumour core", "oedema", "enhancing tumour")),
        ("BIDS", ("background", "core", "oedema", "enhancing")),
        ("nnU-Net 2, NRRD and regions", ("background", "core", "whole", "enhancing")),
    ],
)
def test_labels_bear_the_names_that_the_layout_knows(tmp_path: Path, name: str, labels: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    LAYOUTS[name][0](source)
    assert prepared(source, tmp_path / "manifest.json").labels.names == labels


def test_sessions_of_a_patient_are_never_split(tmp_path: Path) -> None:
    for seed in range(5):
        source = tmp_path / f"{seed}"
        source.mkdir()
        brats_new(source)
        report = prepare(source, tmp_path / f"{seed}.json", seed=seed, progress=False)
        assert report.manifest is not None
        splits = {case.split for case in report.manifest.cases if "00005" in case.case_id}
        assert len(splits) == 1


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nhdr"])
def test_other_formats_are_read_in_place(tmp_path: Path, ending: str) -> None:
    as_other(tmp_path / f"a{ending}", scan(CASES[0], 0))
    voxels, affine = read_other(tmp_path / f"a{ending}")
    assert np.array_equal(voxels, scan(CASES[0], 0))
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)


def test_a_damaged_file_of_another_format_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    nnunet_nrrd(source)
    damaged = source / "imagesTr" / f"{CASES[0]}_0000.nrrd"
    damaged.write_bytes(b"NRRD0004\nnothing else")
    with pytest.raises(DataError, match=r"_0000\.nrrd is not readable .*copy or convert it again"):
        read_other(damaged)
    report = prepare(source, tmp_path / "manifest.json", progress=False, skip_invalid=True)
    assert {problem.case_id for problem in report.problems} == {CASES[0]}
    assert report.manifest is not None
    assert len(report.manifest.cases) == len(CASES) - 1


@pytest.mark.parametrize("layout", ["two folders", "one folder", "folder per case"])
def test_plain_pairs_are_found(tmp_path: Path, layout: str) -> None:
    places = {
        "two folders": ("images/{}.nii.gz", "masks/{}_mask.nii.gz"),
        "one folder": ("{}.nii.gz", "{}_seg.nii.gz"),
        "folder per case": ("{0}/image.nii.gz", "{0}/label.nii.gz"),
    }[layout]
    for case in CASES:
        for place, voxels in zip(places, (scan(case, 0), mask(case)), strict=True):
            put(tmp_path / "source" / place.format(f"case{case}"), voxels)
    manifest = prepared(tmp_path / "source", tmp_path / "manifest.json")
    assert [case.case_id for case in manifest.cases] == [f"case{case}" for case in CASES]
    assert all(case.mask is not None for case in manifest.cases)


def test_channels_on_their_own_grids_are_refused_and_resampled_when_asked(tmp_path: Path) -> None:
    axes = np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij")
    smooth = sum(np.sin(axis / 4 + n) for n, axis in enumerate(axes)).astype(np.float32)
    own = np.diag([2.0, 2.0, 2.0, 1.0])
    own[:3, 3] = 0.5
    coarse = sum(
        np.sin((2 * np.arange(12.0) + 0.5).reshape([-1 if a == n else 1 for a in range(3)]) / 4 + n) for n in range(3)
    )
    for case in ("a", "b", "c"):
        noise = np.random.default_rng(ord(case)).normal(0, 1e-3, smooth.shape).astype(np.float32)
        (tmp_path / "source" / case).mkdir(parents=True)
        nifti.write(tmp_path / "source" / case / "t1.nii.gz", smooth + noise, np.eye(4))
        nifti.write(tmp_path / "source" / case / "t2.nii.gz", coarse.astype(np.float32) + noise[:12, :12, :12], own)
        lesion = np.zeros(smooth.shape, np.uint8)
        lesion[8:12, 8:12, 8:12] = 1
        nifti.write(tmp_path / "source" / case / "seg.nii.gz", lesion, np.eye(4))
    assert prepare(tmp_path / "source", tmp_path / "refused.json", progress=False).problems
    report = prepare(tmp_path / "source", tmp_path / "manifest.json", resample=True, progress=False)
    assert report.manifest is not None
    assert any("3 files were resampled onto the first channel" in note for note in report.notes)
    laid, affine = nifti.read(report.manifest.cases[0].images[1])
    np.testing.assert_allclose(affine, np.eye(4))
    inside = (slice(4, 20),) * 3
    assert float(np.abs(laid - smooth)[inside].max()) < 0.05  # of a range of 6


def test_explain_says_what_was_understood_and_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    brats_new(source)
    (source / "TrainingData" / "BraTS-GLI-00006-000" / "BraTS-GLI-00006-000-t2w.nii.gz").unlink()
    before = sorted(tmp_path.rglob("*"))
    rows = dict(explain(source))
    assert rows["layout"].startswith("brats (recognised")
    assert rows["channels"] == "0: t1n, 1: t1c, 2: t2w, 3: t2f"
    assert rows["cases"] == "6, 6 with a mask"
    assert rows["patients"] == "5"
    assert "00006-000-t2w" in rows["missing"] or "00006-000_t2w" in rows["missing"]
    assert sorted(tmp_path.rglob("*")) == before


BALL = (slice(2, 4),) * 3  # two lesions that overlap in one voxel
BLOCK = (slice(3, 6), slice(3, 6), slice(3, 6))


def marked(where: tuple[slice, ...]) -> np.ndarray:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[where] = 1
    return drawn


SEVERAL = {  # where image and two masks of a case stand
    "flat": ("{0}.nii.gz", "{0}_lesion1.nii.gz", "{0}_lesion_2.nii.gz"),
    "two folders": ("images/{0}.nii.gz", "masks/{0}_lesion1.nii.gz", "masks/{0}_lesion2.nii.gz"),
    "folder per case": ("{0}/{0}_t1.nii.gz", "{0}/{0}_seg-1.nii.gz", "{0}/{0}_seg-2.nii.gz"),
    "bids": (
        "sub-{0}/anat/sub-{0}_T1w.nii.gz",
        "derivatives/a/sub-{0}/anat/sub-{0}_label-lesion1_mask.nii.gz",
        "derivatives/a/sub-{0}/anat/sub-{0}_label-lesion2_mask.nii.gz",
    ),
}


@pytest.mark.parametrize("layout", SEVERAL)
def test_several_masks_of_one_scan_are_joined_where_somebody_said_how(tmp_path: Path, layout: str) -> None:
    for case in "abc":
        for place, voxels in zip(SEVERAL[layout], (scan(str(ord(case)), 0), marked(BLOCK), marked(BALL)), strict=True):
            put(tmp_path / "source" / place.format(case), voxels)
    rows = dict(explain(tmp_path / "source"))
    assert rows["cases"] == "3, 3 with a mask"
    assert "--several-masks" in rows["several masks"]
    with pytest.raises(DataError, match=r"3 cases have several masks .*--several-masks union .*--several-masks labels"):
        prepare(tmp_path / "source", tmp_path / "m.json", progress=False)
    either, ball = marked(BLOCK) | marked(BALL), marked(BALL) == 1
    for how, expected in (("union", either), ("labels", np.where(ball, 2, either))):  # the ball is smaller: on top
        manifest = prepare(tmp_path / "source", tmp_path / f"{how}.json", several_masks=how, progress=False).manifest
        assert manifest is not None
        assert len(manifest.labels) == (2 if how == "union" else 3)
        assert all(case.mask is not None for case in manifest.cases)
        for case in manifest.cases:
            np.testing.assert_array_equal(nifti.read_labels(case.mask or "")[0], expected)


@pytest.mark.parametrize("encoded", [False, True])
def test_a_mask_with_a_channel_per_structure_is_joined(tmp_path: Path, encoded: bool) -> None:
    channels = [marked(BLOCK), marked(BALL)]
    if encoded:  # every voxel is marked once, and the first channel is the background
        channels[0] &= ~(marked(BALL) == 1)
        channels = [1 - channels[0] - channels[1], *channels]
    for case in "abc":
        put(tmp_path / "source" / f"{case}.nii.gz", scan(str(ord(case)), 0))
        four = nib.Nifti1Image(np.stack(channels, axis=-1).astype(np.uint8), AFFINE)
        nib.save(four, tmp_path / "source" / f"{case}_seg.nii.gz")
    refused = prepare(tmp_path / "source", tmp_path / "m.json", progress=False)
    assert all("--several-masks" in problem.cure for problem in refused.problems)
    manifest = prepare(tmp_path / "source", tmp_path / "m.json", several_masks="labels", progress=False).manifest
    assert manifest is not None
    wanted = np.where(marked(BALL) == 1, 2, marked(BLOCK))
    np.testing.assert_array_equal(nifti.read_labels(manifest.cases[0].mask or "")[0], wanted)


def test_masks_of_two_grids_are_not_joined(tmp_path: Path) -> None:
    for n, case in enumerate("abc"):
        put(tmp_path / "source" / f"{case}.nii.gz", scan(str(n), 0))
        put(tmp_path / "source" / f"{case}_lesion1.nii.gz", marked(BALL))
        put(tmp_path / "source" / f"{case}_lesion2.nii.gz", marked(BALL)[:-1])
    with pytest.raises(DataError, match=r"lesion2\.nii\.gz is on another grid"):
        prepare(tmp_path / "source", tmp_path / "m.json", several_masks="union", progress=False)


def test_a_number_at_the_end_of_a_scan_makes_no_mask_of_it(tmp_path: Path) -> None:
    for case in ("brain_lesion_007", "brain_lesion_008", "brain_lesion_009"):
        put(tmp_path / "source" / f"{case}.nii.gz", scan(case[-1], 0))
        put(tmp_path / "source" / f"{case}_mask.nii.gz", marked(BALL))
    rows = dict(explain(tmp_path / "source"))
    assert rows["cases"] == "3, 3 with a mask"


def test_a_case_folder_without_a_mask_is_a_case(tmp_path: Path) -> None:
    brats_new(tmp_path / "source")
    name = f"BraTS-GLI-{CASES[0]}"
    (tmp_path / "source" / "TrainingData" / name / f"{name}-seg.nii.gz").unlink()
    assert [p.found for p in prepare(tmp_path / "source", tmp_path / "m.json", progress=False).problems] == ["no mask"]


@pytest.mark.parametrize("place", ["P{0}/ses-{1}/T1", "all/P{0}/{1}/P{0}_{1}_T1", "P{0}/P{0}_{1}/T1"])
def test_sessions_in_folders_of_a_patient_stay_together_under_names_of_their_own(tmp_path: Path, place: str) -> None:
    for patient in range(4):
        for visit in ("pre", "post"):
            file = tmp_path / "source" / f"{place.format(patient, visit)}.nii.gz"
            put(file, scan(f"{patient}{len(visit)}", 0))
            put(file.with_name(file.name.replace("T1", "seg")), marked(BALL))
    (tmp_path / "source" / "again").symlink_to(tmp_path / "source")  # leads back to where it lies
    manifest = prepare(tmp_path / "source", tmp_path / "m.json", progress=False).manifest
    assert manifest is not None
    assert len({case.case_id for case in manifest.cases}) == 8
    assert {case.patient_id for case in manifest.cases} == {"P0", "P1", "P2", "P3"}
    assert manifest.labels.names == ("background", "label 1")  # T1 alone is no BraTS


def test_dicom_is_refused_with_the_tool_that_converts_it(tmp_path: Path) -> None:
    (tmp_path / "P1" / "series").mkdir(parents=True)
    (tmp_path / "P1" / "series" / "IM1.dcm").write_bytes(b"DICM")
    with pytest.raises(DataError, match=r"DICOM series .*dcm2niix"):
        recognise(tmp_path)
