"""Lesions that a grid holds are counted as resampling decides, without resampling."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from latentsynth.data.frames import lay, resample_labels
from latentsynth.data.intake.lesions import Lesions, count_held
from latentsynth.metrics.lesions import components
from latentsynth.types import Framing, Grid

SHAPE = (96, 96, 48)
AFFINE = nib.affines.from_matvec(np.array([[0, -1.0, 0], [1.0, 0, 0], [0, 0, 2.0]]), [50, -40, 7])
WHOLE = Framing("whole")


def balls(radii_mm: list[float], seed: int = 0) -> np.ndarray:
    """Balls far apart on a lattice, each off it by a part of a voxel."""
    rng = np.random.default_rng(seed)
    out = np.zeros(SHAPE, bool)
    mm = np.indices(SHAPE) * np.array([1.0, 1, 2]).reshape(3, 1, 1, 1)
    places = [(x, y, z) for x in range(12, 96, 24) for y in range(12, 96, 24) for z in range(12, 96, 24)]
    for radius, place in zip(radii_mm, rng.permutation(places), strict=False):
        out |= ((mm - (place + rng.uniform(-3, 3, 3)).reshape(3, 1, 1, 1)) ** 2).sum(0) <= radius**2
    return out


@pytest.mark.parametrize("spacing", [1.0, 3.0, 6.0, 8.0])
def test_the_count_is_that_of_resampling(spacing: float) -> None:
    mask = balls([1, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8] * 5)
    lesions = Lesions.find("a", mask, AFFINE)
    grid = Grid(tuple(int(np.ceil(96 / spacing)) for _ in range(3)), (spacing,) * 3)  # type: ignore[arg-type]
    frame, _ = lay(grid, WHOLE, AFFINE, SHAPE, None, "a")
    shown = components(resample_labels(mask.astype(np.int16), AFFINE, frame) > 0)[1]
    count = count_held([lesions], grid, WHOLE)
    assert count.lesions == len(lesions) == components(mask)[1]
    assert abs(count.held - shown) <= 0.06 * len(lesions)  # a voxel that is covered by half may fall either way
    assert (count.held == len(lesions)) == (spacing == 1.0)
    assert count.cases == (("a",) if count.lost else ())


def test_the_last_lesion_of_a_case_stays_as_it_does_in_resampling() -> None:
    mask = balls([1.5])
    grid = Grid((12, 12, 12), (8.0, 8.0, 8.0))
    count = count_held([Lesions.find("a", mask, AFFINE)], grid, WHOLE)
    assert (count.lesions, count.lost) == (1, 0)
    frame, _ = lay(grid, WHOLE, AFFINE, SHAPE, None, "a")
    assert resample_labels(mask.astype(np.int16), AFFINE, frame).any()


def test_a_lesion_outside_the_grid_is_lost() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[48, 48, 24] = mask[2, 2, 2] = True
    count = count_held([Lesions.find("a", mask, AFFINE)], Grid((32, 32, 32), (1.0, 1.0, 2.0)), WHOLE)
    assert (count.lesions, count.held) == (2, 1)
