"""The ``latentsynth`` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; a user's error becomes one line and exit code 1 (``--debug`` shows where it came from).

    Args:
        arguments: Command line without the program's name; None takes the process's own.
    """
    # Spinning OpenMP threads crawl beside any other busy process; must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    from latentsynth.cli.app import app
    from latentsynth.errors import LatentsynthError

    try:
        app([a for a in given if a != "--debug"], prog_name="latentsynth")
    except LatentsynthError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last saved state", file=sys.stderr)
        sys.exit(130)
