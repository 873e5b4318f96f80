"""What the machine refuses, in one line: the path, what is wrong, and what to do."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from latentsynth.errors import LatentsynthError

FAULT = 70  # exit code of a fault of this program (EX_SOFTWARE of sysexits.h); 1 is for what a user can mend
_NEARLY_NOTHING = 1 << 20  # bytes free on a disk that is full
_AGAIN = "then repeat the command, which goes on where it stopped"
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory", "MPS backend out of memory")
_KINDS = {
    errno.ENOSPC: f"the disk is full: free some space, {_AGAIN}",
    errno.EDQUOT: f"your disk quota is used up: free some space, {_AGAIN}",
    errno.EACCES: "permission denied: change its permissions, or choose another place",
    errno.EPERM: "operation not permitted: change its permissions, or choose another place",
    errno.EROFS: "the file system is read-only: choose a place you can write to",
    errno.ENAMETOOLONG: "the name is too long: give shorter names, of at most 255 bytes between two slashes",
    errno.EMFILE: "too many files are open: raise the limit with `ulimit -n 4096`, or lower train.workers",
    errno.ENFILE: "too many files are open on this machine: close other programs, or lower train.workers",
    errno.EFBIG: "the file is larger than this file system or your limit allows: choose another place",
    errno.EXDEV: "a file cannot be renamed from one file system to another: keep the folder on one",
    errno.EBUSY: "the file is in use or is a mount of its own: choose another place",
    errno.ENOENT: "no such file or folder: check the path; was it removed meanwhile?",
    errno.EISDIR: "is a folder, expected a file: check the path",
    errno.ENOTDIR: "a part of the path is a file, expected a folder: check the path",
    errno.ELOOP: "its symbolic links go round in a circle: give the path of the file itself",
    errno.EIO: "the disk does not answer (input/output error): check it, or choose another place",
    errno.ENOMEM: "there is not enough memory: close other programs, or choose a smaller batch or grid",
    errno.EADDRINUSE: "the port is taken by another launch: give `accelerate launch --main_process_port` another one",
}


def explain(error: Exception) -> tuple[str, int]:
    """One line for an error that ended a command, and the exit code.

    What nobody foresaw is a fault of this program: the line names a file with the traceback.
    """
    if isinstance(error, LatentsynthError):
        return str(error), error.exit_code
    place = _place()
    if _disk_full(error, place):  # libraries that write report it by errors of their own
        return f"{_named(error, place)}: {_KINDS[errno.ENOSPC]}", 1
    if _out_of_memory(error):
        return (
            f"out of memory ({_line(error)}): lower the batch (train.batch, --batch) or take a smaller grid or network"
        ), 1
    if isinstance(error, OSError) and error.errno is not None:
        cure = _KINDS.get(error.errno, f"{error.strerror}: check the path, or choose another place")
        return f"{_named(error, place)}: {cure}", 1
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return (
            f"{ascii(error.object)[:200]} is not UTF-8: rename the file, or save it as UTF-8",
            1,
        )  # ascii can be printed
    if type(error).__name__ == "SafetensorError":
        return f"weights cannot be read or written ({_line(error)}): copy the checkpoint again", 1
    return _fault(error), FAULT


def _place() -> Path | None:
    """The folder that the command works in, if it has one."""
    opened = getattr(sys.modules.get("latentsynth.outputs"), "opened", {})
    return next(reversed(opened), None)


def _named(error: Exception, place: Path | None) -> str:
    names = [error.filename, error.filename2] if isinstance(error, OSError) else []
    found = [str(name) for name in names if name is not None]
    return " to ".join(found) or (f"while writing into {place}" if place else "while reading or writing")


def _disk_full(error: Exception, place: Path | None) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOSPC
    try:
        return place is not None and shutil.disk_usage(place).free < _NEARLY_NOTHING
    except OSError:
        return False


def _out_of_memory(error: Exception) -> bool:
    """torch has a type of its own on a GPU and none on a CPU, where the text names the allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(name in _line(error) for name in _OUT_OF_MEMORY)


def _fault(error: Exception) -> str:
    what = f"{type(error).__name__}: {_line(error)}".rstrip(": ")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="latentsynth-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            traceback.print_exception(error, file=file)
        where = f"{file.name} says where it happened"
    except OSError:
        where = "--debug shows where it happens"
    return f"unexpected {what}; this is a fault of latentsynth, please report it ({where})"


def _line(error: Exception) -> str:
    """The first sentences of an error's text, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."
