"""Ranks over data sets: a planted order is found, too few data sets and one cohort twice are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from latentsynth.errors import DataError
from latentsynth.experiments.ranks import rank_studies
from latentsynth.experiments.utility.summary import KIND
from latentsynth.metrics.significance import critical_difference
from latentsynth.results import Result, write_csv

ARMS = {"worst": 0.0, "best": 0.2, "middling": 0.1}


def study(folder: Path, n: int, arms: dict[str, float] | None = None, size: str = "all", cohort: str = "") -> Path:
    """A finished study: every data set has a level of its own, far larger than what its arms differ by."""
    made = folder / f"study-{n}"
    Result(KIND, "", {"cohort": cohort or str(n)}, ()).save(made)
    rng = np.random.default_rng(n)
    level = rng.uniform(0.2, 0.7)
    rows = [
        ("unet", size, arm, f"p{k}", level + gain + 0.01 * rng.standard_normal())
        for arm, gain in (arms or ARMS).items()
        for k in range(10)
    ]
    write_csv(made / f"{KIND}.csv", ("segmenter", "size", "arm", "patient", "dice"), rows)
    return made


def test_a_planted_order_is_found_over_data_sets(tmp_path: Path) -> None:
    found = rank_studies([study(tmp_path, n) for n in range(6)], tmp_path / "out")
    assert [(row[0], row[1]) for row in found.tables[0].rows] == [("best", 1.0), ("middling", 2.0), ("worst", 3.0)]
    assert found.facts["p"] == pytest.approx(np.exp(-6), rel=1e-6)  # chi-squared of 2 k N / 2 = 12 at 2 degrees
    assert found.facts["critical_difference"] == critical_difference(3, 6)
    assert "differ" in found.notes[0]
    assert (tmp_path / "out" / "ranks.png").stat().st_size > 5000
    assert Result.load(tmp_path / "out" / "ranks.json").tables == found.tables


def test_arms_without_an_order_cannot_be_told_apart(tmp_path: Path) -> None:
    turns = [dict(zip(ARMS, np.roll([0.0, 0.1, 0.2], n), strict=True)) for n in range(6)]
    found = rank_studies([study(tmp_path, n, arms) for n, arms in enumerate(turns)], tmp_path / "out")
    assert {row[1] for row in found.tables[0].rows} == {2.0}
    assert "cannot be told apart" in found.notes[0]


def test_what_cannot_be_ranked_is_refused(tmp_path: Path) -> None:
    five = [study(tmp_path, n) for n in range(5)]
    out = tmp_path / "out"
    with pytest.raises(DataError, match="3 models on 4 data sets cannot be ranked"):
        rank_studies(five[:4], out)
    with pytest.raises(DataError, match="studies of one cohort"):
        rank_studies([*five, study(tmp_path, 9, cohort="0")], out)
    with pytest.raises(DataError, match="studies of one cohort"):
        rank_studies([five[0]] * 5, out)
    with pytest.raises(DataError, match="nothing at size 10"):
        rank_studies(five, out, "10")
    with pytest.raises(DataError, match="2 arms are in all 6 studies"):
        rank_studies([*five, study(tmp_path, 7, {"best": 0.1, "worst": 0.0})], out)
    with pytest.raises(DataError, match=re.escape("no finished utility study")):
        rank_studies([tmp_path], out)
    assert not out.exists()
