"""Who may write where: nothing is removed, overwritten or joined that the same kind of command did not make.

A path is free if nothing stands there, if it is an empty folder, or if it is marked as work of the same kind that nobody
has changed since it was finished. A folder is marked by its record, :data:`RECORD`; a text file by its last line; a JSON
file by its ``format``. :func:`claim` decides, and every writer asks it first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from latentsynth.documents import read_fields
from latentsynth.errors import DataError
from latentsynth.files import PARTIAL, clear_partial, make_folder, write_json, write_text
from latentsynth.invocation import this_command

RECORD = "output.json"
FORMAT = "latentsynth-output/1"
_MARK = re.compile(r"latentsynth (?P<kind>[\w -]+) (?P<digest>[0-9a-f]{16})")
_COMMENTS = {".html": "<!-- {} -->", ".yaml": "# {}"}
_DROPPINGS = {".DS_Store", "Thumbs.db", "desktop.ini"}  # of file managers
_SHOWN = 3
_LOCK = ".lock"

opened: dict[Path, str] = {}  # folders that this process works in, and their kinds, in the order of their claims
_locks: dict[Path, FileLock] = {}
_first: dict[Path, bool] = {}  # folders whose first claim is this process's: whether they were there, empty, before


@dataclass(frozen=True)
class Record:
    """What a folder says of itself.

    Attributes:
        kind: What it holds, for example ``"volumes"``.
        recipe: What everything in it has in common; anything JSON can hold.
        command: What made it.
        notes: What the command remembers from one call to the next.
        finished: Whether the last command came to its end.
        files: What that command left, by path inside the folder: size, time of the last change, and hash.
    """

    kind: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = False
    files: Mapping[str, tuple[int, int, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record of a folder; None where there is none.

        Raises:
            DataError: It is damaged.
        """
        file = folder / RECORD
        if not file.is_file():
            return None
        value = read_fields(file, format=str, kind=str, recipe=dict, command=str, notes=dict, finished=bool, files=dict)
        try:
            if value.pop("format") != FORMAT:
                raise KeyError("format")
            files = {name: (int(size), int(at), str(print_)) for name, (size, at, print_) in value.pop("files").items()}
            return cls(**value, files=files)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise DataError(f"{file} is no record of an output folder: restore it, or give another folder") from None

    def save(self, folder: Path) -> None:
        """Writes it."""
        write_json(folder / RECORD, {"format": FORMAT, **asdict(self)})


def claim(
    path: Path,
    kind: str,
    recipe: Mapping[str, Any] | None = None,
    parts: Iterable[str] = (),
    notes: Any = None,
    alone: bool = True,
) -> Record:
    """Opens a folder for work of one kind, or refuses it, untouched.

    Until :func:`finish` or the end of this process, no other process may claim it; what killed ones left unfinished there
    is removed.

    Args:
        path: The folder; made where it is missing.
        kind: What it will hold, in the plural where it is many things.
        recipe: What everything in it has in common. Work of another recipe is refused, the same goes on.
        parts: Folders inside it that hold nothing but this work.
        notes: What to remember; None keeps what was remembered.
        alone: False for a folder that several processes may work in, and that has rules of its own.

    Returns:
        The record as it stood before, or a new one.

    Raises:
        DataError: With what was found, and a name that is free; or another process works there.
    """
    wanted, parts = json.loads(json.dumps(dict(recipe or {}))), tuple(parts)
    found = _obstacle(path, kind, wanted, parts)
    if found:
        raise DataError(f"{path} {found}: nothing was written; give another name, for example {free_name(path)}")
    was_there = path.is_dir()
    make_folder(path)
    if alone:
        _lock(path)
        if not (path / RECORD).is_file():
            _first[path] = was_there
    before = Record.read(path) or Record(kind, wanted)
    for part in parts:
        make_folder(path / part)
    for place in (path, *(path / part for part in parts)) if alone else ():
        clear_partial(place)
    opened[path] = kind
    kept = before.notes if notes is None else notes
    Record(kind, wanted, this_command(), kept, False, before.files).save(path)
    return before


def finish(path: Path, files: Iterable[Path | str]) -> None:
    """Says that the work in a claimed folder is complete, and what it consists of.

    Args:
        path: The folder.
        files: Everything that was made, also by earlier calls; paths inside it, or names.
    """
    record = Record.read(path)
    assert record is not None, "a folder is claimed before it is finished"
    stamps = dict(record.files)
    for file in files:
        inside = Path(file).relative_to(path) if Path(file).is_relative_to(path) else Path(file)
        if (path / inside).is_file():
            stamps[inside.as_posix()] = _stamp(path / inside, stamps.get(inside.as_posix()))
    kept = {name: stamp for name, stamp in stamps.items() if (path / name).is_file()}
    Record(record.kind, record.recipe, record.command, record.notes, True, kept).save(path)
    opened.pop(path, None)
    _first.pop(path, None)
    _unlock(path)


def withdraw() -> None:
    """Undoes this process's claims of folders in which nothing was made, so that a refusal leaves nothing behind."""
    for path in list(opened):
        if path not in _first:
            continue
        left = [file for file in path.rglob("*") if not file.is_dir() and file not in (path / RECORD, path / _LOCK)]
        if left:
            continue
        _unlock(path)
        was_there = _first.pop(path)
        del opened[path]
        for file in (path / RECORD, path / _LOCK):
            file.unlink(missing_ok=True)
        for folder in sorted((f for f in path.rglob("*") if f.is_dir()), reverse=True):
            folder.rmdir()
        if not was_there:
            path.rmdir()


def _unlock(path: Path) -> None:
    if lock := _locks.pop(path.resolve(), None):
        lock.release()


def _lock(path: Path) -> None:
    """Two processes in one folder would take each other's unfinished files for their own. The lock dies with its process."""
    if path.resolve() in _locks:
        return
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(blocking=False)
    except NotImplementedError:  # a file system without locks
        return
    except Timeout:
        raise DataError(f"another process is writing into {path}: wait for it, or give another name") from None
    _locks[path.resolve()] = lock


def claim_file(path: Path, kind: str) -> None:
    """Refuses a file name under which anything stands but an unchanged file of the same kind.

    Raises:
        DataError: With what was found, and a name that is free.
    """
    found = _file_obstacle(path, kind)
    if found:
        raise DataError(f"{path} {found}: nothing was written; give another name, for example {free_name(path)}")


def write_marked(path: Path, text: str, kind: str) -> None:
    """Writes a text file, HTML or YAML, whose last line tells whether it was changed since.

    Raises:
        DataError: As :func:`claim_file`.
    """
    claim_file(path, kind)
    body = text if text.endswith("\n") else text + "\n"
    write_text(path, body + _COMMENTS[path.suffix].format(f"latentsynth {kind} {_digest(body.encode())}") + "\n")


def free_name(path: Path) -> Path:
    """The first of ``path-2``, ``path-3``, ... that does not exist, before the suffix of a file."""
    suffix = "".join(path.suffixes) if path.suffix in _COMMENTS or path.suffix in (".json", ".csv") else ""
    stem = path.name.removesuffix(suffix)
    numbers = (path.with_name(f"{stem}-{n}{suffix}") for n in range(2, 10_000))
    return next((other for other in numbers if not os.path.lexists(other)), path.with_name(f"{stem}-new{suffix}"))


def check_free(folder: Path) -> None:
    """Refuses a name for a folder under which anything but an empty folder stands.

    Raises:
        DataError: With a name that is free.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} exists: nothing was written; give another name, for example {free_name(folder)}")


# The decision -----------------------------------------------------------------------------------------------------


def _obstacle(path: Path, kind: str, recipe: Mapping[str, Any], parts: tuple[str, ...]) -> str:
    """What stands in the way of a folder; "" if it is free."""
    if not path.is_dir():
        return "is not a folder" if os.path.lexists(path) else ""
    record = Record.read(path)
    if record is None:
        return _strangers(sorted(p.name for p in path.iterdir()), "which are not of this command")
    if record.kind != kind:
        return f"holds {record.kind} (made by `{record.command}`)"
    differing = [key for key in recipe if record.recipe.get(key) != recipe[key]]
    if differing:
        return f"holds {kind} made with other {' and '.join(differing)}"
    if not record.finished:
        return ""
    changed = [name for name, stamp in record.files.items() if _changed(path / name, stamp)]
    if changed:
        return f"holds {kind} that were changed since they were made ({_few(sorted(changed))})"
    foreign = [
        f"{part}/{p.name}"
        for part in parts
        if (path / part).is_dir()
        for p in (path / part).iterdir()
        if f"{part}/{p.name}" not in record.files
    ]
    return _strangers(sorted(foreign), "which were added since")


def _strangers(names: list[str], why: str) -> str:
    kept = [
        name
        for name in names
        if Path(name).name not in _DROPPINGS | {_LOCK} and not Path(name).name.startswith(PARTIAL)
    ]
    return f"holds {_few(kept)}, {why}" if kept else ""


def _file_obstacle(path: Path, kind: str) -> str:
    """What stands in the way of a file; "" if it is free."""
    if not os.path.lexists(path):
        return ""
    if not path.is_file():
        return "is a folder" if path.is_dir() else "is not a file"
    owner = Record.read(path.parent)
    if owner is not None and path.name in (RECORD, *owner.files):
        return f"belongs to the {owner.kind} in that folder"
    found = _mark_of(path)
    if found is None:
        return "exists, and is not of this command"
    if found[0] != kind:
        return f"exists, and is a {found[0]}"
    return "" if found[1] else "was changed since it was written"


def _mark_of(path: Path) -> tuple[str, bool] | None:
    """The kind of a marked file, and whether it is as it was written; None for any other file."""
    if path.suffix not in (*_COMMENTS, ".json"):
        return None
    try:
        if path.suffix == ".json":
            value = read_fields(path, format=str)
            named = value["format"]
            known = named.startswith("latentsynth-")
            return (str(value.get("kind") or named.removeprefix("latentsynth-").split("/")[0]), True) if known else None
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    body, _, last = text.rstrip("\n").rpartition("\n")
    mark = _MARK.search(last)
    return (mark["kind"], _digest((body + "\n").encode()) == mark["digest"]) if mark else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _stamp(file: Path, before: tuple[int, int, str] | None) -> tuple[int, int, str]:
    """Size, time and hash of a file; read again only if its size or time has changed."""
    stat = file.stat()
    if before is not None and before[:2] == (stat.st_size, stat.st_mtime_ns):
        return before
    with file.open("rb") as stream:
        return stat.st_size, stat.st_mtime_ns, hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _changed(file: Path, before: tuple[int, int, str]) -> bool:
    """Whether a file holds something else; one that was removed is only made again."""
    return file.is_file() and _stamp(file, before)[2] != before[2]


def _few(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
