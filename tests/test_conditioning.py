"""Masks as the network sees them: cell fractions that sum to 1, or nothing at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from einops import rearrange, reduce
from helpers import tiny_denoiser
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentsynth.conditioning import ContextConditioner, MaskConditioner, Place
from latentsynth.data.cache.volumes import one_hot
from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.types import Condition, Conditioning

FACTORS = (2, 4, 1)


def random_mask(rows: int = 2, labels: int = 3, seed: int = 0) -> Tensor:
    index = torch.randint(0, labels, (rows, 8, 8, 6), generator=torch.Generator().manual_seed(seed))
    return one_hot(index, labels)


def conditioner(labels: int = 3) -> MaskConditioner:
    return MaskConditioner(labels=labels, factors=FACTORS)


@given(seed=st.integers(0, 1000), labels=st.integers(1, 5))
def test_fractions_are_block_means_and_sum_to_one(seed: int, labels: int) -> None:
    mask = random_mask(labels=labels, seed=seed)
    i, j, k = FACTORS
    spatial = conditioner(labels)(Condition(mask)).spatial
    expected = reduce(mask, "b l (i a) (j b2) (k c) -> b l i j k", "mean", a=i, b2=j, c=k)
    torch.testing.assert_close(spatial, expected)
    torch.testing.assert_close(spatial.sum(1), torch.ones(2, 4, 2, 6))


def test_a_cell_knows_where_its_lesion_is() -> None:
    index = torch.zeros(1, 8, 8, 6, dtype=torch.long)
    index[0, 2, 4:6, 5] = 2  # two voxels of eight in cell (1, 1, 5)
    spatial = conditioner()(Condition(one_hot(index, 3))).spatial
    assert float(spatial[0, 2, 1, 1, 5]) == pytest.approx(0.25)
    assert float(spatial[0, 2].sum()) == pytest.approx(0.25)


def test_no_condition_is_zeros_that_no_mask_can_give() -> None:
    part = conditioner()
    given_ = part(Condition(random_mask(3)))
    kept = part.dropped(given_, torch.tensor([True, False, True]))
    torch.testing.assert_close(kept.spatial[[0, 2]], given_.spatial[[0, 2]], rtol=0, atol=0)
    assert not bool(kept.spatial[1].any())
    # Every cell of any mask holds some label, background included, so zeros say something else than "healthy".
    healthy = part(Condition(one_hot(torch.zeros(1, 8, 8, 6), 3))).spatial
    assert float(healthy.amax(1).min()) == 1
    # An unannotated case comes as zeros and is the same thing to the network as a dropped one.
    unannotated = part(Condition(torch.zeros(1, 3, 8, 8, 6)))
    torch.testing.assert_close(unannotated.spatial[0], kept.spatial[1], rtol=0, atol=0)


def test_dropping_removes_what_is_not_a_number_too() -> None:
    """Multiplying by zero would keep it."""
    broken = Conditioning(torch.full((1, 3, 4, 2, 6), torch.nan))
    assert not bool(conditioner().dropped(broken, torch.tensor([False])).spatial.any())


def test_channels_are_what_it_gives() -> None:
    part = conditioner(5)
    assert part(Condition(random_mask(labels=5))).spatial.shape[1] == part.channels


@pytest.mark.parametrize("labels", [2, 4])
def test_wrong_label_count_is_refused(labels: int) -> None:
    with pytest.raises(DataError, match=f"built for 3 labels, got a mask with {labels}"):
        conditioner()(Condition(random_mask(labels=labels)))


@pytest.mark.parametrize("name", ["context", "covariates", "style"])
def test_what_it_was_not_trained_on_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"got also {name}"):
        conditioner()(Condition(random_mask(), **{name: torch.zeros(2, 1)}))


def test_save_and_load(tmp_path: Path) -> None:
    conditioner().save(tmp_path / "part")
    again = MaskConditioner.from_pretrained(tmp_path / "part")
    mask = random_mask()
    torch.testing.assert_close(again(Condition(mask)).spatial, conditioner()(Condition(mask)).spatial)
    with pytest.raises(CheckpointError, match="does not exist"):
        MaskConditioner.from_pretrained(tmp_path / "elsewhere")


def test_a_condition_is_cut_by_rows_in_all_its_fields() -> None:
    mask = random_mask(3)
    whole = Condition(mask, covariates=torch.arange(3.0)[:, None])
    part = whole[1:]
    assert len(whole) == 3
    assert len(part) == 2
    assert part.covariates is not None
    assert part.covariates.flatten().tolist() == [1.0, 2.0]
    assert part.context is None
    torch.testing.assert_close(part.mask, mask[1:])


@given(seed=st.integers(0, 1000))
def test_parts_of_a_cell_average_to_its_fractions(seed: int) -> None:
    """Whatever the detail, a whole cell is covered as much; an absent condition stays zeros."""
    mask = Condition(random_mask(seed=seed))
    whole = conditioner()(mask).spatial
    for detail in (1, 2, 4):
        part = MaskConditioner(labels=3, factors=FACTORS, detail=detail)
        given_ = part(mask)
        assert given_.spatial.shape[1] == part.channels
        torch.testing.assert_close(part.cell_fractions(given_), whole)


def test_full_detail_loses_nothing() -> None:
    """With a part per voxel the mask can be put together again, so no border is hidden from the denoiser."""
    mask = random_mask(labels=3)
    part = MaskConditioner(labels=3, factors=FACTORS, detail=4)
    i, j, k = FACTORS
    again = rearrange(part(Condition(mask)).spatial, "n (l a b c) i j k -> n l (i a) (j b) (k c)", l=3, a=i, b=j, c=k)
    torch.testing.assert_close(again, mask, rtol=0, atol=0)


def test_a_border_inside_a_cell_is_seen_by_its_parts_alone() -> None:
    left, right = torch.zeros(1, 8, 8, 6, dtype=torch.long), torch.zeros(1, 8, 8, 6, dtype=torch.long)
    left[0, :, 4, :], right[0, :, 7, :] = 1, 1  # both cover a quarter of the second cell along J
    coarse, fine = conditioner(2), MaskConditioner(labels=2, factors=FACTORS, detail=2)
    masks = [Condition(one_hot(index, 2)) for index in (left, right)]
    torch.testing.assert_close(coarse(masks[0]).spatial, coarse(masks[1]).spatial)
    assert not torch.equal(fine(masks[0]).spatial, fine(masks[1]).spatial)


def test_parts_must_divide_a_cell() -> None:
    with pytest.raises(ConfigError, match="does not divide latent cells"):
        MaskConditioner(labels=2, factors=(8, 8, 8), detail=3)


@torch.no_grad()
def test_maps_come_at_every_resolution_and_are_means_of_the_finer_ones() -> None:
    part = MaskConditioner(labels=3, factors=(2, 2, 2), detail=2, levels=3)
    mask = one_hot(torch.randint(0, 3, (2, 16, 16, 8), generator=torch.Generator().manual_seed(0)), 3)
    given_ = part(Condition(mask))
    assert [tuple(maps.shape[2:]) for maps in given_.maps] == [(8, 8, 4), (4, 4, 2), (2, 2, 1)]
    for maps in given_.maps:  # a label covers as much of the whole at every resolution
        torch.testing.assert_close(maps.mean((2, 3, 4)), given_.spatial.mean((2, 3, 4)))
    dropped = part.dropped(given_, torch.tensor([True, False]))
    assert all(bool(maps[0].any()) and not bool(maps[1].any()) for maps in dropped.maps)


@torch.no_grad()
def test_residuals_reach_the_denoiser_and_zeros_change_nothing() -> None:
    denoiser = tiny_denoiser("rectified")
    generator = torch.Generator().manual_seed(0)
    x, spatial = (torch.randn(2, n, 8, 8, 8, generator=generator) for n in (4, 3))
    skips = []
    hooks = [b.register_forward_hook(lambda m, a, out: skips.extend(out[1])) for b in denoiser.network.down_blocks]
    middle: list[torch.Tensor] = []
    hooks.append(denoiser.network.middle_block.register_forward_hook(lambda m, a, out: middle.append(out)))
    plain = denoiser(x, torch.tensor(0.5), Conditioning(spatial))
    for hook in hooks:
        hook.remove()
    shapes = [x.new_zeros(2, 8, 8, 8, 8), *(torch.zeros_like(one) for one in skips), torch.zeros_like(middle[0])]
    same = denoiser(x, torch.tensor(0.5), Conditioning(spatial, residuals=tuple(shapes)))
    torch.testing.assert_close(same, plain)
    moved = tuple(one + 0.5 for one in shapes)
    assert not torch.allclose(denoiser(x, torch.tensor(0.5), Conditioning(spatial, residuals=moved)), plain, atol=1e-3)
    with pytest.raises(DataError, match="takes no vector"):
        denoiser(x, torch.tensor(0.5), Conditioning(spatial, vector=torch.zeros(2, 4)))


@pytest.mark.parametrize("context", [False, True])
def test_a_patch_is_told_what_the_whole_is_told_at_its_place(context: bool) -> None:
    common = {"labels": 3, "factors": (2, 2, 2), "detail": 2, "patch": (2, 2, 2)}
    part = ContextConditioner(**common, latent_channels=4, cut_margin_mm=2.0) if context else MaskConditioner(**common)
    mask = random_mask()  # 4 x 4 x 3 cells
    host = torch.randn(2, 4, 4, 4, 3) if context else None
    whole = part(Condition(mask), host).spatial
    assert whole.shape[1] == part.channels
    corner = torch.tensor([[1, 2, 0], [0, 1, 1]])
    for row, (i, j, k) in enumerate(corner.tolist()):
        cut = mask[row : row + 1, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4, 2 * k : 2 * k + 4]
        beside = None if host is None else host[row : row + 1, :, i : i + 2, j : j + 2, k : k + 2]
        told = part(Condition(cut), beside, Place(corner[row : row + 1], (4, 4, 3))).spatial
        torch.testing.assert_close(told, whole[row : row + 1, :, i : i + 2, j : j + 2, k : k + 2])


def test_without_a_condition_a_patch_still_knows_its_place() -> None:
    part = MaskConditioner(labels=3, factors=(2, 2, 2), patch=(2, 2, 2))
    given_ = part(Condition(random_mask()))
    dropped = part.dropped(given_, torch.tensor([False, True])).spatial
    assert not bool(dropped[0, :3].any())
    torch.testing.assert_close(dropped[:, 3:], given_.spatial[:, 3:])
    torch.testing.assert_close(dropped[1], given_.spatial[1])
    axis = given_.spatial[0, 4, 0, :, 0]  # second axis, 4 cells
    torch.testing.assert_close(axis, torch.tensor([-0.75, -0.25, 0.25, 0.75]))
