"""A label map in space: what makers of masks take and make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from latentsynth.data.cache.volumes import read_mask
from latentsynth.data.identity import check_files
from latentsynth.errors import DataError
from latentsynth.metrics.lesions import components
from latentsynth.types import Case, Labels


@dataclass(frozen=True)
class LabelMap:
    """Label values on a voxel grid.

    Attributes:
        name: What to call it in file names and errors.
        values: Label values, int16, shape ``(I, J, K)`` in the affine's own axis order.
        affine: ``(4, 4)``, voxel indices to world coordinates in mm (RAS+).
        parents: Patients whose annotation it was made from, beyond what a trained model has learnt; first the one whose
            grid and anatomy it has.
    """

    name: str
    values: np.ndarray
    affine: np.ndarray
    parents: tuple[str, ...] = ()

    @classmethod
    def read(cls, case: Case, labels: Labels) -> LabelMap:
        """The annotation of a case.

        Raises:
            DataError: It has none, or it is unreadable, or holds an unknown label.
        """
        if case.mask is None:
            raise DataError(f"case {case.case_id} has no mask: give annotated cases")
        values, affine = read_mask(case.mask, labels)
        check_files(case, mask=(values, affine))
        # A synthetic case is no patient; whoever it was made from is.
        parents = (case.patient_id,) if case.source == "real" else case.parents
        return cls(case.case_id, values, affine, parents)

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edges along ``I J K``, mm."""
        i, j, k = (float(edge) for edge in voxel_sizes(self.affine))
        return (i, j, k)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def of(self, values: Sequence[int]) -> np.ndarray:
        """Where some labels are, boolean, ``(I, J, K)``."""
        return np.isin(self.values, list(values))

    def volume_ml(self, values: Sequence[int]) -> float:
        """Volume of some labels together, ml."""
        return int(self.of(values).sum()) * self.voxel_ml

    def pieces(self, values: Sequence[int]) -> int:
        """Connected pieces of some labels together; corners connect."""
        where = self.of(values)
        boxes = ndimage.find_objects(where.view(np.uint8))  # most of a scan holds nothing
        return components(where[boxes[0]])[1] if boxes else 0
