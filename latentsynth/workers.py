"""Work that needs no device, beside work that does: on all cores where there is enough of it, or in the background."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import joblib

from latentsynth.invocation import processes

T = TypeVar("T")
R = TypeVar("R")

_LOOK_S = 2.0  # after so long it is known how long an item takes
_WORTH_S = 15.0  # less work than that is done before workers have imported what they need


def cores() -> int:
    """Cores that this process may use: the machine's, or less in a container, over the processes launched together.

    ``LOKY_MAX_CPU_COUNT`` in the environment lowers it.
    """
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", processes()))
    return max(1, joblib.cpu_count() // max(beside, 1))


def spread(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``work(item)`` for every item, in order, on all cores where much is left to do.

    The first items are done here. Once it is known how long one takes, the rest goes to workers, of one thread each, if it is
    worth starting them.

    Args:
        work: Takes and gives what can be pickled, or a closure over such. An error of its ends all.
        items: What to work on.
    """
    began, done = time.monotonic(), 0
    many = cores() > 1
    while done < len(items):
        took = time.monotonic() - began
        left = took / max(done, 1) * (len(items) - done)
        if many and done and took > _LOOK_S and left > _WORTH_S:
            break
        yield work(items[done])
        done += 1
    if done < len(items):
        run = joblib.Parallel(n_jobs=min(cores(), len(items) - done), return_as="generator", inner_max_num_threads=1)
        yield from run(joblib.delayed(work)(item) for item in items[done:])


@contextmanager
def in_background() -> Iterator[Callable[..., None]]:
    """Gives a function that hands ``work(*arguments)`` to threads and returns at once, or when they have caught up.

    What was handed over is finished when the block ends, whatever ended it; an error of its is raised at a later call or at
    the end. For work that waits for disks or compresses.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="writer") as pool:

        def hand_over(work: Callable[..., None], *arguments: Any) -> None:
            while len(waiting) >= 2 * cores() or (waiting and waiting[0].done()):
                waiting.popleft().result()
            waiting.append(pool.submit(work, *arguments))

        yield hand_over
        for one in waiting:
            one.result()
