"""The ``latentsynth`` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from latentsynth.cli.stopping import stoppable


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; what ends it becomes one line and an exit code (``--debug`` shows where it came from).

    Exit codes: 1 for what a user can mend, 2 for a wrong command line, 75 for a training that saved its state after SIGUSR1,
    130 and 143 for Ctrl-C and SIGTERM, 70 for a fault of this program.

    Args:
        arguments: Command line without the program's name; None takes the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with stoppable(given), _plain_warnings():
        # Spinning OpenMP threads crawl beside any other busy process; must be set before torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from latentsynth.cli.app import app
        from latentsynth.cli.refusals import explain
        from latentsynth.invocation import processes
        from latentsynth.outputs import withdraw

        try:
            for word in given:
                word.encode()  # names go into JSON, which holds UTF-8 alone
            processes()
            app([a for a in given if a != "--debug"], prog_name="latentsynth")
        except Exception as error:
            told = None if "--debug" in given else explain(error)  # first, while it is known where the command works
            with suppress(OSError):
                withdraw()
            if told is None:
                raise
            line, code = told
            print(f"error: {line}", file=sys.stderr)
            sys.exit(code)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning is one line for a person, without the place in the code that it came from."""
    before = warnings.formatwarning

    def one_line(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"warning: {' '.join(str(message).split())}\n"

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = before
