"""The command line of this process, as a person would type it again."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def this_command() -> str:
    """The command line of this process, as a person would type it again."""
    return command_line(sys.argv, int(os.environ.get("WORLD_SIZE", "1")))


def command_line(arguments: Sequence[str], processes: int = 1) -> str:
    """A process's arguments as a person would type them, without the folder that the command is installed in."""
    program = Path(arguments[0])
    script = "/".join(program.parts[-2:]) if program.is_absolute() else arguments[0]  # names no machine
    start = ["python", script] if program.suffix == ".py" else [program.name]
    if processes > 1:
        start = ["accelerate", "launch", "--num_processes", str(processes), script]
    return shlex.join([*start, *arguments[1:]])
