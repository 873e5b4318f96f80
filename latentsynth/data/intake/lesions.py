"""Which lesions of a cohort a grid can hold, counted without resampling a single mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentsynth.data.frames import Frame, lay
from latentsynth.metrics.lesions import components
from latentsynth.types import Framing, Grid


@dataclass(frozen=True)
class Lesions:
    """The lesions of one case.

    Attributes:
        case_id: Case.
        at: Indices of the lesion voxels, ``(n, 3)``.
        of: The lesion that each belongs to, from 0, ``(n,)``.
        affine: Of the mask, ``(4, 4)``.
        shape: Of the mask.
    """

    case_id: str
    at: np.ndarray
    of: np.ndarray
    affine: np.ndarray
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.of.max()) + 1 if len(self.of) else 0

    @classmethod
    def find(cls, case_id: str, mask: np.ndarray, affine: np.ndarray) -> Lesions:
        """The connected parts of a boolean mask ``(I, J, K)``."""
        numbered, _ = components(mask)
        at = np.argwhere(numbered)
        return cls(case_id, at.astype(np.int32), numbered[tuple(at.T)] - 1, affine, mask.shape)

    @property
    def mask(self) -> np.ndarray:
        """All of them, boolean, ``(I, J, K)``."""
        out = np.zeros(self.shape, dtype=bool)
        out[tuple(self.at.T)] = True
        return out

    def held(self, frame: Frame) -> np.ndarray:
        """Which of the lesions keep a voxel in a frame: those that cover more than half of one.

        :func:`latentsynth.data.frames.resample_labels` decides in this way, from interpolated coverages; here whole
        voxels are counted, which takes no time. As there, where nothing is left the most covered voxel remains.

        Returns:
            Boolean, one per lesion.
        """
        matrix = np.linalg.inv(frame.affine) @ self.affine
        to = np.rint(self.at @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.int64)
        inside = ((to >= 0) & (to < frame.shape)).all(axis=1)
        if not inside.any():
            return np.zeros(len(self), dtype=bool)
        flat = np.ravel_multi_index(tuple(to[inside].T), frame.shape)
        _, which, counts = np.unique(flat, return_inverse=True, return_counts=True)
        coverage = counts[which] * abs(np.linalg.det(matrix[:3, :3]))
        kept = np.unique(self.of[inside][coverage > min(0.5, coverage.max() - 1e-9)])
        return np.isin(np.arange(len(self)), kept)


@dataclass(frozen=True)
class Count:
    """How many lesions a grid holds.

    Attributes:
        lesions: In all.
        held: Of these, the ones that keep a voxel.
        cases: Cases that lose one.
    """

    lesions: int
    held: int
    cases: tuple[str, ...]

    @property
    def lost(self) -> int:
        """The lesions that vanish."""
        return self.lesions - self.held


def count_held(every: Sequence[Lesions], grid: Grid, framing: Framing) -> Count:
    """Counts the lesions that a grid holds.

    Args:
        every: One per annotated case.
        grid: The grid.
        framing: Where it is laid.

    Raises:
        DataError: A lesion does not fit and ``framing.fit`` is ``"error"``.
    """
    total, held, cases = 0, 0, []
    for lesions in every:
        mask = None if framing.crop == "whole" and framing.fit == "error" else lesions.mask
        frame, _ = lay(grid, framing, lesions.affine, lesions.shape, mask, lesions.case_id)
        kept = lesions.held(frame)
        total, held = total + len(kept), held + int(kept.sum())
        if not kept.all():
            cases.append(lesions.case_id)
    return Count(total, held, tuple(cases))
