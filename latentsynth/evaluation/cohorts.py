"""The cohorts that a measurement compares, and what must be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from latentsynth.data import nifti
from latentsynth.data.intake.checks import spacing
from latentsynth.data.manifest import SPLITS, Manifest
from latentsynth.errors import DataError
from latentsynth.metrics.bootstrap import UNBOUNDED, Bounds, mean_interval
from latentsynth.provenance import Ledger
from latentsynth.results import Estimate
from latentsynth.types import Case, Split


def rng() -> np.random.Generator:
    """Randomness of intervals: the same cases give the same ones, so it is no argument of a measurement."""
    return np.random.default_rng(0)


@dataclass(frozen=True)
class Cohort:
    """Cases under a name.

    Attributes:
        name: What tables call it.
        manifest: Where it comes from.
        cases: Those that are measured.
        ledger: Of a synthetic cohort, whom its generator has seen, where that stands beside the manifest.
    """

    name: str
    manifest: Manifest
    cases: tuple[Case, ...]
    ledger: Ledger = Ledger()  # noqa: RUF009 (frozen)

    @classmethod
    def load(
        cls, name: str, path: Path, splits: Sequence[Split] = SPLITS, annotated: bool = False, filled: bool = False
    ) -> Cohort:
        """Cases of some splits of a manifest.

        Args:
            name: What tables call it.
            path: The manifest.
            splits: Which splits.
            annotated: Leave out cases without a mask.
            filled: Keep cases with a channel that nobody scanned, to look for copies of them; nothing else can be measured
                on an empty channel. They stand in the training split alone.

        Raises:
            DataError: No manifest, or no such case.
        """
        manifest = Manifest.load(path)
        whole = [case for case in manifest.select(*splits) if filled or not case.filled]
        cases = tuple(case for case in whole if case.mask is not None or not annotated)
        if not whole:
            raise DataError(
                f"every case of {path} in split {', '.join(splits)} has a filled channel: give cases of all channels"
            )
        if not cases:
            raise DataError(f"no case of {path} in split {', '.join(splits)} has a mask: give annotated cases")
        return cls(name, manifest, cases, Ledger.beside(path))

    @cached_property
    def patients(self) -> list[str]:
        """For every case whom it comes from: its patient, the patients a synthetic case was made from, or else its mask.

        Volumes made for one patient's mask are not independent, so intervals draw them together; so are those of
        several patients that share one.
        """
        people = [_sources(case) for case in self.cases]
        home: dict[str, str] = {}

        def root(name: str) -> str:
            while home.setdefault(name, name) != name:
                name = home[name]
            return name

        for names in people:
            for other in names[1:]:
                first, second = sorted((root(names[0]), root(other)))
                home[second] = first
        return [root(names[0]) for names in people]

    def mean(self, values: Sequence[float], bounds: Bounds = UNBOUNDED) -> Estimate:
        """Mean over patients of one value per case, with its 95 % interval over patients."""
        return Estimate(*mean_interval(values, self.patients, rng(), bounds=bounds))

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of its cases."""
        return tuple(split for split in SPLITS if any(case.split == split for case in self.cases))

    @property
    def real(self) -> bool:
        """Whether every case is a real one."""
        return all(case.source == "real" for case in self.cases)


def named(text: str) -> tuple[str, Path]:
    """``NAME=MANIFEST`` or ``MANIFEST``, whose name is then that of its folder; a folder has its own."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    whole = Path(text).resolve()
    return whole.name if whole.is_dir() else whole.parent.name, Path(text)


def check_names(cohorts: Sequence[Cohort]) -> None:
    """Refuses cohorts that tables could not tell apart.

    Raises:
        DataError: Two have one name.
    """
    names = [cohort.name for cohort in cohorts]
    if len(set(names)) < len(names):
        raise DataError(f"cohorts are named {', '.join(names)}: give every one a name of its own, NAME=MANIFEST")
    if len({file_name(name) for name in names}) < len(names):
        raise DataError(
            f"cohorts {', '.join(names)} would share files: names must differ in more than spaces and slashes"
        )


def file_name(name: str) -> str:
    """A cohort's name as part of a file name."""
    return name.replace("/", "-").replace(" ", "_")


def generator_saw(real: Sequence[Case], cohort: Cohort) -> list[str]:
    """A note where the generator of a synthetic cohort was trained on real cases that its volumes are compared with."""
    seen = sum(bool(case.scans & cohort.ledger.voxels) for case in real)
    if not seen:
        return []
    return [
        f"{cohort.name}: the generator was trained on {seen} of the {len(real)} real cases it is compared with; copies of "
        "them would score best"
    ]


def other_spacing(real: Sequence[Case], cohort: Cohort) -> list[str]:
    """A note where no volume of a synthetic cohort has the voxel spacing of any real case it is compared with.

    Volumes are compared where their headers put them, so that a header that was lost on the way would make them strangers.
    """
    found, theirs = (
        {_spacing(case) for case in cases if case.images and case.images[0].is_file()} for cases in (cohort.cases, real)
    )
    if not found or not theirs or found & theirs:
        return []
    here, there = (", ".join(sorted(spacings)[:3]) for spacings in (found, theirs))
    return [
        f"{cohort.name}: voxel spacing {here} mm, and the real cases have {there} mm: compared where the headers put them, so "
        "that a lost header would hide what is alike"
    ]


def _spacing(case: Case) -> str:
    return " x ".join(f"{edge:.3g}" for edge in spacing(nifti.geometry(case.images[0])[1]))


def chosen_on(cases: Sequence[Case]) -> list[str]:
    """A note where real cases are validation patients."""
    if not any(case.source == "real" and case.split == "val" for case in cases):
        return []
    return [
        "validation patients chose the segmenter's checkpoint, so its score on them is slightly kind; the test split is not"
    ]


def check_new(
    cases: Sequence[Case], seen: Sequence[Case], verified: bool, what: str, allowed: bool = False
) -> list[str]:
    """Refuses cases that a model has seen; says where that cannot be verified.

    Args:
        cases: What is measured.
        seen: Those of them found in the ledger of ``what``.
        verified: Whether patients could be compared.
        what: The model, for the error.
        allowed: Only say it (training cases, asked for on purpose).

    Returns:
        Notes for the report.

    Raises:
        DataError: A case was seen, and that is not allowed.
    """
    if seen and not allowed:
        raise DataError(
            f"{what} was trained on {len(seen)} of these {len(cases)} cases ({', '.join(c.case_id for c in seen[:3])}): "
            "use patients it never saw"
        )
    notes = (
        [f"{what} was trained on {len(seen)} of these {len(cases)} cases: no measure of new patients"] if seen else []
    )
    if not verified:
        notes.append(
            f"cannot verify by patient that these cases are new to {what}: the project key is missing; scans were "
            "compared by their voxels alone"
        )
    return notes


def _sources(case: Case) -> tuple[str, ...]:
    """Whom a case comes from; volumes of a mask that is nobody's have the mask in common."""
    if case.source == "real":
        return (case.patient_id,)
    return case.parents or (f"mask {case.mask_hash}" if case.mask_hash else case.patient_id,)
