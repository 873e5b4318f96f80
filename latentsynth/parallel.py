"""Work shared by processes: the world as launched, or an error that says how to launch it; rows in order for everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor

from latentsynth.errors import TrainingError
from latentsynth.invocation import processes
from latentsynth.progress import bar
from latentsynth.workers import spread

T = TypeVar("T")


def start(precision: str = "no", accumulation: int = 1, unused: bool = False) -> Accelerator:
    """An accelerator that spans the processes this one was launched with.

    Args:
        precision: ``"no"`` or ``"bf16"``.
        accumulation: Micro-batches per batch.
        unused: Whether some parameters take no part in some steps; looking for them costs time.

    Raises:
        TrainingError: Several processes were launched but accelerate would run each alone, overwriting each other's
            files; or the precision is hopeless on this device.
    """
    world = processes()
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if unused else []
    accelerator = Accelerator(
        mixed_precision=precision, gradient_accumulation_steps=accumulation, kwargs_handlers=handlers
    )
    if world > 1 and accelerator.num_processes == 1:
        raise TrainingError(
            f"{world} processes were launched, but accelerate would run each of them alone. On CPU, launch with "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 "
            "--mixed_precision no --dynamo_backend no SCRIPT CONFIG (docs/how-to/launch.md)"
        )
    if precision == "bf16" and accelerator.device.type == "cpu":
        accelerator.print("warning: bf16 is slow on a CPU without bf16 units; train.precision=no is faster there")
    return accelerator


def rows_of_all(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """What all processes hold together, ``(N, ...)`` of each, with gradients: for a loss that compares the rows of a batch.

    Each process then computes the whole loss, whose gradient is right once it is averaged over processes, as theirs are.
    """
    if accelerator.num_processes == 1:
        return rows
    return torch.cat(torch.distributed.nn.functional.all_gather(rows))


def own(accelerator: Accelerator, items: Sequence[T]) -> Sequence[T]:
    """This process's share of some items: every so many, from its own number on."""
    return items[accelerator.process_index :: accelerator.num_processes]


def share(accelerator: Accelerator, count: int, work: Callable[[int], T]) -> list[T]:
    """Does ``work(n)`` for n below ``count``, spread over the processes; every process gets all results, in order."""
    return _gathered(accelerator, [(n, work(n)) for n in own(accelerator, range(count))])


def _gathered(accelerator: Accelerator, mine: list[tuple[int, T]]) -> list[T]:
    rows: list[Any] = gather_object(mine) if accelerator.num_processes > 1 else mine
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def over_cases(
    accelerator: Accelerator, title: str, cases: Sequence[Any], work: Callable[[int], T], unit: str = "cases"
) -> list[T]:
    """``work(n)`` for every case, spread over the processes, with a progress bar; every process gets all results."""
    return _shown(accelerator, title, cases, lambda mine: map(work, mine), unit)


def over_cores(
    accelerator: Accelerator, title: str, cases: Sequence[Any], work: Callable[[int], T], unit: str = "cases"
) -> list[T]:
    """As :func:`over_cases`, for work that needs no device: on all cores (:func:`latentsynth.workers.spread`)."""
    return _shown(accelerator, title, cases, partial(spread, work), unit)


def _shown(
    accelerator: Accelerator,
    title: str,
    cases: Sequence[Any],
    work: Callable[[Sequence[int]], Iterable[T]],
    unit: str,
) -> list[T]:
    mine, rows = own(accelerator, range(len(cases))), []
    with bar(title, len(mine), unit, accelerator.is_main_process) as shown:
        for n, row in zip(mine, work(mine), strict=True):
            rows.append((n, row))
            shown.advance()
    return _gathered(accelerator, rows)


class Buildable(Protocol):
    """A cache whose entries are made one by one."""

    def __len__(self) -> int: ...

    def build(self, rank: int = 0, world: int = 1, advance: Callable[[], None] = ...) -> None:
        """Makes the missing entries of a rank's share."""


def fill(cache: Buildable, title: str, accelerator: Accelerator) -> None:
    """Builds what a cache misses, each process its share, with a progress bar."""
    rank, world = accelerator.process_index, accelerator.num_processes
    with bar(title, len(range(rank, len(cache), world)), "volumes", accelerator.is_main_process) as shown:
        cache.build(rank, world, shown.advance)
    accelerator.wait_for_everyone()


def mean_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each key over the rows where it is a number."""
    means = {}
    for key in rows[0] if rows else ():
        values = torch.tensor([row[key] for row in rows], dtype=torch.float64)
        finite = values[torch.isfinite(values)]
        means[key] = float(finite.mean()) if len(finite) else float("nan")
    return means


def copies_of_rows(rows: int, device: torch.device) -> int:
    """How often a batch should be repeated: on a CPU torch is several times slower on a batch of one, so it goes in twice."""
    return 2 if rows == 1 and device.type == "cpu" else 1


def at_least_two(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """``call(batch)`` for a network that treats rows alike; a lone row goes in twice on a CPU (:func:`copies_of_rows`)."""
    repeated = batch.repeat(copies_of_rows(len(batch), batch.device), *[1] * (batch.ndim - 1))
    return call(repeated)[: len(batch)]
