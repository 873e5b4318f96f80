"""Latents in memory: of a host, or of the device that trains on them, so that no step waits for a disk."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from torch import Tensor

from latentsynth.config.numbers import Axes
from latentsynth.data.cache.latents import LatentCache, covered

_SHARE = {"cuda": 0.2, "cpu": 0.25}  # of what is free there when training begins; the network needs the rest


class HeldLatents:
    """All entries of a latent cache, stacked on one device.

    Args:
        cache: The latents, all of them written.
        device: Where to hold them.

    Raises:
        DataError: As :meth:`LatentCache.item`.
    """

    def __init__(self, cache: LatentCache, device: torch.device):
        self.on_device = device.type != "cpu"
        self._held: dict[str, Tensor] = {}
        for entry in range(len(cache)):
            for name, tensor in cache.packed(entry).items():
                if name not in self._held:
                    self._held[name] = torch.empty(len(cache), *tensor.shape, dtype=tensor.dtype, device=device)
                self._held[name][entry] = tensor
        whole, voxels = self._held["mean"].shape[2:], self._held["mask"].shape[2:]
        self._factors = tuple(n // m for n, m in zip(voxels, whole, strict=True))

    def packed(self, entry: int, corner: Axes = (0, 0, 0), cells: Axes | None = None) -> dict[str, Any]:
        """As :meth:`LatentCache.packed`, on the device."""
        if cells is None:
            return {name: tensor[entry] for name, tensor in self._held.items()}
        latent, voxels = covered(corner, cells, tuple(self._held["mean"].shape[2:]), self._factors)
        return {
            name: tensor[entry][(slice(None), *(voxels if name == "mask" else latent))]
            for name, tensor in self._held.items()
        }


def hold(cache: LatentCache, device: torch.device, processes: int = 1) -> LatentCache | HeldLatents:
    """The latents in the memory of the device if they are small beside what is free there, else of the host, else on disk.

    Args:
        cache: The latents, all of them written.
        device: That trains.
        processes: On this host; each holds its own.
    """
    size = sum(tensor.nbytes for tensor in cache.packed(0).values()) * len(cache)
    if device.type == "cuda" and size <= _SHARE["cuda"] * torch.cuda.mem_get_info(device)[0]:
        return HeldLatents(cache, device)
    if size * processes <= _SHARE["cpu"] * psutil.virtual_memory().available:
        return HeldLatents(cache, torch.device("cpu"))
    return cache
