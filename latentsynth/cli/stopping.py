"""Ctrl-C and SIGTERM: two lines say what was kept and how to go on, from the first import to the last file.

Imports nothing heavy, since a signal may come while everything else is still being imported.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


class Stopped(BaseException):
    """A signal asked the command to stop. No ``KeyboardInterrupt``, which typer ends without a word."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable(arguments: Sequence[str]) -> Iterator[None]:
    """Turns the first Ctrl-C or SIGTERM inside the block into two lines and an exit code of 130 or 143.

    Files that are being written are removed on the way out. A second signal ends the process at once.

    Args:
        arguments: Of the command, to be repeated.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data loader's process, which its parent ends
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        for each in _NAMES:
            signal.signal(each, signal.SIG_DFL)
        if _importing(frame) and not _opened():  # modules half imported would turn an exception into one of theirs
            _say(number, arguments)
            os._exit(128 + number)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in _NAMES}
    try:
        yield
    except Stopped as stopped:
        _say(stopped.number, arguments)
        sys.exit(128 + stopped.number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _opened() -> dict[Path, str]:
    """Folders that this process is working in, and what they hold; none before anything was claimed."""
    outputs = sys.modules.get("latentsynth.outputs")
    return dict(getattr(outputs, "opened", {}))


def _say(number: int, arguments: Sequence[str]) -> None:
    """From one process of a launch only."""
    if os.environ.get("RANK", "0") != "0":
        return
    opened = _opened()
    kept = "; ".join(dict.fromkeys(_kept(folder, kind) for folder, kind in opened.items()))
    again = "to go on" if opened else "to start again"
    print(f"{_NAMES[signal.Signals(number)]}: {kept or 'nothing half-written was left'}", file=sys.stderr)
    print(f"{again}: {_command(arguments)}", file=sys.stderr, flush=True)


def _kept(folder: Path, kind: str) -> str:
    if kind != "run":
        return f"what is complete in {folder} is kept"
    states = [int(path.name) for path in (folder / "state").glob("*") if path.name.isdecimal()]
    if not states:
        return f"{folder} has no saved state yet, and begins anew"
    return f"{folder} is kept as it was saved at {max(states)} images"


def _command(arguments: Sequence[str]) -> str:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return shlex.join(["latentsynth", *arguments])
    from latentsynth.invocation import this_command  # of the script that was launched

    return this_command()
