"""Dropping copies: those that the report flagged and no others, and only by a report on exactly these files."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from reported_set import COPIES, FRESH, MASK_COPY, Reported, altered

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.provenance import LEDGER, Ledger, file_fingerprint
from latentsynth.results import checksum
from latentsynth.sharing.filter import filter_set


def names(manifest: Path) -> list[str]:
    return [case.case_id for case in Manifest.load(manifest).cases]


def dropped(manifest: Path) -> dict[str, str]:
    with manifest.with_name(f"{manifest.stem}_dropped.csv").open(newline="") as stream:
        return {line["case"]: line["reason"] for line in csv.DictReader(stream)}


def files(folder: Path) -> dict[Path, tuple[str, int]]:
    """Contents and times of all files below a folder."""
    return {path: (file_fingerprint(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_the_planted_copies_are_dropped_and_nothing_else(reported: Reported, tmp_path: Path) -> None:
    before = files(reported.folder / "samples")
    out = tmp_path / "kept" / "manifest.json"
    assert filter_set(reported.samples, reported.report, out) == (6, 3)
    assert names(out) == [*FRESH, MASK_COPY]
    assert dropped(out) == {
        name: f"exact copy of {scan}; copy of {scan} by voxels"
        for name in COPIES
        for scan in [f"scan-{name.split('-')[1]}"]
    }
    assert files(reported.folder / "samples") == before
    whole, kept = Manifest.load(reported.samples), Manifest.load(out)
    theirs = {case.case_id: case for case in whole.cases}
    for case in kept.cases:
        one = theirs[case.case_id]
        assert case.mask is not None
        assert one.mask is not None
        assert [p.resolve() for p in (*case.images, case.mask)] == [p.resolve() for p in (*one.images, one.mask)]
        assert replace(case, images=(), mask=None) == replace(one, images=(), mask=None)


def test_mask_copies_are_dropped_on_request(reported: Reported, tmp_path: Path) -> None:
    out = tmp_path / "kept" / "manifest.json"
    assert filter_set(reported.samples, reported.report, out, drop_mask_copies=True) == (5, 4)
    assert names(out) == list(FRESH)
    assert set(dropped(out)) == {*COPIES, MASK_COPY}
    assert dropped(out)[MASK_COPY] == "a patient's mask"


def test_the_ledger_travels(reported: Reported, tmp_path: Path) -> None:
    """Whoever trains on what was kept has seen the patients all the same."""
    out = tmp_path / "kept" / "manifest.json"
    filter_set(reported.samples, reported.report, out)
    ledger = Cohort.load("kept", out).ledger
    assert ledger == Ledger.load(reported.samples.parent / LEDGER)
    patients = Manifest.load(reported.real).select("train")
    assert len(ledger.seen(patients)[0]) == len(patients)
    beside = reported.copy(tmp_path / "beside")
    filter_set(beside, reported.report, beside.with_name("kept.json"))
    assert Cohort.load("beside", beside.with_name("kept.json")).ledger == ledger


def test_a_clean_set_is_kept_whole(reported: Reported, tmp_path: Path) -> None:
    out = tmp_path / "kept.json"
    assert filter_set(reported.fresh, reported.clean, out) == (5, 0)
    assert names(out) == list(FRESH)
    assert dropped(out) == {}
    assert filter_set(out, reported.clean, tmp_path / "again" / "kept.json") == (5, 0)  # what was filtered can be again


def test_a_part_of_a_measured_set_can_be_filtered_wherever_its_files_lie(reported: Reported, tmp_path: Path) -> None:
    moved = reported.copy(tmp_path / "moved")
    whole = Manifest.load(moved)
    replace(whole, cases=whole.cases[4:6]).save(moved)
    assert filter_set(moved, reported.report, tmp_path / "kept.json") == (1, 1)
    assert names(tmp_path / "kept.json") == [FRESH[4]]


@pytest.mark.parametrize("part", ["image", "mask"])
def test_one_voxel_makes_another_file(reported: Reported, tmp_path: Path, part: str) -> None:
    """A report clears what it measured; neither name nor time says what is in a file."""
    moved = reported.copy(tmp_path / "moved")
    case = Manifest.load(moved).cases[2]
    file = case.images[0] if part == "image" else case.mask
    assert file is not None
    time = file.stat().st_mtime_ns
    voxels, affine = nifti.read(file)
    voxels = voxels.copy()
    voxels[3, 3, 3] += 1
    nifti.write(file, voxels, affine)
    os.utime(file, ns=(time, time))
    with pytest.raises(DataError, match=rf"was not made for 1 of these 9 volumes, as they are now \({FRESH[2]}\)"):
        filter_set(moved, reported.report, tmp_path / "kept.json")
    assert not (tmp_path / "kept.json").exists()


def test_a_report_on_other_volumes_is_refused(reported: Reported, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was not made for 4 of these 9 volumes"):
        filter_set(reported.samples, reported.clean, tmp_path / "kept.json")


def test_a_report_that_trusts_no_space_clears_nobody(reported: Reported, tmp_path: Path) -> None:
    spaces = json.loads(reported.clean.read_text())["facts"]["spaces"]
    blind = {name: {**facts, "valid": False} for name, facts in spaces.items()}
    report = altered(reported.clean, tmp_path / "memorization.json", spaces=blind)
    with pytest.raises(DataError, match=r"no feature space of .* is valid"):
        filter_set(reported.fresh, report, tmp_path / "kept.json")
    assert not (tmp_path / "kept.json").exists()


def test_a_set_of_copies_leaves_nothing(reported: Reported, tmp_path: Path) -> None:
    moved = reported.copy(tmp_path / "moved")
    whole = Manifest.load(moved)
    replace(whole, cases=tuple(case for case in whole.cases if case.case_id in COPIES)).save(moved)
    with pytest.raises(DataError, match=r"every volume of .* is flagged"):
        filter_set(moved, reported.report, tmp_path / "kept.json")


def test_the_set_itself_is_not_overwritten(reported: Reported, tmp_path: Path) -> None:
    moved = reported.copy(tmp_path / "moved")
    before = moved.read_bytes()
    (tmp_path / "link").symlink_to(moved.parent)
    for out in (moved, tmp_path / "moved" / ".." / "moved" / moved.name, tmp_path / "link" / moved.name):
        with pytest.raises(DataError, match="is the set itself: give another --out"):
            filter_set(moved, reported.report, out)
    assert moved.read_bytes() == before


def test_another_result_is_no_memorization_report(reported: Reported, tmp_path: Path) -> None:
    value = {**json.loads(reported.report.read_text()), "kind": "fidelity"}
    (tmp_path / "fidelity.json").write_text(json.dumps({**value, "checksum": checksum(value)}))
    with pytest.raises(DataError, match="of kind fidelity, expected memorization"):
        filter_set(reported.samples, tmp_path / "fidelity.json", tmp_path / "kept.json")


def test_a_report_that_looked_for_others_clears_nobody(reported: Reported, tmp_path: Path) -> None:
    """Whom the generator saw stands in the ledger; without one nothing says it."""
    moved = reported.copy(tmp_path / "moved")
    (Ledger.beside(moved) | Ledger(voxels=frozenset({"another scan"}))).save(moved.with_name(LEDGER))
    with pytest.raises(DataError, match="saw 1 others"):
        filter_set(moved, reported.report, tmp_path / "kept.json")
    copied = next(case for case in Manifest.load(moved).cases if case.case_id in COPIES)
    others = json.loads(reported.report.read_text())["facts"]["train"]
    others["voxels"] = [scan for scan in others["voxels"] if scan not in copied.scans]
    Ledger(voxels=frozenset({*others["voxels"], *copied.scans})).save(moved.with_name(LEDGER))
    report = altered(reported.report, tmp_path / "others.json", train=others)
    with pytest.raises(DataError, match="saw 1 others"):  # though the set holds that very scan
        filter_set(moved, report, tmp_path / "kept.json")
    moved.with_name(LEDGER).unlink()
    with pytest.raises(DataError, match=f"no {LEDGER} beside"):
        filter_set(moved, reported.report, tmp_path / "kept.json")


def test_a_folder_is_no_place_for_a_manifest(reported: Reported, tmp_path: Path) -> None:
    """Least of all the folder of the set itself, which would be replaced."""
    samples = reported.copy(tmp_path / "copy")
    before = files(samples.parent)
    for out in (samples.parent, tmp_path / "kept", tmp_path / "kept.txt"):
        with pytest.raises(DataError, match=r"is no name for a manifest: give a \.json file"):
            filter_set(samples, reported.report, out)
    assert files(samples.parent) == before
    assert not (tmp_path / "kept").exists()


def test_a_volume_that_is_gone_is_named(reported: Reported, tmp_path: Path) -> None:
    samples = reported.copy(tmp_path / "copy")
    gone = Manifest.load(samples).cases[0]
    gone.images[0].unlink()
    with pytest.raises(DataError, match=f"case {gone.case_id} does not exist"):
        filter_set(samples, reported.report, tmp_path / "kept" / "manifest.json")


def test_another_set_in_the_folder_keeps_its_ledger(reported: Reported, tmp_path: Path) -> None:
    """Whoever trains on either must not meet the patients of the other one's generator either."""
    other = Ledger(frozenset({"a patient"}), frozenset({"a scan"}))
    other.save(tmp_path / LEDGER)
    filter_set(reported.samples, reported.report, tmp_path / "kept.json")
    assert Ledger.load(tmp_path / LEDGER) == other | Ledger.beside(reported.samples)


def test_what_stands_there_is_not_overwritten(reported: Reported, tmp_path: Path) -> None:
    """A ledger or a manifest of patients; a manifest of synthetic cases may be made again."""
    for out in (reported.real, tmp_path / LEDGER):
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(DataError, match="give another"):
            filter_set(reported.samples, reported.report, out)
        assert (out.read_bytes() if out.exists() else None) == before
    out = tmp_path / "kept.json"
    assert filter_set(reported.samples, reported.report, out) == filter_set(reported.samples, reported.report, out)


def test_masks_that_were_not_compared_cannot_be_dropped(reported: Reported, tmp_path: Path) -> None:
    report = altered(reported.report, tmp_path / "report.json", masks=False)
    with pytest.raises(DataError, match="did not compare masks"):
        filter_set(reported.samples, report, tmp_path / "kept.json", drop_mask_copies=True)
