"""Every turn is found again from what it made of a volume."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from latentsynth.data.turns import UNTURNED, find_turn, turned


def test_all_turns_of_a_cube_are_found() -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 5, 5)).astype(np.int16)
    seen = set()
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        other = turned(voxels, tuple(zip(order, signs, strict=True)))
        turn = find_turn(voxels, other + 7.0)
        assert turn is not None
        assert np.array_equal(turned(voxels, turn), other)
        seen.add(turn)
    assert len(seen) == 48
    assert UNTURNED in seen


def test_no_turn_makes_another_volume() -> None:
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6))
    changed = voxels.copy()
    changed[1, 2, 3] += 1
    assert find_turn(voxels, changed) is None
    assert find_turn(voxels, voxels[:3]) is None
