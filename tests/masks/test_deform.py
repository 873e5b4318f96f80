"""Deformed masks: nothing changed is nothing changed, space does not fold, lesions stay in their organ and hit their size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from label_maps import AFFINES, LABELS, LESION, ORGAN, OTHER, anatomy, ball
from scipy import ndimage

from latentsynth.config.mask_shapes import FOLDS, DeformConfig
from latentsynth.errors import ConfigError, DataError
from latentsynth.masks import LabelMap, Rejected, Wanted
from latentsynth.masks.deform import Deformed
from latentsynth.masks.reshaping import bridged, cut
from latentsynth.masks.roughness import bounded_field, unit_field
from latentsynth.metrics.lesions import components
from latentsynth.metrics.shapes import cells_of, centroid_mm, overlaps
from latentsynth.metrics.surfaces import dice
from latentsynth.provenance import Ledger
from latentsynth.strict import build
from latentsynth.types import Labels

NOTHING: dict[str, Any] = {
    "elastic_mm": 0, "rotate_deg": 0, "scale": 0, "shift_mm": 0, "grow_mm": 0, "shrink_mm": 0, "smooth_mm": 0,
    "split": 0, "merge": 0,
}  # fmt: skip


def lesion_alone(values: np.ndarray | None = None, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> LabelMap:
    if values is None:
        values = ball((40, 36, 32), spacing, (0.5, 0.45, 0.5), 9.0)
    return LabelMap("stroke", values.astype(np.int16) * LESION, np.diag([*spacing, 1.0]), ("someone",))


def maker(*maps: LabelMap, inside: tuple[int, ...] = (), **changes: Any) -> Deformed:
    return Deformed(maps, LABELS, (LESION,), DeformConfig(**{"reject_copies": False, **changes}), Ledger(), inside)


def made_by(deformed: Deformed, seeds: Any, wanted: Wanted | None = None) -> list[LabelMap]:
    """What was made; changes below a voxel are refused, other reasons are failures."""
    made = deformed.make(list(seeds), wanted or Wanted())
    assert {one.reason for one in made if isinstance(one, Rejected)} <= {"same as its source"}
    return [one for one in made if isinstance(one, LabelMap)]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("inside", [(), (ORGAN,), (ORGAN, OTHER)])
def test_no_change_is_the_identity(affine: np.ndarray, inside: tuple[int, ...]) -> None:
    source = anatomy(affine)
    for made in made_by(maker(source, inside=inside, **NOTHING), range(3)):
        assert np.array_equal(made.values, source.values)
        assert np.array_equal(made.affine, source.affine)
        assert made.parents == source.parents


@pytest.mark.parametrize("share", [FOLDS, 2.5])
def test_the_allowed_displacement_never_folds_and_a_larger_one_does(share: float) -> None:
    """The Jacobian determinant of x + u(x), by differences of u at a sixteenth of the control spacing."""
    least = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        u = [share * 16 * bounded_field(rng, (64, 64, 64), (1.0,) * 3, 16.0) for _ in range(3)]
        jacobian = np.stack([np.stack(np.gradient(one), axis=-1) for one in u], axis=-2) + np.eye(3)
        least.append(np.linalg.det(jacobian).min())
    assert (min(least) > 0) == (share == FOLDS)


def test_a_displacement_that_could_fold_is_refused() -> None:
    with pytest.raises(ConfigError, match="elastic_mm 9 folds space with control points 20 mm apart"):
        build(DeformConfig, {"elastic_mm": 9, "control_mm": 20})


def test_fields_have_their_moments_and_their_width() -> None:
    rng = np.random.default_rng(0)
    fields = [unit_field(rng, (30, 20, 10), (1.0, 2.0, 4.0), 8.0) for _ in range(60)]
    assert np.mean(fields) == pytest.approx(0, abs=0.05)
    assert np.var(fields, axis=0).mean() == pytest.approx(1, abs=0.05)
    steps = [np.diff(fields, axis=a + 1).std() for a in range(3)]  # twice the millimetres, about twice the change
    assert steps[0] < steps[1] < steps[2]
    assert max(np.abs(bounded_field(rng, (9, 9, 9), (1.0,) * 3, 3.0)).max() for _ in range(50)) <= 1


def test_default_changes_are_neither_copies_nor_strangers() -> None:
    source = anatomy(AFFINES["plain"], shape=(48, 44, 40))
    scores = [
        dice(source.of([LESION]), made.of([LESION]))
        for made in made_by(maker(source, inside=(ORGAN,), split=0, merge=0), range(14))
    ]
    assert max(scores) < 0.99
    assert 0.6 < np.median(scores) < 0.95
    assert np.std(scores) > 0.01


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_lesions_take_nothing_but_organ_and_leave_organ_behind(affine: np.ndarray) -> None:
    source = anatomy(affine)
    still = {**NOTHING, "grow_mm": 8.0, "shrink_mm": 3.0, "smooth_mm": 1.0, "split": 0.5}
    changes = set()
    for made in made_by(maker(source, inside=(ORGAN,), **still), range(12)):
        assert np.array_equal(made.of([OTHER]), source.of([OTHER]))
        assert np.array_equal(made.of([ORGAN, LESION]), source.of([ORGAN, LESION]))
        changes.add(np.sign(made.volume_ml([LESION]) - source.volume_ml([LESION])))
    assert changes >= {-1.0, 1.0}  # some grew, some shrank


def test_without_an_organ_lesions_take_background_alone() -> None:
    source = anatomy(AFFINES["plain"])
    for made in made_by(maker(source, **{**NOTHING, "grow_mm": 8.0}), range(6)):
        assert np.array_equal(made.of([ORGAN, OTHER]), source.of([ORGAN, OTHER]))


def test_anatomy_moves_with_its_lesion() -> None:
    """Organs and lesion shift by the same millimetres."""
    source = anatomy(AFFINES["plain"])
    for made in made_by(maker(source, inside=(ORGAN,), **{**NOTHING, "shift_mm": 6.0}), range(4)):
        moves = [
            np.subtract(ndimage.center_of_mass(made.of([v])), ndimage.center_of_mass(source.of([v]))) * made.spacing_mm
            for v in (ORGAN, OTHER, LESION)
        ]
        assert np.allclose(moves, moves[0], atol=0.75)  # half a voxel
        assert np.abs(moves[0]).max() < 6.5


def test_growth_is_in_millimetres_whatever_the_voxels() -> None:
    spacing = (1.0, 1.0, 2.5)
    source = lesion_alone(ball((50, 50, 20), spacing, (0.5, 0.5, 0.5), 10), spacing)
    grown = made_by(maker(source, **{**NOTHING, "grow_mm": 9.0}), range(8))
    for made in grown:
        away = ndimage.distance_transform_edt(~source.of([LESION]), spacing)[made.of([LESION])]
        assert away.max() <= 10.0 + 0.26  # 9 mm for lesions of 18 mm, and the field that breaks ties
    sides = [np.ptp(np.argwhere(made.of([LESION])), axis=0) * spacing for made in grown]
    largest = max(sides, key=lambda side: side.sum())
    assert largest[0] > 30
    assert largest[0] == pytest.approx(largest[2], abs=5.5)  # a ball stays one, to a slice on either side


@pytest.mark.parametrize("share", [0.2, 0.7, 1.6, 2.5])
def test_a_wanted_volume_is_hit_to_the_voxel(share: float) -> None:
    for source, inside in ((anatomy(AFFINES["anisotropic"]), (ORGAN,)), (lesion_alone(), ())):
        voxels = round(share * int(source.of([LESION]).sum()))
        volume = voxels * source.voxel_ml
        for made in made_by(maker(source, inside=inside, split=0), range(3), Wanted((volume, volume))):
            assert int(made.of([LESION]).sum()) == voxels
            assert not Wanted((volume, volume)).refusal(made, (LESION,))


def test_wanted_volumes_are_spread_over_the_range_and_taken_from_masks_near_them() -> None:
    small = lesion_alone(ball((40, 40, 40), (1.0,) * 3, (0.5, 0.5, 0.5), 4.0))
    large = LabelMap("large", lesion_alone(ball((40, 40, 40), (1.0,) * 3, (0.5, 0.5, 0.5), 12.0)).values,
                     np.eye(4), ("large",))  # fmt: skip
    wanted = Wanted((0.15, 9.0))
    got = maker(small, large, shift_mm=0.0, max_factor=6.0, split=0.0).make(range(24), wanted)
    made = [one for one in got if isinstance(one, LabelMap)]
    assert len(made) >= 22
    volumes = np.array([one.volume_ml([LESION]) for one in made])
    assert not [one for one in made if wanted.refusal(one, (LESION,))]
    assert volumes.min() < 0.5
    assert volumes.max() > 4
    assert {one.parents for one in made if one.volume_ml([LESION]) < 1} == {("someone",)}
    assert {one.parents for one in made if one.volume_ml([LESION]) > 3} == {("large",)}


def test_the_impossible_is_said_with_its_numbers() -> None:
    source = lesion_alone()
    with pytest.raises(
        DataError, match=r"500 to 600 ml are wanted, the masks hold 3\.\d+ to 3\.\d+ ml with room for 46"
    ):
        maker(source).make([0], Wanted((500.0, 600.0)))
    with pytest.raises(DataError, match="case has no voxel of label 2"):
        Deformed(
            [LabelMap("case", source.values, source.affine)], LABELS, (LESION,), DeformConfig(), Ledger(), (OTHER,)
        )
    with pytest.raises(DataError, match="nothing to deform"):
        maker(LabelMap("empty", np.zeros((8, 8, 8), np.int16), np.eye(4)))
    with pytest.raises(DataError, match=r"choose from the labels \[1, 2, 4\]"):
        Deformed([source], LABELS, (3,), DeformConfig(), Ledger())


def test_lesions_are_cut_and_joined_to_the_number_wanted() -> None:
    two = ball((40, 36, 32), (1.0,) * 3, (0.3, 0.5, 0.5), 5) | ball((40, 36, 32), (1.0,) * 3, (0.7, 0.5, 0.5), 6)
    for source, count in ((lesion_alone(), 2), (lesion_alone(), 3), (lesion_alone(two), 1), (lesion_alone(two), 3)):
        made = made_by(maker(source), range(6), Wanted((1.0, 4.0), (count, count)))
        assert sum(one.pieces([LESION]) == count for one in made) >= 5, count
        assert all(1.0 <= one.volume_ml([LESION]) <= 4.0 for one in made)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.0, 4.0)])
def test_a_cut_removes_a_slab_and_a_bridge_joins_again(spacing: tuple[float, float, float]) -> None:
    shape = (60, 40, 16)
    whole = ball(shape, spacing, (0.5, 0.5, 0.5), 13)
    for seed in range(5):
        halves = cut(np.random.default_rng(seed), whole, spacing, 3.0)
        pieces, count = components(halves)
        assert count == 2
        assert not (halves & ~whole).any()
        assert min(np.bincount(pieces.ravel())[1:]) > 0.15 * whole.sum()
        joined = bridged(halves, np.ones(shape, bool), spacing, 1.0)
        assert components(joined)[1] == 1
        assert components(bridged(halves, halves, spacing, 1.0))[1] == 2  # no room for a bridge


def test_growing_lesions_do_not_merge_on_their_own() -> None:
    two = ball((44, 30, 30), (1.0,) * 3, (0.3, 0.5, 0.5), 6) | ball((44, 30, 30), (1.0,) * 3, (0.65, 0.5, 0.5), 6)
    source = lesion_alone(two)
    assert source.pieces([LESION]) == 2
    for made in made_by(maker(source, **{**NOTHING, "grow_mm": 6.0}), range(6)):
        assert made.pieces([LESION]) == 2


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_mirroring_is_along_the_axis_of_the_world(affine: np.ndarray) -> None:
    source = anatomy(affine)
    middle = (affine @ [*((np.array(source.values.shape) - 1) / 2), 1])[:3]
    where = (affine[:3, :3] @ ndimage.center_of_mass(source.of([OTHER])) + affine[:3, 3]) - middle
    axis = int(np.argmax(np.abs(where)))
    name = ("left-right", "back-front", "feet-head")[axis]
    sides = set()
    for made in maker(source, **{**NOTHING, "mirror": (name,)}).make(range(12), Wanted()):
        if isinstance(made, Rejected):
            assert made.reason == "same as its source"
            sides.add(1)
            continue
        there = (affine[:3, :3] @ ndimage.center_of_mass(made.of([OTHER])) + affine[:3, 3]) - middle
        assert there[axis] == pytest.approx(-where[axis], abs=1e-6)
        assert np.delete(there, axis) == pytest.approx(np.delete(where, axis), abs=1e-6)
        sides.add(-1)
    assert sides == {1, -1}


def test_labels_that_are_all_lesion_bend_together() -> None:
    values = np.zeros((36, 44, 32), np.int16)
    long = ball(values.shape, (1.0, 0.6, 1.0), (0.5, 0.5, 0.5), 9)
    values[long] = 1
    values[long & (np.arange(44)[None, :, None] > 24)] = 2
    source = LabelMap("hippocampus", values, np.eye(4), ("h",))
    deformed = Deformed([source], Labels((0, 1, 2)), (1, 2), DeformConfig(split=0, merge=0), Ledger())
    for made in made_by(deformed, range(8)):
        assert made.pieces([1, 2]) == 1
        before, after = (m.volume_ml([1]) / m.volume_ml([1, 2]) for m in (source, made))
        assert after == pytest.approx(before, abs=0.1)
        centres = [ndimage.center_of_mass(made.of([v]))[1] for v in (1, 2)]
        assert centres[1] - centres[0] > 4


def test_a_mask_depends_on_its_seed_alone() -> None:
    deformed = maker(anatomy(AFFINES["plain"], "a"), anatomy(AFFINES["anisotropic"], "b"), inside=(ORGAN,))
    wanted = Wanted((0.5, 8.0))
    together = made_by(deformed, [3, 5, 8], wanted)
    for seed, made in zip([3, 5, 8], together, strict=True):
        assert np.array_equal(made_by(deformed, [seed], wanted)[0].values, made.values)
    assert len({made.values.tobytes() for made in together}) == 3


def test_masks_are_taken_in_turn_if_asked() -> None:
    maps = [anatomy(AFFINES["plain"], name) for name in "abc"]
    parents = [made.parents[0][-1] for made in made_by(maker(*maps, inside=(ORGAN,), draw="turn"), range(6))]
    assert parents == [*"abcabc"]


def test_a_lesion_that_would_leave_the_scan_is_rejected() -> None:
    source = lesion_alone()
    got = maker(source, **{**NOTHING, "shift_mm": 60.0}).make(range(12), Wanted())
    lost = [one for one in got if isinstance(one, Rejected)]
    assert {one.reason for one in lost} == {"leaves the field of view"}
    for made in got:
        if isinstance(made, LabelMap):
            assert made.volume_ml([LESION]) == pytest.approx(source.volume_ml([LESION]), rel=0.07)


def test_the_fingerprint_knows_masks_and_settings() -> None:
    source = anatomy(AFFINES["plain"])
    other = LabelMap(source.name, source.values.copy(), source.affine, source.parents)
    other.values[tuple(np.argwhere(other.of([ORGAN]))[0])] = LESION
    moved = LabelMap(source.name, source.values, source.affine + np.diag([0, 0, 0.5, 0]), source.parents)
    prints = [
        maker(source, inside=(ORGAN,)).fingerprint,
        maker(other, inside=(ORGAN,)).fingerprint,
        maker(moved, inside=(ORGAN,)).fingerprint,
        maker(source).fingerprint,
        maker(source, inside=(ORGAN,), rotate_deg=11).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert maker(source, inside=(ORGAN,)).fingerprint == prints[0]


def rough(seed: int, radius: float = 9.0) -> LabelMap:
    """A lesion of one's own: a ball with lobes, in the middle."""
    centre = np.array([20, 20, 20])
    away = np.indices((40, 40, 40)) - centre[:, None, None, None]
    lobes = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(40, 40, 40)), 4)
    values = (np.linalg.norm(away, axis=0) < radius + 4 * lobes / lobes.std()).astype(np.int16) * LESION
    return LabelMap(f"lesion {seed}", values, np.eye(4), (f"patient {seed}",))


def test_masks_that_are_copies_by_their_own_measure_are_bent_more_or_left_out() -> None:
    """Such a change leaves most masks their patient's; what is made is no nearer than patients are to each other."""
    maps = [rough(n) for n in range(12)]
    gentle = {"elastic_mm": 5.0, "rotate_deg": 10.0, "scale": 0.1, "grow_mm": 0.2, "shrink_mm": 0.2, "smooth_mm": 0.2}

    def centred(made: LabelMap) -> np.ndarray:
        mask = made.of([LESION])
        return cells_of(mask, made.affine, 2.0, np.array(centroid_mm(mask, made.affine)))

    own = [centred(made) for made in maps]
    table = overlaps(own, own) - 2 * np.eye(len(own))
    usual = np.quantile(table.max(1), 0.9)
    for strict in (False, True):
        made = maker(*maps, reject_copies=strict, split=0.0, merge=0.0, **gentle).make(range(24), Wanted())
        kept = [one for one in made if isinstance(one, LabelMap)]
        near = overlaps([centred(one) for one in kept], own).max(1) if kept else np.zeros(0)
        if strict:
            assert len(kept)
            assert (near <= usual + 0.05).all()  # cells of another edge
        else:
            assert (near > usual).mean() > 0.7


def test_defaults_make_masks_that_are_nobodys() -> None:
    made = maker(*(rough(n) for n in range(12)), reject_copies=True).make(range(24), Wanted())
    assert sum(isinstance(one, LabelMap) for one in made) >= 6


@pytest.mark.parametrize("radius", [9.0, 36.0])
def test_large_lesions_are_bent_in_proportion(radius: float) -> None:
    """The same lesion in voxels four times as large ends as the same shape."""
    factor = radius / 9.0
    source = rough(3)
    large = replace(source, affine=np.diag([factor] * 3 + [1.0]))
    made = made_by(maker(large, split=0.0, merge=0.0), range(6))
    share = [one.volume_ml([LESION]) / large.volume_ml([LESION]) for one in made]
    moved = [overlaps([cells_of(one.of([LESION]), one.affine, factor)], [cells_of(large.of([LESION]), large.affine, factor)])[0, 0] for one in made]  # fmt: skip
    assert np.std(share) > 0.02
    assert np.mean(moved) < 0.93
