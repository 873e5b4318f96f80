"""What the commands share: the tree they hang on, arguments, and small helpers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Optional, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from latentsynth import __version__
from latentsynth import config as configuration

# Groups of commands in --help, in the order of the road.
LOOK_AROUND, PREPARE, TRAIN, MAKE = "Look around", "Prepare scans", "Train", "Make masks and volumes"
MEASURE, STUDY, SHARE = "Measure", "Study", "Share"

_ROAD = (
    *(
        "demo",
        "run",
        "doctor",
        "configs",
        "phantom",
        "prepare",
        "plan",
        "train",
        "encode",
        "masks",
        "balance",
        "sample",
        "segment",
    ),
    *("evaluate", "memorization", "report", "experiment", "filter", "export"),
)


class Road(TyperGroup):
    """Lists commands in the order in which a user meets them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in that order; those that nobody placed come last."""
        return sorted(self.commands, key=lambda name: _ROAD.index(name) if name in _ROAD else len(_ROAD))


_SEEDS = 1 << 63  # every generator of numbers takes a seed below
MOST = 1_000_000  # volumes or masks of one command
_MARKDOWN = set("[]<>|`*#\\")
_LONGEST = 200


class Checked(TyperCommand):
    """Refuses numbers that no option means: those that are not finite, and seeds that no generator takes."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, if its numbers are possible."""
        for name, value in ctx.params.items():
            option = f"--{name.replace('_', '-')}"
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, float) and not math.isfinite(one):
                    raise typer.BadParameter(f"{option} {one}: expected a finite number")
                if name == "seed" and isinstance(one, int) and not 0 <= one < _SEEDS:
                    raise typer.BadParameter(f"{option} {one}: expected a seed from 0 to {_SEEDS - 1}")
        return super().invoke(ctx)


class Tree(typer.Typer):
    """Commands whose numbers are checked."""

    def command(self, *arguments: Any, **settings: Any) -> Callable[[Any], Any]:
        """As typer's own."""
        return super().command(*arguments, cls=Checked, **settings)


app = Tree(
    cls=Road,
    help="Synthetic annotated 3D scans from a few dozen real ones. Add --debug to any command for tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train_app = Tree(help="Train a model. The same command again resumes it.", no_args_is_help=True)
evaluate_app = Tree(help="Measure a model, or synthetic volumes of any origin.", no_args_is_help=True)
experiment_app = Tree(
    help="Studies: many models, sizes and seeds. The same command again resumes one.", no_args_is_help=True
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"latentsynth {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the command itself."""


app.add_typer(train_app, name="train", rich_help_panel=TRAIN)
app.add_typer(evaluate_app, name="evaluate", rich_help_panel=MEASURE)
app.add_typer(experiment_app, name="experiment", rich_help_panel=STUDY)

SPLITS = ("train", "val", "test")
ConfigT = TypeVar("ConfigT", bound=configuration.Strict)
ConfigFile = Annotated[
    Path, typer.Argument(help="YAML file; `latentsynth configs` writes ready ones", show_default=False)
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
    typer.Argument(help="key=value changes, for example train.images=1000", show_default=False),
]
Check = Annotated[bool, typer.Option("--check", help="Print the resolved configuration and stop.")]
Out = Annotated[Path, typer.Option(help="Folder for tables, pictures and JSON")]


def resolve(kind: type[ConfigT], file: Path, overrides: list[str] | None, check: bool) -> ConfigT:
    """Loads a configuration; with ``check``, prints it and ends the command."""
    config = configuration.load(kind, file, overrides or [])
    if check:
        typer.echo(configuration.dump(config), nl=False)
        raise typer.Exit
    return config


def say(text: str) -> None:
    """Prints from one process of a launch only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def one_of(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not a choice."""
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{option} {value!r}: choose one of {', '.join(choices)}")


def between(option: str, text: str | None, whole: bool = False) -> tuple[float, float] | None:
    """Two ascending numbers from ``LOW:HIGH``, neither below 0; whole ones where things are counted."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not LOW:HIGH, for example 5:50") from None
    if not 0 <= low <= high < math.inf or (whole and (low % 1 or high % 1)):
        kind = "whole" if whole else "finite"
        raise typer.BadParameter(
            f"{option} {text!r}: expected two {kind} numbers, neither below 0, the smaller one first"
        )
    return low, high


def expression(option: str, text: str | None) -> None:
    """Refuses what is no regular expression."""
    try:
        re.compile(text or "")
    except re.error as error:
        raise typer.BadParameter(f"{option} {text!r} is not a regular expression: {error}") from None


def plain_text(option: str, text: str | None) -> None:
    """Refuses a text that would not stand as it is in a card: blank, of several lines, very long, or Markdown."""
    if text is None:
        return
    if not text.strip() or not text.isprintable() or len(text) > _LONGEST or _MARKDOWN & set(text):
        raise typer.BadParameter(
            f"{option} {text[:_LONGEST]!r}: expected one line of at most {_LONGEST} characters without Markdown"
        )
