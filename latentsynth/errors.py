"""Errors that a user can act on: each message names the value, what was expected, and the cure."""

from __future__ import annotations

from collections.abc import Iterable


class LatentsynthError(Exception):
    """Base of every error raised for a user's input. The command prints its text as one line and exits with its code."""

    exit_code = 1


class ConfigError(LatentsynthError, ValueError):
    """A configuration file or an override is wrong."""


class DataError(LatentsynthError, ValueError):
    """A scan, a mask or a manifest is not what it must be."""


class VolumeError(DataError):
    """A file that is no usable volume.

    Args:
        message: The whole sentence.
        found: What is there, the part of the sentence for a column of its own.
        cure: What to do about it.
    """

    def __init__(self, message: str, *, found: str = "", cure: str = ""):
        super().__init__(message)  # alone, so that workers can hand the error on
        self.found, self.cure = found, cure


class AxesError(VolumeError):
    """A volume of more or fewer axes than three."""


class CheckpointError(LatentsynthError, ValueError):
    """A checkpoint is incomplete, altered, foreign, or does not match what it is used with."""


class TrainingError(LatentsynthError, RuntimeError):
    """Training cannot start or go on."""


class PreemptedError(LatentsynthError):
    """The machine is taken away: a training was told so, saved its state and ended; the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


class UnknownNameError(ConfigError):
    """A name that is not among the choices.

    Args:
        kind: What the name stands for, for example ``"scheduler"``.
        name: The name that was given.
        choices: The names that exist.
    """

    def __init__(self, kind: str, name: object, choices: Iterable[str]):
        super().__init__(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(choices))}")
