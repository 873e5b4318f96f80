"""A segmentation network that is right by construction, and scans that it can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from helpers import WINDOW, tiny_domain
from torch import Tensor, nn

from latentsynth.config import InferenceConfig
from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.provenance import Ledger
from latentsynth.segmentation import SegmentationNetwork, Segmenter
from latentsynth.types import Case, Domain, Framing, Labels

LESIONS = (1, 4)  # a gap, so that a value taken for an index shows
CHANNELS = ("CT", "PET")


class Threshold(SegmentationNetwork):
    """Label index n wherever channel n - 1 is the brightest and above the middle of its window."""

    @register_to_config
    def __init__(self, image_channels: int, labels: int, gain: float = 8.0):
        super().__init__()
        self.network = nn.Module()
        self.factor = nn.Parameter(torch.tensor(gain))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image[:, :1]), self.factor * image], dim=1)[:, None]

    @property
    def blocks(self) -> list[nn.Module]:
        return []


def positive_controls(
    shape: tuple[int, int, int] = (16, 16, 16),
    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0),
    framing: Framing = Framing(),  # noqa: B008 (frozen)
    ledger: Ledger = Ledger(),  # noqa: B008 (frozen)
    gain: float = 8.0,
) -> Segmenter:
    """A segmenter of two channels that finds what :func:`painted` painted; a gain below 0 finds nothing there."""
    domain: Domain = tiny_domain(shape, spacing_mm, framing, LESIONS)
    grid = replace(domain.grid, windows=domain.grid.windows * 2)
    domain = replace(domain, grid=grid, channels=CHANNELS, limits=domain.limits * 2)
    network = Threshold(len(CHANNELS), 1 + len(LESIONS), gain).eval()
    return Segmenter(domain, network, InferenceConfig(), {"real": 3, "synthetic": 1}, ledger)


def painted(folder: Path, name: str, values: np.ndarray, affine: np.ndarray, shown: np.ndarray | None = None) -> Case:
    """Writes a case whose channels show one lesion value each; ``shown`` is painted in the place of the annotation."""
    shown = values if shown is None else shown
    images = []
    for channel, value in enumerate(LESIONS):
        image = np.where(shown == value, WINDOW[1], WINDOW[0]).astype(np.float32)
        images.append(folder / "images" / f"{name}_{channel:04d}.nii.gz")
        nifti.write(images[-1], image, affine)
    mask = folder / "masks" / f"{name}.nii.gz"
    nifti.write(mask, values.astype(np.int16), affine)
    return Case(name, f"patient of {name}", tuple(images), mask)


def boxes(shape: Sequence[int], places: Mapping[int, tuple[slice, slice, slice]]) -> np.ndarray:
    """Label values: a box for each."""
    values = np.zeros(tuple(shape), np.int16)
    for value, place in places.items():
        values[place] = value
    return values


def cohort(path: Path, cases: Sequence[Case]) -> Path:
    """Writes the manifest of painted cases."""
    Manifest("painted", CHANNELS, Labels((0, *LESIONS), positive_controls().domain.labels.names), tuple(cases)).save(
        path
    )
    return path
