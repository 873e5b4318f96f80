"""Drawn lesions: exact size and number, kept apart, where and as large as training lesions are; and the fitting below."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_maps import AFFINES, LABELS, LESION, ORGAN, OTHER, anatomy, ball
from scipy import ndimage, stats

from latentsynth.config.mask_shapes import ProceduralConfig
from latentsynth.errors import DataError
from latentsynth.masks import LabelMap, Rejected, Wanted
from latentsynth.masks.placement import Frequency, fitted, healthy, near
from latentsynth.masks.procedural import Procedural
from latentsynth.masks.roughness import rough_radius
from latentsynth.masks.sizes import Sizes
from latentsynth.metrics.lesions import components
from latentsynth.provenance import Ledger
from latentsynth.types import Labels

SHAPE = (44, 40, 36)


def case(name: str, *balls: tuple[tuple[float, ...], float], affine: np.ndarray | None = None) -> LabelMap:
    """A map of ball-shaped lesions."""
    affine = np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine
    made = LabelMap(name, np.zeros(SHAPE, np.int16), affine, (name,))
    for centre, radius_mm in balls:
        made.values[ball(SHAPE, made.spacing_mm, centre, radius_mm)] = LESION
    return made


def cohort(count: int = 12) -> list[LabelMap]:
    """Lesions in the low half of the first axis, of many sizes, every third case with two."""
    rng = np.random.default_rng(0)
    cases = []
    for n in range(count):
        balls = [((rng.uniform(0.2, 0.35), rng.uniform(0.3, 0.7), 0.3), float(np.exp(rng.normal(2.0, 0.3))))]
        if n % 3 == 0:
            balls.append(((0.28, 0.5, 0.8), 5.0))
        cases.append(case(f"case {n}", *balls))
    return cases


def fit(maps: list[LabelMap], hosts: Any = (), inside: tuple[int, ...] = (), **changes: Any) -> Procedural:
    return Procedural.fit(maps, LABELS, (LESION,), ProceduralConfig(**changes), Ledger(), hosts, inside)


def made_by(maker: Procedural, seeds: Any, wanted: Wanted | None = None) -> list[LabelMap]:
    got = maker.make(list(seeds), wanted or Wanted())
    assert {one.reason for one in got if isinstance(one, Rejected)} == set()
    return [one for one in got if isinstance(one, LabelMap)]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.3, 0.95), st.integers(1, 400))
def test_fitted_takes_exactly_so_many_connected_voxels_or_says_that_there_are_not(
    seed: int, share: float, voxels: int
) -> None:
    rng = np.random.default_rng(seed)
    room = ndimage.gaussian_filter(rng.standard_normal((12, 11, 10)), 0.8) < stats.norm.ppf(share) * 0.35
    score = np.round(ndimage.gaussian_filter(rng.standard_normal(room.shape), 1.0), 2)  # with ties
    core = np.zeros_like(room)
    core[6, 5, 5] = True
    pieces, _ = components(room)
    capacity = int((pieces == pieces[6, 5, 5]).sum()) if room[6, 5, 5] else 0
    got = fitted(score, room, voxels, core)
    assert (got is None) == (capacity < voxels)
    if got is not None:
        assert int(got.sum()) == voxels
        assert not (got & ~room).any()
        assert components(got)[1] == 1
        assert got[6, 5, 5] or voxels == 0


def test_fitted_takes_the_lowest_scores_where_nothing_is_in_the_way() -> None:
    radius = np.linalg.norm(np.indices((15, 15, 15)) - 7, axis=0)
    everywhere = np.ones(radius.shape, bool)
    for voxels in (1, 7, 33, 515):
        got = fitted(radius, everywhere, voxels, radius == 0)
        assert got is not None
        assert radius[got].max() <= np.sort(radius.ravel())[voxels - 1]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_a_smooth_round_lesion_is_a_ball_in_millimetres(affine: np.ndarray) -> None:
    source = case("one", ((0.5, 0.5, 0.5), 9.0), affine=affine)
    whole = 0
    for made in made_by(fit([source], elongation=0.0, roughness=(), reach=0.0), range(8), Wanted((2.0, 3.0))):
        where = np.argwhere(made.of([LESION])) * made.spacing_mm
        if (where <= 0).any() or (where >= (np.array(SHAPE) - 1) * made.spacing_mm).any():
            continue  # the border cuts it
        whole += 1
        radius = (made.volume_ml([LESION]) * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
        away = np.linalg.norm(where - where.mean(axis=0), axis=1)
        assert away.max() == pytest.approx(radius, abs=0.75 * max(made.spacing_mm))
    assert whole >= 4


def test_roughness_roughens_and_elongation_elongates() -> None:
    def surface(roughness: tuple[float, ...], elongation: float) -> tuple[float, float]:
        bumps, axes = [], []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            score = rough_radius(rng, (41, 41, 41), (1.0,) * 3, (20, 20, 20), 11.0, elongation, roughness)
            lesion = score <= np.sort(score.ravel())[5574]  # a ball of radius 11
            bumps.append((lesion ^ ndimage.binary_erosion(lesion)).sum())
            spread = np.linalg.eigvalsh(np.cov(np.argwhere(lesion).T))
            axes.append(np.sqrt(spread[-1] / spread[0]))
        return float(np.mean(bumps)), float(np.mean(axes))

    round_one, rough, long = surface((), 0), surface((0.22, 0.16, 0.1), 0), surface((), 0.5)
    assert rough[0] > 1.2 * round_one[0]
    assert round_one[1] == pytest.approx(1, abs=0.01)
    assert long[1] > 1.3


@pytest.mark.parametrize("count", [1, 3])
def test_volume_and_number_are_as_wanted_to_the_voxel(count: int) -> None:
    maps = cohort()
    maker = fit(maps, gap_mm=5.0)
    for voxels in (40, 300, 700):
        wanted = Wanted((voxels * maps[0].voxel_ml,) * 2, (count, count))
        for made in made_by(maker, range(4), wanted):
            assert int(made.of([LESION]).sum()) == voxels
            assert not wanted.refusal(made, (LESION,))
            pieces, _ = components(made.of([LESION]))
            for n in range(1, count + 1):
                others = (pieces > 0) & (pieces != n)
                away = ndimage.distance_transform_edt(pieces != n, made.spacing_mm)[others]
                assert not away.size or away.min() > 5.0
            if count == 1:  # a hole would be room that the lesion did not take
                solid = ndimage.binary_fill_holes(made.of([LESION]))
                assert (solid & ~made.of([LESION])).sum() <= 0.005 * voxels


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("place", ["learnt", "uniform"])
def test_lesions_lie_in_the_organ_of_their_host_and_nothing_else_changes(affine: np.ndarray, place: str) -> None:
    host = anatomy(affine, "host")
    before = healthy(host, (LESION,), (ORGAN,))
    maker = fit([anatomy(affine, "trained on")], [host], (ORGAN,), place=place)
    for made in made_by(maker, range(5), Wanted((0.5, 1.5))):
        lesion = made.of([LESION])
        assert lesion.any()
        assert (before[lesion] == ORGAN).all()
        assert np.array_equal(made.values[~lesion], before[~lesion])
        assert made.parents == host.parents
        assert np.array_equal(made.affine, affine)


def test_an_empty_grid_shows_nothing_of_a_patient() -> None:
    for made in made_by(fit(cohort(3)), range(4)):
        assert made.parents == ()
        assert made.values.shape == SHAPE


def test_places_are_learnt_across_orientations() -> None:
    """Training lesions lie in one half of the world; a host stored with other axes gets them in the same half."""
    stored_lps = np.diag([-2.0, -2.0, 2.0, 1.0])
    host = case("host", affine=stored_lps)
    halves: dict[str, list[bool]] = {}
    for place in ("learnt", "uniform"):
        changes = {"reach": 0.0} if place == "uniform" else {}
        maker = fit(cohort(), [host], place=place, **changes)
        for made in made_by(maker, range(16), Wanted((0.2, 1.0), (1, 1))):
            middle = ndimage.center_of_mass(made.of([LESION]))[0]
            halves.setdefault(place, []).append(middle > (SHAPE[0] - 1) / 2)  # the low half, seen from the other side
    assert np.mean(halves["learnt"]) > 0.95
    assert np.mean(halves["uniform"]) < 0.9


def test_lesions_stay_in_reach_of_training_lesions() -> None:
    maps = cohort()
    everywhere = np.any([made.of([LESION]) for made in maps], axis=0)
    away = ndimage.distance_transform_edt(~everywhere, (2.0,) * 3)
    near_by = [away[made.of([LESION])].max() for made in made_by(fit(maps), range(10), Wanted((3.0, 6.0)))]
    free = [away[made.of([LESION])].max() for made in made_by(fit(maps, reach=0.0), range(10), Wanted((3.0, 6.0)))]
    assert max(near_by) <= 10  # the smoothing carries a little further
    assert max(free) > max(near_by)


def test_frequencies_count_training_lesions() -> None:
    maps = [case("a", ((0.3, 0.5, 0.5), 14.0)), case("b", ((0.3, 0.5, 0.5), 14.0)), case("c", ((0.8, 0.5, 0.5), 14.0))]
    learnt = Frequency.fit(maps, (LESION,), 0.5)
    cells = float(np.prod(learnt.grid.spacing_mm)) / 1000
    assert learnt.counts.sum() * cells == pytest.approx(sum(made.volume_ml([LESION]) for made in maps), rel=0.02)
    assert learnt.counts.max() == pytest.approx(2, abs=0.05)
    rng = np.random.default_rng(0)
    hits = [maps[0].values[learnt.draw(rng, maps[0])] == LESION for _ in range(400)]
    assert np.mean(hits) == pytest.approx(2 / 3, abs=0.08)


def test_numbers_and_volumes_follow_the_training_cases() -> None:
    maps = cohort(24)
    sizes = Sizes.fit(maps, (LESION,), 0.05)
    rng = np.random.default_rng(1)
    assert sorted(sizes.counts) == [1] * 16 + [2] * 8
    drawn = [sizes.draw_total_ml(rng) for _ in range(400)]
    assert stats.ks_2samp(drawn, sizes.total_ml).pvalue > 0.05
    assert stats.ks_2samp(np.multiply(drawn, 3), sizes.total_ml).pvalue < 0.01  # three times too large would show
    assert not set(drawn) & set(sizes.total_ml)
    shares = sizes.draw_shares(rng, 4)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) <= 0).all()
    volumes = [made.volume_ml([LESION]) for made in made_by(fit(maps), range(20))]
    assert 0.3 < np.median(volumes) / np.median(sizes.total_ml) < 3


def test_specks_are_no_lesions_to_learn_from() -> None:
    made = case("specks", ((0.5, 0.5, 0.5), 9.0))
    made.values[::10, 0, 0] = LESION
    assert Sizes.fit([made], (LESION,), 0.05).counts.tolist() == [1]
    assert Sizes.fit([made], (LESION,), 0.0).counts.tolist() == [6]


def test_every_lesion_label_appears_as_often_as_in_training() -> None:
    first, second = case("a", ((0.5, 0.5, 0.5), 8.0)), case("b", ((0.5, 0.5, 0.5), 8.0))
    second.values[second.values > 0] = OTHER
    maker = Procedural.fit([first, second], LABELS, (OTHER, LESION), ProceduralConfig(), Ledger())
    found = [int(made.values.max()) for made in made_by(maker, range(30))]
    assert 6 <= found.count(LESION) <= 24
    assert set(found) == {OTHER, LESION}


def test_a_mask_depends_on_its_seed_alone() -> None:
    maker, wanted = fit(cohort()), Wanted((1.0, 4.0))
    together = made_by(maker, [2, 7, 9], wanted)
    for seed, made in zip([2, 7, 9], together, strict=True):
        assert np.array_equal(made_by(maker, [seed], wanted)[0].values, made.values)
    assert len({made.values.tobytes() for made in together}) == 3
    assert maker.fingerprint == fit(cohort()).fingerprint != fit(cohort(11)).fingerprint


def test_too_much_is_said_with_its_numbers_and_one_that_does_not_fit_is_rejected() -> None:
    maker = fit(cohort())
    with pytest.raises(
        DataError, match=r"400 to 500 ml are wanted, and there is room for at most \d+(\.\d+)? ml.*reach"
    ):
        maker.make([0], Wanted((400.0, 500.0)))
    got = fit([anatomy(AFFINES["plain"])], (), (ORGAN,)).make(range(3), Wanted((8.0, 10.0), (30, 30)))
    assert {one.reason for one in got if isinstance(one, Rejected)} == {"no room for a lesion"}
    with pytest.raises(DataError, match="nothing to learn from"):
        fit([case("empty")])
    with pytest.raises(DataError, match="case 0 has no voxel of label 1"):
        fit(cohort(2), (), (ORGAN,))


def test_several_organs_take_lesions_and_get_their_own_voxels_back() -> None:
    host = anatomy(AFFINES["anisotropic"], "host")
    rest = healthy(host, (LESION,), (ORGAN, OTHER))
    assert not np.isin(rest, [LESION]).any()
    assert np.array_equal(rest[~host.of([LESION])], host.values[~host.of([LESION])])
    away = {v: ndimage.distance_transform_edt(~host.of([v]), host.spacing_mm) for v in (ORGAN, OTHER)}
    freed = host.of([LESION])
    chosen = np.where(rest == ORGAN, away[ORGAN], away[OTHER])[freed]
    assert np.allclose(chosen, np.minimum(away[ORGAN], away[OTHER])[freed])


def test_near_never_lets_voxels_touch() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    box, close = near(mask, (1.0, 1.0, 3.0), 0.0)
    allowed = np.ones_like(mask)
    allowed[box] &= ~close
    assert components(mask | allowed)[1] == 2


def test_labels_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="a label is one of them"):
        Procedural.fit(cohort(2), Labels((0, 4)), (4,), ProceduralConfig(), Ledger(), (), (4,))
