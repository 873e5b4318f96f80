"""Batches are a function of images seen: the same on any number of processes, and from any starting point."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from latentsynth.data.cache.loading import Crops, Positions, Slices, batches
from latentsynth.errors import TrainingError
from latentsynth.randomness import CounterDraws, Stream, keyed_noise, keyed_uniform, mixed

COUNT = 7


def items(seed: int = 3) -> Positions:
    return Positions(lambda n: {"case": n, "image": torch.full((2,), float(n))}, COUNT, seed)


def stream(start: int, stop: int, batch: int, accumulation: int = 1, rank: int = 0, world: int = 1) -> list[list[int]]:
    return list(Slices(start, stop, batch, accumulation, rank, world))


def flat(parts: Any) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def test_each_epoch_visits_each_item_once_in_an_order_of_its_own() -> None:
    order = [items()[p]["case"] for p in range(4 * COUNT)]
    epochs = [tuple(order[n : n + COUNT]) for n in range(0, len(order), COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(epochs)) == len(epochs)


def test_order_depends_on_the_seed_and_is_reproducible() -> None:
    def orders(seed: int) -> list[int]:
        return [items(seed)[p]["case"] for p in range(2 * COUNT)]

    assert orders(3) == orders(3)
    assert orders(3) != orders(4)


def test_items_carry_their_position() -> None:
    assert [items()[p]["position"] for p in (0, 5, 23)] == [0, 5, 23]


def places(shape: tuple[int, int, int], count: int = 400, seed: int = 3) -> list[tuple[int, int, int]]:
    """Where crops of volumes whose voxels hold their own places start, and whether the mask was cut alike."""
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (6, 5, 4)), indexing="ij")).float()
    crops = Crops(lambda n: {"case": n, "image": voxels, "mask": voxels + 100}, COUNT, seed, shape)
    found = []
    for position in range(count):
        item = crops[position]
        assert item["image"].shape == (3, *shape)
        assert torch.equal(item["mask"], item["image"] + 100)
        start = item["image"][:, 0, 0, 0]
        assert torch.equal(
            item["image"], voxels[:, *(slice(int(a), int(a) + n) for a, n in zip(start, shape, strict=True))]
        )
        assert item["case"] == items(seed)[position]["case"]  # the order is that of whole volumes
        found.append((int(start[0]), int(start[1]), int(start[2])))
    return found


def test_crops_lie_anywhere_with_the_same_chance() -> None:
    seen = Counter(places((4, 5, 2)))
    assert set(seen) == set(itertools.product(range(3), [0], range(3)))
    assert max(seen.values()) < 2.5 * min(seen.values())
    assert places((4, 5, 2)) == places((4, 5, 2))
    assert places((4, 5, 2)) != places((4, 5, 2), seed=4)
    assert set(places((6, 5, 4), 5)) == {(0, 0, 0)}  # the whole volume


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_slices_of_all_ranks_are_the_global_batches(world: int, accumulation: int) -> None:
    batch, stop = 8, 40
    ranks = [stream(0, stop, batch, accumulation, rank, world) for rank in range(world)]
    for step in range(stop // batch):
        mine = [flat(parts[step * accumulation : (step + 1) * accumulation]) for parts in ranks]
        assert sorted(flat(mine)) == list(range(step * batch, (step + 1) * batch))  # each once, none from elsewhere
        # Micro-batch by micro-batch, ranks in order, it is the order of the one process.
        parts = [parts[step * accumulation + n] for n in range(accumulation) for parts in ranks]
        assert flat(parts) == list(range(step * batch, (step + 1) * batch))


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_starting_later_gives_the_tail(world: int, accumulation: int) -> None:
    for rank in range(world):
        whole = stream(0, 48, 8, accumulation, rank, world)
        assert stream(24, 48, 8, accumulation, rank, world) == whole[len(whole) // 2 :]
        assert stream(48, 48, 8, accumulation, rank, world) == []


def test_loader_gives_the_same_cases_on_one_and_two_processes() -> None:
    def cases(rank: int, world: int) -> list[list[int]]:
        return [batch["case"].tolist() for batch in batches(items(), Slices(4, 20, 4, 1, rank, world))]

    together = [sorted(a + b) for a, b in zip(cases(0, 2), cases(1, 2), strict=True)]
    assert together == [sorted(batch) for batch in cases(0, 1)]
    assert flat(cases(0, 1)) == [items()[p]["case"] for p in range(4, 20)]


def test_loader_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(batches(items(), Slices(0, 8, 4, 1, 0, 1)))) == 2
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch", "accumulation", "world", "multiple"), [(6, 1, 4, 4), (6, 2, 2, 4), (9, 2, 1, 2)])
def test_indivisible_batch_is_refused(batch: int, accumulation: int, world: int, multiple: int) -> None:
    with pytest.raises(TrainingError, match=rf"train\.batch {batch} .*multiple of {multiple}$"):
        Slices(0, 8, batch, accumulation, 0, world)


def counted_noise(seed: int, positions: Tensor, shape: tuple[int, ...], stream: Stream) -> Tensor:
    """What :func:`keyed_noise` gives for positions on a GPU."""
    return CounterDraws(seed, positions, stream).normal(*shape)


def counted_uniform(seed: int, positions: Tensor, stream: Stream) -> Tensor:
    return CounterDraws(seed, positions, stream).uniform()


made_on = pytest.mark.parametrize(
    ("normal", "uniform"), [(keyed_noise, keyed_uniform), (counted_noise, counted_uniform)], ids=["cpu", "gpu"]
)


@made_on
def test_noise_depends_on_seed_position_and_stream_alone(normal: Any, uniform: Any) -> None:
    positions = torch.tensor([5, 900, 17])
    noise = normal(1, positions, (2, 3), Stream.NOISE)
    assert torch.equal(noise[1], normal(1, torch.tensor([900]), (2, 3), Stream.NOISE)[0])  # not on its neighbours
    assert torch.equal(noise.flip(0), normal(1, positions.flip(0), (2, 3), Stream.NOISE))  # nor on the order
    torch.manual_seed(99)
    assert torch.equal(noise, normal(1, positions, (2, 3), Stream.NOISE))  # nor on the global generator
    assert torch.equal(uniform(1, positions, Stream.TIME)[1], uniform(1, torch.tensor([900]), Stream.TIME)[0])


@made_on
def test_noise_differs_with_every_bit_of_the_seed_with_position_and_stream(normal: Any, uniform: Any) -> None:
    rows = [
        normal(seed, torch.tensor([position]), (4,), stream)[0].tolist()
        for seed in (0, 1, 2**32, 2**63, 2**64 - 1) for position in (*range(40), 10**6, 10**9)
        for stream in Stream
    ]  # fmt: skip
    assert Counter(map(tuple, rows)).most_common(1)[0][1] == 1


@made_on
def test_noise_is_standard_normal_and_uniform_is_uniform_across_positions(normal: Any, uniform: Any) -> None:
    positions = torch.arange(4000)
    noise = normal(0, positions, (4,), Stream.NOISE)
    assert noise.mean(0).abs().max() < 0.08
    assert (noise.std(0) - 1).abs().max() < 0.06
    assert ((noise**4).mean(0) - 3).abs().max() < 0.6
    correlation = torch.corrcoef(torch.cat([noise[:-1].T, noise[1:].T])).fill_diagonal_(0)
    assert correlation.abs().max() < 0.06  # neighbours know nothing of each other, nor do numbers of one row
    drawn = uniform(0, positions, Stream.TIME)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert (torch.histc(drawn, 10, 0, 1) - 400).abs().max() < 100


def test_counted_numbers_are_those_of_splitmix64() -> None:
    """The first outputs for seed 1234567, as the generator's authors and others print them."""
    step = 0x9E3779B97F4A7C15 - (1 << 64)
    states = torch.tensor([1234567]) + torch.arange(1, 6) * step
    assert [int(one) % (1 << 64) for one in mixed(states)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # fmt: skip


def test_numbers_drawn_in_turn_are_never_drawn_again() -> None:
    draws = CounterDraws(0, torch.arange(50), Stream.NOISE)
    drawn = torch.cat([draws.normal(3, 5), draws.normal(2, 1, 4).flatten(1)[:, None].expand(-1, 3, -1)[..., :5]], 2)
    assert len(draws) == 50
    assert len(drawn.unique()) == 50 * (15 + 5)
    assert not torch.equal(
        CounterDraws(0, torch.arange(50), Stream.NOISE, part=1).uniform(4),
        CounterDraws(0, torch.arange(50), Stream.NOISE).uniform(4),
    )
