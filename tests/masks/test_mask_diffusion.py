"""Distance maps, wishes and the maker of mask diffusion: what is asked for arrives at the network, and comes back as labels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentsynth.config import MaskSamplingConfig
from latentsynth.diffusion import Denoiser
from latentsynth.errors import CheckpointError, DataError
from latentsynth.masks import LabelMap, Wanted
from latentsynth.masks.distance_maps import DistanceMaps, box_around
from latentsynth.masks.mask_diffusion import MaskAttributes, MaskDiffusionMaker, obedience, without_lesions
from latentsynth.metrics.surfaces import dice
from latentsynth.provenance import Ledger
from latentsynth.types import Domain, Framing, Grid, Labels

SHAPE, SPACING = (16, 24, 16), (3.0, 2.0, 4.0)


def ball(radius_mm: float, centre_mm: tuple[float, float, float] = (24.0, 24.0, 32.0)) -> np.ndarray:
    """A ball on the anisotropic grid, boolean."""
    at = [(np.arange(n) + 0.5) * s - c for n, s, c in zip(SHAPE, SPACING, centre_mm, strict=True)]
    return np.add.outer(np.add.outer(at[0] ** 2, at[1] ** 2), at[2] ** 2) < radius_mm**2


def maps_of(masks: list[np.ndarray], coarsen: int = 2, patch: int = 2, lesions: tuple[int, ...] = (1,)) -> DistanceMaps:
    """Fitted to some masks, box and all."""
    start, size = box_around(np.any([m > 0 for m in masks], axis=0), coarsen, 2 * coarsen * patch)
    maps = DistanceMaps(SHAPE, SPACING, lesions, start, size, coarsen, patch, 12.0)
    maps.fit_scale(maps.distances(m) for m in masks)
    return maps


@pytest.mark.parametrize(("coarsen", "patch"), [(1, 4), (2, 2), (2, 1)])
def test_masks_come_back_from_their_maps(coarsen: int, patch: int) -> None:
    masks = [ball(r).astype(np.uint8) for r in (7.0, 10.0, 14.0)]
    maps = maps_of(masks, coarsen, patch)
    x = torch.stack([maps.whiten(maps.distances(m)) for m in masks])
    assert x.shape[1:] == (maps.channels, *maps.cells)
    assert x.mean() == pytest.approx(0, abs=1e-3)
    assert x.std() == pytest.approx(1, abs=1e-3)
    back = maps.index(maps.fields(x)).numpy()
    for mask, again in zip(masks, back, strict=True):
        assert dice(mask > 0, again > 0) > (0.999 if coarsen == 1 else 0.85)
        assert again.sum() / mask.sum() == pytest.approx(1, abs=0.001 if coarsen == 1 else 0.12)


def test_several_lesion_labels_come_back_as_themselves() -> None:
    mask = np.where(ball(9.0, (14.0, 24.0, 32.0)), 1, 0).astype(np.uint8)
    mask[ball(7.0, (34.0, 24.0, 32.0))] = 3
    maps = maps_of([mask], coarsen=1, patch=4, lesions=(1, 3))
    back = maps.index(maps.fields(maps.whiten(maps.distances(mask))[None]))[0].numpy()
    assert np.array_equal(back, mask)


@given(share=st.floats(0.05, 0.9), seed=st.integers(0, 5))
@settings(max_examples=15)
def test_a_number_of_voxels_can_be_had_exactly(share: float, seed: int) -> None:
    maps = maps_of([ball(10.0).astype(np.uint8)])
    noise = torch.randn(2, maps.channels, *maps.cells, generator=torch.Generator().manual_seed(seed))
    count = max(1, int(share * np.prod([s.stop - s.start for s in maps.box])))
    back = maps.index(maps.fields(noise), [count, None])
    assert int((back[0] > 0).sum()) == count
    assert torch.equal(back[1], maps.index(maps.fields(noise))[1])


def test_distances_are_in_mm_along_every_axis_and_cut() -> None:
    maps = maps_of([ball(14.0).astype(np.uint8)], coarsen=1, patch=1)
    inside = np.zeros(SHAPE, np.uint8)
    inside[: SHAPE[0] // 2] = 1
    field = maps.distances(inside)[0] * 12.0
    near = SHAPE[0] // 2 - maps.box[0].start
    # Half the shortest edge from the border to either side, then whole edges of this axis.
    assert field[near - 1 : near + 2, 3, 3].tolist() == pytest.approx([2.0, -2.0, -5.0])
    assert float(field.min()) >= -12


def test_a_label_that_no_mask_has_is_refused() -> None:
    with pytest.raises(DataError, match="label index 2 occurs in no training mask"):
        maps_of([ball(9.0).astype(np.uint8)], lesions=(1, 2))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_the_box_holds_everything_in_whole_units(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = np.zeros((16, 24, 8), bool)
    seen[tuple(rng.integers(0, n, 3) for n in seen.shape)] = True
    start, size = box_around(seen, 1, 4)
    box = tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))
    assert seen[box].sum() == seen.sum()
    assert all(n % 4 == 0 and a >= 0 and a + n <= length for a, n, length in zip(start, size, seen.shape, strict=True))


def test_healed_organs_do_not_show_where_the_lesion_was() -> None:
    index = np.where(ball(20.0), 2, 0).astype(np.uint8)
    index[ball(6.0)] = 1
    healed = without_lesions(index, [1], SPACING)
    assert np.array_equal(healed, np.where(ball(20.0), 2, 0))
    everywhere = np.ones(SHAPE, np.uint8)
    assert not without_lesions(everywhere, [1], SPACING).any()


def tiny(labels: Labels = Labels((0, 5)), lesions: tuple[int, ...] = (), seed: int = 0) -> MaskDiffusionMaker:  # noqa: B008
    """An untrained maker; organs are the labels that are no lesions."""
    torch.manual_seed(seed)
    domain = Domain(Grid(SHAPE, SPACING), Framing(lesion_labels=lesions), labels, (), ())
    indices = domain.lesion_indices
    maps = maps_of([np.where(ball(r), indices[0], 0).astype(np.uint8) for r in (7.0, 12.0)], lesions=tuple(indices))
    start = [s.start for s in maps.box]
    organs = [n for n in range(1, len(labels)) if n not in indices]
    attributes = MaskAttributes(organs, 4, start, maps.cells, math.log(4.0), 0.7)
    net = Denoiser(maps.channels, attributes.channels, "rectified", "v", (16, 16), (False, True), 1, 16, 8)
    for p in net.parameters():  # fresh networks end in zeros and would answer all alike
        p.data += 0.05 * torch.randn(p.shape)
    return MaskDiffusionMaker(
        domain=domain, affine=np.diag([*SPACING, 1]), volume_ml=(1.4, 7.2), sampling=MaskSamplingConfig(steps=3), maps=maps,
        attributes=attributes, denoiser=net.eval(),
    )  # fmt: skip


def test_wishes_reach_the_network_and_silence_is_zero() -> None:
    attributes = tiny(Labels((0, 1, 2)), (1,)).attributes
    nan = torch.tensor([math.nan])
    assert not attributes(nan, nan).spatial.any()
    usual = attributes(torch.tensor([4.0]), nan).spatial
    assert usual[0, :, 0, 0, 0].tolist() == pytest.approx([0, 0, 0, 1, 0, 0, 0])  # the mean volume is 0, but known
    larger = attributes(torch.tensor([8.0]), torch.tensor([4.0])).spatial[0, :, 0, 0, 0]
    assert larger[:5].tolist() == pytest.approx([math.log(2) / 0.7, 2 ** (1 / 3) - 1, 1.0, 1.0, 1.0])
    mask = torch.zeros(1, 3, *SHAPE)
    mask[:, 2] = 1
    organs = attributes(nan, nan, attributes.shares(mask)).spatial
    assert organs[0, :, 0, 0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 1])


def test_aims_are_log_uniform_within_what_is_wanted_and_reachable() -> None:
    maker = tiny()
    aims = np.array([maker.aim(seed, Wanted(volume_ml=(1.0, 8.0), lesions=(2, 3))) for seed in range(400)])
    assert aims[:, 0].min() >= 1
    assert aims[:, 0].max() <= 8
    assert stats.kstest(np.log(aims[:, 0]) / math.log(8), "uniform").statistic < 0.08
    assert set(aims[:, 1]) == {2.0, 3.0}
    assert all(math.isnan(value) for value in maker.aim(0, Wanted()))
    assert maker.aim(0, Wanted(volume_ml=(0.0, 1e9)))[0] <= 14.4  # twice the largest it has seen
    for beyond in ((0.0, 0.5), (15.0, 20.0)):
        with pytest.raises(DataError, match=r"out of reach: .* 1\.4 to 7\.2 ml .* ask for 0\.7 to 14\.4 ml"):
            maker.make([0], Wanted(volume_ml=beyond))


def test_the_grid_limits_what_can_be_asked_for() -> None:
    maker = tiny()
    maker.volume_ml = (1.0, 1e6)
    assert maker.within_reach((1.0, 1e9))[1] == pytest.approx(np.prod(SHAPE) * np.prod(SPACING) / 1000)


def test_exact_volumes_are_exact_and_the_natural_border_is_the_default() -> None:
    maker, wanted = tiny(), Wanted(volume_ml=(1.0, 6.0))
    maker.sampling = MaskSamplingConfig(steps=3, exact_volume=True)
    for seed, one in enumerate(maker.make(range(4), wanted)):
        assert isinstance(one, LabelMap)
        assert one.volume_ml([5]) == pytest.approx(maker.aim(seed, wanted)[0], abs=0.6 * one.voxel_ml)
        assert set(np.unique(one.values)) <= {0, 5}
    assert not MaskSamplingConfig().exact_volume


def test_a_mask_is_that_of_its_seed_and_its_wish() -> None:
    maker, wanted = tiny(), Wanted(volume_ml=(2.0, 4.0))
    maker.sampling = MaskSamplingConfig(steps=3, exact_volume=True)  # the untrained make no lesion of their own
    alone, among = maker.make([5], wanted), maker.make([4, 5, 6], wanted)
    assert np.array_equal(alone[0].values, among[1].values)
    assert not np.array_equal(among[0].values, among[1].values)
    x = [maker._sample([5], torch.tensor([v]), torch.tensor([math.nan]), [None]) for v in (2.0, 4.0)]
    assert not torch.equal(*x)  # the wish changes the map
    maker.sampling = MaskSamplingConfig(steps=3, guidance=3.0)
    assert not torch.equal(x[0], maker._sample([5], torch.tensor([2.0]), torch.tensor([math.nan]), [None]))


def test_lesions_are_put_into_the_anatomy_they_were_made_for() -> None:
    maker = tiny(Labels((0, 1, 2)), (1,))
    organ = np.where(ball(20.0), 2, 0)
    organ[ball(6.0)] = 1  # his own lesion, which is healed
    host = LabelMap("host", organ.astype(np.int16), np.diag([*SPACING, 1]), ("patient-9",))
    maker.sampling = MaskSamplingConfig(steps=3, exact_volume=True)
    free = maker
    maker = maker.inside([host])
    assert maker.fingerprint != free.fingerprint
    with pytest.raises(DataError, match="at least one label map"):
        free.inside([])
    with pytest.raises(DataError, match="knows no organ"):
        tiny().inside([host])
    (one,) = maker.make([0], Wanted(volume_ml=(2.0, 4.0)))
    assert isinstance(one, LabelMap)
    assert one.parents == ("patient-9",)
    assert 1.9 < one.volume_ml([1]) < 4.1
    untouched = one.values != 1
    assert np.array_equal(one.values[untouched], np.where(ball(20.0), 2, 0)[untouched])


def test_obedience_of_what_is_obeyed_and_of_what_is_not() -> None:
    assert obedience([1.0, 10.0, 100.0], [1.1, 11.0, 110.0]) == pytest.approx(
        {"volume_correlation": 1.0, "volume_error": 0.1}
    )
    rng = np.random.default_rng(0)
    asked = np.exp(rng.normal(size=300))
    assert abs(obedience(asked, rng.permutation(asked))["volume_correlation"]) < 0.15
    assert math.isfinite(obedience([1.0, 2.0], [0.0, 2.0])["volume_correlation"])


def test_it_comes_back_from_disk_and_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    maker = tiny()
    maker.save(tmp_path / "c", Ledger(), {})
    again = MaskDiffusionMaker.from_pretrained(tmp_path / "c")
    assert np.array_equal(again.make([1], Wanted())[0].values, maker.make([1], Wanted())[0].values)
    assert again.sampling == maker.sampling
    assert again.lesions == (5,)
    assert MaskDiffusionMaker.from_pretrained(tmp_path / "c", exact_volume=True).fingerprint != again.fingerprint
    maker.attributes = MaskAttributes([], 4, [0, 0, 0], [1, 1, 1], 0.0, 1.0)
    maker.save(tmp_path / "d", Ledger(), {})
    with pytest.raises(CheckpointError, match=r"cells is \(1, 1, 1\)"):
        MaskDiffusionMaker.from_pretrained(tmp_path / "d")
