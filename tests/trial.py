"""A command tried on hostile input: what it did, and whether that is a fault."""

from __future__ import annotations

import hashlib
import io
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from latentsynth.cli import main
from latentsynth.cli.refusals import FAULT

LIMIT_S = 40.0  # generous: a busy machine is no hang


class Fault(StrEnum):
    """What no command may do, whatever it is given."""

    HANG = "hangs"
    TRACEBACK = "ends in an error that nobody foresaw"
    SPEECHLESS = "refuses without its one line"
    LEFT_BEHIND = "leaves files behind although it refused"
    CHANGED = "changes what it was given"
    SILENT = "passes silently"
    WRONGLY_REFUSED = "refuses what it should take"


class Expected(StrEnum):
    """What a command should do about an input."""

    REFUSED = "refuse it in one line"
    SAID = "go on, and say so"
    TAKEN = "take it"
    EITHER = "refuse or take it"  # random damage may be harmless


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: Its exit code; None where it hung or raised.
        said: All that it printed.
        raised: The traceback of an error that reached its end, or an empty string.
        hung: Whether it was stopped at the limit.
        left: New files, relative to the watched folder.
        changed: Files that were there before and are not the same now.
    """

    code: int | None
    said: str
    raised: str = ""
    hung: bool = False
    left: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether it ended by its own decision, with an exit code for failure."""
        return self.code is not None and self.code != 0

    @property
    def errors(self) -> list[str]:
        """Its lines that name an error."""
        return [line for line in self.said.splitlines() if line.lower().startswith("error: ")]

    def fault(self, expected: Expected, words: tuple[str, ...] = ()) -> Fault | None:
        """What is wrong with it, the worst first.

        Args:
            expected: What should have happened.
            words: Of these one must be said where it goes on and should say so.
        """
        if self.hung:
            return Fault.HANG
        if self.raised or self.code == FAULT or "Traceback (most recent call last)" in self.said:
            return Fault.TRACEBACK
        if self.changed:
            return Fault.CHANGED
        if any(".partial" in name for name in self.left):
            return Fault.LEFT_BEHIND
        if self.refused:
            if not self.errors and not any(
                word in self.said for word in ("Usage:", "Invalid value", "problem", "error")
            ):
                return Fault.SPEECHLESS
            if self.left:
                return Fault.LEFT_BEHIND
            return Fault.WRONGLY_REFUSED if expected in (Expected.TAKEN, Expected.SAID) else None
        if expected is Expected.REFUSED:
            return Fault.SILENT
        if expected is Expected.SAID and not any(word in self.said.lower() for word in words):
            return Fault.SILENT
        return None


class _OutOfTime(BaseException):
    """Not an Exception, so that no handler of errors swallows it."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below, by its hash; links and special files by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            if not path.is_dir() or path.is_symlink():
                found[str(path.relative_to(folder))] = "special"
            continue
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def attempt(
    arguments: list[str], folder: Path, command: Callable[[list[str]], None] = main, limit_s: float = LIMIT_S
) -> Outcome:
    """Runs a command in this process.

    Args:
        arguments: Its command line.
        folder: Watched for what it leaves behind or changes; ``cache`` in it is left out.
        command: What to run.
        limit_s: Seconds after which it counts as hanging.
    """
    before = snapshot(folder)
    printed = io.StringIO()
    code: int | None = None
    raised, hung = "", False
    try:
        with redirect_stdout(printed), redirect_stderr(printed), _limited(limit_s):
            command(arguments)
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except _OutOfTime:
        hung = True
    except BaseException:
        raised = traceback.format_exc()
    after = snapshot(folder)
    left = tuple(name for name in after if name not in before and not name.startswith("cache"))
    changed = tuple(name for name, content in before.items() if after.get(name) != content)
    return Outcome(code, printed.getvalue(), raised, hung, left, changed)
