"""What all makers over a checkpoint share: where masks lie in space, how large those were that it learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator

from latentsynth.data.cache.volumes import to_index
from latentsynth.data.frames import lay, resample_labels
from latentsynth.errors import DataError
from latentsynth.masks.base import Between, MaskMaker, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.provenance import Ledger
from latentsynth.synthesizers.checkpointed import Checkpointed
from latentsynth.types import Domain

_BEYOND = 2.0  # a model is asked for no more than this factor below the least and above the largest volume it has seen


def _invertible(rows: tuple[_Row, ...]) -> tuple[_Row, ...]:
    if not abs(np.linalg.det(np.asarray(rows))) > 0:
        raise ValueError("no affine of a grid: it has no inverse")
    return rows


def _range(volumes: Between) -> Between:
    if not 0 <= volumes[0] <= volumes[1]:
        raise ValueError("no range of volumes")
    return volumes


_Row = tuple[float, float, float, float]
_Affine = Annotated[tuple[_Row, _Row, _Row, _Row], AfterValidator(_invertible)]


@dataclass(kw_only=True)
class TrainedMaker(MaskMaker, Checkpointed):
    """Masks from a trained model.

    Attributes:
        domain: The label maps it makes.
        affine: ``(4, 4)`` of the grid they come out on: axes of RAS+, centred as the median training frame.
        volume_ml: Least and largest lesion volume of the training masks.
        sampling: How it samples.
        fingerprint: Of the checkpoint and changed settings, or "unsaved".
        ledger: The patients it has learnt from.
    """

    shared = MappingProxyType({"affine": _Affine, "volume_ml": Annotated[Between, AfterValidator(_range)]})

    domain: Domain
    affine: np.ndarray
    volume_ml: Between
    sampling: Any
    fingerprint: str = "unsaved"
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        self.labels = self.domain.labels
        self.lesions = self.labels.lesions(self.domain.framing)

    def _header(self) -> dict[str, Any]:
        return {"affine": self.affine.tolist(), "volume_ml": list(self.volume_ml), **super()._header()}

    @classmethod
    def _arguments(cls, facts: dict[str, Any], domain: Domain) -> dict[str, Any]:
        return {**facts, "affine": np.asarray(facts["affine"], dtype=np.float64)}

    def scores(self, seeds: Sequence[int]) -> dict[str, float]:
        """Of some samples: share without a lesion (``empty``) and mean lesion volume of the others (``volume_ml``)."""
        made = [one.volume_ml(self.lesions) for one in self.make(seeds, Wanted()) if isinstance(one, LabelMap)]
        filled = [volume for volume in made if volume]
        return {"empty": 1 - len(filled) / len(seeds), "volume_ml": float(np.mean(filled)) if filled else float("nan")}

    def placed(
        self, name: object, index: np.ndarray, affine: np.ndarray | None = None, parents: tuple[str, ...] = ()
    ) -> LabelMap:
        """Label indices ``(I, J, K)`` as a label map, in the model's own place unless an affine is given."""
        values = np.asarray(self.labels.values, dtype=np.int16)[index]
        return LabelMap(str(name), values, self.affine if affine is None else affine, parents)

    def laid(self, given: LabelMap) -> tuple[np.ndarray, np.ndarray]:
        """A label map on the model's grid, as training laid it over scans: indices ``(I, J, K)`` and the affine.

        Raises:
            DataError: Its lesion does not fit the grid.
        """
        lesion = given.of(self.lesions)
        frame, _ = lay(self.domain.grid, self.domain.framing, given.affine, given.values.shape, lesion, given.name)
        return to_index(resample_labels(given.values, given.affine, frame), self.labels), frame.affine

    def within_reach(self, wanted: Between) -> Between:
        """The part of a range of volumes, ml, that the model can be asked for.

        Raises:
            DataError: None of it is within half the least and twice the largest volume learnt, or the grid's own.
        """
        grid_ml = float(np.prod(self.domain.grid.extent_mm)) / 1000
        least, most = self.volume_ml[0] / _BEYOND, min(self.volume_ml[1] * _BEYOND, grid_ml)
        low, high = max(wanted[0], least), min(wanted[1], most)
        if low > high:
            raise DataError(
                f"a volume of {wanted[0]:g} to {wanted[1]:g} ml is out of reach: the masks it has learnt from hold "
                f"{self.volume_ml[0]:.3g} to {self.volume_ml[1]:.3g} ml and its grid {grid_ml:.4g} ml; ask for "
                f"{least:.3g} to {most:.3g} ml, or train on masks of that size"
            )
        return low, high
