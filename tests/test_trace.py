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
from latentsynth.sharing.nnunet import write_dataset
from latentsynth.sharing.trace import EXPORTED, OWN, SCAN, TRAINED, USED, trace

KEY = b"k" * 32


@pytest.fixture
def runs(tmp_path: Path, reported: Reported, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A project of two patients: Ann was trained on, Bob's mask was used, and both are in a manifest."""
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "key"))
    (tmp_path / "key").write_text(KEY.hex())
    home = tmp_path / "runs"
    made = Manifest.load(reported.samples)
    real = [replace(made.cases[n], case_id=name, patient_id=name, source="real", parents=(), voxels=(f"hash of {name}",)) for n, name in enumerate(("Ann", "Bob"))]  # fmt: skip
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
    monkeypatch.setattr("latentsynth.sharing.trace.scan_hashes", lambda given: ("hash of Ann",))
    monkeypatch.setenv(KEY_VARIABLE, str(runs / "none"))
    traces = trace(str(scan), runs)
    assert not traces.by_patient
    assert {one.place.name: one.through for one in traces.found} == {
        "scans.json": (OWN,),
        "checkpoint": (SCAN,),
        "made": (SCAN,),
        "shared": (EXPORTED,),
    }


def test_a_patient_of_two_names_is_found_by_any_of_their_scans(runs: Path) -> None:
    """Prepared again elsewhere under another id, with another channel first: that manifest is theirs too, and so is its ledger."""
    scans = Manifest.load(runs / "manifests" / "scans.json")
    ct, pet = scans.cases[0].images[0], scans.cases[1].images[0]
    both = replace(
        scans.cases[0], case_id="X7", patient_id="X7", images=(pet, ct), image_hashes=(), voxels=("pet", "hash of Ann")
    )
    replace(scans, name="again", channels=("PET", "CT"), cases=(both,)).save(runs / "manifests" / "again.json")
    (runs / "later" / "checkpoint").mkdir(parents=True)
    Ledger(voxels=frozenset({"pet"})).save(runs / "later" / "checkpoint" / LEDGER)
    assert set(found("Ann", runs)) == {
        "manifests/scans.json", "manifests/again.json", "ldm/checkpoint", "made", "shared", "later/checkpoint"
    }  # fmt: skip
    assert found("X7", runs) == found("Ann", runs)
    assert "manifests/again.json" not in found("Bob", runs)


def test_sets_without_a_ledger_and_datasets_that_hold_the_scans_are_found(runs: Path) -> None:
    """Reconstructions name whom they show in their manifest alone; a dataset for nnU-Net holds the scans themselves."""
    scans = Manifest.load(runs / "manifests" / "scans.json")
    for patient in ("Ann", "Bob"):
        case = replace(
            scans.cases[0], case_id="r", patient_id="r", source="abc:reconstruction", parents=(patient,), voxels=()
        )
        (runs / f"rebuilt-{patient}").mkdir()
        replace(scans, cases=(case,)).save(runs / f"rebuilt-{patient}" / "manifest.json")
    people = (*scans.cases, replace(scans.cases[1], case_id="Cem", patient_id="Cem", voxels=()))
    split = [replace(case, split=split) for case, split in zip(people, ("train", "val", "test"), strict=True)]
    replace(scans, cases=tuple(split)).save(runs / "split.json")
    write_dataset(runs / "split.json", [], runs / "Dataset501")
    assert found("Ann", runs)["rebuilt-Ann"] == ("synthetic set", (USED,), 1)
    assert found("Ann", runs)["Dataset501"] == ("export", (EXPORTED,), 0)
    assert "rebuilt-Bob" not in found("Ann", runs)


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
