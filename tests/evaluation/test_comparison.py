"""Sets of Gaussian features: each fault is told by the column that should tell it, beside the floor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.fidelity.comparison import FLOOR, FidelityScores, compare, extrapolated, principal, spread
from latentsynth.extractors.networks import RandomNetwork
from latentsynth.metrics.distribution import frechet, kid

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
    (found,) = [one for one in scores.rows if one[0] == name]
    return dict(zip(scores.columns, found[1:], strict=True))


def test_the_floor_comes_first_and_every_set_follows(scores: FidelityScores) -> None:
    assert [one[0] for one in scores.rows] == [FLOOR, *SETS]
    assert [one[1] for one in scores.rows] == [60, 60, 60, 60, 60, 33]
    assert all(len(one) == len(scores.columns) + 1 for one in scores.rows)
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
    for mine, theirs in zip(scores.rows, other.rows, strict=True):
        a, b = (dict(zip(scores.columns, one[1:], strict=True)) for one in (mine, theirs))
        raw = a.pop("frechet_raw"), b.pop("frechet_raw")
        assert mine[0] == theirs[0]
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
    seen: list[tuple[int, int]] = []

    def counting(a: np.ndarray, b: np.ndarray, k: int) -> dict[str, float]:
        seen.append((len(a), len(b)))
        return dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)

    monkeypatch.setattr("latentsynth.evaluation.fidelity.comparison.prdc", counting)
    sizes: list[tuple[int, int]] = []

    def measured(a: np.ndarray, b: np.ndarray) -> float:
        sizes.append((len(a), len(b)))
        return 1.0

    monkeypatch.setattr("latentsynth.evaluation.fidelity.comparison.frechet", measured)
    found = compare(REAL, {"many": SETS["same"], "some": SETS["few"][range(11)]})
    assert found.at == 11
    assert set(seen) == {(11, 11)}
    assert {size for size in sizes if size[0] != size[1]} == {(60, 11)}  # the column of all cases, and no other
    assert sizes.count((11, 11)) >= 3 * 20


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
    one = RandomNetwork(1)
    table, bias = scores.table(one), scores.bias(one)
    assert one.fingerprint in table.note
    assert f"n = {scores.at}" in table.columns[2]
    for shown in table.rows:
        got = row(scores, str(shown[0]))
        assert shown[1:4] == (got["cases"], got["frechet"], got["frechet_all"])
        assert shown[5:] == tuple(got[key] for key in ("precision", "recall", "density", "coverage"))
        if shown[0] == FLOOR:
            assert shown[4] is None
        else:
            assert (shown[4].value, shown[4].low, shown[4].high) == (got["kid"], got["kid_low"], got["kid_high"])  # type: ignore[union-attr]
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
