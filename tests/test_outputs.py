"""Nothing is removed, overwritten or joined that the same kind of command did not make."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
from helpers import run
from tiny_runs import ldm_config

from latentsynth.config import LdmRun, load
from latentsynth.errors import DataError
from latentsynth.files import atomic_folder, atomic_path
from latentsynth.outputs import RECORD, claim, claim_file, finish, free_name, write_marked
from latentsynth.phantom.cohort import write_cohort


def everything(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def cohort(tmp_path: Path, workplace: Path) -> Path:
    """A folder of patients, as any program may have written it."""
    shutil.copytree(workplace / "cohort", tmp_path / "patients")
    (tmp_path / "patients" / RECORD).unlink()
    return tmp_path / "patients"


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "{ldm}", "--masks", "{manifest}", "--out", "{place}"),
        ("masks", "--real", "{manifest}", "--n", "1", "--out", "{place}"),
        ("balance", "{manifest}", "--by", "lesion_volume", "--bins", "2", "--out", "{place}"),
        ("segment", "{segmenter}", "--images", "{manifest}", "--out", "{place}"),
        ("phantom", "--cases", "1", "--size", "24", "--out", "{place}"),
        ("report", "{ldm}", "--out", "{place}"),
        ("report", "{ldm}", "--out", "{scan}"),
        ("report", "{ldm}", "--out", "{manifest}"),
        ("prepare", "{copy}", "--out", "{place}"),
        ("prepare", "{copy}", "--out", "{scan}"),
        ("filter", "{manifest}", "--report", "{manifest}", "--out", "{scan}"),
        ("evaluate", "reconstruction", "{ae}", "{manifest}", "--split", "train", "--out", "{place}"),
        ("evaluate", "segmenter", "{segmenter}", "{manifest}", "--split", "train", "--out", "{place}"),
        ("evaluate", "masks", "--real", "{manifest}", "--samples", "a={manifest}", "--out", "{place}"),
        ("train", "ldm", "{config}", "run={place}"),
        ("demo", "--out", "{place}"),
    ],
    ids=lambda command: " ".join(word for word in command if not word.startswith("-"))[:40],
)
def test_a_real_cohort_stays_as_it_was_to_the_byte(
    command: tuple[str, ...],
    cohort: Path,
    workplace: Path,
    trained_ldm: Path,
    trained_segmenter: Path,
    trained_autoencoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    places = {
        "place": cohort, "scan": cohort / "imagesTr" / "phantom_000_0000.nii.gz", "ldm": trained_ldm,
        "manifest": workplace / "manifest.json", "segmenter": trained_segmenter, "ae": trained_autoencoder,
        "copy": workplace / "cohort", "config": ldm_config(tmp_path, "joining", str(trained_autoencoder)),
    }  # fmt: skip
    before, manifest = everything(cohort), (workplace / "manifest.json").read_bytes()
    assert run(monkeypatch, *(word.format(**places) for word in command)) == 1
    assert everything(cohort) == before
    assert (workplace / "manifest.json").read_bytes() == manifest
    assert "error: " in capsys.readouterr().err


def test_the_message_says_what_was_found_and_which_name_is_free(cohort: Path) -> None:
    cohort.with_name("patients-2").mkdir()
    with pytest.raises(DataError, match=r"dataset\.json, imagesTr, labelsTr.*example .*patients-3$"):
        claim(cohort, "synthetic volumes")
    assert free_name(Path("reports/page.html")) == Path("reports/page-2.html")


def test_a_folder_is_claimed_new_empty_unfinished_or_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    claim(out, "volumes", {"checkpoint": "a"}, ("images",))
    (out / "images" / "one").write_text("1")
    claim(out, "volumes", {"checkpoint": "a"}, ("images",))  # unfinished
    finish(out, [out / "images" / "one"])
    claim(out, "volumes", {"checkpoint": "a"}, ("images",))  # finished
    finish(out, [])
    before = everything(out)
    with pytest.raises(DataError, match="with other checkpoint"):
        claim(out, "volumes", {"checkpoint": "b"}, ("images",))
    with pytest.raises(DataError, match="holds volumes"):
        claim(out, "masks")
    assert everything(out) == before


def test_what_was_changed_or_added_since_is_not_overwritten_or_joined(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("one", "two"):
        claim(out, "volumes", parts=("images",))
        (out / "images" / name).write_text("original")
        finish(out, [out / "images" / name])
    os.utime(out / "images" / "one", (1, 1))  # a copy has other dates and the same contents
    (out / "images" / "two").unlink()  # and what was removed can be made again
    (out / "notes.txt").write_text("mine")
    claim(out, "volumes", parts=("images",))
    finish(out, [])
    (out / "images" / "one").write_text("retouched")
    with pytest.raises(DataError, match="changed since they were made"):
        claim(out, "volumes", parts=("images",))
    (out / "images" / "one").write_text("original")
    (out / "images" / "patient").write_text("somebody")
    with pytest.raises(DataError, match="images/patient, which were added"):
        claim(out, "volumes", parts=("images",))


def test_the_droppings_of_file_managers_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("")
    claim(tmp_path, "volumes")


@pytest.mark.parametrize("suffix", [".html", ".yaml"])
def test_a_marked_file_is_replaced_until_somebody_edits_it(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"page{suffix}"
    for text in ("first", "second\n"):
        write_marked(file, text, "report")
    with pytest.raises(DataError, match="is a report"):
        claim_file(file, "plan")
    file.write_text(file.read_text().replace("second", "mine"))
    kept = file.read_text()
    with pytest.raises(DataError, match="was changed since it was written"):
        write_marked(file, "third", "report")
    assert file.read_text() == kept


def test_files_of_a_claimed_folder_belong_to_it(tmp_path: Path) -> None:
    claim(tmp_path / "set", "volumes")
    (tmp_path / "set" / "manifest.json").write_text('{"format": "latentsynth-manifest/2"}')
    claim_file(tmp_path / "set" / "manifest.json", "manifest")
    finish(tmp_path / "set", ["manifest.json"])
    with pytest.raises(DataError, match="belongs to the volumes"):
        claim_file(tmp_path / "set" / "manifest.json", "manifest")


@pytest.mark.parametrize("target", ["folder", "nothing"])
def test_links_are_not_written_through_to_strangers(tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "scan").write_text("patient")
    (tmp_path / "link").symlink_to(tmp_path / target)
    before = everything(tmp_path)
    with pytest.raises(DataError):
        claim(tmp_path / "link", "volumes")
    with pytest.raises(DataError):
        claim_file(tmp_path / "link", "report")
    assert everything(tmp_path) == before


def test_atomic_replacement_replaces_files_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "scan").write_text("patient")
    with pytest.raises(DataError, match="holds something"), atomic_path(tmp_path / "folder") as temporary:
        temporary.write_text("page")
    with (
        pytest.raises(DataError, match="something else"),
        atomic_folder(tmp_path / "folder", lambda found: False) as temporary,
    ):
        temporary.mkdir()
    assert everything(tmp_path) == {"folder": "folder", "folder/scan": hashlib.sha256(b"patient").hexdigest()}


def test_a_key_is_never_made_over_a_folder(
    cohort: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_autoencoder: Path
) -> None:
    before = everything(cohort)
    config = ldm_config(tmp_path, "keyless", str(trained_autoencoder))
    monkeypatch.setenv("LATENTSYNTH_KEY", str(cohort))
    assert run(monkeypatch, "train", "ldm", config, "train.images=4") == 1
    assert everything(cohort) == before


def test_plans_are_not_written_over_edited_configurations(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "configs"
    command = ("plan", workplace / "manifest.json", "--out", out, "--hours", "0.01")
    assert run(monkeypatch, *command) == 0
    assert run(monkeypatch, *command) == 0  # its own work, untouched
    file = out / "manifest_ldm.yaml"
    assert load(LdmRun, file).train.images > 0
    file.write_text(file.read_text().replace("guidance: 1.0", "guidance: 1.5"))
    before = everything(out)
    assert run(monkeypatch, *command) == 1
    assert everything(out) == before
    assert "manifest_ldm.yaml was changed" in capsys.readouterr().err


def test_sampling_again_goes_on_and_a_stranger_stops_it(
    trained_ldm: Path, workplace: Path, tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "samples"
    command = ("sample", trained_ldm, "--masks", workplace / "manifest.json", "--out", out)
    assert run(monkeypatch, *command) == 0
    volumes = everything(out / "imagesTr")
    assert run(monkeypatch, *command) == 0
    assert everything(out / "imagesTr") == volumes
    time.sleep(0.01)
    shutil.copy(cohort / "imagesTr" / "phantom_000_0000.nii.gz", out / "imagesTr")
    before = everything(out)
    assert run(monkeypatch, *command) == 1
    assert everything(out) == before


def test_phantoms_replace_phantoms_and_nothing_else(tmp_path: Path) -> None:
    write_cohort(tmp_path / "set", 2, 0, shape=(24, 24, 24), channels=1)
    write_cohort(tmp_path / "set", 1, 0, shape=(24, 24, 24), channels=1)
    assert len(list((tmp_path / "set" / "imagesTr").iterdir())) == 1
    (tmp_path / "set" / "labelsTr" / "phantom_007.nii.gz").write_text("a patient of that name")
    with pytest.raises(DataError, match="added since"):
        write_cohort(tmp_path / "set", 1, 0, shape=(24, 24, 24), channels=1)
