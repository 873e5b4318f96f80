"""Atomic files: whatever stands under its final name is complete, also after a crash."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentsynth.documents import read_json
from latentsynth.errors import DataError

__all__ = [
    "PARTIAL", "atomic_folder", "atomic_path", "clear_partial", "make_folder", "read_json", "write_json", "write_text",
]  # fmt: skip

_RETIRED = ".retired"
PARTIAL = ".partial-"  # prefix of everything unfinished, so that a later run can recognise and clear it
_FORGOTTEN_S = 24 * 3600.0  # nobody writes one file for so long
_looked: set[Path] = set()  # folders that this process has searched for what killed processes left


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a path beside ``path`` to write to; renames it to ``path`` if the block ends without an error.

    The temporary name keeps all suffixes of ``path`` (``.nii.gz``), since writers choose their format by them. It may
    become a file, which replaces a file, or a folder, which replaces an empty one. A folder that holds anything is never
    replaced; see :func:`atomic_folder`.

    Raises:
        DataError: The parent folder cannot be created or written, or a folder that holds something bears that name.
    """
    path = Path(path)
    with _beside(path) as temporary:
        if path.is_dir() and (path.is_symlink() or any(path.iterdir())):
            raise DataError(f"{path} is a folder that holds something: move it away, or give another name")
        yield temporary
        _replace(temporary, path)


@contextmanager
def atomic_folder(path: Path | str, own: Callable[[Path], bool]) -> Iterator[Path]:
    """:func:`atomic_path` for a folder that may replace an older one, if it is of the same make.

    Args:
        path: The folder.
        own: Whether a folder that stands there is the caller's to remove.

    Raises:
        DataError: As :func:`atomic_path`; what stands there is somebody else's.
    """
    path = Path(path)
    older = path.is_dir() and any(path.iterdir())
    if older and (path.is_symlink() or not own(path)):
        raise DataError(f"{path} is a folder that holds something else: move it away, or give another name")
    with _beside(path) as temporary:
        yield temporary
        if older:  # os.replace refuses a folder that is not empty
            _move(path, temporary.with_name(f"{path.name}{_RETIRED}"))
        _replace(temporary, path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in a temporary folder beside ``path``."""
    make_folder(path.parent)
    if path.parent not in _looked:
        clear_partial(path.parent, _FORGOTTEN_S)
        _looked.add(path.parent)
    handle = tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent)
    try:
        yield Path(handle) / path.name
    finally:
        shutil.rmtree(handle, ignore_errors=True)


def _replace(temporary: Path, path: Path) -> None:
    if path.is_dir() and not temporary.is_dir():
        raise DataError(f"{path} is a folder, and a file is to bear that name: move it away, or give another name")
    _move(temporary, path)


def _move(source: Path, target: Path) -> None:
    """Renames; copies beside the target first where the file system renames only inside a folder.

    That is so over the lower layer of an overlay (a container's image), and between quota projects.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        handle = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=target.parent))
        handle.rmdir()  # only its name is needed: a free one in the same folder
        try:
            shutil.copytree(source, handle) if source.is_dir() else shutil.copy2(source, handle)
            os.replace(handle, target)
        except BaseException:
            _remove(handle)
            raise
        _remove(source)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def make_folder(path: Path | str) -> Path:
    """Creates a folder and its parents; refuses one that cannot be written.

    Raises:
        DataError: The folder cannot be created or is not writable.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create folder {path}: {error.strerror}; choose a place you can write to") from error
    if not os.access(path, os.W_OK):
        raise DataError(f"cannot write into {path}: permission denied; choose a place you can write to")
    return path


def clear_partial(folder: Path, older_s: float = 0.0) -> None:
    """Removes what a killed process left unfinished directly inside ``folder``.

    Killed between the two renames that replace a folder, it left the old one retired: that goes back to its place.

    Args:
        folder: Where to look.
        older_s: Only what nobody has touched for so many seconds; 0, everything, is for a folder that nobody else
            writes into (:func:`latentsynth.outputs.claim`).
    """
    for leftover in folder.glob(f"{PARTIAL}*"):
        if older_s and _age_s(leftover) < older_s:
            continue
        for retired in leftover.glob(f"*{_RETIRED}"):
            home = folder / retired.name.removesuffix(_RETIRED)
            if not home.exists():
                _move(retired, home)
        _remove(leftover)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0.0


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes JSON atomically, sorted and indented so that two versions can be compared line by line."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
