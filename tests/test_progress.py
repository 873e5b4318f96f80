"""In a log progress is a line now and then, the last one at the total; other ranks are silent."""

from __future__ import annotations

import re

import pytest

from latentsynth import progress
from latentsynth.progress import bar


def test_in_a_log_the_last_line_says_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading", 6, "cases") as shown:
        for _ in range(3):
            shown.advance(2, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # quick work needs one line, at its end
    assert re.fullmatch(r"reading: 6/6 cases, [\d.]+/s, 0 s left loss 0\.5", lines[0])


def test_in_a_log_long_work_speaks_between(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with bar("training", 20, "images") as shown:
        for _ in range(10):
            now[0] += 5
            shown.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["8/20", "16/20", "20/20"]  # every 20 s, being more than 15
    assert lines[0] == "training: 8/20 images, 0.4/s, 30 s left"


def test_work_of_an_earlier_run_does_not_count_for_the_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with bar("training", 200, "images", start=100) as shown:
        now[0] = 20
        shown.advance(10)
    assert capsys.readouterr().err == "training: 110/200 images, 0.5/s, 180 s left\n"


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading", 3, "cases", show=False) as shown:
        for _ in range(3):
            shown.advance()
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_nothing_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("reading", 1, "cases") as shown:
        shown.advance()
    assert capsys.readouterr().out == ""


def test_on_a_terminal_a_bar_reaches_the_total(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console = progress.Console
    monkeypatch.setattr(progress, "Console", lambda stderr: console(stderr=stderr, force_terminal=True, width=120))
    with bar("reading", 4, "cases", start=1) as shown:
        for _ in range(3):
            shown.advance(note="loss 0.5")
    text = capsys.readouterr().err
    assert "reading" in text
    assert "4/4" in text
    assert "loss 0.5" in text


def test_an_error_inside_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    def read() -> None:
        with bar("reading", 3, "cases") as shown:
            shown.advance()
            raise ValueError("broken scan")

    with pytest.raises(ValueError, match="broken"):
        read()
    assert "3/3" not in capsys.readouterr().err
