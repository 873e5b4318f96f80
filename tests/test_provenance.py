"""Fingerprints follow contents, ledgers follow patients, and nothing in a checkpoint names one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from latentsynth.errors import CheckpointError, DataError
from latentsynth.provenance import KEY_VARIABLE, Ledger, file_fingerprint, fingerprint, project_key, sidecar, voxel_hash
from latentsynth.types import Case

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def case(patient: str, voxels: str = "", parents: tuple[str, ...] = ()) -> Case:
    return Case(
        f"case of {patient}",
        patient,
        (Path("image.nii.gz"),),
        None,
        voxels=(voxels,) if voxels else (),
        parents=parents,
    )


@pytest.fixture
def keyless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place without a project key; the path is where one would stand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTSYNTH_KEY", str(tmp_path / "secret.key"))
    return tmp_path / "secret.key"


# Hashes ---------------------------------------------------------------------------------------------------------


def test_fingerprint_is_stable_and_sensitive() -> None:
    value = {"a": [1, 2.5, None], "b": {"c": "text", "d": True}, "path": Path("x")}
    assert fingerprint(value) == "0d1d4c9d9c0dbf48"  # stands in files: it may never change for the same value
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)
    changes = [{"a": [2.5, 1, None]}, {"a": [1, 2.5]}, {"b": {"c": "Text", "d": True}}, {"e": 0}]
    assert len({fingerprint({**value, **change}) for change in [{}, *changes]}) == 5


def test_file_fingerprint_follows_contents_in_order(tmp_path: Path) -> None:
    one, two, copy = (tmp_path / name for name in ("one", "two", "copy"))
    one.write_bytes(b"1" * 3_000_000)
    two.write_bytes(b"2")
    copy.write_bytes(one.read_bytes())
    assert file_fingerprint(one) == file_fingerprint(copy)
    assert len({file_fingerprint(one), file_fingerprint(two), file_fingerprint(one, two)}) == 3
    assert file_fingerprint(one, two) != file_fingerprint(two, one)


def test_voxel_hash_compares_values_not_bytes() -> None:
    voxels = np.arange(-60, 60).reshape(4, 5, 6)
    expected = voxel_hash(voxels)
    for same in (voxels.astype(np.int16), voxels.astype(np.float64), voxels.astype(">f4"), np.asfortranarray(voxels)):
        assert voxel_hash(same) == expected
    positive = np.where(voxels == 0, 0.0, voxels)
    negative = np.where(voxels == 0, -0.0, voxels)
    assert positive.tobytes() != negative.tobytes()
    assert voxel_hash(negative) == voxel_hash(positive) == expected


def test_voxel_hash_follows_one_voxel_and_the_shape() -> None:
    voxels = np.zeros((4, 5, 6), np.float32)
    other = voxels.copy()
    other[1, 2, 3] = 1e-6
    assert len({voxel_hash(v) for v in (voxels, other, voxels.reshape(5, 4, 6), voxels[..., :5])}) == 4


def test_reorienting_is_the_callers_part() -> None:
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    image = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    assert voxel_hash(np.asarray(turned.dataobj)) != voxel_hash(voxels)
    assert voxel_hash(np.asarray(nib.as_closest_canonical(turned).dataobj)) == voxel_hash(voxels)


# Ledger ---------------------------------------------------------------------------------------------------------


def test_ledger_finds_patients_parents_and_scans() -> None:
    ledger = Ledger.of([case("A", "hash a"), case("B", parents=("P",))], KEY)
    assert (len(ledger.patients), len(ledger.sources), len(ledger.everybody)) == (2, 1, 3)
    assert ledger.voxels == {"hash a"}
    cases = [case("A"), case("B"), case("P"), case("renamed", "hash a"), case("child", parents=("A",)), case("C", "c")]
    found, verified = ledger.seen(cases, KEY)
    assert found == cases[:5]
    assert verified


def test_a_scan_known_by_another_channel_is_the_same_patients() -> None:
    """Of CT with PET alone, under another name, in whatever place the channel stands; nothing known is nobody's."""
    ledger = Ledger.of([replace(case("A"), voxels=("ct", "pet", ""))], KEY)
    known = [
        replace(case(f"renamed {n}"), voxels=scans) for n, scans in enumerate((("pet",), ("", "ct"), ("mr", "pet")))
    ]
    strangers = [replace(case("B"), voxels=scans) for scans in ((), ("",), ("mr", ""))]
    assert ledger.seen([*known, *strangers], KEY)[0] == known


def test_ledger_union() -> None:
    one, two = Ledger.of([case("A", "a")], KEY), Ledger.of([case("B", "b")], KEY)
    assert one | two == Ledger.of([case("A", "a"), case("B", "b")], KEY)
    assert one | Ledger() == one


def test_ledger_comes_back_from_its_file_and_names_nobody(tmp_path: Path) -> None:
    ledger = Ledger.of([case("Jane Doe", "a"), case("John Doe", "b")], KEY)
    ledger.save(tmp_path / "ledger.json")
    assert Ledger.load(tmp_path / "ledger.json") == ledger
    assert "Doe" not in (tmp_path / "ledger.json").read_text()


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    for value in ([], {"patients": []}, {"patients": [], "voxels": [], "more": 1}):
        (tmp_path / "ledger.json").write_text(json.dumps(value))
        with pytest.raises(CheckpointError, match="not a patient ledger"):
            Ledger.load(tmp_path / "ledger.json")
    with pytest.raises(DataError, match="does not exist"):
        Ledger.load(tmp_path / "missing.json")


def test_patients_are_hashed_under_the_key() -> None:
    one, other = Ledger.of([case("A", "a")], KEY), Ledger.of([case("A", "a")], OTHER_KEY)
    assert not one.patients & other.patients
    assert one.voxels == other.voxels
    assert other.seen([case("A")], KEY) == ([], True)


def test_without_a_key_only_scans_can_be_compared(keyless: Path) -> None:
    ledger = Ledger.of([case("A", "a"), case("B")], KEY)
    renamed = case("renamed", "a")
    assert ledger.seen([renamed, case("B")]) == ([renamed], False)
    assert not keyless.exists()  # a key made now would compare nothing, yet look as if it did


# Key ------------------------------------------------------------------------------------------------------------


def test_key_is_made_once_and_kept_secret(keyless: Path) -> None:
    assert project_key() is None
    ledger = Ledger.of([case("A")])
    assert keyless.stat().st_mode & 0o777 == 0o600
    assert project_key() == project_key(create=True) == bytes.fromhex(keyless.read_text())
    assert ledger.seen([case("A"), case("B")]) == ([case("A")], True)


def test_key_is_found_from_folders_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LATENTSYNTH_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    key = project_key(create=True)
    assert (tmp_path / ".latentsynth" / "ledger.key").is_file()
    (tmp_path / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "down")
    assert project_key() == key


# Sidecar --------------------------------------------------------------------------------------------------------


def test_sidecar_says_synthetic() -> None:
    value = json.loads(json.dumps(sidecar(seed=3, checkpoint="abc")))
    assert value["SYNTHETIC"] is True
    assert "Not a patient" in value["notice"]
    assert (value["seed"], value["checkpoint"]) == (3, "abc")


def test_ledger_beside_a_manifest(tmp_path: Path) -> None:
    assert Ledger.beside(tmp_path / "manifest.json") == Ledger()
    ledger = Ledger(frozenset({"a"}), frozenset({"b"}))
    ledger.save(tmp_path / "ledger.json")
    assert Ledger.beside(tmp_path / "manifest.json") == ledger


@pytest.mark.parametrize("text", ["", "\n", "00", "ab" * 31, "not hex"])
def test_a_key_that_could_be_guessed_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(text)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    with pytest.raises(DataError, match="ledger key"):
        project_key(create=True)
    assert (tmp_path / "key").read_text() == text


def test_whatever_imports_onnxruntime_sends_nothing(tmp_path: Path) -> None:
    """It writes an id of the session into TMPDIR as soon as it would report."""
    pytest.importorskip("onnxruntime")
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    line = "import latentsynth, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", line],
        env={**environment, "TMPDIR": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []
