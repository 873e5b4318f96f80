"""What a search for copies costs before it begins: by the pairs that it compares, on all cores."""

from __future__ import annotations

import pytest

from latentsynth.evaluation.memorization import cost
from latentsynth.evaluation.memorization.cost import search_cost

SHAPE = (1, 16, 20, 16)


def test_pairs_and_volumes_are_counted_and_shared_among_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_measured", lambda space, shape: (0.5, 0.01) if space == "parts" else (0.0, 0.0))
    monkeypatch.setattr(cost, "cores", lambda: 1)
    few, many = search_cost(("voxels", "parts"), SHAPE, 10, 4), search_cost(("voxels", "parts"), SHAPE, 20, 4)
    # Of each volume: its description, and everybody in both directions but the held-out patients' in one.
    assert few.per_volume_s == pytest.approx(0.5 + 0.01 * (10 + 14))
    described = 0.5 * (14 + 16 * 40)  # patients, and forty of each of sixteen disguises
    assert few.fixed_s - cost._ONCE_S == pytest.approx(described + 0.01 * ((14 + 640) * 10 + 14 * 4 / 2))
    assert many.fixed_s - few.fixed_s == pytest.approx(0.5 * 10 + 0.01 * ((664 * 20 + 48) - (654 * 10 + 28)))
    assert few.seconds(7) == pytest.approx(few.fixed_s + 7 * few.per_volume_s)
    monkeypatch.setattr(cost, "cores", lambda: 4)
    assert search_cost(("voxels", "parts"), SHAPE, 10, 4).per_volume_s == pytest.approx(few.per_volume_s / 4)


def test_feature_spaces_that_look_closer_cost_more_and_voxels_hardly_anything() -> None:
    alone, some, every = (
        search_cost(spaces, SHAPE, 30, 10).seconds(20)
        for spaces in (("voxels",), ("voxels", "registered"), ("voxels", "registered", "parts"))
    )
    assert alone < some < every
    assert alone < 30
