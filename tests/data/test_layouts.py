"""The same scans in four layouts are the same cohort; everything else is refused in one line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentsynth.data import nifti
from latentsynth.data.intake.layouts import read_cohort, recognise
from latentsynth.data.intake.prepare import prepare
from latentsynth.errors import ConfigError, DataError, UnknownNameError
from latentsynth.types import Labels

SHAPE = (5, 6, 7)
CASES = ("P1_a", "P1_b", "P2_a", "P3_a")


def scans(seed: int, channels: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    """Images and mask of one made-up case."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 2:4, 2:5] = 1
    return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(channels)], mask


def put(path: Path, voxels: np.ndarray) -> None:
    nifti.write(path, voxels, np.diag([1.0, 1.5, 2.0, 1.0]))


def put_json(folder: Path, value: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(value))
    return folder


def nnunet(folder: Path, **changes: Any) -> Path:
    for number, case in enumerate(CASES):
        images, mask = scans(number)
        put(folder / "imagesTr" / f"{case}_0000.nii.gz", images[0])
        put(folder / "labelsTr" / f"{case}.nii.gz", mask)
    facts = {"channel_names": {"0": "image"}, "labels": {"background": 0, "label 1": 1}, "file_ending": ".nii.gz"}
    return put_json(folder, {**facts, **changes})


def old_nnunet(folder: Path) -> Path:
    """nnU-Net 1: the Decathlon's dataset.json, but file names with a channel number that it does not list."""
    nnunet(folder)
    entries = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in CASES]
    labels = {"0": "background", "1": "label 1"}
    return put_json(folder, {"modality": {"0": "image"}, "labels": labels, "training": entries})


def decathlon(folder: Path) -> Path:
    for number, case in enumerate(CASES):
        images, mask = scans(number)
        put(folder / "imagesTr" / f"{case}.nii.gz", images[0])
        put(folder / "labelsTr" / f"{case}.nii.gz", mask)
    entries = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in reversed(CASES)]
    labels = {"0": "background", "1": "label 1"}
    return put_json(folder, {"modality": {"0": "image"}, "labels": labels, "training": entries, "test": ["./x.nii.gz"]})


def table_csv(folder: Path) -> Path:
    decathlon(folder)
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, delimiter=";")  # what a German spreadsheet writes
        writer.writerow(["Case", "image", "mask", "scanner"])
        writer.writerows([c, f"imagesTr/{c}.nii.gz", f"labelsTr/{c}.nii.gz", "A"] for c in CASES)
    return folder / "cases.csv"


def table_jsonl(folder: Path) -> Path:
    decathlon(folder)
    rows = [{"case": c, "images": [f"imagesTr/{c}.nii.gz"], "mask": f"labelsTr/{c}.nii.gz"} for c in CASES]
    (folder / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return folder / "cases.jsonl"


LAYOUTS = [
    (nnunet, "nnunet"),
    (old_nnunet, "nnunet"),
    (decathlon, "decathlon"),
    (table_csv, "table"),
    (table_jsonl, "table"),
]


@pytest.mark.parametrize(("build", "layout"), LAYOUTS)
def test_every_layout_is_recognised(tmp_path: Path, build: Any, layout: str) -> None:
    assert recognise(build(tmp_path / "source")) == layout


def test_every_layout_gives_the_same_cases(tmp_path: Path) -> None:
    manifests = []
    for build, _ in LAYOUTS:
        source = build(tmp_path / build.__name__)
        report = prepare(source, tmp_path / f"{build.__name__}.json", patient=r"^(P\d+)_", progress=False)
        assert report.manifest
        assert not report.problems
        manifests.append(report.manifest)
    assert len({manifest.fingerprint for manifest in manifests}) == 1
    first = manifests[0]
    assert [case.case_id for case in first.cases] == list(CASES)
    assert [case.patient_id for case in first.cases] == ["P1", "P1", "P2", "P3"]
    assert first.labels == Labels((0, 1))


def test_multichannel_tables_keep_channel_order(tmp_path: Path) -> None:
    named = tmp_path / "named.csv"
    named.write_text("patient,image:T1,image:CT,mask\nP1,t1.nii,ct.nii,m.nii\n")
    numbered = tmp_path / "numbered.csv"
    numbered.write_text("case,image_1,image_0\nA,b.nii,a.nii\n")
    by_name = tmp_path / "named.jsonl"
    by_name.write_text('{"case": 7, "patient": 3, "images": {"T1": "t1.nii", "CT": "ct.nii"}, "mask": null}\n')
    cohort = read_cohort(named)
    assert (cohort.channels, [p.name for p in cohort.cases[0].images]) == (("T1", "CT"), ["t1.nii", "ct.nii"])
    assert cohort.patients_declared
    assert cohort.cases[0].patient_id == "P1"
    assert cohort.cases[0].case_id == "t1"
    cohort = read_cohort(numbered)
    assert (cohort.channels, [p.name for p in cohort.cases[0].images]) == (("image_0", "image_1"), ["a.nii", "b.nii"])
    assert cohort.cases[0].mask is None
    cohort = read_cohort(by_name)
    assert cohort.channels == ("T1", "CT")
    assert (cohort.cases[0].case_id, cohort.cases[0].patient_id, cohort.cases[0].mask) == ("7", "3", None)


@pytest.mark.parametrize(
    ("spelt", "channels"),
    [
        ({"image": "0.nii"}, ("image",)),
        ({"image": ["0.nii"]}, ("image",)),
        ({"images": "0.nii"}, ("image",)),
        ({"image_0": "0.nii"}, ("image",)),
        ({"image": ["0.nii", "1.nii"]}, ("image_0", "image_1")),
        ({"image_0": "0.nii", "image_1": "1.nii"}, ("image_0", "image_1")),
        ({"image": {"T1": "0.nii", "T2": "1.nii"}}, ("T1", "T2")),
        ({"image:T1": "0.nii", "image:T2": "1.nii"}, ("T1", "T2")),
    ],
    ids=str,
)
def test_lines_of_json_take_every_name_that_columns_have(
    tmp_path: Path, spelt: dict[str, Any], channels: tuple[str, ...]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"case": "a", **spelt, "Mask": "m.nii"}))
    cohort = read_cohort(tmp_path / "a.jsonl")
    assert cohort.channels == channels
    assert [path.name for path in cohort.cases[0].images] == [f"{n}.nii" for n in range(len(channels))]
    assert cohort.cases[0].mask == tmp_path / "m.nii"
    assert not cohort.notes


def capitals(path: Path) -> None:
    path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))


def unpacked(path: Path) -> None:
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_files_of_every_ending_are_read(tmp_path: Path, ending: str) -> None:
    source = nnunet(tmp_path / "source", file_ending=ending)
    for change, case in ((capitals, CASES[0]), (unpacked, CASES[1])):
        change(source / "imagesTr" / f"{case}_0000.nii.gz")
        change(source / "labelsTr" / f"{case}.nii.gz")
    (source / "labelsTr" / "P9_a.png").write_bytes(b"")
    report = prepare(source, tmp_path / "m.json", progress=False)
    assert report.manifest
    assert [case.case_id for case in report.manifest.cases] == list(CASES)
    assert any("P9_a.png" in note for note in report.notes)
    masks = read_cohort(source / "labelsTr", "masks")
    assert [case.case_id for case in masks.cases] == list(CASES)
    assert any("P9_a.png" in note for note in masks.notes)
    put(source / "labelsTr" / f"{CASES[1]}.nii.gz", scans(1)[1])
    refused(source, f"{CASES[1]} twice")


def test_unused_columns_are_said_aloud(tmp_path: Path) -> None:
    assert read_cohort(table_csv(tmp_path)).notes == ("columns that are not used: scanner",)


def test_a_table_in_a_folder_is_found_and_two_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image\nx.nii\n")
    assert recognise(tmp_path) == "table"
    (tmp_path / "b.csv").write_text("image\nx.nii\n")
    with pytest.raises(DataError, match=r"a\.csv, b\.csv"):
        recognise(tmp_path)


def test_hidden_and_unnumbered_files_are_no_cases(tmp_path: Path) -> None:
    source = nnunet(tmp_path)
    (source / "imagesTr" / "._P1_a_0000.nii.gz").write_bytes(b"macOS")
    (source / "imagesTr" / "stray.nii.gz").write_bytes(b"")
    cohort = read_cohort(source)
    assert [case.case_id for case in cohort.cases] == list(CASES)
    assert any("stray.nii.gz" in note for note in cohort.notes)


def test_patient_expression(tmp_path: Path) -> None:
    source = nnunet(tmp_path)
    assert [c.patient_id for c in read_cohort(source, patient_regex=r"P\d").cases] == ["P1", "P1", "P2", "P3"]
    assert [c.patient_id for c in read_cohort(source, patient_regex=r"_(.)").cases] == ["a", "b", "a", "a"]
    assert [c.patient_id for c in read_cohort(source, patient_regex="P[12]").cases] == ["P1", "P1", "P2", ""]
    assert not read_cohort(source).patients_declared
    with pytest.raises(ConfigError, match="not a regular expression"):
        read_cohort(source, patient_regex="(")


def refused(source: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_cohort(source)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_sources_without_a_layout_are_refused(tmp_path: Path) -> None:
    three = ("nnU-Net raw", "Decathlon", "table")
    refused(tmp_path / "missing", "does not exist", *three)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "the folder is empty", *three)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "scan.dcm").write_bytes(b"")
    refused(tmp_path / "other", "scan.dcm", "dcm2niix")
    refused(tmp_path / "other" / "scan.dcm", "is no table", *three)
    refused(put_json(tmp_path / "keys", {"hello": 1}), "hello", *three)
    refused(put_json(tmp_path / "list", []), "expected an object")
    refused(put_json(tmp_path / "no_cases", {"channel_names": {"0": "CT"}, "labels": {"background": 0}}), *three)
    refused(put_json(tmp_path / "no_training", {"modality": {"0": "CT"}, "training": []}), *three)
    with pytest.raises(UnknownNameError, match="dicom"):
        read_cohort(tmp_path, layout="dicom")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "'b'"),
        ({"labels": {"0": "background", "1": "tumour", "2": "tumour"}}, "'tumour'"),
        ({"labels": {"background": 0, "a": -1}}, "whole number"),
        ({"labels": {"background": 1, "a": 2}}, "background with another value"),
        ({"labels": [0, 1]}, "expected names"),
        ({"channel_names": {"1": "CT"}}, "channels"),
        ({"channel_names": {str(n): "CT" for n in range(9)}}, "expected 1 to 8"),
        ({"file_ending": ".png"}, "'.png'"),
        ({"channel_names": {"0": "T1", "1": "T1"}}, "one name"),
    ],
)
def test_wrong_declarations_are_refused(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    refused(nnunet(tmp_path, **changes), word)


def test_label_declarations_of_both_kinds(tmp_path: Path) -> None:
    expected = Labels((0, 1, 3), ("background", "oedema", "core"))
    by_name = {"core": 3, "oedema": 1}
    by_value = {"3": "core", "0": "background", "1": "oedema"}
    as_text = {"background": 0, "core": "3", "oedema": 1}
    for number, labels in enumerate((by_name, by_value, as_text)):
        assert read_cohort(nnunet(tmp_path / str(number), labels=labels)).labels == expected


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.csv", "", "columns"),
        ("a.csv", "case,mask\na,b\n", "image:NAME"),
        ("a.csv", "image,image_0\na,b\n", "columns"),
        ("a.csv", "image_1,image_2\na,b\n", "columns"),
        ("a.csv", "image,mask\n", "lists no case"),
        ("a.csv", "image,mask\na.nii\n", "line 2 has 1 cells"),
        ("a.csv", "image,split\na.nii,train\nb.nii,\n", "line 3 has split ''"),
        ("a.csv", "image,split\na.nii,validation\n", "'validation'"),
        ("a.jsonl", "", "lists no case"),
        ("a.jsonl", '{"images": ["a.nii"]}\n{"images"', "line 2 is not JSON"),
        ("a.jsonl", '{"images": [1]}\n', "line 1"),
        ("a.jsonl", '["a.nii"]\n', "line 1"),
        ("a.jsonl", '{"images": "a.nii", "mask": 3}\n', "line 1"),
        ("a.jsonl", '{"image": 3}\n', "line 1"),
        ("a.jsonl", '{"image": "a.nii", "images": ["b.nii"]}\n', "one way"),
        ("a.jsonl", '{"image:T1": "a.nii", "images": ["b.nii"]}\n', "one way"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, name: str, text: str, word: str) -> None:
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, word)
