"""Progress on long work: a bar with rate and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 15.0


class Bar:
    """Counts units of work, from ``start`` to ``total``."""

    def __init__(self, progress: Progress | None, task: TaskID | None, title: str, total: int, unit: str, start: int):
        self._progress, self._task = progress, task
        self._title, self._total, self._unit = title, total, unit
        self._done = self._start = start
        self._began = self._spoke = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Counts ``count`` units as done; ``note`` is shown beside them (the loss, say)."""
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        if self._progress is not None and self._task is not None:
            text = f"{rate:.1f} {self._unit}/s {note}"
            self._progress.update(self._task, completed=self._done, note=text)
        elif self._total and (now - self._spoke > _LINE_EVERY_S or self._done >= self._total):
            self._spoke = now
            left = (self._total - self._done) / max(rate, 1e-9)
            text = f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:.1f}/s, {left:.0f} s left {note}"
            print(text.rstrip(), file=sys.stderr, flush=True)


@contextmanager
def bar(title: str, total: int, unit: str, show: bool = True, start: int = 0) -> Iterator[Bar]:
    """A progress bar.

    Args:
        title: What is being done.
        total: Units in all.
        unit: What is counted, in the plural.
        show: False (other ranks) counts silently.
        start: Units already done by an earlier run; they do not count for the rate.
    """
    if not show:
        yield Bar(None, None, title, 0, unit, start)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(None, None, title, total, unit, start)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=start, note="")
        yield Bar(progress, task, title, total, unit, start)
