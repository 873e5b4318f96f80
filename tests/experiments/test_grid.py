"""The grid runner: every cell once, in order of need, whoever else works, fails or dies."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from latentsynth.errors import ConfigError, DataError, TrainingError
from latentsynth.experiments.grid import Cell, CellGrid
from latentsynth.files import read_json, write_json


class Log:
    """Work that says which cell it does, fails at some, and stops the whole program at others."""

    def __init__(self, file: Path, fails: Sequence[str] = (), breaks: Sequence[str] = (), seconds: float = 0.0):
        self.file, self.fails, self.breaks, self.seconds = file, fails, breaks, seconds

    def __call__(self, folder: Path) -> None:
        with self.file.open("a") as stream:
            stream.write(f"{folder.name}\n")
        time.sleep(self.seconds)
        if folder.name in self.fails:
            raise DataError(f"{folder.name} is ill")
        if folder.name in self.breaks:
            raise ZeroDivisionError
        (folder / "result").write_text(folder.name)

    def cell(self, name: str, facts: dict[str, Any] | None = None, needs: tuple[str, ...] = ()) -> Cell:
        return Cell(name, self, facts or {}, needs=needs)

    @property
    def diamond(self) -> tuple[Cell, ...]:
        needs = {"last": ("left", "right"), "left": ("first",), "right": ("first",), "first": ()}
        return tuple(self.cell(name, needs=those) for name, those in needs.items())

    @property
    def lines(self) -> list[str]:
        return self.file.read_text().split() if self.file.is_file() else []


def elsewhere(path: Path, age: float = 0.0) -> None:
    """The claim of a process on another host, whose heart last beat so many seconds ago."""
    write_json(path, {"host": "elsewhere", "pid": 7, "token": "theirs", "began": 0.0, "started": 0.0})
    os.utime(path, (time.time() - age,) * 2)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_two_processes_do_every_cell_once(tmp_path: Path, cpu: Accelerator) -> None:
    needs = {n: (n - 3, n - 5) for n in range(20)}
    log = Log(tmp_path / "log", seconds=0.02)
    cells = [log.cell(f"c{n}", {"n": n}, tuple(f"c{m}" for m in needs[n] if m >= 0)) for n in reversed(range(20))]

    def share() -> None:
        CellGrid(tmp_path / "study", cells).run(cpu, poll_seconds=0.02)

    context = get_context("fork")
    workers = [context.Process(target=share, daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(log.lines) == sorted(cell.name for cell in cells)
    for cell in cells:
        assert all(log.lines.index(need) < log.lines.index(cell.name) for need in cell.needs)
    assert all(CellGrid(tmp_path / "study", cells).done(cell) for cell in cells)
    assert not list((tmp_path / "study").rglob("claim.json"))


def test_needs_come_first_and_nothing_is_done_twice(tmp_path: Path, cpu: Accelerator) -> None:
    log = Log(tmp_path / "log")
    CellGrid(tmp_path, log.diamond).run(cpu)
    assert log.lines == ["first", "left", "right", "last"]
    more = (*log.diamond, log.cell("more", needs=("last",)))
    for _ in range(2):
        CellGrid(tmp_path, more).run(cpu)
    assert log.lines == ["first", "left", "right", "last", "more"]


def test_a_failure_costs_only_what_needs_it(tmp_path: Path, cpu: Accelerator) -> None:
    log = Log(tmp_path / "log", fails=("left",))
    cells = (*log.diamond, log.cell("after", needs=("last",)))
    grid = CellGrid(tmp_path, cells)
    with pytest.raises(TrainingError, match=r"1 of 5 cells failed \(left: left is ill\)") as caught:
        grid.run(cpu)
    assert "not tried because of them: last, after" in str(caught.value)
    assert log.lines == ["first", "left", "right"]
    states = {cell.name: grid.state(cell) for cell in cells}
    assert states["left"] == "failed: left is ill"
    assert states["right"].startswith("done")
    assert states["last"] == states["after"] == "waiting"
    log.fails = ()
    CellGrid(tmp_path, cells).run(cpu)
    assert log.lines[3:] == ["left", "last", "after"]
    assert not (grid.path(cells[1]) / "failed.json").exists()


def test_a_programming_error_is_shown_and_frees_the_cell(tmp_path: Path, cpu: Accelerator) -> None:
    log = Log(tmp_path / "log", breaks=("first",))
    with pytest.raises(ZeroDivisionError):
        CellGrid(tmp_path, log.diamond).run(cpu)
    assert not list(tmp_path.rglob("claim.json"))
    log.breaks = ()
    CellGrid(tmp_path, log.diamond).run(cpu)
    assert log.lines == ["first", "first", "left", "right", "last"]


def test_what_others_do_is_waited_for(tmp_path: Path, cpu: Accelerator) -> None:
    """A cell of another host is not done here, and what needs it is done once it stands."""
    first = tmp_path / "cells" / "first"
    elsewhere(first / "claim.json")

    def finish() -> None:
        write_json(first / "done.json", {"seconds": 1.0})
        (first / "claim.json").unlink()

    timer = threading.Timer(0.5, finish)
    timer.start()
    log = Log(tmp_path / "log")
    CellGrid(tmp_path, log.diamond).run(cpu, poll_seconds=0.05)
    timer.join()
    assert log.lines == ["left", "right", "last"]


def test_a_cell_left_behind_goes_on_in_its_folder(tmp_path: Path, cpu: Accelerator) -> None:
    left = tmp_path / "cells" / "first"
    elsewhere(left / "claim.json", age=10 * 60 + 5)
    (left / "half").write_text("made before")
    log = Log(tmp_path / "log")
    CellGrid(tmp_path, log.diamond).run(cpu)
    assert (left / "half").read_text() == "made before"
    assert len(log.lines) == 4


def test_a_cell_that_was_taken_over_does_not_count(tmp_path: Path, cpu: Accelerator) -> None:
    """Its result is the other's to give; here the other falls silent, so it is done again."""
    log = Log(tmp_path / "log")
    found = []

    def slow(folder: Path) -> None:
        log(folder)
        found.append((folder / "done.json").exists())
        if len(log.lines) == 1:
            elsewhere(folder / "claim.json", age=24 * 3600)

    CellGrid(tmp_path, (Cell("first", slow),)).run(cpu)
    assert (log.lines, found) == (["first", "first"], [False, False])


def test_other_facts_are_refused(tmp_path: Path, cpu: Accelerator) -> None:
    log = Log(tmp_path / "log")
    CellGrid(tmp_path, [log.cell("a", {"x": 1, "y": (1, 2)})]).run(cpu)
    CellGrid(tmp_path, [Cell("a", log, {"y": [1, 2], "x": 1}, hours=5.0)]).run(cpu)  # the same facts
    assert log.lines == ["a"]
    with pytest.raises(TrainingError, match=r"cells/a was made with other settings, .*: give another folder"):
        CellGrid(tmp_path, [log.cell("a", {"x": 2, "y": (1, 2)})])
    assert read_json(tmp_path / "cells" / "a" / "cell.json")["facts"] == {"x": 1, "y": [1, 2]}


def test_what_a_cell_needs_is_among_its_facts(tmp_path: Path, cpu: Accelerator) -> None:
    """Whoever makes a cell anew must not be shown what others made of the old one."""
    log = Log(tmp_path / "log")
    chain = [log.cell("a", {"x": 1}), log.cell("b", needs=("a",)), log.cell("c", needs=("b",)), log.cell("d")]
    CellGrid(tmp_path, chain).run(cpu)
    shutil.rmtree(tmp_path / "cells" / "a")
    with pytest.raises(TrainingError, match=r"cells/b was made with other settings, or needs a cell that was"):
        CellGrid(tmp_path, [log.cell("a", {"x": 2}), *chain[1:]])
    shutil.rmtree(tmp_path / "cells" / "b")
    shutil.rmtree(tmp_path / "cells" / "c")
    CellGrid(tmp_path, [log.cell("a", {"x": 2}), *chain[1:]]).run(cpu)
    assert sorted(log.lines) == ["a", "a", "b", "b", "c", "c", "d"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([("a",), ("b",), ("a",)], "cell 'a' appears twice"),
        ([("../a",)], r"cell '../a' .* cannot name a folder"),
        ([("",)], "cannot name a folder"),
        ([(".hidden",)], "cannot name a folder"),
        ([("a", "b")], "cell a needs 'b', which is no cell"),
        ([("a", "a")], "cells a need each other"),
        ([("a", "c"), ("b",), ("c", "a", "b")], "cells a, c need each other in a circle"),
    ],
)
def test_graphs_that_cannot_be_run_are_refused(tmp_path: Path, cells: list[tuple[str, ...]], words: str) -> None:
    log = Log(tmp_path / "log")
    with pytest.raises(ConfigError, match=words):
        CellGrid(tmp_path, [log.cell(name, needs=tuple(needs)) for name, *needs in cells])
    assert not list(tmp_path.iterdir())


def test_hours_left_follow_what_cells_took(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    grid = CellGrid(
        tmp_path, [Cell(name, log, hours=hours) for name, hours in (("a", 1.0), ("b", 3.0), ("c", 2.0), ("d", 0.0))]
    )
    assert grid.hours_left() == 6.0
    write_json(tmp_path / "cells" / "a" / "done.json", {"seconds": 2 * 3600})
    assert grid.hours_left() == pytest.approx(10.0)  # twice as long as thought
    write_json(tmp_path / "cells" / "b" / "done.json", {"seconds": 4 * 3600})
    assert grid.hours_left() == pytest.approx(2.0 * 6 / 4)
    write_json(tmp_path / "cells" / "d" / "done.json", {"seconds": 9 * 3600})  # estimated as nothing
    assert grid.hours_left() == pytest.approx(2.0 * 6 / 4)
    write_json(tmp_path / "cells" / "c" / "done.json", {"seconds": 1.0})
    assert grid.hours_left() == 0.0
