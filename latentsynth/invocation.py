"""The command line of this process, as a person would type it again."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from latentsynth.errors import ConfigError

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # by the processes of a launch, to find each other


def this_command() -> str:
    """The command line of this process, as a person would type it again."""
    return command_line(sys.argv, processes())


def processes() -> int:
    """How many processes were launched together, by the variables that launchers set.

    Raises:
        ConfigError: One of them is no number, out of range, or missing: the processes would wait for each other for ever.
    """
    found = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ}
    cure = "unset it, or launch with `accelerate launch` (docs/how-to/launch.md)"
    for name, value in found.items():
        if not (value.isascii() and value.isdecimal()):
            raise ConfigError(f"{name} is {value!r} in the environment, expected a whole number: {cure}")
    world, rank = int(found.get("WORLD_SIZE", "1")), int(found.get("RANK", "0"))
    if rank >= max(world, 1) or world < 1:
        raise ConfigError(f"RANK {rank} of WORLD_SIZE {world} in the environment: ranks count from 0; {cure}")
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if world > 1 and missing:
        raise ConfigError(f"WORLD_SIZE is {world} in the environment, but {missing[0]} is not set: {cure}")
    return world


def command_line(arguments: Sequence[str], processes: int = 1) -> str:
    """A process's arguments as a person would type them, without the folder that the command is installed in."""
    program = Path(arguments[0])
    script = "/".join(program.parts[-2:]) if program.is_absolute() else arguments[0]  # names no machine
    start = ["python", script] if program.suffix == ".py" else [program.name]
    if processes > 1:
        start = ["accelerate", "launch", "--num_processes", str(processes), script]
    return shlex.join([*start, *arguments[1:]])
