"""Batches as a function of images seen: no state to save, the same on any number of processes.

Position ``p`` counts every training image ever drawn. It falls in epoch ``p // N`` and stands there for the case that
the epoch's own permutation puts at ``p % N``. A global batch is a run of positions; each process takes its slice.
Resuming is starting from another position, exactly, without skipping through a loader.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from latentsynth.errors import TrainingError
from latentsynth.randomness import Stream, generator, keyed_uniform


class Positions(Dataset[dict[str, Any]]):
    """Training items by global position, each with its ``position`` beside it.

    Args:
        items: By index.
        count: How many.
        seed: Key of their order.
        on_device: Whether items are made on the device that trains; then no other process can make them.
    """

    def __init__(self, items: Callable[[int], dict[str, Any]], count: int, seed: int, on_device: bool = False):
        self.items, self.count, self.seed, self.on_device = items, count, seed, on_device
        self._order: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.items(self.index(position)), "position": position}

    def index(self, position: int) -> int:
        """Which item stands at a position."""
        epoch, place = divmod(position, self.count)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, generator(self.seed, Stream.ORDER, epoch).permutation(self.count)
        return int(self._order[1][place])

    def start(self, position: int, room: np.ndarray) -> tuple[int, int, int]:
        """Where a part of the item begins that may be moved so far along each axis, ``(3,)``."""
        i, j, k = generator(self.seed, Stream.CROP, position).integers(0, room + 1).tolist()
        return (i, j, k)


class Crops(Positions):
    """Training items of which a random part is cut out, the same from image and mask, anywhere with the same chance.

    Args:
        items: By index; ``image`` ``(C, I, J, K)`` and ``mask`` ``(L, I, J, K)``.
        count: How many.
        seed: Key of order and places.
        shape: Voxels of a part along each axis.
    """

    def __init__(self, items: Callable[[int], dict[str, Any]], count: int, seed: int, shape: tuple[int, int, int]):
        super().__init__(items, count, seed)
        self.shape = shape

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = super().__getitem__(position)
        start = self.start(position, np.subtract(item["image"].shape[1:], self.shape))
        part = (..., *(slice(a, a + n) for a, n in zip(start, self.shape, strict=True)))
        return {**item, "image": item["image"][part], "mask": item["mask"][part]}


class SlicePositions(Positions):
    """Training items of which one slice is read, any of them with the same chance; its number stands beside it as ``slice``.

    Args:
        item: A slice of an item, by index and number of the slice.
        slices: How many slices an item has.
        count: How many items.
        seed: Key of order and slices.
    """

    def __init__(self, item: Callable[[int, int], dict[str, Any]], slices: int, count: int, seed: int):
        super().__init__(lambda index: item(index, 0), count, seed)
        self.part, self.slices = item, slices

    def __getitem__(self, position: int) -> dict[str, Any]:
        at = int(keyed_uniform(self.seed, torch.tensor([position]), Stream.SLICE) * self.slices)
        return {**self.part(self.index(position), at), "position": position, "slice": at}


class Patches(Positions):
    """Training items of which a random part is read, in whole latent cells.

    Args:
        item: The part of an item from a first cell on, by index and first cell.
        cells: Latent cells along each axis that there are to choose from, and that are taken.
        count: How many items.
        seed: Key of order and places.
        on_device: As of :class:`Positions`.
    """

    def __init__(
        self,
        item: Callable[[int, tuple[int, int, int]], dict[str, Any]],
        cells: tuple[tuple[int, int, int], tuple[int, int, int]],
        count: int,
        seed: int,
        on_device: bool = False,
    ):
        super().__init__(lambda index: item(index, (0, 0, 0)), count, seed, on_device)
        self.part, self.cells = item, cells

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {**self.part(self.index(position), self.corner(position)), "position": position}

    def corner(self, position: int) -> tuple[int, int, int]:
        """The first cell of the part at a position."""
        return self.start(position, np.maximum(np.subtract(*self.cells), 0))


class Slices(Sampler[list[int]]):
    """This process's micro-batches of positions, from ``start`` to ``stop``.

    Raises:
        TrainingError: The global batch does not divide over processes and accumulation.
    """

    def __init__(self, start: int, stop: int, batch: int, accumulation: int, rank: int, world: int):
        if batch % (accumulation * world):
            raise TrainingError(
                f"train.batch {batch} does not divide over {world} processes x {accumulation} accumulation: "
                f"use a multiple of {accumulation * world}"
            )
        self.start, self.stop, self.batch = start, stop, batch
        self.micro = batch // (accumulation * world)
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(self.start, self.stop, self.batch):
            for part in range(first, first + self.batch, self.micro * self.world):
                mine = part + self.rank * self.micro
                yield list(range(mine, mine + self.micro))


def batches(items: Positions, slices: Slices, workers: int = 0) -> DataLoader[dict[str, Any]]:
    """The loader over ``slices``; its own generator keeps the global one untouched, which exact resume needs.

    Warns of a batch that shows every item several times over, which costs memory and time and teaches no more.
    """
    if slices.batch >= 2 * items.count:
        warnings.warn(
            f"train.batch {slices.batch} for {items.count} training items: each batch shows every one of them "
            f"{slices.batch // items.count} times; lower train.batch",
            stacklevel=2,
        )
    return DataLoader(
        items,
        batch_sampler=slices,
        num_workers=0 if items.on_device else workers,
        worker_init_fn=_silent_when_left,
        persistent_workers=workers > 0 and not items.on_device,
        pin_memory=torch.cuda.is_available() and not items.on_device,
        generator=torch.Generator().manual_seed(0),
    )


def _silent_when_left(_: int) -> None:
    """In a loader's process: a training that is stopped hangs up while it takes a batch, which is no news to anybody."""
    shown = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, EOFError | ConnectionError):
            shown(kind, error, trace)

    sys.excepthook = show
