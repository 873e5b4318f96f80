"""Sets of Gaussian features: each fault is told by the column that should tell it, beside the floor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.fidelity.comparison import (
    FLOOR,
    Difference,
    FidelityScores,
    compare,
    csv_columns,
    csv_row,
    extrapolated,
    principal,
    spread,
)
from latentsynth.metrics.distribution import frechet, frechet_without, kid

WIDTH = 6


def features(values: np.ndarray, name: str = "p", each: int = 1) -> Features:
    """Every patient has ``each`` rows beside each other."""
    count = len(values)
    ids = tuple(f"{name}-case-{n}" for n in range(count))
    return Features(ids, tuple(f"{name}-{n // each}" for n in range(count)), np.asarray(values, dtype=np.float64))


def normal(rows: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return shift + scale * np.random.default_rng(seed).normal(size=(rows, WIDTH))


REAL = features(normal(60, 0))
SETS = {
    "same": features(normal(60, 1), "same"),
    "shifted": features(normal(60, 2, shift=1.0), "shifted"),
    "collapsed": features(normal(60, 3, scale=0.01), "collapsed"),
    "noisy": features(normal(60, 4, scale=3.0), "noisy"),
    "few": features(normal(33, 5), "few"),
}


@pytest.fixture(scope="module")
def scores() -> FidelityScores:
    return compare(REAL, SETS)


def row(scores: FidelityScores, name: str) -> dict[str, Any]:
    (found,) = [one for one in scores.rows if one.name == name]
    return dict(zip(csv_columns(), csv_row(found), strict=True))


def test_the_floor_comes_first_and_every_set_follows(scores: FidelityScores) -> None:
    assert [one.name for one in scores.rows] == [FLOOR, *SETS]
    assert [one.cases for one in scores.rows] == [one.patients for one in scores.rows] == [60, 60, 60, 60, 60, 33]
    assert scores.at == 30  # half of the real cases, fewer than the smallest set has


def test_a_set_of_the_same_distribution_scores_like_the_floor(scores: FidelityScores) -> None:
    floor = row(scores, FLOOR)
    for name in ("same", "few"):
        same = row(scores, name)
        assert same["frechet"] == pytest.approx(floor["frechet"], rel=0.25)
        for key in ("precision", "recall", "coverage"):
            assert same[key] == pytest.approx(floor[key], abs=0.12)
        assert same["density"] == pytest.approx(floor["density"], rel=0.35)
        assert same["kid_low"] < 0.2 < row(scores, "shifted")["kid_low"]


def test_each_fault_is_told_by_its_column(scores: FidelityScores) -> None:
    floor = row(scores, FLOOR)
    shifted, collapsed, noisy = (row(scores, name) for name in ("shifted", "collapsed", "noisy"))
    for fault in (shifted, collapsed, noisy):
        assert fault["frechet"] > 1.8 * floor["frechet"]
    assert shifted["kid_low"] > 5 * max(abs(row(scores, "same")["kid"]), 0.05)
    assert collapsed["precision"] > 0.95
    assert collapsed["recall"] < 0.05
    assert collapsed["coverage"] < 0.7 * floor["coverage"]
    assert noisy["precision"] < 0.3 < 0.7 < floor["precision"]
    assert noisy["recall"] > 0.8
    assert noisy["density"] < 0.3 * floor["density"]


def test_copies_of_one_real_patient_cover_nothing() -> None:
    edge = np.linalg.norm(REAL.values, axis=1).argmax()
    alike = features(REAL.values[edge] + normal(40, 9, scale=1e-3), "copy")
    found = row(compare(REAL, {"copies": alike}), "copies")
    assert found["recall"] < 0.02
    assert found["coverage"] < 0.1


def test_scaling_and_shifting_features_changes_nothing_but_the_raw_distance(scores: FidelityScores) -> None:
    def moved(one: Features) -> Features:
        return Features(one.ids, one.patients, 40 * one.values - 1000)

    other = compare(moved(REAL), {name: moved(one) for name, one in SETS.items()})
    for name in (FLOOR, *SETS):
        a, b = row(scores, name), row(other, name)
        raw = a.pop("frechet_raw"), b.pop("frechet_raw")
        assert a.pop("volumes") == b.pop("volumes")
        for key, value in a.items():
            assert b[key] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-8)), key
        if raw[0] is not None:
            assert raw[1] == pytest.approx(1600 * raw[0], rel=1e-6)


def test_the_unit_is_the_variance_of_the_real_set(scores: FidelityScores) -> None:
    middle = REAL.values.mean(0)
    unit = ((REAL.values - middle) ** 2).mean()
    for name, one in SETS.items():
        got = row(scores, name)
        raw = frechet(REAL.values, one.values)
        assert got["frechet_raw"] == pytest.approx(raw, rel=1e-6)
        assert got["frechet_all"] == pytest.approx(raw / (WIDTH * unit), rel=1e-6)
        scaled = (REAL.values - middle) / np.sqrt(unit), (one.values - middle) / np.sqrt(unit)
        assert got["kid"] == pytest.approx(kid(*scaled))
        assert got["kid_low"] < got["kid_high"]
    point = compare(REAL, {"point": features(np.repeat(middle[None], 40, 0) + normal(40, 8, scale=1e-9), "point")})
    assert row(point, "point")["frechet_all"] == pytest.approx(1, rel=0.02)  # all the variance, none of the mean


def test_all_rows_are_scored_at_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that fills the rows gets as many cases of one side as of the other, and of every set."""
    seen: list[tuple[int, ...]] = []

    def counting(*given: Any) -> np.ndarray:
        seen.append((given[-2].shape[1], given[-1].shape[1]))
        return frechet_without(*given)

    monkeypatch.setattr("latentsynth.evaluation.fidelity.comparison.frechet_without", counting)
    found = compare(REAL, {"many": SETS["same"], "some": SETS["few"][range(11)]})
    assert found.at == 11
    assert set(seen) == {(11, 11)}
    assert len(seen) >= 3 * 20


def gap(scores: FidelityScores, name: str, other: str) -> Difference:
    (found,) = [one for one in scores.differences if (one.name, one.other) == (name, other)]
    return found


@pytest.mark.parametrize(("shift", "each"), [(0.0, 1), (1.5, 1), (1.5, 3)])
def test_known_distances_between_gaussians_are_covered(
    shift: float, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two Gaussians that differ in their mean alone, the distance minus the floor is the mean's, without a bias.

    80 repeats of 20 patients against 20 masks: nominally 95 percent; 92 to 100 are found, so at least 70 of 80. Samples of
    one mask are alike, and taken for independent their intervals would cover less.
    """
    monkeypatch.setattr("latentsynth.evaluation.fidelity.comparison._SPLITS", 4)
    monkeypatch.setattr("latentsynth.evaluation.fidelity.comparison.kid_interval", lambda *given: (0.0, 0.0, 0.0))
    draws, hits, values = np.random.default_rng(0), 0, []
    for _ in range(80):
        real, masks = draws.normal(size=(2, 20, WIDTH))
        fake = np.repeat(masks, each, 0) + 0.1 * draws.normal(size=(20 * each, WIDTH))
        fake[:, 0] += shift
        found = gap(compare(features(real), {"fake": features(fake, "q", each)}), "fake", FLOOR).frechet
        truth = shift**2 / WIDTH / real.var(0).mean()
        values.append(found.value - truth)
        hits += found.low <= truth <= found.high
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(80)
    assert hits >= 70


def test_sets_of_the_same_masks_are_compared_mask_by_mask() -> None:
    """One set is the other and a little noise: by mask their difference is known far better than by other masks."""
    other = features(SETS["same"].values + normal(60, 11, scale=0.05), "same")
    paired = gap(compare(REAL, {"a": SETS["same"], "b": other}), "b", "a")
    strangers = Features(other.ids, tuple(f"mask {who}" for who in other.patients), other.values)
    apart = gap(compare(REAL, {"a": SETS["same"], "b": strangers}), "b", "a")
    assert paired.frechet.high - paired.frechet.low < 0.5 * (apart.frechet.high - apart.frechet.low)
    for name in ("frechet", "precision", "recall", "density", "coverage"):
        mine, theirs = getattr(paired, name), getattr(apart, name)
        assert mine.value == theirs.value
        assert mine.low <= mine.value <= mine.high


def test_copies_of_every_volume_tell_nothing_new() -> None:
    once = compare(REAL, {"shifted": SETS["shifted"][range(30)]})
    copied = SETS["shifted"][np.repeat(range(30), 3)]
    many = compare(REAL, {"shifted": copied})
    assert [one.patients for one in many.rows] == [60, 30]
    assert [one.cases for one in many.rows] == [60, 90]
    a, b = (gap(one, "shifted", FLOOR).frechet for one in (once, many))
    assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.3)


def test_differences_are_those_of_the_rows(scores: FidelityScores) -> None:
    assert [(one.name, one.other) for one in scores.differences][:3] == [("same", FLOOR), ("shifted", FLOOR), ("shifted", "same")]  # fmt: skip
    assert len(scores.differences) == 5 + 10
    for one in scores.differences:
        for name in ("frechet", "precision", "recall", "density", "coverage"):
            expected = row(scores, one.name)[name] - row(scores, one.other)[name]
            assert getattr(one, name).value == pytest.approx(expected, abs=1e-12)
    assert gap(scores, "same", FLOOR).frechet.low < 0 < gap(scores, "same", FLOOR).frechet.high
    for name in ("shifted", "collapsed", "noisy"):
        assert gap(scores, name, FLOOR).frechet.low > 0
        assert gap(scores, name, "same").frechet.low > 0
    assert gap(scores, "collapsed", FLOOR).recall.high < 0


def test_a_set_of_one_mask_has_no_interval() -> None:
    found = compare(REAL, {"one": features(normal(30, 3), "one", each=30)})
    assert found.rows[1].kid is None
    assert math.isnan(found.rows[1].frechet.low)
    assert not math.isnan(found.rows[0].frechet.low)


def test_features_of_many_units_are_scaled_each_by_its_own() -> None:
    units = np.array([1e-3, 1, 1e4, 1, 1, 1])
    sets = [features(one.values * units, "x") for one in (REAL, SETS["shifted"])]
    still = [features(np.concatenate([one.values, np.full((60, 1), 7.0)], 1), "x") for one in sets]
    plain = compare(REAL, {"shifted": SETS["shifted"]}, each=True)
    for real, fake in (sets, still):
        found = compare(real, {"shifted": fake}, each=True)
        assert found.rows[1].frechet_raw == pytest.approx(plain.rows[1].frechet_raw)
    z = [(one.values - REAL.values.mean(0)) / REAL.values.std(0) for one in (REAL, SETS["shifted"])]
    assert plain.rows[1].frechet_raw == pytest.approx(frechet(*z))


def test_halves_never_share_a_patient() -> None:
    """Two alike scans per patient: were halves drawn by scan, the other half would hold the twins."""
    twins = features(np.repeat(normal(20, 1), 2, axis=0), "twin", each=2)
    alone = features(normal(20, 1), "alone")
    sets = {"same": features(normal(40, 2), "same")}
    together = row(compare(twins, sets), FLOOR)["frechet"]
    assert together > 0.8 * row(compare(alone, {"same": sets["same"][range(20)]}), FLOOR)["frechet"]


def test_halves_of_the_growing_floor_never_share_a_patient() -> None:
    twins = features(np.repeat(normal(20, 1), 2, axis=0), "twin", each=2)
    found = compare(twins, {"same": features(normal(40, 2), "same")})
    assert found.growth[FLOOR][found.at] == pytest.approx(row(found, FLOOR)["frechet"], rel=0.5)


def test_the_growth_table_agrees_with_the_rows(scores: FidelityScores) -> None:
    growth = scores.growth
    assert list(growth) == [FLOOR, *SETS]
    assert growth[FLOOR][scores.at] == pytest.approx(row(scores, FLOOR)["frechet"], rel=0.15)
    assert list(growth[FLOOR]) == [7, 15, 30]
    for name in set(SETS) - {"few"}:  # all of one side and all of the other
        assert growth[name][60] == pytest.approx(row(scores, name)["frechet_all"], rel=1e-6)
    assert list(growth["few"]) == [8, 16, 33]
    for name in (FLOOR, "same"):
        values = list(growth[name].values())
        assert values == sorted(values, reverse=True)  # smaller sets look worse
        assert extrapolated(growth[name]) < 0.4 * values[-1] + 0.05  # and the bias is most of it


def test_no_set_is_scored_at_more_cases_than_it_has() -> None:
    found = compare(REAL, {"two": SETS["same"][[0, 1]]})
    assert max(found.growth["two"]) == 2


def test_a_line_is_extrapolated_exactly() -> None:
    line = {n: 0.37 + 5.5 / n for n in (10, 20, 50)}
    assert extrapolated(line) == pytest.approx(0.37)
    assert extrapolated({50: line[50], 10: line[10]}) == pytest.approx(0.37)
    assert math.isnan(extrapolated({10: 1.0}))


@pytest.mark.parametrize("count", [3, 5, 8, 12, 20])
def test_rows_are_spread_over_patients(count: int) -> None:
    patients = [*"aaaaaaaaaa", *"bbb", "c", *"dddd", "e", "f"]
    for seed in range(30):
        rows = spread(patients, count, np.random.default_rng(seed))
        assert len(set(rows)) == len(rows) == count
        each = [sum(patients[n] == name for n in rows) for name in "abcdef"]
        assert sum(n > 0 for n in each) == min(count, 6)
        have = [patients.count(name) for name in "abcdef"]
        fewest = min(n for n, most in zip(each, have, strict=True) if n < most) if count < 20 else 10
        assert max(each) <= fewest + 1  # nobody is taken twice before all that can be are taken once


def test_rows_are_drawn_at_random() -> None:
    drawn = np.concatenate([spread(["a"] * 3 + ["b"] * 2, 2, np.random.default_rng(seed)) for seed in range(300)])
    np.testing.assert_allclose(np.bincount(drawn) / 300, [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2], atol=0.09)


def test_the_same_features_give_the_same_scores(scores: FidelityScores) -> None:
    again = compare(REAL, SETS)
    assert again.rows == scores.rows
    assert again.growth == scores.growth


def test_features_that_do_not_vary_are_no_error() -> None:
    still = features(np.ones((20, WIDTH)))
    found = compare(still, {"same": features(np.ones((12, WIDTH)), "same")})
    assert row(found, "same")["frechet"] == pytest.approx(0, abs=1e-9)


def test_tables_hold_the_scores(scores: FidelityScores) -> None:
    table, bias = scores.table("mean", "print", "Units."), scores.bias("mean")
    assert "print" in table.note
    assert f"n = {scores.at}" in table.columns[3]
    for shown, got in zip(table.rows, scores.rows, strict=True):
        assert shown == (got.name, got.patients, got.cases, got.frechet, got.frechet_all, got.kid, got.precision, got.recall, got.density, got.coverage)  # fmt: skip
        assert len(shown) == len(table.columns)
        assert (got.kid is None) == (got.name == FLOOR)
    between = scores.comparisons("mean")
    assert [len(one) for one in between.rows] == [len(between.columns)] * 15
    for shown in bias.rows:
        growth = scores.growth[str(shown[0])]
        for count, cell in zip(bias.columns[1:-1], shown[1:-1], strict=True):
            assert cell == growth.get(int(count.removeprefix("n = ")))
        assert shown[-1] == extrapolated(growth)


def test_principal_axes_are_those_of_the_first_set() -> None:
    values = np.random.default_rng(0).normal(size=(200, 4)) * (0.5, 4.0, 0.1, 2.0) + 7
    both = principal({"real": values, "fake": values + np.array([0, 3, 0, 0])})
    np.testing.assert_allclose(np.abs(both["real"][:, 0]), np.abs(values[:, 1] - values[:, 1].mean()), atol=1.0)
    np.testing.assert_allclose(both["real"].std(0), [4, 2], rtol=0.15)
    shift = (both["fake"] - both["real"]).mean(0)
    assert abs(shift[0]) == pytest.approx(3, rel=0.05)
    assert abs(shift[1]) < 0.5
    np.testing.assert_allclose(both["real"].mean(0), 0, atol=1e-9)
