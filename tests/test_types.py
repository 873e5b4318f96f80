"""The nouns refuse what they cannot mean and come back from JSON as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentsynth.errors import ConfigError, LatentsynthError, UnknownNameError
from latentsynth.types import Condition, Framing, Grid, Labels, Window

WINDOWS = (Window("fixed", -160, 240), Window())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"low": 5, "high": 5}, "5 is not below high 5"),
        ({"kind": "fixed", "low": 7, "high": -7}, "not below"),
        ({"low": float("nan"), "high": 50}, "nan"),
        ({"low": -1, "high": 50}, "leaves 0:100"),
        ({"low": 1, "high": 101}, "leaves 0:100"),
    ],
)
def test_impossible_windows_are_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Window(**facts)


def test_fixed_windows_may_leave_the_range_of_percentages() -> None:
    assert Window("fixed", -1000, 3000).low == -1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (8, 8)}, "shape"),
        ({"shape": (8, 0, 8)}, "shape"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, -1.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "spacing_mm"),
        ({"spacing_mm": (float("nan"), 1.0, 1.0)}, "spacing_mm"),
        ({"spacing_mm": (1.0, float("inf"), 1.0)}, "spacing_mm"),
        ({"windows": (Window(),) * 9}, "9 windows"),
    ],
)
def test_impossible_grids_are_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid(**{"shape": (8, 8, 8), "spacing_mm": (1.0, 1.0, 1.0), "windows": WINDOWS, **change})


def test_grid_knows_its_channels_and_extent_and_is_a_value() -> None:
    grid = Grid((8, 16, 4), (1.5, 2.0, 3.0), WINDOWS)
    assert grid.channels == 2
    assert grid.extent_mm == (12, 32, 12)
    listed = Grid([8, 16, 4], [1.5, 2.0, 3.0], list(WINDOWS))  # type: ignore[arg-type]  # as YAML and JSON give them
    assert listed == grid
    assert hash(listed) == hash(grid)


@pytest.mark.parametrize("values", [(), (1, 2), (0, 2, 1), (0, 1, 1), (-1, 0, 1)])
def test_labels_ascend_from_background(values: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="must ascend from 0"):
        Labels(values)


def test_labels_and_names_pair_up() -> None:
    assert Labels((0, 3)).names == ("background", "label 3")
    with pytest.raises(ConfigError, match="1 label names for 2"):
        Labels((0, 1), ("background",))
    with pytest.raises(ConfigError, match="tumour appear more than once"):
        Labels((0, 1, 2), ("background", "tumour", "tumour"))


def test_lesion_labels_are_checked_against_the_cohort() -> None:
    labels = Labels((0, 1, 2, 5))
    assert labels.lesions(Framing()) == (1, 2, 5)
    assert labels.lesions(Framing(lesion_labels=(5,))) == (5,)
    for wrong in ((4,), (0,), (5, 9)):
        with pytest.raises(ConfigError, match=r"lesion_labels .*choose from \(1, 2, 5\)"):
            labels.lesions(Framing(lesion_labels=wrong))


def test_rows_of_a_condition_stay_together() -> None:
    mask = torch.arange(4.0).view(4, 1, 1, 1, 1)
    condition = Condition(mask, context=mask * 10, covariates=mask.view(4, 1) * 100)
    part = condition[1:3]
    assert len(condition) == 4
    assert len(part) == 2
    assert part.mask.flatten().tolist() == [1, 2]
    assert part.context is not None
    assert part.context.flatten().tolist() == [10, 20]
    assert part.covariates is not None
    assert part.covariates.flatten().tolist() == [100, 200]
    assert part.style is None


def test_unknown_names_list_the_choices() -> None:
    error = UnknownNameError("scheduler", "eluer", ["heun", "euler"])
    assert str(error) == "unknown scheduler 'eluer': choose one of euler, heun"
    assert isinstance(error, LatentsynthError)
    assert isinstance(error, ValueError)
