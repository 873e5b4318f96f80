"""Packing for sharing: nothing leaves without a report that clears it, and nothing that leaves names a patient."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from accelerate import Accelerator
from reported_set import COPIES, FRESH, Reported, altered

from latentsynth.data import nifti
from latentsynth.data.identity import volume_hash
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.memorization.evaluate import measure_memorization
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.results import Result, Table, checksum
from latentsynth.sharing.export import export_set
from latentsynth.sharing.filter import filter_set
from latentsynth.types import Case, Labels

LICENCE = "CC-BY-4.0"


def export(samples: Path, out: Path, report: Path | None, **options: Any) -> str:
    """The card of an exported set."""
    return export_set(samples, out, LICENCE, report, **options).read_text()


def refuses(words: str, samples: Path, out: Path, report: Path | None, **options: Any) -> None:
    with pytest.raises(DataError, match=words):
        export_set(samples, out, LICENCE, report, **options)
    assert not out.exists()
    assert not list(out.parent.glob(".partial*"))


def voxels(case: Case) -> list[bytes]:
    assert case.mask is not None
    return [nifti.read(file)[0].tobytes() + nifti.read(file)[1].tobytes() for file in (*case.images, case.mask)]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every name and byte below a folder, compressed and plain: texts, headers, voxels."""
    for path in sorted(folder.rglob("*")):
        yield path, str(path.relative_to(folder)).encode()
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".gz":
                yield path, gzip.decompress(path.read_bytes())


@pytest.fixture
def filtered(reported: Reported, tmp_path: Path) -> Path:
    """The set without image and mask copies."""
    out = tmp_path / "filtered" / "manifest.json"
    filter_set(reported.samples, reported.report, out, drop_mask_copies=True)
    return out


def test_what_was_filtered_is_exported_voxel_by_voxel(reported: Reported, filtered: Path, tmp_path: Path) -> None:
    """Every volume beside its own mask, as any program for nnU-Net's layout finds them."""
    out = tmp_path / "shared"
    card = export(filtered, out, reported.report)
    assert (out / "README.md").read_text() == card
    cases = Manifest.load(filtered).cases
    assert [c.case_id for c in cases] == list(FRESH)
    images, masks = (sorted((out / folder).iterdir()) for folder in ("imagesTr", "labelsTr"))
    assert [path.name.replace("_0000.nii", ".nii") for path in images] == [path.name for path in masks]
    assert [voxels(Case("", "", (image,), mask)) for image, mask in zip(images, masks, strict=True)] == [
        voxels(case) for case in cases
    ]
    description = json.loads((out / "dataset.json").read_text())
    assert (description["SYNTHETIC"], description["numTraining"], description["licence"]) == (True, 5, LICENCE)
    assert description["channel_names"] == {"0": "CT"}
    assert description["labels"]["background"] == 0


def test_labels_leave_consecutive(tmp_path: Path) -> None:
    """As nnU-Net asks; the names stay with their voxels, and the card says which value was another."""
    rng = np.random.default_rng(0)
    cases = []
    for n in range(2):
        image, mask = (
            rng.normal(size=(5, 6, 7)).astype(np.float32),
            rng.choice([0, 1, 4, 9], (5, 6, 7)).astype(np.int16),
        )
        nifti.write(tmp_path / f"{n}.nii.gz", image, np.eye(4))
        nifti.write(tmp_path / f"{n}_mask.nii.gz", mask, np.eye(4))
        hashes = (volume_hash(image, np.eye(4)),), volume_hash(mask, np.eye(4))
        files = (tmp_path / f"{n}.nii.gz",), tmp_path / f"{n}_mask.nii.gz"
        cases.append(Case(f"c{n}", f"p{n}", *files, "train", "external", image_hashes=hashes[0], mask_hash=hashes[1]))
    labels = Labels((0, 1, 4, 9), ("background", "a", "b", "c"))
    Manifest("set", ("MR",), labels, tuple(cases)).save(tmp_path / "manifest.json")
    card = export(tmp_path / "manifest.json", tmp_path / "out", None, without_report="test")
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert described == {"background": 0, "a": 1, "b": 2, "c": 3}
    for n, case in enumerate(cases):
        before = nifti.read(case.mask)[0]  # type: ignore[arg-type]
        after = nifti.read(tmp_path / "out" / "labelsTr" / f"synthetic_{n:05d}.nii.gz")[0]
        for value, name in zip(labels.values, labels.names, strict=True):
            assert np.array_equal(before == value, after == described[name])
    assert "0 = background, 1 = a, 2 = b (4 before" in card


def test_the_card_says_what_was_measured(reported: Reported, filtered: Path, tmp_path: Path) -> None:
    card = export(filtered, tmp_path / "shared", reported.report)
    facts = json.loads(reported.report.read_text())["facts"]
    assert "Not patients; not for diagnosis" in card
    assert re.search(r"\| volumes \| 5 \|", card)
    assert LICENCE in card
    assert facts["train"]["fingerprint"] in card
    assert re.search("12 training cases, calibrated by 9 and checked by 9 unseen", card)
    assert "| made | voxels | 9 | 0.333" in card  # the copy rate before
    assert "Exported without" not in card
    assert "Masks of patients" not in card


@pytest.mark.parametrize("way", ["clean", "overruled", "masks"])
def test_nothing_that_leaves_names_a_patient(reported: Reported, filtered: Path, tmp_path: Path, way: str) -> None:
    if way == "clean":
        export(filtered, tmp_path / "shared", reported.report)
    elif way == "overruled":
        export(reported.samples, tmp_path / "shared", reported.report, without_report="asked for")
    else:
        filter_set(reported.samples, reported.report, tmp_path / "some.json")
        export(tmp_path / "some.json", tmp_path / "shared", reported.report, publish_mask_copies=True)
    cases = (*Manifest.load(reported.real).cases, *Manifest.load(reported.samples).cases)
    names = {name for case in cases for name in (case.case_id, case.patient_id, *case.parents, *case.voxels)}
    names |= {"Meier", "Huber", "phantom", "archive-of-patients", str(tmp_path.parent), "filtered", "samples"}
    ledger = Ledger.load(reported.samples.parent / LEDGER)
    wanted = re.compile("|".join(re.escape(name) for name in sorted(names | ledger.patients)).encode())
    found = {(path.name, match[0]) for path, data in contents(tmp_path / "shared") if (match := wanted.search(data))}
    assert not found
    assert len(list(contents(tmp_path / "shared"))) > 20  # and there was something to search


def test_copies_stay(reported: Reported, tmp_path: Path) -> None:
    words = rf"3 of 9 volumes are flagged as copies \({', '.join(COPIES)}\): drop them with `latentsynth filter`"
    refuses(words, reported.samples, tmp_path / "shared", reported.report)
    refuses(words, reported.samples, tmp_path / "shared", reported.report, publish_mask_copies=True)


def test_masks_of_patients_leave_on_request_alone(reported: Reported, tmp_path: Path) -> None:
    filter_set(reported.samples, reported.report, tmp_path / "kept.json")
    kept, out = tmp_path / "kept.json", tmp_path / "shared"
    refuses("1 of 6 masks are patients' own or copies of theirs", kept, out, reported.report)
    card = export(kept, out, reported.report, publish_mask_copies=True)
    assert "Masks of patients, or copies of them, may be among these" in card


def test_masks_that_nobody_compared_stay(reported: Reported, tmp_path: Path) -> None:
    altered(reported.clean, tmp_path / "report.json", masks=False)
    refuses("did not compare masks", reported.fresh, tmp_path / "shared", tmp_path / "report.json")
    export(reported.fresh, tmp_path / "shared", tmp_path / "report.json", publish_mask_copies=True)


def test_nothing_leaves_without_a_report_or_a_reason(reported: Reported, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    refuses("no memorization report: run `latentsynth memorization`", reported.fresh, out, None)
    refuses("needs a reason", reported.fresh, out, None, without_report=" ")
    card = export(reported.fresh, out, None, without_report="the patients agreed")
    assert "Exported without a privacy report that clears it. Reason given: the patients agreed" in card
    assert "No privacy report was made" in card
    card = export(reported.samples, tmp_path / "all", reported.report, without_report="a test of detectors")
    assert "Reason given: a test of detectors" in card
    assert "| made | voxels | 9 | 0.333" in card  # what overrules the report does not hide it


def test_a_report_on_other_files_clears_nothing(reported: Reported, tmp_path: Path) -> None:
    out = tmp_path / "shared"
    refuses("was not made for 4 of these 9 volumes", reported.samples, out, reported.clean)
    moved = reported.copy(tmp_path / "moved", fresh=True)
    case = Manifest.load(moved).cases[0]
    image, affine = nifti.read(case.images[0])
    changed = np.array(image)
    changed[0, 0, 0] += 1
    nifti.write(case.images[0], changed, affine)
    refuses(rf"was not made for 1 of these 5 volumes, as they are now \({FRESH[0]}\)", moved, out, reported.clean)


def test_everybody_the_generator_saw_must_have_been_looked_for(reported: Reported, tmp_path: Path) -> None:
    """The ledger names two scans more, say of the autoencoder's patients, than the report compared with."""
    moved = reported.copy(tmp_path / "moved", fresh=True)
    unseen = Manifest.load(reported.real).select("test")[:2]
    (Ledger.load(moved.parent / LEDGER) | Ledger.of(unseen)).save(moved.parent / LEDGER)
    words = "looked for 12 training images, and the generator, or the autoencoder under it, saw 2 others"
    refuses(words, moved, tmp_path / "shared", reported.clean)


def test_real_cases_and_existing_folders_are_refused(reported: Reported, tmp_path: Path) -> None:
    out, words = tmp_path / "shared", r"holds 1 real cases \(Huber-3-s0000\)"
    moved = reported.copy(tmp_path / "moved", fresh=True)
    whole = Manifest.load(moved)
    real = tuple(replace(c, source="real") if n == 3 else c for n, c in enumerate(whole.cases))
    replace(whole, cases=real).save(moved)
    refuses(words, moved, out, reported.clean)
    refuses(words, moved, out, None, without_report="all the same")
    out.mkdir()
    (out / "mine").write_text("kept")
    for reason in (None, "all the same"):
        with pytest.raises(DataError, match=r"exists: nothing was written; give another name, for example .*-2$"):
            export_set(reported.fresh, out, LICENCE, reported.clean, without_report=reason)
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_headers_and_endings_are_ours(reported: Reported, tmp_path: Path) -> None:
    """Another program's files may carry a name in their headers, and need not be compressed."""
    samples = reported.copy(tmp_path / "copy", fresh=True)
    manifest = Manifest.load(samples)
    cases = []
    for case in manifest.cases:
        images = []
        for image in case.images:
            one = nib.load(image)
            one.header["descrip"] = b"Meier-3 ward 7"
            one.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Meier-3 born 1950"))
            plain = image.with_name(image.name.removesuffix(".gz"))
            nib.save(nib.Nifti1Image(np.asanyarray(one.dataobj), one.affine, one.header), plain)
            images.append(plain)
        cases.append(replace(case, images=tuple(images)))
    replace(manifest, cases=tuple(cases)).save(samples)
    out = tmp_path / "shared"
    export(samples, out, None, without_report="a test")
    assert [where for where, found in contents(out) if b"Meier" in found] == []
    assert json.loads((out / "dataset.json").read_text())["file_ending"] == ".nii.gz"
    assert all(path.name.endswith(".nii.gz") for path in (out / "imagesTr").iterdir())
    for case, image in zip(cases, sorted((out / "imagesTr").iterdir()), strict=True):
        np.testing.assert_array_equal(nifti.read(image)[0], nifti.read(case.images[0])[0])


def test_a_model_of_ours_without_its_ledger_is_refused(reported: Reported, tmp_path: Path) -> None:
    """Nothing else says whom it saw."""
    samples = reported.copy(tmp_path / "copy", fresh=True)
    (samples.parent / LEDGER).unlink()
    refuses(f"no {LEDGER} beside", samples, tmp_path / "shared", reported.clean, publish_mask_copies=True)


def test_no_reason_makes_a_card_tell_of_other_files(reported: Reported, tmp_path: Path) -> None:
    samples = reported.copy(tmp_path / "copy", fresh=True)
    image = Manifest.load(samples).cases[0].images[0]
    voxels, affine = nifti.read(image)
    nifti.write(image, voxels + 1, affine)
    refuses("was not made for 1 of these", samples, tmp_path / "shared", reported.clean, without_report="all the same")


def test_a_card_tells_of_its_own_set_alone(reported: Reported, tmp_path: Path) -> None:
    """Whatever others are called, and whatever their notes say."""
    facts = json.loads(reported.clean.read_text())["facts"]
    facts["sets"]["hospital"], facts["ledgers"]["hospital"] = {}, False
    facts["copies"].append({**facts["copies"][-1], "set": "hospital"})
    facts["notes"].append({"set": "hospital", "text": "their word"})
    altered(reported.clean, tmp_path / "report.json", **facts)
    card = export(reported.fresh, tmp_path / "with", tmp_path / "report.json")
    assert card.replace("# with", "# alone") == export(reported.fresh, tmp_path / "alone", reported.clean)
    facts["ledgers"]["made"] = False
    altered(reported.clean, tmp_path / "report.json", **facts)
    card = export(reported.fresh, tmp_path / "unverified", tmp_path / "report.json")
    assert "is the exporter's word" in card


def test_an_edited_report_clears_nobody(reported: Reported, tmp_path: Path) -> None:
    """Neither for `export` nor for `filter`; nor does one whose checksum was taken away."""
    value = json.loads(reported.report.read_text())
    for facts in value["facts"]["sets"]["made"].values():
        facts["flagged"], facts["mask_copy"] = [], False
    without = {key: one for key, one in value.items() if key != "checksum"}
    for n, edited in enumerate((value, without)):
        report = tmp_path / f"{n}.json"
        report.write_text(json.dumps(edited))
        refuses("was edited since it was written", reported.samples, tmp_path / "shared", report)
        with pytest.raises(DataError, match="was edited since it was written"):
            filter_set(reported.samples, report, tmp_path / "kept.json")


def test_what_one_set_of_a_report_says_against_a_file_counts(reported: Reported, tmp_path: Path) -> None:
    """The same volumes under two names, of which the last is called clean."""
    sets = json.loads(reported.report.read_text())["facts"]["sets"]
    clean = {name: {**facts, "flagged": [], "mask_copy": False} for name, facts in sets["made"].items()}
    report = altered(reported.report, tmp_path / "report.json", sets={"a": clean, "made": sets["made"], "z": clean})
    refuses("3 of 9 volumes are flagged as copies", reported.samples, tmp_path / "shared", report)


def test_a_report_of_an_older_version_is_refused(reported: Reported, tmp_path: Path) -> None:
    value = json.loads(reported.clean.read_text())
    del value["facts"]["copies"], value["facts"]["notes"]
    value["checksum"] = checksum(value)
    (tmp_path / "report.json").write_text(json.dumps(value))
    refuses(
        "is of an older version and lacks copies, notes", reported.fresh, tmp_path / "out", tmp_path / "report.json"
    )


def test_a_plain_folder_is_filtered_and_exported_as_it_was_measured(
    reported: Reported, tmp_path: Path, cpu: Accelerator
) -> None:
    """Files of another program, without a manifest: three are copies."""
    folder = tmp_path / "theirs"
    for case in Manifest.load(reported.samples).cases:
        if case.case_id in (*FRESH, *COPIES):
            nifti.write(folder / f"{case.case_id}.nii.gz", *nifti.read(case.images[0]))
    measure_memorization(
        reported.real, reported.real, [("theirs", folder)], tmp_path / "report", cpu, ("voxels",), level=0.1,
        cache=tmp_path / "cache",
    )  # fmt: skip
    report = tmp_path / "report" / "memorization.json"
    with pytest.raises(DataError, match="3 of 8 volumes are flagged"):
        export_set(folder, tmp_path / "shared", "CC0", report)
    assert filter_set(folder, report, tmp_path / "kept.json") == (5, 3)
    assert {case.case_id for case in Manifest.load(tmp_path / "kept.json").cases} == set(FRESH)
    export_set(tmp_path / "kept.json", tmp_path / "shared", "CC0", report)
    assert len(list((tmp_path / "shared" / "imagesTr").iterdir())) == len(FRESH)


def test_the_card_is_a_page_in_plain_words_and_a_scorecard(reported: Reported, filtered: Path, tmp_path: Path) -> None:
    """What was measured is there, what was not is said to be missing."""
    told = Result(
        "obedience", "Do volumes show the masks?", {}, (Table("Dice", ("volumes", "Dice"), (("made", 0.8),)),), (), ("a note",)
    )  # fmt: skip
    told.save(tmp_path / "obedience")
    card = export_set(
        filtered, tmp_path / "out", "CC0", reported.report, results=[tmp_path / "obedience" / "obedience.json"], faces=False
    )  # fmt: skip
    text = card.read_text()
    count = len(Manifest.load(filtered).cases)
    assert f"A computer program drew these {count} volumes" in text
    assert "called none of them a copy" in text
    assert "| constraint | does anatomy obey the mask? | yes, under obedience |" in text
    assert "| compliance | is anybody copied? | yes, under Privacy |" in text
    assert "| congruence | do the volumes look like patients'? | not measured |" in text
    assert "| faces in the scans learnt from | no: removed, or out of view |" in text
    assert "| made | 0.800 |" in text
    assert "- a note" in text


def test_a_set_without_a_report_says_that_nobody_looked(reported: Reported, tmp_path: Path) -> None:
    text = export_set(reported.fresh, tmp_path / "out", "CC0", without_report="a test").read_text()
    assert "Whether somebody in these volumes exists was not looked into" in text
    assert "| compliance | is anybody copied? | not measured |" in text
    assert "| faces in the scans learnt from | not stated |" in text
