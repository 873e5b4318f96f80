"""Are synthetic volumes copies of the training patients? Every number beside what unseen patients score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.evaluation.cohorts import Cohort, rng
from latentsynth.evaluation.features import Features, extract, extract_volumes
from latentsynth.evaluation.memorization.controls import Controls, control
from latentsynth.evaluation.memorization.joint import join, joined
from latentsynth.evaluation.memorization.positive_controls import DISGUISES, LOST_HEADER, MASK_DISGUISES, make_copies
from latentsynth.evaluation.memorization.reference import (
    Matched,
    Measured,
    ReferenceDistances,
    first_cases,
    nearest_patients,
    one_per_patient,
)
from latentsynth.evaluation.memorization.spaces import FeatureSpace, mask_space
from latentsynth.metrics.copying import (
    FIRST_ASKED,
    authentic,
    copy_rate,
    data_copying,
    nearer_to_training,
    nearest_ratio,
    published,
    published_null,
    reproduced,
)
from latentsynth.metrics.distribution import prdc
from latentsynth.results import Estimate

CALIBRATION, CONTROL = "calibration patients", "control patients"
_NEIGHBOURS = 5
_SEVERAL = 2  # feature spaces that can be joined
_COPIES = 30  # of each disguise, at least, where there are so many patients, so that a share found means something
_RATIO = 1 / 3  # of nearest to second-nearest distance, below which a row is called memorised (Yoon et al. 2023)


@dataclass(frozen=True)
class PatientGroups:
    """The real patients of a measurement.

    Attributes:
        train: Whom the generators saw.
        calibration: Held-out patients that set the thresholds.
        control: Held-out patients that pose as a generator.
    """

    train: Cohort
    calibration: Cohort
    control: Cohort

    @property
    def all(self) -> tuple[Cohort, ...]:
        """The three of them."""
        return self.train, self.calibration, self.control


@dataclass(frozen=True)
class Measures:
    """The uncalibrated measures of one set by one feature space; compare with the same ones of control patients.

    Attributes:
        nearer: p-value of the set: do training patients lie nearer to it than held-out ones? Exact over patients, times
            the number of feature spaces (Bonferroni), but for the joint one.
        reproduced: Share of training cases with a sample nearer than unseen patients come, with its interval.
        ratio: Share of samples whose nearest training patient is three times as near as the second-nearest.
        authentic: Share of authentic samples.
        data_copying: C_T.
        closeness: Precision, recall, density and coverage of the set against the calibration patients.
    """

    nearer: float
    reproduced: Estimate
    ratio: float
    authentic: float
    data_copying: float
    closeness: Mapping[str, float]


@dataclass(frozen=True)
class CopySearch:
    """Everything that one feature space says.

    Attributes:
        space: The feature space.
        reference distances: Its calibration.
        controls: Its controls.
        sets: By name, the synthetic sets.
        matched: By name, against the mask-matched null; None where that does not apply.
        measures: By name, control patients first.
        published: By name, the rule of 2024 and its simulated null; empty unless asked for.
        unseen: By name, distances to the nearest held-out patient, whose mask a volume may show; of masks alone.
    """

    space: FeatureSpace
    reference: ReferenceDistances
    controls: Controls
    sets: Mapping[str, Measured]
    matched: Mapping[str, Matched | None]
    measures: Mapping[str, Measures]
    published: Mapping[str, tuple[float, ...]]
    unseen: Mapping[str, np.ndarray] = field(default_factory=dict)

    def verdict(self, name: str) -> str:
        """One word on a set."""
        if not self.controls.valid:
            return "not applicable" if self.space.doubt else "not to be valid"
        if self.sets[name].copied:
            return "COPIES"
        if self.nearer(name):
            return "nearer to training patients"
        return "too few to say" if self.sets[name].mute else "as unseen patients"

    def nearer(self, name: str) -> bool:
        """Whether a set as a whole lies nearer to training patients than to held-out ones."""
        return self.measures[name].nearer <= self.reference.level


def search_copies(
    spaces: Sequence[FeatureSpace],
    groups: PatientGroups,
    samples: Sequence[Cohort],
    caches: Mapping[str, VolumeCache],
    accelerator: Accelerator,
    level: float = 0.05,
    dar2024: bool = False,
    without_headers: VolumeCache | None = None,
) -> list[CopySearch]:
    """Measures some synthetic sets against one training set.

    Args:
        spaces: How volumes are compared.
        groups: The real patients.
        samples: Synthetic sets.
        caches: The volumes of every cohort, by its name.
        accelerator: The processes that share the volumes.
        level: Level of the p-values: share of unseen patients that may be flagged.
        dar2024: Also apply the published rule of 2024.
        without_headers: Training cases that were read from files whose header was lost, as further positive controls.

    Returns:
        What each space says; first, where several apply, what they say together.
    """
    extractors = [one.extractor for one in spaces]
    features = {
        cohort.name: extract(extractors, cohort, caches[cohort.name], accelerator) for cohort in (*groups.all, *samples)
    }
    copies = make_copies(
        extractors,
        caches[groups.train.name],
        caches[groups.control.name],
        copies_of_each(groups, samples),
        DISGUISES,
        _image,
        accelerator,
    )
    if without_headers is not None:
        image = lambda n: torch.from_numpy(_image(without_headers, n))  # noqa: E731
        title = f"positive controls, {LOST_HEADER}"
        lost = extract_volumes(extractors, image, len(without_headers), title, accelerator)
        copies = {name: {**found, LOST_HEADER: lost[name]} for name, found in copies.items()}
    searches = [
        _search(
            one,
            groups,
            samples,
            {n: f[one.name] for n, f in features.items()},
            copies[one.name],
            level,
            dar2024,
            len(spaces),
        )
        for one in spaces
    ]
    # Those that know a copy when they see one; with too few calibration patients there are no p-values to join.
    applicable = [
        one.space
        for one in searches
        if not one.space.doubt and one.controls.found["exact"] == 1 and one.reference.enough
    ]
    if len(applicable) < _SEVERAL:
        return searches
    together = {name: joined([found[one.name] for one in applicable]) for name, found in features.items()}
    space = join(applicable, [features[groups.train.name][one.name] for one in applicable])
    disguises = next(iter(copies.values()))
    disguised = {d: np.concatenate([copies[one.name][d] for one in applicable], 1) for d in disguises}
    return [_search(space, groups, samples, together, disguised, level, dar2024=False), *searches]


def copies_of_each(groups: PatientGroups, samples: Sequence[Cohort]) -> int:
    """How many positive controls of each disguise: as many as the smallest set has volumes, at least thirty if there are."""
    least = min(_COPIES, len(groups.train.cases))
    return max(least, min(len(cohort.cases) for cohort in samples or [groups.control]))


def search_mask_copies(
    groups: PatientGroups,
    samples: Sequence[Cohort],
    caches: Mapping[str, VolumeCache],
    accelerator: Accelerator,
    level: float = 0.05,
) -> CopySearch:
    """The same for the masks that volumes were made from: an exported mask publishes an annotation.

    Patients with empty masks are left out: these are all alike, and nobody's.
    """
    sides = [_with_lesions(cohort, caches[cohort.name]) for cohort in groups.all]
    groups = replace(groups, **dict(zip(("train", "calibration", "control"), (side for side, _ in sides), strict=True)))
    caches = {**caches, **{cohort.name: cache for cohort, cache in sides}}
    space = mask_space(_mask(caches[groups.train.name], 0).shape[1:])
    features = {
        cohort.name: extract([space.extractor], cohort, caches[cohort.name], accelerator, _mask)[space.name]
        for cohort in (*groups.all, *samples)
    }
    count = min(len(cohort.cases) for cohort in samples or [groups.control])
    copies = make_copies(
        [space.extractor],
        caches[groups.train.name],
        caches[groups.control.name],
        count,
        MASK_DISGUISES,
        _mask,
        accelerator,
    )
    heldout = np.concatenate([features[side.name].values for side in (groups.calibration, groups.control)])
    unseen = {c.name: space.search(features[c.name].values, heldout, 1)[0][:, 0] for c in samples}
    return replace(_search(space, groups, samples, features, copies[space.name], level, False), unseen=unseen)


def _with_lesions(cohort: Cohort, cache: VolumeCache) -> tuple[Cohort, VolumeCache]:
    """The cases of a cohort whose masks mark something, and their volumes, which were made already."""
    cases = tuple(case for case in cohort.cases if case.marked)
    return replace(cohort, cases=cases), VolumeCache(cache.folder.parent, cache.recipe, cases)


def _search(
    space: FeatureSpace,
    groups: PatientGroups,
    samples: Sequence[Cohort],
    features: Mapping[str, Features],
    copies: Mapping[str, np.ndarray],
    level: float,
    dar2024: bool,
    tests: int = 1,
) -> CopySearch:
    train = features[groups.train.name]
    calibration, unseen = (one_per_patient(features[c.name]) for c in (groups.calibration, groups.control))
    reference = ReferenceDistances(space, train, calibration, level)
    checked = reference.measure(unseen)
    sets = {cohort.name: reference.measure(features[cohort.name]) for cohort in samples}
    # Copies are planted in the set with the fewest of its own, which tells most of what a feature space sees.
    base = min(sets, key=lambda name: sets[name].rate.value, default=CONTROL)
    controls = control(reference, checked, sets.get(base, checked), base, copies)
    others = [features[side.name] for side in (groups.calibration, groups.control)]
    matched = {c.name: reference.matched(features[c.name], _parents(c), *others) for c in samples}
    everything = {CONTROL: checked, **sets}
    own = nearest_patients(space.search, train.values, train)[0][:, 1]  # each one's nearest other patient
    heldout = {name: [calibration] if name == CONTROL else [calibration, unseen] for name in everything}
    measures = {name: _measures(reference, heldout[name], own, one, tests) for name, one in everything.items()}
    rules = {name: _published(train, calibration, one) for name, one in everything.items()} if dar2024 else {}
    return CopySearch(space, reference, controls, sets, matched, measures, rules)


def _measures(
    reference: ReferenceDistances, heldout: Sequence[Features], own: np.ndarray, one: Measured, tests: int
) -> Measures:
    train, search, calibration = reference.train, reference.space.search, heldout[0]
    reached = reproduced(train.values, calibration.values, one.features.values, reference.level, search)
    genuine = authentic(train.values, one.features.values, search, own)
    k = min(_NEIGHBOURS, (min(len(calibration.ids), len(one.features.ids)) - 1) // 4)
    closeness = {}
    if k >= 1 and not reference.space.wide:
        closeness = prdc(calibration.values, one.features.values, k)
    k = min(FIRST_ASKED, len(one.features.ids))  # as many as are asked for below, so that slow searches are done once
    nearest_of = lambda people: search(people.values, one.features.values, k)[0][:, 0]  # noqa: E731
    apart = np.concatenate([nearest_of(people) for people in heldout])
    return Measures(
        min(1.0, tests * nearer_to_training(nearest_of(train)[first_cases(train)], apart)),
        Estimate(*copy_rate(reached, train.patients)),
        float((nearest_ratio(one.distances) < _RATIO).mean()),
        float("nan") if np.isnan(own).any() else float(genuine.mean()),
        data_copying(train.values, calibration.values, one.features.values, rng(), 1 if reference.space.wide else 3, search=search),
        closeness,
    )  # fmt: skip


def _published(train: Features, calibration: Features, one: Measured) -> tuple[float, ...]:
    found = published(train.values, calibration.values, one.features.values)
    null = published_null(train.values, len(calibration.ids), len(one.features.ids), rng())
    return found.threshold, found.memorised, null.memorised, found.copies, null.copies


def _parents(cohort: Cohort) -> list[str]:
    """The one patient whose mask each case was made from, or ""."""
    return [case.parents[0] if len(case.parents) == 1 else "" for case in cohort.cases]


def _image(cache: VolumeCache, n: int) -> np.ndarray:
    return cache.volume(n).image


def _mask(cache: VolumeCache, n: int) -> np.ndarray:
    mask = cache.volume(n).mask
    assert mask is not None  # masks are judged where every case has one
    return mask[None].astype(np.float32)
