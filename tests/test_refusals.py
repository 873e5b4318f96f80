"""What the machine refuses is one line with the path and a cure, whatever command meets it, and never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from latentsynth import outputs
from latentsynth.cli import main
from latentsynth.cli.refusals import explain
from latentsynth.errors import ConfigError, DataError
from latentsynth.files import atomic_folder, atomic_path, clear_partial, write_text
from latentsynth.invocation import processes

OS_KINDS = (
    "ENOSPC",
    "EDQUOT",
    "EACCES",
    "EROFS",
    "ENAMETOOLONG",
    "EMFILE",
    "EXDEV",
    "ENOENT",
    "EISDIR",
    "EIO",
    "EPROTO",
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, int]:
    """The one line that a command leaves on the terminal, and its exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    return lines[0], int(caught.value.code or 0)


@pytest.mark.parametrize("name", OS_KINDS)
def test_every_refusal_of_the_system_names_the_path_and_a_cure(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    number = getattr(errno, name)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "/some/where")

    monkeypatch.setattr("latentsynth.phantom.cohort.write_cohort", refuse)
    line, code = refused(capsys, "phantom", "--out", tmp_path / "out")
    assert code == 1
    assert line.startswith("error: /some/where: ")
    assert line.count(": ") >= 3  # what is wrong, and what to do


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 8 GiB"), "out of memory (Unable to allocate 8 GiB): lower the batch"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (SafetensorError("header too large"), "weights cannot be read or written (header too large)"),
        ("\udcff".encode, "is not UTF-8"),
        (b"\xff".decode, "is not UTF-8"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (DataError("a: b"), "a: b"),
    ],
)
def test_the_other_kinds(error: Any, words: str) -> None:
    if callable(error):
        with pytest.raises(UnicodeError) as caught:
            error("utf-8")
        error = caught.value
    line, code = explain(error)
    assert words in line
    assert "\n" not in line
    assert code == 1


def test_the_allocators_themselves_are_known() -> None:
    for make in (lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            make()
        assert explain(caught.value)[0].startswith("out of memory")  # type: ignore[arg-type]


def test_a_library_that_hides_a_full_disk_is_seen_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(outputs.opened, tmp_path, "run")
    error = RuntimeError("PytorchStreamWriter failed writing file data/0")
    assert explain(error)[1] == 70
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    assert explain(error) == (
        f"while writing into {tmp_path}: the disk is full: free some space, then repeat the command, which goes on where "
        "it stopped",
        1,
    )


def test_a_fault_of_the_program_is_one_line_and_a_file_with_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("latentsynth.phantom.cohort.write_cohort", lambda *a, **k: {}["missing"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    line, code = refused(capsys, "phantom", "--out", tmp_path / "out")
    assert code == 70
    assert line.startswith("error: unexpected KeyError: 'missing'; this is a fault of latentsynth")
    assert "Traceback" in next(tmp_path.glob("latentsynth-*.txt")).read_text()
    with pytest.raises(KeyError):
        main(["phantom", "--out", str(tmp_path / "out"), "--debug"])


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "0"}, "RANK 0 of WORLD_SIZE 0"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 of WORLD_SIZE 2"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR is not set"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_before_it_waits(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    line, code = refused(capsys, "doctor")
    assert words in line
    assert code == 1
    with pytest.raises(ConfigError):
        processes()


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line, code = refused(capsys, "phantom", "--cases", "1", "--out", f"{tmp_path}/\udcff")
    assert "\\udcff' is not UTF-8: rename the file" in line
    assert code == 1
    assert not [*tmp_path.iterdir()]


# Renaming -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_inside_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that renames only inside a folder, as an overlay does with what a container's image brought."""
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr("os.replace", replace)


@pytest.mark.usefixtures("only_inside_a_folder")
def test_files_and_folders_are_replaced_where_nothing_is_renamed_across_folders(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_text(tmp_path / "a.nii.gz", text)
        with atomic_folder(tmp_path / "out", lambda found: True) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert (tmp_path / "a.nii.gz").read_text() == text
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
            "a.nii.gz",
            "out",
            f"out/{text}",
        ]


# Two processes, and what a killed one leaves ------------------------------------------------------------------------

HOLD = """
import sys
import time
from pathlib import Path
from latentsynth import outputs
outputs.claim(Path(sys.argv[1]), "volumes", parts=("imagesTr",))
(Path(sys.argv[1]) / "imagesTr" / ".partial-mine").mkdir()
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_second_process_in_a_folder_is_refused_and_one_that_was_killed_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "claimed\n"
        with pytest.raises(DataError, match=r"another process is writing into .*: wait for it, or give another name"):
            outputs.claim(out, "volumes", parts=("imagesTr",))
        assert (out / "imagesTr" / ".partial-mine").is_dir()  # of a living process
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    outputs.claim(out, "volumes", parts=("imagesTr",))
    assert not (out / "imagesTr" / ".partial-mine").exists()
    outputs.finish(out, [])
    assert out not in outputs.opened


def test_what_was_forgotten_beside_a_file_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    for name, age_s in (("old", 90_000), ("young", 60)):
        (tmp_path / f".partial-{name}").mkdir()
        os.utime(tmp_path / f".partial-{name}", (0, time.time() - age_s))
    (tmp_path / ".partial-file").write_text("a file of a copy")
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-file", ".partial-young", "a.txt"]
    clear_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
