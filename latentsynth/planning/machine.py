"""The machine: how large a model it trains, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Machine:
    """How large a model this machine trains.

    Attributes:
        name: For people.
        voxels: Of a volume, at most.
        trunk: Width and residual blocks of the autoencoder.
        crop: Voxels along each axis of what the autoencoder trains on, at most.
        denoiser: Feature channels, one per level.
        narrow: The same of one that has time for few images.
        denoiser_blocks: Its residual blocks per level.
        batch: Images that an autoencoder or a segmenter sees at once.
        denoiser_batch: Latents that a denoiser sees at once: few on a CPU, where a large batch fills the cores no better
            and a short training has too few steps.
        memory_gib: Of the device.
        precision: Of training.
    """

    name: str
    voxels: int
    trunk: tuple[int, int]
    crop: int
    denoiser: tuple[int, ...]
    narrow: tuple[int, ...]
    denoiser_blocks: int
    batch: int
    denoiser_batch: int
    memory_gib: float
    precision: Literal["no", "bf16"]


def this_machine() -> Machine:
    """The class of this machine: a CPU, or a GPU by its memory."""
    if not torch.cuda.is_available():
        import psutil

        memory = psutil.virtual_memory().available / 2**30
        return Machine("CPU", 400_000, (64, 2), 48, (48, 96), (32, 64), 1, 4, 2, memory, "no")
    memory = torch.cuda.mem_get_info()[1] / 2**30
    precision: Literal["no", "bf16"] = "bf16" if torch.cuda.is_bf16_supported() else "no"
    if memory < 40:
        widths = (128, 256, 256)
        return Machine(torch.cuda.get_device_name(), 128**3, (96, 2), 96, widths, widths, 2, 4, 8, memory, precision)
    widths = (256, 256, 512)
    return Machine(torch.cuda.get_device_name(), 176**3, (128, 3), 128, widths, widths, 2, 8, 16, memory, precision)


def device() -> torch.device:
    """Where training would run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows_per_second(module: nn.Module, loss: Callable[[], torch.Tensor], rows: int) -> float:
    """Rows per second of forward and backward; the first of three steps only warms up."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        loss().backward()
        module.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return rows / min(took[1:])
