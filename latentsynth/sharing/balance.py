"""Rare cases on request: which masks a cohort lacks, by lesion volume, place, label or site, and new ones of that kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from latentsynth import outputs
from latentsynth.config import MaskSetConfig
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.masks import LabelMap, MaskMaker, Rejected, Wanted, make_masks
from latentsynth.masks.build import build_maker
from latentsynth.provenance import LEDGER, Ledger, fingerprint
from latentsynth.results import Result, Table, TableCell
from latentsynth.types import Case, Labels, Split

KIND = "balance"
BY = ("lesion_volume", "location", "label", "site")
_SIDES = (("left", "right"), ("back", "front"), ("bottom", "top"))  # towards lower and higher RAS+ coordinates
NOTHING = "no lesion"


@dataclass(frozen=True)
class CaseKinds:
    """The kinds of cases that are counted.

    Attributes:
        names: All of them, also those that no case is of.
        of: The kind of a mask; for a site, of the case it was made from.
        wanted: What to ask a maker for, by kind, where that is more than waiting for masks of the kind.
    """

    names: tuple[str, ...]
    of: Callable[[LabelMap], str]
    wanted: Mapping[str, Wanted] = field(default_factory=dict)


@dataclass(frozen=True)
class BalancePlan:
    """What is missing.

    Attributes:
        strata: The kinds of cases.
        real: Cases of each kind, by name.
        target: Cases of each kind that there should be.
    """

    strata: CaseKinds
    real: dict[str, list[Case]]
    target: int

    @property
    def missing(self) -> dict[str, int]:
        """New masks of each kind."""
        return {name: max(0, self.target - len(self.real[name])) for name in self.strata.names}


class _OfKind(MaskMaker):
    """Another maker's masks, those of one kind alone."""

    def __init__(self, maker: MaskMaker, strata: CaseKinds, kind: str):
        self.labels, self.lesions, self.ledger = maker.labels, maker.lesions, maker.ledger
        self.fingerprint = fingerprint([maker.fingerprint, strata.names, kind])
        self._maker, self._strata, self._kind = maker, strata, kind

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        made = self._maker.make(seeds, self._strata.wanted.get(self._kind, wanted))
        return [one if isinstance(one, Rejected) else self._searches(one) for one in made]

    def _searches(self, made: LabelMap) -> LabelMap | Rejected:
        found = self._strata.of(made)
        return made if found == self._kind else Rejected(f"is {found}")


def plan(
    manifest: Manifest,
    by: str,
    lesions: Sequence[int],
    bins: int = 4,
    target: int | None = None,
    site: str | None = None,
    split: Split = "train",
) -> BalancePlan:
    """Counts cases by kind.

    Args:
        manifest: Real annotated cases.
        by: One of :data:`BY`. Volume: bins of equal width on a logarithmic scale; location: the side of the field of view's
            middle, along the axis on which the lesions' centroids spread most; label: the largest lesion label.
        lesions: Label values that count as lesion.
        bins: Of lesion volume.
        target: Cases of each kind that there should be; None takes the most frequent kind's number.
        site: For ``site``: regular expression whose first group, in the case id, is the site.
        split: Whose cases.

    Raises:
        ConfigError: An unknown ``by``, or no expression for the site.
        DataError: Fewer than two cases with a lesion, or all of one kind.
    """
    if by not in BY:
        raise ConfigError(f"by {by!r}: choose one of {', '.join(BY)}")
    cases = [case for case in manifest.select(split) if case.marked]
    found = [(case, LabelMap.read(case, manifest.labels)) for case in cases]
    found = [(case, made) for case, made in found if made.of(lesions).any()]
    if len(found) < 2:
        raise DataError(f"{len(found)} cases of split {split} have a lesion (labels {list(lesions)}): give at least 2")
    maps = [made for _, made in found]
    if by == "lesion_volume":
        strata = _by_volume(maps, lesions, bins)
    elif by == "location":
        strata = _by_location(maps, lesions)
    elif by == "label":
        strata = _by_label(manifest.labels, lesions)
    else:
        strata = _by_site([case for case, _ in found], site)
    real: dict[str, list[Case]] = {name: [] for name in strata.names}
    for case, made in found:
        real[strata.of(made)].append(case)
    most = max(len(group) for group in real.values())
    chosen = BalancePlan(strata, real, target or most)
    if not any(chosen.missing.values()):
        raise DataError(
            f"no kind by {by} has fewer than {chosen.target} cases: nothing to balance; give a larger --target"
        )
    return chosen


def balance(
    planned: BalancePlan, labels: Labels, lesions: Sequence[int], config: MaskSetConfig, out: Path, seed: int = 0
) -> tuple[Manifest, Result]:
    """Makes the masks that are missing, each kind from the cases of that kind, or from all where there is none.

    Args:
        planned: What is missing.
        labels: Of the cohort.
        lesions: Label values that count as lesion.
        config: How masks are made.
        out: Output folder; one folder per kind, and a manifest of all.
        seed: First seed.

    Returns:
        The manifest of all new masks, and the plan as a result.

    Raises:
        DataError: A kind is out of reach for the method.
    """
    outputs.claim(out, "masks of missing kinds")
    cases: list[Case] = []
    ledger = Ledger()
    everybody = [case for group in planned.real.values() for case in group]
    for number, (name, count) in enumerate(planned.missing.items()):
        if not count:
            continue
        maker = build_maker(config, planned.real[name] or everybody, labels, lesions)
        folder = out / _file_name(number, name)
        made = make_masks(_OfKind(maker, planned.strata, name), count, folder, seed=seed)
        cases += [
            replace(case, case_id=f"{folder.name}-{case.case_id}", patient_id=f"synthetic-{folder.name}-{case.case_id}")
            for case in made.cases
        ]
        ledger |= Ledger.load(folder / LEDGER)
    manifest = Manifest(out.name, (), labels, tuple(cases))
    manifest.save(out / "manifest.json")
    ledger.save(out / LEDGER)
    rows: list[tuple[TableCell, ...]] = [
        (name, len(planned.real[name]), planned.missing[name], len(planned.real[name]) + planned.missing[name])
        for name in planned.strata.names
    ]
    table = Table(
        "cases by kind", ("kind", "real", "new masks", "together"), tuple(rows), f"target: {planned.target} of each"
    )
    result = Result(KIND, "Which masks does the cohort lack?", {"target": planned.target, "seed": seed}, (table,))
    result.save(out)
    outputs.finish(out, ["manifest.json", LEDGER, *result.files])
    return manifest, result


def _by_volume(maps: Sequence[LabelMap], lesions: Sequence[int], bins: int) -> CaseKinds:
    volumes = [made.volume_ml(lesions) for made in maps]
    edges = np.geomspace(min(volumes), max(volumes), bins + 1)
    if bins < 2 or not edges[0] < edges[-1]:
        raise DataError(
            f"{bins} bins from {edges[0]:.3g} to {edges[-1]:.3g} ml: give at least 2, and lesions that differ"
        )
    names = tuple(f"{low:.3g} to {high:.3g} ml" for low, high in pairwise(edges))

    def of(made: LabelMap) -> str:
        volume = made.volume_ml(lesions)
        if not edges[0] * (1 - 1e-9) <= volume <= edges[-1] * (1 + 1e-9):
            return "out of the range of real lesions"
        return names[min(bins - 1, int(np.searchsorted(edges[1:], volume * (1 - 1e-9))))]

    ranges = (Wanted((low, high)) for low, high in pairwise(map(float, edges)))
    return CaseKinds(names, of, dict(zip(names, ranges, strict=True)))


def _by_location(maps: Sequence[LabelMap], lesions: Sequence[int]) -> CaseKinds:
    axis = int(np.std([_place(made, lesions) for made in maps], axis=0).argmax())
    low, high = _SIDES[axis]

    def of(made: LabelMap) -> str:
        if not made.of(lesions).any():
            return NOTHING
        return high if _place(made, lesions)[axis] > 0 else low

    return CaseKinds((low, high), of)


def _place(made: LabelMap, lesions: Sequence[int]) -> np.ndarray:
    """Centroid of the lesions relative to the middle of the field of view, mm in RAS+."""
    middle = apply_affine(made.affine, (np.array(made.values.shape) - 1) / 2)
    return np.asarray(apply_affine(made.affine, np.argwhere(made.of(lesions)).mean(0)) - middle)


def _by_label(labels: Labels, lesions: Sequence[int]) -> CaseKinds:
    names = {value: labels.names[labels.values.index(value)] for value in lesions}
    if len(names) < 2:
        raise DataError(f"one lesion label alone ({', '.join(names.values())}): nothing to balance by label")

    def of(made: LabelMap) -> str:
        counts = {value: int((made.values == value).sum()) for value in names}
        return names[max(counts, key=lambda value: counts[value])] if any(counts.values()) else NOTHING

    return CaseKinds(tuple(names.values()), of)


def _by_site(cases: Sequence[Case], expression: str | None) -> CaseKinds:
    if not expression:
        raise ConfigError("by site needs --site: a regular expression whose first group, in the case id, is the site")
    home: dict[str, str] = {}
    for case in cases:
        match = re.search(expression, case.case_id)
        if match is None or (match.re.groups and match[1] is None):
            raise DataError(f"--site {expression!r} finds nothing in case id {case.case_id}: change the expression")
        found = match[1] if match.re.groups else match[0]
        if home.setdefault(case.patient_id, found) != found:
            raise DataError(
                f"patient {case.patient_id} has cases at {home[case.patient_id]} and {found}: balance by something else"
            )
    names = tuple(sorted(set(home.values())))
    return CaseKinds(names, lambda made: home.get(made.parents[0], "unknown") if made.parents else "unknown")


def _file_name(number: int, name: str) -> str:
    return f"{number}-{re.sub(r'[^A-Za-z0-9.]+', '_', name)}"
