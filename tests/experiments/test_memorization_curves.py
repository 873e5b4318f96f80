"""What the memorization study concludes, from measures that were made up so that the answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from latentsynth.evaluation.memorization.joint import JOINT
from latentsynth.experiments.memorization.curves import curves, deciding_space, judge
from latentsynth.metrics.rates import Rate, difference, mean_rate


def rows(model: str, rates: list[float], frechet: list[float], seed: int = 0, **facts: Any) -> list[dict[str, Any]]:
    """One arm: a copy rate and a distance per minute of training, by the joint space and by a blind one."""
    made = []
    for minute, (rate, distance) in enumerate(zip(rates, frechet, strict=True), 1):
        common = {
            "model": model, "size": 10, "seed": seed, "stage": float(minute), "cpu_seconds": 60.0 * minute, "images_seen": minute,
            "valid": True, "expected_high": 0.13, "frechet": distance, "frechet_floor": 0.7, "similarity": 0.7,
            "similarity_real": 0.7, "membership_auc": None,
        }  # fmt: skip
        for space, value in ((JOINT, rate), ("voxels", 0.0)):
            row = {
                **common,
                "space": space,
                "copy_rate": value,
                "low": max(value - 0.1, 0),
                "high": min(value + 0.1, 1),
            }
            made.append({**row, **facts})
    return made


def test_copying_begins_where_the_mean_over_seeds_leaves_what_chance_gives() -> None:
    found = curves(
        [
            *rows("diffusion", [0.0, 0.1, 0.5, 0.9], [2, 1, 0.9, 0.8]),
            *rows("diffusion", [0.0, 0.1, 0.1, 0.9], [2, 1, 0.9, 0.8], seed=1),
            *rows("gan", [0.0, 0.1, 0.12, 0.13], [2, 2, 2, 2]),
        ]
    )
    first, second = found
    assert (first.space, first.model, second.model) == (JOINT, "diffusion", "gan")
    assert first.copies_from is first.points[2]
    assert second.copies_from is None


@pytest.mark.parametrize(
    ("more", "less", "verdict"),
    [(0.9, 0.1, "confirmed"), (0.1, 0.9, "contradicted"), (0.2, 0.15, "undecided"), (0.0, 0.0, "undecided")],
)
def test_a_claim_is_told_either_way(more: float, less: float, verdict: str) -> None:
    found = curves([*rows("a", [0.0, more], [2, 1]), *rows("b", [0.0, less], [2, 1])])
    (claim,) = judge(found, [("a", "b")])
    assert claim.verdict == verdict
    assert claim.apart[0] == pytest.approx(more - less)


def test_families_are_compared_where_both_look_as_real() -> None:
    """A GAN that copies nothing because it draws badly stands beside the diffusion model of when it drew as badly."""
    found = curves([*rows("a", [0.0, 0.2, 0.9], [3, 1.5, 0.8]), *rows("b", [0.0, 0.0, 0.0], [3, 1.6, 2])])
    (claim,) = judge(found, [("a", "b")])
    assert claim.at_equal_distance == (found[0].points[1], found[1].points[1])


def test_an_invalid_search_says_nothing() -> None:
    found = curves([*rows("a", [0.9], [1], valid=False), *rows("b", [0.0], [1])])
    assert found[0].copies_from is None
    assert judge(found, [("a", "b")]) == []


def test_the_joint_search_decides_only_where_all_have_it() -> None:
    both = rows("a", [0.9], [1])
    assert deciding_space([*both, *(row for row in rows("b", [0.0], [1]) if row["space"] != JOINT)]) == "voxels"
    assert deciding_space(both) == JOINT


def test_intervals_of_means_and_differences_of_normal_rates() -> None:
    """With symmetric intervals they are the textbook's: standard errors add up as squares."""
    rate: Rate = (0.5, 0.4, 0.6)
    assert mean_rate([rate] * 4) == pytest.approx((0.5, 0.45, 0.55))
    assert difference(rate, (0.3, 0.2, 0.4)) == pytest.approx((0.2, 0.2 - 0.1 * math.sqrt(2), 0.2 + 0.1 * math.sqrt(2)))


def test_difference_of_two_shares_is_newcombes() -> None:
    """56 of 70 beside 48 of 80 by Wilson's intervals: .0524 to .3339 (Newcombe 1998, table II, method 10)."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def wilson(x: int, n: int) -> Rate:
    z, p = 1.959964, x / n
    middle, arm = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (middle - arm) / (1 + z * z / n), (middle + arm) / (1 + z * z / n)
