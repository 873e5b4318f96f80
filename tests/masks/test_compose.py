"""Lesions put into other anatomy: nothing else changes, what does not fit is refused by name, both patients are parents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_maps import AFFINES, LABELS, LESION, ORGAN, OTHER, anatomy, ball
from scipy import ndimage

from latentsynth.config.mask_shapes import ComposeConfig, DeformConfig
from latentsynth.errors import DataError
from latentsynth.masks import LabelMap, Rejected, Wanted, make_masks
from latentsynth.masks.compose import Composed, compose
from latentsynth.masks.deform import Deformed
from latentsynth.masks.placement import FIELD_OF_VIEW, Frequency
from latentsynth.metrics.lesions import components
from latentsynth.phantom.cohort import phantom
from latentsynth.provenance import Ledger
from latentsynth.types import Labels

SHAPE = (30, 28, 26)


def blob(
    radius_mm: float = 4.0, spacing: tuple[float, ...] = (1.0, 1.0, 1.0), shape: tuple[int, ...] = SHAPE
) -> LabelMap:
    values = ball(shape, spacing, (0.5, 0.5, 0.5), radius_mm).astype(np.int16) * LESION
    return LabelMap("blob", values, np.diag([*spacing, 1.0]), ("giver",))


def put(lesion: LabelMap, host: LabelMap, inside: Any = (ORGAN,), seed: int = 0, **changes: Any) -> LabelMap | Rejected:
    config = ComposeConfig(**changes)
    return compose(lesion, host, LABELS, (LESION,), inside, np.random.default_rng(seed), config)


def done(*args: Any, **kwargs: Any) -> LabelMap:
    made = put(*args, **kwargs)
    assert isinstance(made, LabelMap), made
    return made


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
@pytest.mark.parametrize("replace", [True, False])
def test_lesions_lie_in_the_organ_and_every_other_label_stays(affine: np.ndarray, replace: bool) -> None:
    host = anatomy(affine, "taker")
    made = done(blob(3.5), host, replace_lesions=replace)
    lesion, own = made.of([LESION]), host.of([LESION])
    new = lesion & ~own if not replace else lesion
    assert new.any()
    assert (host.values[new] == ORGAN).all() if not replace else np.isin(host.values[new], [ORGAN, LESION]).all()
    rest = ~(new | own)
    assert np.array_equal(made.values[rest], host.values[rest])
    assert (made.values[own & ~new] == (ORGAN if replace else LESION)).all()
    assert made.parents == ("patient of taker", "giver")
    given = blob(3.5).volume_ml([LESION])
    kept = int(new.sum()) * made.voxel_ml
    assert 0.8 * given * 0.9 <= kept <= 1.1 * given  # at most a fifth is cut off; coverage keeps volumes


def test_the_same_place_on_the_same_grid_is_the_lesion_within_the_organ() -> None:
    host = LabelMap("host", np.zeros(SHAPE, np.int16), np.eye(4))
    host.values[:16] = ORGAN
    made = done(blob(), host, place="same", max_cut=0.5)
    assert np.array_equal(made.of([LESION]), blob().of([LESION]) & host.of([ORGAN]))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_shape_and_place_survive_other_grids(affine: np.ndarray) -> None:
    """Centre and principal moments in world coordinates, from a long lesion that no axis order leaves alike."""
    long = LabelMap("long", np.zeros((40, 40, 40), np.int16), np.diag([1.0, 1.0, 1.0, 1.0]))
    long.values[8:32, 14:24, 17:23] = LESION
    long.values[8:14, 14:34, 17:23] = LESION
    host = LabelMap("host", np.full((70, 70, 70), ORGAN, np.int16), affine.copy())
    middle = affine[:3, :3] @ np.full(3, 34.5)
    host.affine[:3, 3] = 20 - middle

    def moments(made: LabelMap) -> tuple[np.ndarray, np.ndarray]:
        world = np.argwhere(made.of([LESION])) @ made.affine[:3, :3].T + made.affine[:3, 3]
        return world.mean(axis=0), np.cov(world.T)

    centre, spread = moments(long)
    for place in ("same", "random"):
        made = done(long, host, place=place, max_cut=0.0)
        assert made.volume_ml([LESION]) == pytest.approx(long.volume_ml([LESION]), rel=0.1)  # edges are rounded
        got_centre, got_spread = moments(made)
        assert np.abs(got_spread - spread).max() < 0.1 * spread.max()
        assert (np.abs(got_centre - centre).max() < 0.5) == (place == "same")


def test_what_does_not_fit_is_refused_by_name() -> None:
    host = anatomy(AFFINES["plain"])
    far = LabelMap("far", blob().values, np.eye(4) + np.eye(4, k=3) * 900)
    assert put(blob(16.0, (1.5,) * 3), host, max_cut=0.0) == Rejected("cut off by the organ's border")
    assert put(far, host, place="same") == Rejected("nothing left in the organ")
    grown = np.where(ndimage.binary_dilation(host.of([LESION])), LESION, 0)
    over = put(LabelMap("grown", grown, host.affine), host, place="same", max_cut=1.0, replace_lesions=False)
    assert over == Rejected("overlaps another lesion")
    assert isinstance(put(LabelMap("grown", grown, host.affine), host, place="same", max_cut=1.0), LabelMap)


def test_at_most_so_much_is_cut_off() -> None:
    host = anatomy(AFFINES["plain"])
    lesion = blob(6.0, (1.5, 1.5, 1.5))
    shares = []
    for seed in range(12):
        made = put(lesion, host, seed=seed, max_cut=0.3)
        if isinstance(made, LabelMap):
            shares.append(1 - made.volume_ml([LESION]) / lesion.volume_ml([LESION]))
    assert max(shares) <= 0.3
    assert max(shares) > 0.05  # cutting does happen
    assert max(
        1 - one.volume_ml([LESION]) / lesion.volume_ml([LESION])
        for one in (put(lesion, host, seed=seed, max_cut=0.0) for seed in range(6))
        if isinstance(one, LabelMap)
    ) == pytest.approx(0)


def test_several_lesions_keep_their_distance_and_their_number() -> None:
    three = blob(3.0)
    for centre in ((0.2, 0.2, 0.2), (0.8, 0.8, 0.2)):
        three.values[ball(SHAPE, (1.0,) * 3, centre, 2.5)] = LESION
    host = LabelMap("host", np.full(SHAPE, ORGAN, np.int16), np.eye(4))
    for seed in range(6):
        made = done(three, host, seed=seed, gap_mm=4.0, max_cut=0.0)
        pieces, count = components(made.of([LESION]))
        assert count == 3
        for n in (1, 2, 3):
            away = ndimage.distance_transform_edt(pieces != n)[(pieces > 0) & (pieces != n)]
            assert away.min() > 4.0


def test_the_field_of_view_can_be_the_organ() -> None:
    host = LabelMap("brain", np.zeros(SHAPE, np.int16), np.eye(4), ("b",))
    host.values[:8] = OTHER
    made = done(blob(), host, FIELD_OF_VIEW)
    assert np.array_equal(made.of([OTHER]), host.of([OTHER]))
    with pytest.raises(DataError, match="brain has no voxel of label 1"):
        put(blob(), host)


def test_places_can_be_learnt() -> None:
    host = LabelMap("host", np.full(SHAPE, ORGAN, np.int16), np.eye(4))
    taught = LabelMap("taught", np.zeros(SHAPE, np.int16), np.eye(4))
    taught.values[ball(SHAPE, (1.0,) * 3, (0.25, 0.3, 0.7), 4)] = LESION
    frequency = Frequency.fit([taught], (LESION,), 1.0)
    rng = np.random.default_rng(0)
    centres = []
    for _ in range(12):
        made = compose(blob(2.0), host, LABELS, (LESION,), (ORGAN,), rng, ComposeConfig(), frequency)
        assert isinstance(made, LabelMap)
        centres.append(ndimage.center_of_mass(made.of([LESION])))
    assert np.linalg.norm(np.mean(centres, axis=0) - np.multiply((0.25, 0.3, 0.7), np.subtract(SHAPE, 1))) < 3


def strokes(label: int = 1) -> Deformed:
    """A maker whose lesion label is another than the hosts', and is the hosts' organ."""
    lesion = LabelMap("stroke", np.where(blob().values > 0, label, 0).astype(np.int16), np.eye(4), ("giver",))
    return Deformed([lesion], Labels((0, label)), (label,), DeformConfig(split=0, merge=0), Ledger(frozenset({"g"})))


def composed(maker: Deformed | None = None, **changes: Any) -> Composed:
    hosts = [anatomy(affine, name) for name, affine in AFFINES.items()]
    return Composed(maker or strokes(), hosts, LABELS, (LESION,), (ORGAN,), ComposeConfig(**changes))


def test_lesions_of_another_cohort_take_the_label_of_their_hosts(tmp_path: Path) -> None:
    manifest = make_masks(composed(), 5, tmp_path / "masks", Wanted((0.15, 0.5)))
    assert manifest.labels == LABELS
    for found in manifest.cases:
        made = LabelMap.read(found, LABELS)
        assert 0.15 <= made.volume_ml([LESION]) <= 0.5
        assert made.volume_ml([ORGAN]) > 5
        assert made.parents[-1] == "giver"
        assert made.parents[0].startswith("patient of")
    assert len({found.parents for found in manifest.cases}) > 1


def test_a_mask_depends_on_its_seed_alone() -> None:
    maker, wanted = composed(), Wanted((0.1, 0.5))
    together = maker.make([4, 6, 7, 11], wanted)
    for seed, made in zip([4, 6, 7, 11], together, strict=True):
        alone = maker.make([seed], wanted)[0]
        if isinstance(made, Rejected):
            assert alone == made
        else:
            assert isinstance(alone, LabelMap)
            assert np.array_equal(alone.values, made.values)
    assert maker.ledger == Ledger(frozenset({"g"}))
    assert maker.fingerprint == composed().fingerprint != composed(max_cut=0.1).fingerprint


def test_what_can_never_be_is_said_at_once() -> None:
    with pytest.raises(DataError, match=r"900 to 1000 ml are wanted, and the largest organ has \d+(\.\d+)? ml"):
        composed().make([0], Wanted((900.0, 1000.0)))
    with pytest.raises(DataError, match="give at least one host"):
        Composed(strokes(), [], LABELS, (LESION,), (ORGAN,), ComposeConfig())
    with pytest.raises(DataError, match="empty has no lesion"):
        put(LabelMap("empty", np.zeros(SHAPE, np.int16), np.eye(4)), anatomy(AFFINES["plain"]))
    two = Deformed([anatomy(AFFINES["plain"])], LABELS, (OTHER, LESION), DeformConfig(), Ledger())
    with pytest.raises(DataError, match=r"\[2, 4\] cannot become \[1, 2, 4\]"):
        Composed(two, [anatomy(AFFINES["plain"])], LABELS, (1, 2, 4), (), ComposeConfig())


def test_many_lesions_are_composed_one_by_one_or_together_and_counted_as_they_are() -> None:
    """Phantoms with up to 12 lesions: none is lost, merged or taken for another on the way into a liver without any."""
    givers, placed = [], 0
    for case in range(4):
        values = phantom(2, case, (32, 32, 32), (6.0, 6.0, 6.0), 1, (4, 12))[1].astype(np.int16)
        givers.append(LabelMap(f"giver {case}", values, np.diag([6.0, 6.0, 6.0, 1.0]), (f"p{case}",)))
    counts = [components(one.of([3]))[1] for one in givers]
    assert min(counts) > 1
    assert len(set(counts)) > 1
    labels = Labels((0, 1, 2, 3), ("background", "liver", "kidney", "lesion"))
    for giver, count in zip(givers, counts, strict=True):
        bare = LabelMap("bare", np.where(giver.values == 3, 1, giver.values).astype(np.int16), giver.affine, ("host",))
        config = ComposeConfig(place="same", max_cut=0.5)
        made = compose(giver, bare, labels, (3,), (1,), np.random.default_rng(0), config)
        assert isinstance(made, LabelMap), made
        assert components(made.of([3]))[1] == count
        assert np.array_equal(made.values, giver.values)
        apart = compose(giver, bare, labels, (3,), (1,), np.random.default_rng(0), ComposeConfig(attempts=400))
        if isinstance(apart, LabelMap):  # a liver may have no room for the largest
            placed += 1
            assert components(apart.of([3]))[1] == count
            assert not np.array_equal(apart.values, giver.values)
    assert placed >= 2
