"""Whatever stands under its final name is complete."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentsynth.errors import DataError
from latentsynth.files import atomic_folder, atomic_path, clear_partial, make_folder, read_json, write_json, write_text


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fail(path: Path, folder: bool) -> None:
    """Begins to write and meets an error."""
    with atomic_path(path) as temporary:
        if folder:
            temporary.mkdir()
        (temporary / "part" if folder else temporary).write_text("half")
        raise ValueError("the disk is full")


def fail_in_folder(path: Path) -> None:
    """The same over an older folder of its own."""
    with atomic_folder(path, lambda found: True) as temporary:
        temporary.mkdir()
        raise ValueError("the disk is full")


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_nothing(tmp_path: Path, folder: bool) -> None:
    with pytest.raises(ValueError, match="disk"):
        fail(tmp_path / "out", folder)
    assert not contents(tmp_path)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(ValueError, match="disk"):
        fail(tmp_path / "file", False)
    with pytest.raises(ValueError, match="disk"):
        fail_in_folder(tmp_path / "folder")
    assert contents(tmp_path) == ["file", "folder", "folder/old"]
    assert (tmp_path / "file").read_text() == "old"


def test_nothing_stands_under_the_name_before_the_end(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "new" / "a.txt").exists()
    assert contents(tmp_path) == ["new", "new/a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "whole"


def test_a_file_is_replaced(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text() == text
    assert contents(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with atomic_folder(tmp_path / "out", lambda found: True) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert contents(tmp_path) == ["out", "out/second"]


def test_suffixes_are_kept(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii", "c.tar.gz", "d"):
        with atomic_path(tmp_path / name) as temporary:
            assert temporary.name == name
            assert temporary.parent.parent == tmp_path  # on the same file system, so that renaming is enough
            temporary.write_text("")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_writer_leaves_only_what_can_be_cleared(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from latentsynth.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.txt")], timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".partial-")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "below").mkdir()
    clear_partial(tmp_path)
    assert contents(tmp_path) == ["below", "mine.txt"]


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create folder"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(DataError, match="cannot create folder"):
        write_text(tmp_path / "file" / "a.txt", "text")
    assert contents(tmp_path) == ["file"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"hello", b"\xff\xfe{}"])
def test_what_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json is not readable JSON") as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: check the path"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match="not readable JSON"):
        read_json(tmp_path)
