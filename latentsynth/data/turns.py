"""The 48 ways to turn and mirror an array: which of them makes one scan another, whatever their headers say."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np

UNTURNED = ((0, 1), (1, 1), (2, 1))

Turn = tuple[tuple[int, int], ...]  # for every axis, which axis it becomes, and -1 where it is mirrored


def find_turn(voxels: np.ndarray, wanted: np.ndarray) -> Turn | None:
    """How to turn one volume into another; None where no turn does.

    Args:
        voxels: ``(I, J, K)``, compared as float32 above their minimum.
        wanted: The other, of any shape.
    """
    voxels, wanted = (np.asarray(one, np.float32) - np.float32(one.min()) for one in (voxels, wanted))
    turns = (
        tuple(zip(order, signs, strict=True))
        for order in permutations(range(3))
        for signs in product((1, -1), repeat=3)
    )
    return next((turn for turn in turns if np.array_equal(turned(voxels, turn), wanted)), None)


def turned(voxels: np.ndarray, turn: Turn) -> np.ndarray:
    """A volume ``(I, J, K)`` turned."""
    return np.asarray(nib.orientations.apply_orientation(voxels, turn))
