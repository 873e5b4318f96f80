"""Somebody else's segmenter: a folder of the label maps that it made, in the place of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, read_mask, to_index
from latentsynth.data.frames import Frame, resample_labels
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.features import comparison_space
from latentsynth.provenance import Ledger, file_fingerprint
from latentsynth.segmentation import Segmenter
from latentsynth.types import Case, Domain, Labels

_ENDINGS = (".nii.gz", ".nii")


@dataclass
class Predictions:
    """Label maps by case, as nnU-Net or TotalSegmentator write them, with what a :class:`Segmenter` says of itself.

    Attributes:
        folder: Files ``CASE.nii.gz``, in the folder itself or in one of its subfolders.
        domain: The grid on which they are compared, and the labels they may hold.
        files: By case id.
        trained_on: Nothing is known of it.
        ledger: Nor of whom it has seen.
    """

    folder: Path
    domain: Domain
    files: dict[str, Path]
    trained_on: dict[str, int] = field(default_factory=dict)
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, like: Path | None = None) -> Predictions:
        """The label maps of a folder.

        Args:
            folder: Where they are.
            manifest: Cases of the kind that were segmented.
            like: Run or checkpoint folder whose grid is taken; None chooses one for the scans.

        Raises:
            DataError: Two files are named alike.
        """
        files: dict[str, Path] = {}
        for file in label_maps(folder):
            name = case_name(file)
            if name in files:
                raise DataError(f"{files[name]} and {file} are both of case {name}: leave one of them")
            files[name] = file
        grid, framing = comparison_space(like, manifest)
        nowhere = tuple((-1.0, 1.0) for _ in manifest.channels)  # nothing is written in scanner units
        return cls(folder, Domain(grid, framing, manifest.labels, manifest.channels, nowhere), files)

    def to(self, device: torch.device | str) -> Predictions:
        """Nothing has to be moved."""
        return self

    @property
    def fingerprint(self) -> str:
        """Of all files."""
        return file_fingerprint(*self.files.values())

    @property
    def recipe(self) -> Recipe:
        """How a case is brought to the grid."""
        return Recipe(self.domain.grid, self.domain.framing, self.domain.labels, AugmentConfig(), 0)

    @property
    def remark(self) -> str:
        """What cannot be known of a segmenter by its label maps."""
        return f"label maps of {self.folder.name} stand for a segmenter: whom it was trained on is your word"

    def check(self, channels: Sequence[str], labels: Labels, name: Path | str) -> None:
        """Refuses a cohort of other labels than the first one has.

        Raises:
            DataError: With both.
        """
        if labels.values != self.domain.labels.values:
            raise DataError(
                f"{name} has labels {labels.values}, the first cohort has {self.domain.labels.values}: give cohorts of one kind"
            )

    def found(self, case: Case, image: np.ndarray) -> np.ndarray:
        """Label indices where :attr:`recipe` lays the grid on a case, int16, ``(I, J, K)``.

        Raises:
            DataError: There is no file for the case, or it holds an unknown label.
        """
        labels, affine = self._read(case)
        return to_index(resample_labels(labels, affine, self._frame(case)), self.domain.labels)

    def look(self, case: Case, whole: bool) -> tuple[np.ndarray, Frame, np.ndarray]:
        """A scan on the grid, in [-1, 1], where that lies, and the label indices that were found there."""
        image = self.recipe.read(case).image
        return image, self._frame(case), self.found(case, image)

    def segment(self, case: Case, whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Label values on the scan's own grid, and its affine.

        Raises:
            DataError: There is no file for the case, it holds an unknown label, or lies on another grid than the scan.
        """
        labels, affine = self._read(case)
        shape, own = nifti.geometry(case.images[0])
        if labels.shape != shape or not np.allclose(affine, own, atol=1e-3):
            raise DataError(
                f"{self.files[case.case_id]} has shape {labels.shape} and lies elsewhere than the scan, {shape}: write label maps "
                "on the scan's own grid"
            )
        return labels, affine

    def _frame(self, case: Case) -> Frame:
        """Where :attr:`recipe` lays the grid on a case."""
        shape, affine = nifti.geometry(case.mask or case.images[0])
        asked = None if case.mask is None else read_mask(case.mask, self.domain.labels)[0]
        return self.recipe.frame(affine, shape, asked, case.case_id)[0]

    def file(self, case: Case) -> Path:
        """The label map of a case.

        Raises:
            DataError: There is none.
        """
        if case.case_id not in self.files:
            raise DataError(
                f"{self.folder} holds no label map of case {case.case_id}: expected a file {case.case_id}.nii.gz, in the "
                f"folder or below it; it holds {len(self.files)} others"
            )
        return self.files[case.case_id]

    def _read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        return read_mask(self.file(case), self.domain.labels)


def open_segmenter(path: Path, manifest: Manifest, like: Path | None = None) -> Segmenter | Predictions:
    """A segmenter of ours, or the label maps of another one.

    Args:
        path: Run or checkpoint folder, or folder of label maps.
        manifest: Cases of the kind that will be looked at.
        like: For label maps, whose grid to compare on.

    Raises:
        DataError, CheckpointError: It is neither, or it is damaged.
    """
    if path.is_dir() and label_maps(path) and not any(path.rglob("config.json")):
        return Predictions.load(path, manifest, like)
    return Segmenter.from_pretrained(path)


def label_maps(folder: Path) -> list[Path]:
    """NIfTI files of a folder and of its subfolders."""
    return sorted(
        file
        for level in ("*", "*/*")
        for file in folder.glob(level)
        if file.name.endswith(_ENDINGS) and not file.name.startswith(".") and file.is_file()
    )


def case_name(file: Path) -> str:
    """Id of the case that a label map is of."""
    return next(file.name.removesuffix(ending) for ending in _ENDINGS if file.name.endswith(ending))
