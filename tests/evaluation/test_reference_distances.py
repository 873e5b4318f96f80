"""The calibrated feature space on Gaussian rows: independent ones stay in their interval, copies do not, patients are the unit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.memorization.reference import ReferenceDistances, nearest_patients, one_per_patient
from latentsynth.evaluation.memorization.spaces import FeatureSpace, WholeVolume
from latentsynth.metrics.conformal import flagged_interval
from latentsynth.metrics.copying import published
from latentsynth.metrics.neighbours import nearest

RULER = FeatureSpace(WholeVolume())
SETTINGS = [(904, 226, 904), (100, 25, 1000)]  # train, calibration, samples


def normal(rows: int, columns: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def features(values: np.ndarray, name: str, patients: Sequence[str] | None = None) -> Features:
    ids = tuple(f"{name}{n:04d}" for n in range(len(values)))
    return Features(ids, tuple(patients or ids), values)


@pytest.mark.parametrize("sizes", SETTINGS)
def test_independent_samples_stay_in_the_interval_and_copies_are_found(sizes: tuple[int, int, int]) -> None:
    """At least 17 of 20 seeds within the 95 % interval (binomial, p = 0.02 to fail), where the published rule flags most."""
    inside, flagged, rule = [], [], []
    for seed in range(20):
        train, calibration, samples = (normal(n, 32, 1000 * seed + i) for i, n in enumerate(sizes))
        reference = ReferenceDistances(RULER, features(train, "t"), features(calibration, "c"), 0.05)
        found = reference.measure(features(samples, "s"))
        assert found.expected == flagged_interval(sizes[1], sizes[2], 0.05)
        assert found.rate.value == found.flagged.mean() == (found.p <= 0.05 + 1e-12).mean()
        inside.append(found.expected[0] <= found.rate.value <= found.expected[1])
        assert found.copied == (found.rate.value > found.expected[1])
        flagged.append(found.rate.value)
        assert reference.flags(train).all()
        if seed < 3:
            rule.append(published(train, calibration, samples).memorised)
    assert np.mean(inside) >= 0.85
    assert np.mean(flagged) < 0.08
    assert np.mean(rule) > 0.15  # thrice its nominal 5 % in the first setting, most rows in the second


def test_copies_among_strangers_are_found_and_named() -> None:
    train, calibration, samples = normal(200), normal(100, seed=1), normal(60, seed=2)
    samples[:20] = train[50:70] + 0.01 * normal(20, seed=3)
    found = ReferenceDistances(RULER, features(train, "t"), features(calibration, "c"), 0.05).measure(
        features(samples, "s")
    )
    assert found.copied
    assert found.flagged[:20].all()
    assert found.discovered[:20].all()
    assert found.discovered[20:].sum() <= 3
    np.testing.assert_array_equal(found.nearest[:20], np.arange(50, 70))
    every = np.sort(cdist(samples, train), 1)
    np.testing.assert_allclose(found.distances, every[:, :2], rtol=1e-5)


def test_a_larger_training_set_shrinks_thresholds_and_not_the_verdict() -> None:
    """The same calibration patients: with thresholds kept from the small set, the large one would look copied."""
    whole, calibration, samples = normal(3200), features(normal(60, seed=1), "c"), normal(300, seed=2)
    limits = []
    for count in (50, 200, 800, 3200):
        reference = ReferenceDistances(RULER, features(whole[:count], "t"), calibration, 0.05)
        found = reference.measure(features(samples, "s"))
        assert found.expected[0] <= found.rate.value <= found.expected[1]
        limits.append(np.sort(reference.first)[2])  # 3 of 61 p-values lie below 0.05
    assert (np.diff(limits) < -0.05).all()
    stale = nearest(samples, whole)[0][:, 0] <= limits[0]
    assert stale.mean() > 2 * found.expected[1]


def test_patients_are_the_unit() -> None:
    """Ten volumes of a patient widen no interval's base: expected and bootstrap are those of one volume each."""
    train, calibration = features(normal(100, 4), "t"), features(normal(40, 4, 1), "c")
    samples = normal(30, 4, 2)
    reference = ReferenceDistances(RULER, train, calibration, 0.2)
    once = reference.measure(features(samples, "s"))
    people = [f"p{n:02d}" for n in range(30) for _ in range(10)]
    tenfold = reference.measure(features(samples.repeat(10, 0), "s", people))
    assert tenfold.expected == once.expected != flagged_interval(40, 300, 0.2)
    assert (tenfold.rate.value, tenfold.rate.low, tenfold.rate.high) == pytest.approx(
        (once.rate.value, once.rate.low, once.rate.high)
    )
    assert once.rate.low < once.rate.value < once.rate.high
    scrambled = Features(tuple("bdac"), ("p", "q", "p", "q"), normal(4))
    assert one_per_patient(scrambled).ids == ("a", "c")
    np.testing.assert_array_equal(one_per_patient(scrambled).values, normal(4)[[2, 3]])


def test_the_second_nearest_patient_is_another_patient() -> None:
    """Cases of one patient do not stand in for a second one, whatever their number."""
    people = [f"p{n // 4}" if n < 40 else f"q{n}" for n in range(60)]
    train = normal(60, 5)
    train[:40] = train[:40:4].repeat(4, 0) + 0.05 * train[:40]
    queries = normal(25, 5, 1)
    distances, rows = nearest_patients(nearest, queries, features(train, "t", people))
    for query, got, row in zip(queries, distances, rows, strict=True):
        to = np.linalg.norm(train.astype(float) - query, axis=1)
        others = to[np.array(people) != people[int(to.argmin())]]
        assert (got[0], got[1], row) == (pytest.approx(to.min()), pytest.approx(others.min()), to.argmin())
    assert np.isnan(nearest_patients(nearest, queries, features(train, "t", ["p"] * 60))[0][:, 1]).all()


def test_relatives_among_the_training_patients_hide_copies_from_all_but_the_bound() -> None:
    """Each calibration patient's double was trained on; leaving the nearest out makes rough copies visible again."""
    train, samples = normal(100), normal(50, seed=2)
    samples[:] = train[:50] + 0.3 * samples
    calibration = features(train[:40] + 0.3 * normal(40, seed=3), "c")
    found = ReferenceDistances(RULER, features(train, "t"), calibration, 0.05).measure(features(samples, "s"))
    assert found.rate.value < 0.2
    assert found.bound > 0.95
    alone = ReferenceDistances(RULER, features(train, "t", ["p"] * 100), calibration, 0.05).measure(
        features(samples, "s")
    )
    assert np.isnan(alone.bound)
    unrelated = ReferenceDistances(RULER, features(train, "t"), features(normal(40, seed=4), "c"), 0.05)
    stranger = unrelated.measure(features(normal(50, seed=5), "s"))
    assert stranger.rate.value <= stranger.bound  # a null that is too long flags no less


class Masks:
    """Patients are a mask beside a texture; a sample shows its parent's mask, and of the texture a share that it copies."""

    def __init__(self, copied: float, people: tuple[int, int, int] = (60, 40, 40), times: int = 1):
        self.groups = [
            features(normal(n, 24, seed), side) for n, side, seed in zip(people, "tck", (1, 2, 3), strict=True)
        ]
        everyone = np.concatenate([side.values for side in self.groups]).repeat(times, 0)
        self.parents = [one for side in self.groups for one in side.ids for _ in range(times)]
        made = normal(len(everyone), 24, 4)
        made[:, :18] = everyone[:, :18]
        learned = slice(0, people[0] * times)  # its generator saw the scans of training patients alone
        made[learned, 18:] = copied * everyone[learned, 18:] + (1 - copied) * made[learned, 18:]
        self.samples = features(made, "s", self.parents)
        self.reference = ReferenceDistances(RULER, self.groups[0], self.groups[1], 0.05)


def test_likeness_through_the_mask_alone_is_no_copy() -> None:
    """Against unseen patients such samples look copied; against samples of unseen patients' masks they do not."""
    world = Masks(0.0)
    learned = Features(world.samples.ids[:60], world.samples.patients[:60], world.samples.values[:60])
    assert world.reference.measure(learned).rate.value > 0.6
    found = world.reference.matched(world.samples, world.parents, world.groups[1], world.groups[2])
    assert found is not None
    assert (found.samples, found.null) == (60, 40)
    assert found.expected == flagged_interval(40, 60, 0.05)
    assert found.rate <= found.expected[1]
    assert found.control <= flagged_interval(40, 40, 0.05)[1]
    np.testing.assert_array_equal(found.rows[0], np.arange(60))
    assert found.rate == (found.rows[1] <= 0.05 + 1e-12).mean()


def test_a_copied_texture_beside_the_mask_is_a_copy() -> None:
    world = Masks(0.9)
    found = world.reference.matched(world.samples, world.parents, world.groups[1], world.groups[2])
    assert found is not None
    assert found.rate > 0.95
    assert found.control < 0.3


def test_several_samples_of_one_mask_count_once() -> None:
    once, thrice = Masks(0.0), Masks(0.0, times=3)
    found = thrice.reference.matched(thrice.samples, thrice.parents, thrice.groups[1], thrice.groups[2])
    assert found is not None
    assert (found.samples, found.null) == (180, 40)
    assert found.expected == flagged_interval(40, 60, 0.05)
    reference = once.reference.matched(once.samples, once.parents, once.groups[1], once.groups[2])
    assert reference is not None
    assert reference.expected == found.expected


def test_without_a_mask_matched_null_there_is_none() -> None:
    world = Masks(0.0)
    nobody = features(normal(0, 24).reshape(0, 24), "k")
    for kept in (slice(0, 60), slice(0, 60 + 18), slice(60, 140)):  # no null, too short a null, no sample of training
        some = Features(world.samples.ids[kept], world.samples.patients[kept], world.samples.values[kept])
        assert world.reference.matched(some, world.parents[kept], world.groups[1], world.groups[2]) is None
    assert world.reference.matched(world.samples, [""] * 140, world.groups[1], world.groups[2]) is None
    found = world.reference.matched(world.samples, world.parents, world.groups[1], nobody)
    assert found is not None
    assert np.isnan(found.control)


@pytest.mark.parametrize(("level", "calibration"), [(0.07, 13), (0.3, 2), (0.03, 32)])
def test_a_null_just_too_short_for_its_level_is_none(level: float, calibration: int) -> None:
    train, null = features(normal(20), "t"), features(normal(calibration, seed=1), "c")
    both = features(np.concatenate([train.values, null.values]), "s")
    reference = ReferenceDistances(RULER, train, null, level)
    assert reference.matched(both, [*train.patients, *null.patients], null, features(normal(5, seed=2), "k")) is None


def test_with_few_calibration_patients_near_exact_copies_alone_are_flagged() -> None:
    """Of twelve held-out patients six calibrate, and no p-value is below 1/7."""
    space = FeatureSpace(WholeVolume(), proportional=True)
    train = normal(50)
    reference = ReferenceDistances(space, features(train, "t"), features(normal(6, seed=1), "c"), 0.05)
    strangers = reference.measure(features(normal(20, seed=2), "s"))
    assert (strangers.flagged.any(), strangers.copied, strangers.mute) == (False, False, True)
    made = np.concatenate([normal(20, seed=2), train[:1] + 0.1 * normal(1, seed=3)])
    found = reference.measure(features(made, "s"))
    assert (found.copied, found.mute) == (True, False)
    assert reference.twins(found) == {"s0020": "t0000"}


@pytest.mark.parametrize("trained", [10, 200])
def test_means_of_patients_are_no_near_exact_copies(trained: int) -> None:
    """The mean of all, which lies nearer to everybody than anybody else does, and strangers drawn towards it."""
    space = FeatureSpace(WholeVolume(), proportional=True)
    train, calibration = normal(trained, 500), normal(30, 500, seed=1)
    reference = ReferenceDistances(space, features(train, "t"), features(calibration, "c"), 0.05)
    middle = train.mean(0, keepdims=True)
    made = np.concatenate([middle, middle + 0.3 * normal(20, 500, seed=2)])
    assert not reference.measure(features(made, "s")).near_exact.any()


def test_real_patients_that_are_training_patients_are_named() -> None:
    space = FeatureSpace(WholeVolume(), proportional=True)
    train, calibration = normal(50), normal(30, seed=1)
    calibration[3] = train[7] + 0.1 * calibration[3]
    reference = ReferenceDistances(space, features(train, "t"), features(calibration, "c"), 0.05)
    assert reference.calibration_twins == {"c0003": "t0007"}


def test_volumes_of_one_mask_are_one_draw_and_say_nothing_of_the_set() -> None:
    """Fifty exact copies painted into one mask: all are flagged, and yet no verdict on the generator follows."""
    train = normal(60)
    reference = ReferenceDistances(RULER, features(train, "t"), features(normal(40, seed=1), "c"), 0.05)
    one = reference.measure(features(train[:50], "s", ["one mask"] * 50))
    assert one.flagged.all()
    assert one.mute
    assert not one.copied
    many = reference.measure(features(train[:50], "s"))
    assert many.copied
    assert not many.mute


def test_a_patient_scanned_several_times_is_no_nearer_for_it() -> None:
    """Samples may resemble any scan of their mask's patient; so may those of the null, or three scans would look copied."""
    rates = []
    for seed in range(20):
        scans = [normal(3 * 40, 24, 10 * seed + n).reshape(40, 3, 24) for n in range(3)]
        groups = [
            features(one.reshape(120, 24), name, [f"{name}{n}" for n in range(40) for _ in range(3)])
            for name, one in zip("tck", scans, strict=True)
        ]
        parents = [f"{name}{n}" for name in "tck" for n in range(40)]
        made = features(normal(120, 24, 10 * seed + 5), "s", parents)
        reference = ReferenceDistances(RULER, groups[0], one_per_patient(groups[1]), 0.05)
        found = reference.matched(made, parents, groups[1], groups[2])
        assert found is not None
        rates.append((found.rate, found.control))
    assert np.mean(rates, axis=0) == pytest.approx([0.05, 0.05], abs=0.025)
