"""Scans to run a model on: every way to name them gives the same cases, and gaps are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from positive_controls import boxes, cohort, painted

from latentsynth.data.intake.scans import scans
from latentsynth.errors import DataError


def files(folder: Path, *names: str) -> Path:
    """A folder of files; nothing is read from them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_nnunet_names_give_one_case_with_its_channels_in_order(tmp_path: Path) -> None:
    folder = files(tmp_path / "a", "b_0001.nii.gz", "a_x_0000.nii", "b_0000.nii.gz", "a_x_0001.nii.gz", "notes.txt")
    found = scans(folder, 2)
    assert [case.case_id for case in found] == ["a_x", "b"]
    assert [[path.name for path in case.images] for case in found] == [
        ["a_x_0000.nii", "a_x_0001.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
    ]
    assert all(case.mask is None for case in found)


def test_one_channel_needs_no_number(tmp_path: Path) -> None:
    folder = files(tmp_path / "a", "b.nii.gz", "a.nii", "c_0000.nii.gz", "d_12.nii.gz")
    found = scans(folder, 1)
    assert [case.case_id for case in found] == ["a", "b", "c", "d_12"]
    for case in found:  # a file alone is the case it is in its folder
        assert scans(case.images[0], 1) == [case]


def test_a_manifest_gives_its_splits(tmp_path: Path) -> None:
    from dataclasses import replace

    values = boxes((8, 8, 8), {1: np.s_[2:4]})
    cases = [
        replace(painted(tmp_path, split, values, np.eye(4)), split=split)  # type: ignore[arg-type]
        for split in ("train", "val", "test")
    ]
    manifest = cohort(tmp_path / "manifest.json", cases)
    assert [case.case_id for case in scans(manifest, 2)] == ["train", "val", "test"]
    assert [case.case_id for case in scans(manifest, 2, "val")] == ["val"]
    assert scans(manifest, 2, "val")[0].images == cases[1].images


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz"], 2, r"case b .* numbers \[1\], expected \[0, 1\]"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], 1, r"case a .* numbers \[0, 1\], expected \[0\]"),
        (["a_0000.nii.gz", "a_0002.nii.gz"], 2, r"numbers \[0, 2\], expected \[0, 1\]"),
        (["a.nii.gz", "a.nii"], 1, "two files for channel 0 of case a"),
        (["a.nii.gz", "a_0000.nii.gz"], 1, "two files for channel 0 of case a"),
        (["a.mha", "a.txt"], 1, "holds no NIfTI file"),
        ([], 1, "holds no NIfTI file"),
    ],
)
def test_gaps_and_duplicates_are_refused(names: list[str], channels: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        scans(files(tmp_path / "a", *names), channels)


def test_a_source_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        scans(tmp_path / "nowhere", 1)


def test_digits_without_a_first_channel_belong_to_the_name(tmp_path: Path) -> None:
    """AMOS_0001 and AMOS_0004 are two cases of one channel, not channels 1 and 4 of AMOS."""
    for name in ("amos_0001", "amos_0004"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert [case.case_id for case in scans(tmp_path, 1)] == ["amos_0001", "amos_0004"]
    assert [case.case_id for case in scans(tmp_path / "amos_0004.nii.gz", 1)] == ["amos_0004"]
