"""The grid runner: cells with folders of their own, resumable, claimed one by one by as many processes as there are."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentsynth.documents import read_fields
from latentsynth.errors import ConfigError, LatentsynthError, TrainingError
from latentsynth.experiments.claims import Claim, holder
from latentsynth.files import write_json
from latentsynth.provenance import fingerprint

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Cell:
    """One piece of work with a folder of its own.

    Attributes:
        name: Unique; names the folder.
        work: Does it in its folder; called again with the same folder after an interruption.
        facts: What its result depends on; anything JSON can hold.
        hours: Estimate, of one process.
        needs: Cells that must be done first.
    """

    name: str
    work: Callable[[Path], None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    hours: float = 0.0
    needs: tuple[str, ...] = ()


class CellGrid:
    """Cells in one folder, and how far they are.

    Args:
        folder: Of the study; cells stand in ``folder/cells``.
        cells: All of them.
        stale_minutes: A claim without a heartbeat for so long is taken over.

    Raises:
        ConfigError: Names that repeat or cannot name a folder, unknown or circular needs.
        TrainingError: A cell's folder was made for other facts.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell], stale_minutes: float = 10.0):
        check_cells(cells)
        self.folder, self.cells, self.stale_seconds = folder, tuple(cells), stale_minutes * 60
        for cell in cells:
            file = self.path(cell) / "cell.json"
            if file.is_file() and read_fields(file, fingerprint=str)["fingerprint"] != self.fingerprint(cell):
                raise TrainingError(
                    f"{self.path(cell)} was made with other settings, or needs a cell that was: give another folder, or "
                    "remove it to make it anew"
                )

    def path(self, cell: Cell) -> Path:
        """The cell's folder."""
        return self.folder / "cells" / cell.name

    def fingerprint(self, cell: Cell) -> str:
        """Changes with the facts of a cell, and with those of all that it needs."""
        needed = [self.fingerprint(other) for other in self.cells if other.name in cell.needs]
        return fingerprint([dict(cell.facts), needed])

    def done(self, cell: Cell) -> bool:
        """Whether its result stands."""
        return (self.path(cell) / "done.json").is_file()

    def state(self, cell: Cell) -> str:
        """In words: done, running, failed or waiting."""
        folder = self.path(cell)
        if self.done(cell):
            return f"done in {read_fields(folder / 'done.json', seconds=float)['seconds'] / 60:.1f} min"
        if who := holder(folder / "claim.json", self.stale_seconds):
            return f"running on {who}"
        if (folder / "failed.json").is_file():
            return f"failed: {read_fields(folder / 'failed.json', error=str)['error']}"
        return "waiting"

    def run(self, accelerator: Accelerator, poll_seconds: float = 5.0) -> None:
        """Does every cell that nobody else does, and waits for those that others do.

        Args:
            accelerator: The processes that do one cell together.
            poll_seconds: How often to look while others work.

        Raises:
            TrainingError: Some cells failed; the rest was done.
        """
        failed: dict[str, str] = {}
        said = ""
        if accelerator.is_main_process:
            self.show(Console(stderr=True))
        while True:
            claim, cell = self._next(accelerator, failed)
            if cell is not None:
                said = ""
                self._do(cell, claim, accelerator, failed)
                continue
            others = self._share(accelerator, lambda: self._others(failed))
            if not others:
                break
            if accelerator.is_main_process and others != said:
                _say(f"waiting for {others}")
            said = others
            time.sleep(poll_seconds)
        missing = [cell.name for cell in self.cells if not self.done(cell) and cell.name not in failed]
        if failed:
            lines = "; ".join(f"{name}: {error}" for name, error in failed.items())
            left = f"; not tried because of them: {', '.join(missing)}" if missing else ""
            raise TrainingError(f"{len(failed)} of {len(self.cells)} cells failed ({lines}){left}: mend and run again")

    def show(self, console: Console) -> None:
        """Prints the table of all cells, their states and estimated hours."""
        table = Table("cell", "state", "estimated hours", title=Text(f"{self.folder}", style="bold"))
        for cell in self.cells:
            table.add_row(Text(cell.name), Text(self.state(cell)), f"{cell.hours:.2f}")
        console.print(table)
        done = sum(self.done(cell) for cell in self.cells)
        console.print(
            f"{done} of {len(self.cells)} cells done, about {self.hours_left():.1f} hours of one process left"
        )

    def hours_left(self) -> float:
        """Estimates of the cells that are not done, scaled by how those that are done came out."""
        true = estimated = 0.0
        for cell in self.cells:
            if self.done(cell) and cell.hours:
                true += read_fields(self.path(cell) / "done.json", seconds=float)["seconds"] / 3600
                estimated += cell.hours
        scale = true / estimated if true and estimated else 1.0
        return scale * sum(cell.hours for cell in self.cells if not self.done(cell))

    def _next(self, accelerator: Accelerator, failed: Iterable[str]) -> tuple[Claim | None, Cell | None]:
        """Claims the first cell that can be done now; every process hears which."""
        claim, name = None, None
        if accelerator.is_main_process:
            for cell in self._ready(failed):
                claim = Claim.take(self.path(cell) / "claim.json", self.folder / "claims.lock", self.stale_seconds)
                if claim is not None and self.done(cell):  # finished by another between looking and claiming
                    claim.release()
                    claim = None
                if claim is not None:
                    name = cell.name
                    break
        name = self._share(accelerator, lambda: name)
        return claim, next((cell for cell in self.cells if cell.name == name), None)

    def _ready(self, failed: Iterable[str]) -> list[Cell]:
        done = {cell.name for cell in self.cells if self.done(cell)}
        return [c for c in self.cells if c.name not in done and c.name not in failed and set(c.needs) <= done]

    def _others(self, failed: Iterable[str]) -> str:
        """Who holds cells that are not done; "" where nobody does, so that nothing more will come."""
        held = [
            (c.name, holder(self.path(c) / "claim.json", self.stale_seconds)) for c in self.cells if not self.done(c)
        ]
        return "; ".join(f"{name} ({who})" for name, who in held if who) or ("ready" if self._ready(failed) else "")

    def _do(self, cell: Cell, claim: Claim | None, accelerator: Accelerator, failed: dict[str, str]) -> None:
        folder, error = self.path(cell), ""
        began, began_cpu = time.monotonic(), time.process_time()
        try:
            if accelerator.is_main_process:
                (folder / "failed.json").unlink(missing_ok=True)
                write_json(folder / "cell.json", {"facts": dict(cell.facts), "fingerprint": self.fingerprint(cell)})
                _say(f"cell {cell.name}")
            accelerator.wait_for_everyone()
            try:
                cell.work(folder)
            except LatentsynthError as problem:  # the user's to mend; other cells can go on
                if accelerator.num_processes > 1:  # the others may be waiting within the cell: only an end of all helps
                    write_json(folder / "failed.json", {"error": str(problem)})
                    raise
                error = failed[cell.name] = str(problem)
            if accelerator.is_main_process:
                assert claim is not None
                if not claim.held:
                    _say(f"cell {cell.name}: another process took it over; its result will stand")
                elif error:
                    write_json(folder / "failed.json", {"error": error})
                    _say(f"cell {cell.name} failed: {error}")
                else:
                    seconds = time.monotonic() - began
                    facts = {"seconds": seconds, "cpu_seconds": time.process_time() - began_cpu}
                    write_json(
                        folder / "done.json",
                        {**facts, "host": socket.gethostname(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S")},
                    )
                    _say(f"cell {cell.name} done in {seconds / 60:.1f} min, about {self.hours_left():.1f} hours left")
        finally:
            if claim is not None:
                claim.release()
        accelerator.wait_for_everyone()

    @staticmethod
    def _share(accelerator: Accelerator, value: Callable[[], Any]) -> Any:
        """What the main process says."""
        held = [value() if accelerator.is_main_process else None]
        return broadcast_object_list(held)[0] if accelerator.num_processes > 1 else held[0]


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuses a graph that cannot be run.

    Raises:
        ConfigError: Names that repeat or cannot name a folder, unknown or circular needs.
    """
    names = [cell.name for cell in cells]
    bad = [name for name in names if not _NAME.fullmatch(name)]
    bad += [name for name, count in Counter(names).items() if count > 1]
    if bad:
        raise ConfigError(f"cell {bad[0]!r} appears twice or cannot name a folder: give letters, digits, + - . _")
    unknown = [(cell.name, need) for cell in cells for need in cell.needs if need not in names]
    if unknown:
        raise ConfigError(f"cell {unknown[0][0]} needs {unknown[0][1]!r}, which is no cell")
    reached: set[str] = set()
    while found := [c.name for c in cells if c.name not in reached and set(c.needs) <= reached]:
        reached.update(found)
    if len(reached) < len(names):
        raise ConfigError(f"cells {', '.join(n for n in names if n not in reached)} need each other in a circle")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
