"""Where a patient went: every checkpoint, set and export that holds one is found, with the way in; nothing else is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from reported_set import Reported, reported  # noqa: F401 (fixture)
from typer.testing import CliRunner

from latentsynth.cli.app import app
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.provenance import KEY_VARIABLE, LEDGER, Ledger
from latentsynth.sharing.export import export_set
from latentsynth.sharing.trace import EXPORTED, OWN, SCAN, TRAINED, USED, trace

KEY = b"k" * 32


@pytest.fixture
def runs(tmp_path: Path, reported: Reported, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A project of two patients: Ann was trained on, Bob's mask was used, and both are in a manifest."""
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    (tmp_path / "key").write_text(KEY.hex())
    home = tmp_path / "runs"
    made = Manifest.load(reported.samples)
    real = [replace(made.cases[n], case_id=name, patient_id=name, source="real", parents=(), voxels=f"hash of {name}") for n, name in enumerate(("Ann", "Bob"))]  # fmt: skip
    (home / "manifests").mkdir(parents=True)
    replace(made, name="scans", cases=tuple(real)).save(home / "manifests" / "scans.json")
    learnt = Ledger.of([real[0]], KEY)
    for place, ledger in (
        ("ldm/checkpoint", learnt),
        ("made", learnt | Ledger.used(["Bob"], KEY)),
        ("other", Ledger()),
    ):
        (home / place).mkdir(parents=True)
        ledger.save(home / place / LEDGER)
    (home / "ldm" / "checkpoint" / "config.json").write_text("{}")
    parents = [("Bob",), *[()] * (len(made.cases) - 1)]
    cases = [replace(case, parents=of) for case, of in zip(made.cases, parents, strict=True)]
    replace(made, cases=tuple(cases)).save(home / "made" / "manifest.json")
    export_set(home / "made" / "manifest.json", home / "shared", "CC0", None, without_report="a test")
    return home


def found(who: str, folder: Path) -> dict[str, tuple[str, tuple[str, ...], int]]:
    return {
        str(one.place.relative_to(folder)): (one.kind, one.through, one.cases) for one in trace(who, folder, KEY).found
    }


def test_whoever_was_trained_on_is_found_in_models_sets_and_exports(runs: Path) -> None:
    assert found("Ann", runs) == {
        "manifests/scans.json": ("manifest", (OWN,), 1),
        "ldm/checkpoint": ("checkpoint", (TRAINED, SCAN), 0),
        "made": ("synthetic set", (TRAINED, SCAN), 0),
        "shared": ("export", (EXPORTED,), 0),
    }


def test_whose_mask_was_used_is_told_apart(runs: Path) -> None:
    assert found("Bob", runs) == {
        "manifests/scans.json": ("manifest", (OWN,), 1),
        "made": ("synthetic set", (USED,), 1),
        "shared": ("export", (EXPORTED,), 0),
    }


def test_nobody_else_is_found(runs: Path) -> None:
    assert found("Eve", runs) == {}


def test_a_scan_finds_its_patient_without_a_key(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its voxels: the manifest then says whose it is."""
    manifest = Manifest.load(runs / "manifests" / "scans.json")
    scan = manifest.cases[0].images[0]
    monkeypatch.setattr("latentsynth.sharing.trace.nifti.canonical_hash", lambda *given: "hash of Ann")
    monkeypatch.setenv(KEY_VARIABLE, str(runs / "none"))
    traces = trace(str(scan), runs)
    assert not traces.by_patient
    assert {one.place.name: one.through for one in traces.found} == {
        "scans.json": (OWN,),
        "checkpoint": (SCAN,),
        "made": (SCAN,),
        "shared": (EXPORTED,),
    }


def test_what_cannot_be_read_is_named(runs: Path) -> None:
    (runs / "other" / LEDGER).write_text("[]")
    shutil.copytree(runs / "manifests", runs / "edited")
    value = json.loads((runs / "edited" / "scans.json").read_text())
    (runs / "edited" / "scans.json").write_text(json.dumps({**value, "fingerprint": "0" * 16}))
    traces = trace("Eve", runs, KEY)
    assert {file.parent.name for file in traces.unread} == {"other", "edited"}


def test_the_command_says_where_a_patient_is(runs: Path) -> None:
    result = CliRunner().invoke(app, ["ledger", "Ann", str(runs)])
    assert result.exit_code == 0
    assert "checkpoint" in result.output
    assert "trained on" in result.output
    result = CliRunner().invoke(app, ["ledger", "Eve", str(runs)])
    assert "nothing of Eve in 6 manifests, ledgers and exports" in " ".join(result.output.split())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        trace("Ann", tmp_path / "none", KEY)
