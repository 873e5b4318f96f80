"""Who does what in a study: which patients train, which validate, which are held out. Drawn by hash, nested, disjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentsynth.config import StudyConfig
from latentsynth.data.intake.splits import shuffled, split_patients
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.types import Case, Split

_FITTED = (0.8, 0.2, 0.0)  # of the outside patients: fitted to, validated on


@dataclass(frozen=True)
class Roles:
    """The manifests of a study, in ``folder/manifests``.

    Attributes:
        folder: The study's folder.
        cohort: All cases.
        pool: Patients that generators may train on.
        outside: Patients that the autoencoder was fitted on (train) and that every run validates on (val).
        heldout: Patients that no model sees.
    """

    folder: Path
    cohort: Manifest
    pool: tuple[str, ...]
    outside: dict[str, Split]
    heldout: tuple[str, ...]

    @classmethod
    def draw(cls, study: StudyConfig, fold: int = 0, folds: int = 1) -> Roles:
        """Draws the roles.

        Args:
            study: Shares and seed.
            fold: Which of the folds is held out.
            folds: Above 1, the patients that are not outside are cut into so many parts, and the shares of pool and
                held-out patients do not count.

        Raises:
            DataError: Cases that are synthetic or without a mask, or a size larger than the pool.
        """
        cohort = Manifest.load(study.manifest)
        bad = [c.case_id for c in cohort.cases if c.source != "real" or c.mask is None]
        if bad:
            raise DataError(f"{study.manifest} holds {len(bad)} cases that are synthetic or without a mask ({bad[0]})")
        shares = (study.roles.pool, study.roles.outside, study.roles.heldout)
        role = split_patients([case.patient_id for case in cohort.cases], shares, study.seed)
        by = {split: [p for p, found in role.items() if found == split] for split in ("train", "val", "test")}
        if folds > 1:
            rest = shuffled([*by["train"], *by["test"]], study.seed)
            by["test"] = rest[fold::folds]
            by["train"] = [patient for patient in rest if patient not in set(by["test"])]
            if len(by["test"]) < 2:
                raise DataError(f"{folds} folds of {len(rest)} patients hold fewer than 2 each: take fewer folds")
        cohort.labels.lesions(study.framing)  # says which labels there are
        outside = split_patients(by["val"], _FITTED, study.seed) if by["val"] else {}
        folder = study.folder / "folds" / str(fold) if folds > 1 else study.folder
        roles = cls(folder, cohort, tuple(by["train"]), outside, tuple(by["test"]))
        for size in study.sizes:
            roles.subset(size, study.seed)
        return roles

    def subset(self, size: int | str, seed: int) -> tuple[str, ...]:
        """The first patients of the pool in the order of a seed: subsets of one seed are nested.

        Raises:
            DataError: More than the pool has.
        """
        order = shuffled(self.pool, seed)
        if size != "all" and int(size) > len(order):
            raise DataError(f"sizes ask for {size} patients, the pool has {len(order)}: raise roles.pool, or use all")
        return tuple(order if size == "all" else order[: int(size)])

    def write(
        self, name: str, train: Sequence[str] = (), test: Sequence[str] = (), val: Sequence[str] | None = None
    ) -> Path:
        """Writes a manifest of some patients, once; those of the outside validate unless others are given."""
        watching = [p for p, part in self.outside.items() if part == "val"] if val is None else val
        split: dict[str, Split] = dict.fromkeys(watching, "val")
        split |= dict.fromkeys(train, "train")
        split |= dict.fromkeys(test, "test")
        cases: list[Case] = [replace(c, split=split[c.patient_id]) for c in self.cohort.cases if c.patient_id in split]
        path = self.folder / "manifests" / f"{name}.json"
        made = replace(self.cohort, name=name, cases=tuple(cases))
        if not path.is_file() or Manifest.load(path).fingerprint != made.fingerprint:
            made.save(path)
        return path

    def outside_manifest(self) -> Path:
        """What the autoencoder is fitted on."""
        return self.write("outside", [p for p, part in self.outside.items() if part == "train"])

    def detector_manifest(self) -> Path:
        """What the copy detector is fitted on: everybody but the held-out patients."""
        return self.write("detector", [*(p for p, part in self.outside.items() if part == "train"), *self.pool])

    def heldout_manifest(self) -> Path:
        """Whose masks are painted, and who calibrates and controls."""
        return self.write("heldout", test=self.heldout)
