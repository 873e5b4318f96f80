"""Sets whose headers were lost: scans are compared by their voxels where their place in space says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentsynth.data import nifti
from latentsynth.data.identity import identity, turned_hash, volume_hash
from latentsynth.data.intake.checks import spacing
from latentsynth.data.turns import UNTURNED, Turn, find_turn, turned
from latentsynth.documents import read_fields
from latentsynth.errors import DataError
from latentsynth.evaluation.cohorts import Cohort, other_spacing
from latentsynth.files import write_json
from latentsynth.provenance import fingerprint
from latentsynth.results import Note
from latentsynth.types import Case

_RTOL = 0.01  # spacings that differ by more are not those of one header
_SHOWN = 3


class Arrays:
    """The scans of some patients by shape, and by the hashes of their voxels, any channel's, that no header changes.

    Args:
        cohort: The patients.
        cache: Where hashes and scans under another header are kept.
    """

    def __init__(self, cohort: Cohort, cache: Path):
        self.cohort, self.folder = cohort, cache / "headers"
        self.by_hash = {name: (case, channel) for case in cohort.cases for channel, name in self._hashes(case)}
        self.by_shape: dict[tuple[int, ...], list[tuple[np.ndarray, Case]]] = {}
        for case in cohort.cases:
            shape, affine = nifti.geometry(case.images[0])
            self.by_shape.setdefault(shape, []).append((affine, case))

    def check_apart(self, heldout: Cohort) -> None:
        """Refuses held-out patients whose scans are among these, under whatever header.

        Raises:
            DataError: With their cases.
        """
        same = [case.case_id for case in heldout.cases if any(name in self.by_hash for _, name in self._hashes(case))]
        if same:
            raise DataError(
                f"{len(same)} held-out cases have the voxels of training scans under another header ({_few(same)}): hold back "
                "patients that no generator saw"
            )

    def twins(self, made: Cohort) -> dict[str, str]:
        """By case of a set the case here of which one of its channels is a copy, voxel for voxel, whatever its header says."""
        known = {
            case.case_id: [self.by_hash[name][0].case_id for _, name in self._hashes(case) if name in self.by_hash]
            for case in made.cases
        }
        return {case: twins[0] for case, twins in known.items() if twins}

    def aligned(self, made: Cohort) -> tuple[Cohort, list[Note]]:
        """A set as it can be compared with these patients.

        A volume that is a scan of theirs voxel for voxel, but turned, mirrored or under another header, is laid where
        that scan lies. One that has the shape of their scans and another spacing than all of that shape has lost its header,
        and is laid where the first of them lies. All others stay where their headers put them.

        Returns:
            The set, some of its files replaced by copies under another header, and what must be said of it.
        """
        cases, exact, lost = [], [], []
        for case in made.cases:
            shape, affine = nifti.geometry(case.images[0])
            known = self.by_shape.get(shape, [])
            twins = [(case.images[n], *self.by_hash[name]) for n, name in self._hashes(case) if name in self.by_hash]
            place = self._turn(twins[0][0], twins[0][1].images[twins[0][2]]) if twins else None
            if place is not None:
                exact.append(case.case_id)
            elif known and not any(np.allclose(spacing(affine), spacing(one), rtol=_RTOL) for one, _ in known):
                place = UNTURNED, known[0][0]
                lost.append(case.case_id)
            cases.append(case if place is None else self._laid(case, *place))
        return replace(made, cases=tuple(cases)), self._notes(made, exact, lost)

    def without_headers(self, cases: Sequence[Case], name: str) -> Cohort:
        """Some of these patients' cases saved under a placeholder instead of their header: positive controls.

        Args:
            cases: Which.
            name: What the cohort is called.
        """
        return replace(self.cohort, name=name, cases=tuple(self._laid(case, UNTURNED, np.eye(4)) for case in cases))

    def _notes(self, made: Cohort, exact: list[str], lost: list[str]) -> list[Note]:
        count, texts = len(made.cases), []
        if exact:
            texts.append(
                f"{len(exact)} of {count} volumes are training scans voxel for voxel, turned or under another header "
                f"({_few(exact)}): measured as these scans"
            )
        if lost:
            texts.append(
                f"{len(lost)} of {count} volumes have the shape of training scans and another voxel spacing ({_few(lost)}): "
                "taken for scans whose header was lost, and compared voxel by voxel"
            )
        named = {*exact, *lost}
        rest = replace(made, cases=tuple(case for case in made.cases if case.case_id not in named))
        others = other_spacing([case for known in self.by_shape.values() for _, case in known], rest)
        return [Note(text, made.name) for text in (*(f"{made.name}: {text}" for text in texts), *others)]

    def _hashes(self, case: Case) -> list[tuple[int, str]]:
        """Of every channel that holds more than one value, with its number; kept by what the case's files hold."""
        file = self.folder / "turned" / f"{identity(case)}.json"
        if not file.is_file():
            volumes = [nifti.read(image)[0] for image in case.images]
            write_json(file, {"turned": [turned_hash(one) if one.min() < one.max() else "" for one in volumes]})
        return [(channel, name) for channel, name in enumerate(read_fields(file, turned=list)["turned"]) if name]

    def _turn(self, image: Path, twin: Path) -> tuple[Turn, np.ndarray] | None:
        """How to turn a volume into another of the same voxels, and the other's affine.

        None where it lies as the other does already, or no turn makes it the other.
        """
        (voxels, own), (wanted, affine) = nifti.read(image), nifti.read(twin)
        if volume_hash(voxels, own) == volume_hash(wanted, affine):
            return None
        turn = find_turn(voxels, wanted)
        return None if turn is None else (turn, affine)

    def _laid(self, case: Case, turn: Turn, affine: np.ndarray) -> Case:
        """The case with its files turned and under another affine."""
        folder = self.folder / f"{identity(case)}-{fingerprint([turn, affine.tolist()])}"

        def moved(file: Path, part: str) -> tuple[Path, str]:
            voxels = np.ascontiguousarray(turned(nifti.read(file)[0], turn))
            place = folder / part / file.name  # an image and its mask may bear one name
            nifti.write(place, voxels, affine)
            return place, volume_hash(voxels, nifti.geometry(place)[1])

        images = [moved(file, str(n)) for n, file in enumerate(case.images)]
        mask = moved(case.mask, "mask") if case.mask is not None else (None, "")
        return replace(
            case,
            images=tuple(file for file, _ in images),
            image_hashes=tuple(print_ for _, print_ in images),
            mask=mask[0],
            mask_hash=mask[1],
        )


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
