"""Binned intensity distributions against scipy, known shifts, and halves of one cohort."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from latentsynth.metrics.histograms import EDGES, cohort_distance, floor, histogram, wasserstein

CENTRES = (EDGES[1:] + EDGES[:-1]) / 2
WIDTH = EDGES[1] - EDGES[0]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def cohort(cases: int, seed: int, shift: float = 0.0, each: int = 1) -> tuple[np.ndarray, list[str]]:
    """Histograms of patients whose brightness varies, ``each`` volumes of the same brightness per patient."""
    draws = rng(seed)
    middles = np.repeat(draws.normal(-0.2 + shift, 0.1, cases), each)
    rows = np.array([histogram(draws.normal(middle, 0.15, 3000)) for middle in middles])
    return rows, [f"{seed}-{n}" for n in range(cases) for _ in range(each)]


def test_a_histogram_counts_every_voxel_once() -> None:
    values = rng().normal(0, 0.8, (9, 8, 7))  # a good part lies outside the window
    shares = histogram(values)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx((values < EDGES[1]).mean())
    assert shares[-1] == pytest.approx((values >= EDGES[-2]).mean())
    assert np.isnan(histogram(np.array([]))).all()


def test_the_distance_equals_scipys_on_bin_centres() -> None:
    for seed in range(5):
        a, b = rng(seed).dirichlet(np.full(len(CENTRES), 0.3), size=2)
        reference = stats.wasserstein_distance(CENTRES, CENTRES, a, b)
        assert wasserstein(a, b) == pytest.approx(reference, rel=1e-9)
        assert wasserstein(b, a) == pytest.approx(reference, rel=1e-9)


def test_binning_costs_half_a_bin_at_most() -> None:
    a, b = rng(1).normal(-0.3, 0.2, 5000).clip(-1, 1), rng(2).normal(0.1, 0.3, 5000).clip(-1, 1)
    exact = stats.wasserstein_distance(a, b)
    assert abs(wasserstein(histogram(a), histogram(b)) - exact) <= WIDTH / 2


@pytest.mark.parametrize("bins", [0, 1, 7, 30])
def test_a_shift_is_its_own_distance(bins: int) -> None:
    values = rng().uniform(-0.6, 0.3, 4000)
    values = CENTRES[np.digitize(values, EDGES) - 1]  # on bin centres, so that the shift moves all by whole bins
    moved = wasserstein(histogram(values), histogram(values + bins * WIDTH))
    assert moved == pytest.approx(bins * WIDTH, abs=1e-12)


def test_distances_of_many_pairs_at_once() -> None:
    a, b = rng().dirichlet(np.ones(100), size=(2, 3)), rng(1).dirichlet(np.ones(100), size=(2, 3))
    together = wasserstein(a, b)
    assert together.shape == (2, 3)
    assert together[1, 2] == pytest.approx(float(wasserstein(a[1, 2], b[1, 2])))


def test_every_case_of_a_cohort_counts_alike() -> None:
    real, groups = cohort(6, 0)
    fake, others = cohort(5, 1, 0.2)
    distance, low, high = cohort_distance(real, fake, groups, others, rng())
    assert distance == pytest.approx(stats.wasserstein_distance(CENTRES, CENTRES, real.mean(0), fake.mean(0)))
    assert low <= distance <= high


def test_the_interval_of_a_shift_is_that_of_the_mean_brightness() -> None:
    """Where one cohort is brighter throughout, the distance is the difference of mean intensities."""
    real, groups = cohort(30, 0)
    fake, others = cohort(25, 1, 0.4)
    _, low, high = cohort_distance(real, fake, groups, others, rng())
    reference = stats.bootstrap(
        (fake @ CENTRES, real @ CENTRES), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=5000,
        method="percentile", rng=rng(5),
    ).confidence_interval  # fmt: skip
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.12 * width)
    assert high == pytest.approx(reference.high, abs=0.12 * width)


def test_the_interval_resamples_patients() -> None:
    real, groups = cohort(10, 0)
    fake, others = cohort(10, 1, 0.4)
    once = cohort_distance(real, fake, groups, others, rng())
    many = cohort_distance(
        real.repeat(5, 0), fake.repeat(5, 0), np.repeat(groups, 5).tolist(), np.repeat(others, 5).tolist(), rng()
    )
    assert many == pytest.approx(once, abs=1e-12)


def test_the_floor_lies_at_what_equal_cohorts_have_and_below_a_shift() -> None:
    real, groups = cohort(20, 0)
    bottom = floor(real, groups, rng())
    assert bottom == pytest.approx(floor(real, groups, rng(1)), rel=0.15)
    alike = np.mean([cohort_distance(*pair, rng())[0] for pair in halves(10)])
    assert bottom == pytest.approx(alike, rel=0.4)
    fake, others = cohort(20, 1, 0.25)
    distance, low, _ = cohort_distance(real, fake, groups, others, rng())
    assert bottom < low < distance


def halves(times: int) -> list[tuple[np.ndarray, np.ndarray, list[str], list[str]]]:
    """Pairs of cohorts of ten patients from one distribution."""
    sets = [(cohort(10, 100 + n), cohort(10, 200 + n)) for n in range(times)]
    return [(a[0], b[0], a[1], b[1]) for a, b in sets]


def test_halves_of_the_floor_never_share_a_patient() -> None:
    """Volumes of one patient are alike: were they split among the halves, the floor would sink."""
    real, groups = cohort(8, 3, each=6)
    assert floor(real, [str(n) for n in range(len(real))], rng()) < 0.7 * floor(real, groups, rng())


def test_too_few_patients_have_no_floor() -> None:
    real, groups = cohort(3, 0, each=4)
    assert math.isnan(floor(real, groups, rng()))
    assert floor(*cohort(4, 0), rng()) > 0
