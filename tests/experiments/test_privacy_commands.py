"""The commands that guard patients: exit codes that a pipeline can stop at, and one line for what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import run
from reported_set import FRESH, Reported

from latentsynth.data.manifest import Manifest


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that was refused."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    return line


@pytest.fixture
def command(reported: Reported, tmp_path: Path) -> list[str | Path]:
    """``memorization`` by one feature space, without the sets."""
    return ["memorization", "--train", reported.real, "--heldout", reported.real, "--space", "voxels", "--level", "0.1",
            "--cache", reported.folder / "cache", "--out", tmp_path / "report"]  # fmt: skip


def test_copies_stop_a_pipeline(
    reported: Reported, command: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    both = [*command, "--samples", f"fresh={reported.fresh}", "--samples", f"made={reported.samples}"]
    assert run(monkeypatch, *both, "--max-copy-rate", "0.2") == 3
    assert "copy rate 33% exceeds --max-copy-rate 20%" in capsys.readouterr().out
    report = tmp_path / "report" / "memorization.json"
    assert report.is_file()  # and says which
    assert run(monkeypatch, "filter", reported.samples, "--report", report, "--out", tmp_path / "kept.json") == 0
    assert "kept 6 volumes" in capsys.readouterr().out
    share = ("--out", tmp_path / "shared", "--licence", "CC0-1.0", "--report", report, "--publish-mask-copies")
    assert run(monkeypatch, "export", tmp_path / "kept.json", *share) == 0
    card = (tmp_path / "shared" / "README.md").read_text()  # without the paths of the command
    assert not any(word in card for word in (str(reported.folder), str(tmp_path), "--train"))


def test_a_set_within_the_limit_passes(
    reported: Reported, command: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *command, "--samples", f"fresh={reported.fresh}", "--max-copy-rate", "0") == 0
    assert "exceeds" not in capsys.readouterr().out


def test_a_wrong_word_is_one_line(
    reported: Reported, command: list[str | Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--samples", f"made={reported.samples}"]
    assert run(monkeypatch, *command, *sets, "--level", "1") == 1
    assert "level 1.0 is no probability" in error(capsys)
    assert run(monkeypatch, *command, "--samples", f"patients={reported.real}", "--train", reported.samples) == 1
    assert "training patients must be patients" in error(capsys)


def test_filter_and_export_make_a_set_to_share(
    reported: Reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, shared, report = tmp_path / "kept" / "manifest.json", tmp_path / "shared", ("--report", reported.report)
    share = ("--out", shared, "--licence", "CC0-1.0")
    assert run(monkeypatch, "export", reported.samples, *share, *report) == 1
    assert "3 of 9 volumes are flagged as copies" in error(capsys)
    assert run(monkeypatch, "filter", reported.samples, *report, "--out", kept, "--drop-mask-copies") == 0
    assert f"dropped 4: {kept.with_name('manifest_dropped.csv')}" in capsys.readouterr().out
    assert [case.case_id for case in Manifest.load(kept).cases] == list(FRESH)
    assert run(monkeypatch, "export", kept, *share) == 1
    assert "no memorization report" in error(capsys)
    assert not shared.exists()
    assert run(monkeypatch, "export", kept, *share, *report) == 0
    assert capsys.readouterr().out.strip() == str(shared / "README.md")
    assert run(monkeypatch, "export", kept, *share, *report) == 1
    assert "exists" in error(capsys)
    assert run(monkeypatch, "filter", reported.samples, *report, "--out", reported.samples) == 1
    assert "is the set itself" in error(capsys)


def test_export_by_a_word_of_honour(
    reported: Reported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "export",
        reported.samples,
        "--licence",
        "CC0-1.0",
        "--out",
        tmp_path / "shared",
        "--without-privacy-report",
    )
    assert run(monkeypatch, *words, " ") == 2
    capsys.readouterr()
    assert run(monkeypatch, *words, "nobody was scanned") == 0
    assert "Reason given: nobody was scanned" in (tmp_path / "shared" / "README.md").read_text()
    some = tmp_path / "some.json"
    assert run(monkeypatch, "filter", reported.samples, "--report", reported.report, "--out", some) == 0
    masks = ("export", some, "--licence", "CC0-1.0", "--out", tmp_path / "masks", "--report", reported.report)
    assert run(monkeypatch, *masks) == 1
    assert "--publish-mask-copies" in error(capsys)
    assert run(monkeypatch, *masks, "--publish-mask-copies") == 0
