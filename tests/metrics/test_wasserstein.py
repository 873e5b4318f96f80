"""Distances of sets against closed forms, and their floor against sets that are drawn alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsynth.errors import DataError
from latentsynth.metrics.wasserstein import halves_distance, set_distance


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def people(count: int, start: str = "p") -> list[str]:
    return [f"{start}{n}" for n in range(count)]


@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 20))
def test_a_shift_is_as_far_as_it_is_long_and_units_carry_over(seed: int, shift: float, scale: float) -> None:
    values = rng(seed).normal(size=9)
    there = set_distance(values, values + shift, people(9), people(9, "q"), rng(), 20)
    assert there[0] == pytest.approx(abs(shift), abs=1e-9)
    scaled = set_distance(values * scale, (values + shift) * scale, people(9), people(9, "q"), rng(), 20)
    np.testing.assert_allclose(scaled, np.multiply(there, scale), atol=1e-7)


def test_the_same_patients_often_tell_less_than_many_patients() -> None:
    values, others = rng(1).normal(size=60), rng(2).normal(0.5, 1, 60)
    few = np.repeat(people(6, "q"), 10).tolist()
    others_few = np.repeat(others[:6], 10)
    _, low, high = set_distance(values, others, people(60), people(60, "q"), rng())
    _, few_low, few_high = set_distance(values, others_few, people(60), few, rng())
    assert few_high - few_low > 1.5 * (high - low)


def test_patients_on_both_sides_are_drawn_together() -> None:
    """A set that was made from the real patients, every value moved alike, is off by just that, in every draw."""
    values = rng(5).normal(0, 10, 12)
    np.testing.assert_allclose(set_distance(values, values + 3, people(12), people(12), rng()), 3)
    _, low, high = set_distance(values, values + 3, people(12), people(12, "q"), rng())
    assert high - low > 1


def test_one_patient_alone_has_no_interval() -> None:
    value, low, high = set_distance(np.arange(4.0), np.ones(3), people(4), ["q"] * 3, rng())
    assert value == pytest.approx(1.0)
    assert np.isnan([low, high]).all()
    assert np.isnan(halves_distance(np.arange(6.0), people(3) * 2, 9, rng())).all()


def test_sets_drawn_alike_stay_below_the_floor_and_moved_ones_do_not() -> None:
    """The rule that reports use: flagged where the whole interval lies above the floor's upper end.

    Halves of 30 patients are 15 each, so that a shift of one standard deviation may go unseen; two never do.
    """
    flagged = {0.0: 0, 2.0: 0}
    for seed in range(12):
        values = rng(seed).normal(size=30)
        top = halves_distance(values, people(30), 30, rng(), 200)[2]
        for shift in flagged:
            fake = rng(100 + seed).normal(shift, 1, 40)
            flagged[shift] += set_distance(values, fake, people(30), people(40, "q"), rng(), 200)[1] > top
    assert flagged[0.0] == 0
    assert flagged[2.0] == 12


def test_the_floor_of_fewer_is_higher() -> None:
    values = rng(3).normal(size=80)
    floors = [halves_distance(values, people(80), most, rng())[0] for most in (3, 10, 40, 400)]
    assert floors[0] > floors[1] > floors[2] == floors[3]


def test_halves_never_part_a_patient() -> None:
    """Two values of a patient fall on one side: were they parted, halves would be alike."""
    values = np.repeat([0.0, 0.0, 10.0, 10.0], 2)
    whole = halves_distance(values, np.repeat(people(4), 2).tolist(), 2, rng())
    assert whole[2] == 10


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="leave out"):
        set_distance(np.array([1.0, np.nan]), np.ones(2), people(2), people(2), rng())
    with pytest.raises(DataError, match="one patient per value"):
        halves_distance(np.ones(3), people(2), 2, rng())
    with pytest.raises(DataError, match="0 values"):
        set_distance(np.ones(2), np.ones(0), people(2), [], rng())
