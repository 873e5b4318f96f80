"""Who works on what: a file per claim, with a heartbeat, so that machines that share a folder never do one thing twice."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from latentsynth.documents import read_fields
from latentsynth.errors import DataError
from latentsynth.files import make_folder, write_json


class Claim:
    """A claim on one folder, held by this process.

    Use :meth:`take`; leave it by :meth:`release`.
    """

    def __init__(self, path: Path, token: str, beat_seconds: float):
        self.path, self.token = path, token
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, args=(beat_seconds,), daemon=True)
        self._heart.start()

    @classmethod
    def take(cls, path: Path, guard: Path, stale_seconds: float) -> Claim | None:
        """Claims, or returns None where another living claim stands.

        A claim is stale if its heartbeat is older than ``stale_seconds``, or if it is of this host and its process is
        gone. Of two who find a stale one, the lock ``guard`` lets one look and write at a time; where a network file
        system ignores locks, the token that stands at the end decides (:meth:`held`).
        """
        make_folder(path.parent)
        with FileLock(guard):
            if holder(path, stale_seconds) is not None:
                return None
            token = secrets.token_hex(8)
            facts = {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "began": time.time()}
            write_json(path, {**facts, "started": psutil.Process().create_time()})
        return cls(path, token, stale_seconds / 5)

    @property
    def held(self) -> bool:
        """Whether nobody has taken the claim over, say while this machine slept."""
        found = _read(self.path)
        return found is not None and found.get("token") == self.token

    def release(self) -> None:
        """Gives the claim up; one that was taken over stays."""
        self._stop.set()
        self._heart.join()
        if self.held:
            self.path.unlink(missing_ok=True)

    def _beat(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            if not self.held:
                return
            try:
                os.utime(self.path)
            except OSError:  # taken away; whoever asks whether it is held will hear so
                return


def holder(path: Path, stale_seconds: float) -> str | None:
    """The host and process that hold a claim; None where there is none, or a stale one."""
    found = _read(path)
    if found is None:
        return None
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
    if abs(age) > stale_seconds or (found["host"] == socket.gethostname() and not _alive(found)):
        return None
    return f"{found['host']}, process {found['pid']}"


def _alive(found: dict[str, Any]) -> bool:
    """Whether the claiming process of this host runs; another may have been given its number since."""
    try:
        return abs(psutil.Process(found["pid"]).create_time() - found["started"]) < 1
    except (psutil.Error, OverflowError, ValueError):
        return False


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_fields(path, host=str, pid=int, token=str, started=float)
    except DataError:
        return None
