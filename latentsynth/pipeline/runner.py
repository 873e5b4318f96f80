"""Walking the road: each stage is the command that one could have typed, done once, and gone on with where it stopped."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from latentsynth import outputs
from latentsynth.errors import ConfigError, DataError, LatentsynthError
from latentsynth.files import read_json, write_json, write_text
from latentsynth.pipeline.stages import STAGES, Stage, Work

KIND = "road"
COMMANDS, STATE = "commands.sh", "stages.json"
_NO_LICENCE = "none given: to look at, not to share"


class StageError(LatentsynthError):
    """A stage failed that the others need.

    Args:
        stage: Its name.
        status: How its command ended.
        command: To try by hand.
    """

    def __init__(self, stage: str, status: int, command: str):
        super().__init__(
            f"stage {stage} ended with status {status}, what is wrong stands above: mend it and repeat the command, which goes on "
            f"here, or try `{command}` by hand"
        )
        self.stage, self.status = stage, status


@dataclass(frozen=True)
class Outcome:
    """How a road was walked.

    Attributes:
        folder: Where everything lies.
        report: The page to open.
        seconds: What every stage took.
        failed: Stages that could not be done, and that nothing else needed.
    """

    folder: Path
    report: Path
    seconds: dict[str, float]
    failed: tuple[str, ...]


def run(
    source: Path | str,
    out: Path | str,
    hours: float = 8.0,
    seed: int = 0,
    licence: str | None = None,
    scans_licence: str | None = None,
    scans_credit: str | None = None,
) -> Outcome:
    """From scans to trained models, new patients, measures and a report; the same call again goes on where it stopped.

    Args:
        source: Folder or table of scans as ``latentsynth prepare`` takes it, or a manifest that it wrote.
        out: Folder for everything.
        hours: For everything, on this machine.
        seed: Of splits, masks and volumes.
        licence: Under which the exported set may be shared; None says that it is to look at.
        scans_licence: Of the scans; None takes what their ``dataset.json`` says. Sharing what it forbids is refused.
        scans_credit: Whom they are owed to, with ``scans_licence``.

    Raises:
        ConfigError: ``hours`` is too short for anything, or a licence or credit of scans that are prepared already.
        DataError: The data cannot support it, with what would; or the folder holds something else.
        StageError: A stage failed that the others need.
    """
    work, out = _work(Path(source), Path(out), hours, seed, licence), Path(out)
    work = replace(work, scans_licence=scans_licence, scans_credit=scans_credit)
    terms = {"scans_licence": scans_licence, "scans_credit": scans_credit}
    if source_is_manifest(work.source) and any(value is not None for value in terms.values()):
        raise ConfigError(
            f"{source} is prepared already: give the licence of the scans to `latentsynth prepare --licence`"
        )
    outputs.claim(out, KIND, {"source": str(work.source), "hours": hours, "seed": seed, **terms})
    state = read_json(out / STATE) if (out / STATE).is_file() else {}
    failed = []
    for number, stage in enumerate(STAGES, 1):
        known = state.get(stage.name)
        if known and known["finished"]:
            work.seconds[stage.name] = known["seconds"]
            continue
        if stage.name == "prepare" and source_is_manifest(work.source):
            _adopt(work)
            continue
        command = known["command"] if known else stage.command(work)
        before = known["seconds"] if known else 0.0
        _announce(work, number, stage, command)
        began = time.monotonic()
        state[stage.name] = {"command": command, "seconds": before, "finished": False}
        _save(out, state)
        try:
            status = _do(command, out)
        finally:
            state[stage.name]["seconds"] = before + time.monotonic() - began
            _save(out, state)
        work.seconds[stage.name] = state[stage.name]["seconds"]
        if status:
            del state[stage.name]  # made anew: what it goes by may be mended
            _save(out, state)
            if stage.needed:
                raise StageError(stage.name, status, f"cd {shlex.quote(str(out))} && {_typed(command)}")
            print(f"stage {stage.name} could not be done; the others go on without it", file=sys.stderr, flush=True)
            failed.append(stage.name)
            continue
        state[stage.name]["finished"] = True
        _save(out, state)
    return Outcome(out, out / "report.html", dict(work.seconds), tuple(failed))


def forecast(source: Path | str, out: Path | str, hours: float) -> list[tuple[str, str, str]]:
    """Rows (stage, hours, purpose) of a road that is not walked, and what it needs of disk and memory.

    Raises:
        ConfigError: As :func:`run`.
        DataError: There are no such scans.
    """
    from latentsynth.planning.machine import this_machine

    work = _work(Path(source), Path(out), hours, 0, None)
    rows = [(stage.name, f"{stage.share * hours:.2f}", stage.purpose) for stage in STAGES]
    machine = this_machine()
    volumes = 400 * machine.voxels * 6 * 3 / 2**30  # training volumes in half precision with their masks, three caches
    rows.append(
        ("disk", "", f"up to {volumes:.1f} GB for volumes on the grid, and about as much again as the scans take")
    )
    rows.append(("memory", "", f"{machine.memory_gib:.0f} GB are free; `plan` takes networks that fit {machine.name}"))
    rows.append(("scans", "", str(work.source)))
    return rows


def source_is_manifest(source: Path) -> bool:
    """Whether scans are prepared already."""
    if source.suffix != ".json" or not source.is_file():
        return False
    value = read_json(source)
    return isinstance(value, dict) and "cases" in value


def _work(source: Path, out: Path, hours: float, seed: int, licence: str | None) -> Work:
    if not 0.05 <= hours <= 10_000:
        raise ConfigError(
            f"hours {hours:g}: expected 0.05 to 10000; a cohort needs 1 at least to learn from, 8 to look good"
        )
    if not source.exists():
        raise DataError(f"{source} does not exist: give the folder of scans, a table of them, or a manifest")
    name = re.sub(r"[^a-z0-9]+", "-", source.resolve().stem.lower()).strip("-") or "cohort"
    return Work(source.resolve(), name, hours, seed, licence or _NO_LICENCE, out)


def _adopt(work: Work) -> None:
    """Takes a manifest that was prepared by hand."""
    from latentsynth.data.manifest import Manifest

    if not (work.folder / work.manifest).is_file():
        Manifest.load(work.source).save(work.folder / work.manifest)
    work.seconds["prepare"] = 0.0


def _announce(work: Work, number: int, stage: Stage, command: list[str]) -> None:
    spent = sum(work.seconds.values()) / 3600
    print(
        f"\n[{number}/{len(STAGES)}] {stage.name}: {stage.purpose} (about {stage.share * work.hours * 60:.0f} min; "
        f"{spent:.2f} of {work.hours:g} h spent)\n$ {_typed(command)}",
        flush=True,
    )


def _do(command: list[str], folder: Path) -> int:
    """Runs a command of this program in a folder; one that is asked to stop is let stop as it does by itself."""
    here = str(Path(__file__).parents[2])  # also where the package was never installed
    places = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen(
        [sys.executable, "-m", "latentsynth", *command], cwd=folder, env={**os.environ, "PYTHONPATH": places}
    )
    try:
        return child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise


def _typed(command: list[str]) -> str:
    return shlex.join(["latentsynth", *command])


def _save(out: Path, state: dict[str, dict[str, object]]) -> None:
    """What was done, for the next call and for people."""
    write_json(out / STATE, state)
    typed = [_typed(one["command"]) for one in state.values()]  # type: ignore[arg-type]
    write_text(out / COMMANDS, "\n".join(["#!/bin/sh", "set -e", 'cd "$(dirname "$0")"', *typed]) + "\n")
