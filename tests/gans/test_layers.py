"""Layers of the StyleGAN line against slow references, and the pyramid of grids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from latentsynth.gans.base import pyramid, resize, with_place
from latentsynth.gans.layers import (
    CONV,
    Conv,
    Linear,
    Mapping,
    ModulatedConv,
    activate,
    batch_deviation,
    normalise,
    place_features,
)

SHAPES = [(8, 12), (8, 4, 6)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 + seed))  # unlike any weights


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# Equalised layers


@pytest.mark.parametrize("rate", [1.0, 0.01])
@pytest.mark.parametrize("inputs", [16, 256])
@torch.no_grad()
def test_linear_keeps_unit_variance(inputs: int, rate: float) -> None:
    layer = Linear(inputs, 512, rate=rate)
    assert float(layer(noise(64, inputs)).std()) == pytest.approx(1, rel=0.05)
    assert float(layer.weight.detach().std()) * rate == pytest.approx(1, rel=0.05)  # what the optimiser steps on


def test_linear_is_torchs_with_scaled_weights() -> None:
    layer = Linear(6, 4, bias=0.7, rate=0.1)
    x = noise(3, 6)
    torch.testing.assert_close(layer(torch.zeros(1, 6)), torch.full((1, 4), 0.7))
    with torch.no_grad():
        layer.bias.copy_(noise(4, seed=1))
    weight, bias = layer.weight * 0.1 / math.sqrt(6), layer.bias * 0.1
    torch.testing.assert_close(layer(x), x @ weight.T + bias)


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_rate_slows_down_what_a_step_of_adam_changes(rate: float) -> None:
    """Adam moves every weight by its learning rate, so the answer moves in proportion to ``rate``."""
    moves = []
    for own in (1.0, rate):
        torch.manual_seed(0)
        layer, x = Linear(16, 8, rate=own), noise(4, 16)
        before = layer(x).detach()
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        layer(x).square().sum().backward()
        optimizer.step()
        moves.append(float((layer(x) - before).detach().abs().mean()))
    assert moves[1] / moves[0] == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_conv_keeps_unit_variance_and_the_grid(shape: tuple[int, ...], kernel: int) -> None:
    layer = Conv(len(shape), 16, 64, kernel)
    y = layer(noise(8, 16, *shape))
    assert y.shape == (8, 64, *shape)
    inside = y[(..., *(slice(1, n - 1) for n in shape))]  # edges see zeros
    assert float(inside.std()) == pytest.approx(1, rel=0.05)


def test_activation_keeps_the_mean_square() -> None:
    """Of standard normal numbers: 2 (1 + 0.2^2) / 2 = 1.04."""
    assert float(activate(noise(100_000)).square().mean()) == pytest.approx(1.04, rel=0.02)


# Modulated convolution


def grouped(conv: ModulatedConv, x: Tensor, w: Tensor) -> Tensor:
    """Weights written out per case, modulated and demodulated, then one group per case (Karras et al. 2020, sec. B)."""
    batch, dims = len(x), x.ndim - 2
    fan_in = conv.weight[0].numel()
    weights = []
    for style in conv.affine(w):
        weight = conv.weight / math.sqrt(fan_in) * style.view(1, -1, *[1] * dims)
        if conv.demodulate:
            weight = weight / (weight.flatten(1).square().sum(1) + 1e-8).sqrt().view(-1, 1, *[1] * dims)
        weights.append(weight)
    pad = conv.weight.shape[-1] // 2
    y = CONV[dims](x.reshape(1, -1, *x.shape[2:]), torch.cat(weights), padding=pad, groups=batch)
    return y.view(batch, -1, *x.shape[2:])


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_modulation_equals_a_convolution_per_case(shape: tuple[int, ...], kernel: int, demodulate: bool) -> None:
    conv = ModulatedConv(len(shape), 4, 5, 6, kernel, demodulate).double()
    x, w = noise(3, 4, *shape).double(), noise(3, 6, seed=1).double()
    torch.testing.assert_close(conv(x, w), grouped(conv, x, w))
    assert not torch.allclose(conv(x, w), conv(x, w.roll(1, 0)))


@pytest.mark.parametrize("size", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8)])
@torch.no_grad()
def test_demodulation_brings_any_style_to_unit_variance(shape: tuple[int, ...], size: float) -> None:
    """Per case; without it the variance is the mean square of the style. 5 % for 4 x 64 maps of some 200 cells."""
    x, w = noise(4, 32, *shape), size * noise(4, 8, seed=1)
    inside = (..., *(slice(1, n - 1) for n in shape))
    conv = ModulatedConv(len(shape), 32, 64, 8)
    torch.testing.assert_close(conv(x, w)[inside].flatten(1).std(1), torch.ones(4), atol=0.05, rtol=0)
    conv.demodulate = False
    plain = conv(x, w)[inside].flatten(1).var(1)
    torch.testing.assert_close(plain, conv.affine(w).square().mean(1), atol=0, rtol=0.15)
    if size == 20:
        assert float(plain.min()) > 20


def test_styles_begin_around_one() -> None:
    conv = ModulatedConv(2, 8, 8, 4)
    torch.testing.assert_close(conv.affine(torch.zeros(1, 4)), torch.ones(1, 8))


# Mapping


@pytest.mark.parametrize("placed", [False, True])
@torch.no_grad()
def test_truncation_leads_in_a_straight_line_from_the_mean_to_the_style(placed: bool) -> None:
    mapping, z = Mapping(6, 5, 2, placed).eval(), noise(4, 6)
    mapping.mean.copy_(noise(5, seed=1))
    full = mapping(z)
    assert torch.equal(mapping(z, truncation=1.0), full)
    middle = mapping.mean if mapping.place is None else mapping.mean + mapping.place(place_features(torch.zeros(1)))
    torch.testing.assert_close(mapping(z, truncation=0.0), middle.expand(4, 5))
    torch.testing.assert_close(mapping(z, truncation=0.3), middle + 0.3 * (full - middle))
    assert float((full[0] - full[1]).abs().max()) > 0.1


def test_truncation_leaves_slices_where_they_lie() -> None:
    mapping, z = Mapping(6, 5, 2, True).eval(), noise(1, 6).expand(2, 6)
    places = torch.tensor([-0.6, 0.7])
    apart = [mapping(z, places, truncation).diff(dim=0) for truncation in (0.0, 0.4, 1.0)]
    torch.testing.assert_close(apart[0], apart[2])
    torch.testing.assert_close(apart[1], apart[2])
    assert float(apart[0].abs().max()) > 0.1


def test_mean_style_is_tracked_in_training_with_gradients_alone() -> None:
    mapping, z = Mapping(6, 5, 2, False), noise(4, 6)
    with torch.no_grad():
        w = mapping(z)
    mapping.eval()(z)
    assert torch.equal(mapping.mean, torch.zeros(5))
    mapping.train()
    mapping(z)
    torch.testing.assert_close(mapping.mean, 0.002 * w.mean(0))
    for _ in range(3000):
        mapping(z)
    torch.testing.assert_close(mapping.mean, w.mean(0), atol=0.01, rtol=0.01)
    assert not mapping.mean.requires_grad


def test_mapping_sees_directions_not_lengths() -> None:
    mapping, z = Mapping(6, 5, 2, False).eval(), noise(4, 6)
    torch.testing.assert_close(mapping(z), mapping(7 * z))
    assert not torch.allclose(mapping(z), mapping(-z))


@torch.no_grad()
def test_mapping_is_told_places_only_if_it_wants_them() -> None:
    z, here, there = noise(2, 6), torch.tensor([0.1, 0.4]), torch.tensor([-0.6, 0.9])
    placed = Mapping(6, 5, 2, True).eval()
    assert float((placed(z, here) - placed(z, there)).abs().amin(1).min()) > 1e-4
    assert torch.equal(placed(z), placed(z, torch.zeros(2)))
    blind = Mapping(6, 5, 2, False).eval()
    assert torch.equal(blind(z, here), blind(z, there))


PLACES = st.floats(-1, 1, allow_subnormal=False)


@given(one=PLACES, two=PLACES)
def test_places_are_told_apart_as_far_as_they_are_apart(one: float, two: float) -> None:
    """Features move at most at their angles' speed, and no two places share them, the two ends included."""
    a, b = place_features(torch.tensor([one, two], dtype=torch.float64))
    gap, apart = abs(one - two), float((a - b).norm())
    assert apart <= math.pi * math.sqrt(1.25) * gap + 1e-7
    assert apart >= gap / 2 - 1e-7


def test_normalised_features_have_unit_mean_square_and_no_length() -> None:
    x = noise(3, 5, 4, 6) * 10
    torch.testing.assert_close(normalise(x).square().mean(1), torch.ones(3, 4, 6))
    torch.testing.assert_close(normalise(x), normalise(x / 10))
    torch.testing.assert_close(normalise(x), functional.normalize(x, dim=1) * math.sqrt(5))
    assert torch.equal(normalise(torch.zeros(1, 5, 2, 2)), torch.zeros(1, 5, 2, 2))


# How much a batch differs


def slow_deviation(x: Tensor, parts: int, group: int = 4) -> Tensor:
    """One number per case: the mean standard deviation within its group, written with loops."""
    numbers = torch.zeros(len(x))
    length = len(x) // parts
    size = next(n for n in range(min(group, length), 0, -1) if length % n == 0)
    for part in range(parts):
        for first in range(length // size):
            members = [part * length + first + m * (length // size) for m in range(size)]
            deviation = x[members].flatten(1).std(0, correction=0)
            numbers[members] = (deviation.square() + 1e-8).sqrt().mean()
    return numbers


@pytest.mark.parametrize(("batch", "parts"), [(4, 1), (8, 1), (6, 1), (8, 2), (12, 2), (9, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_deviation_is_the_slow_one(shape: tuple[int, ...], batch: int, parts: int) -> None:
    x = noise(batch, 3, *shape) * torch.arange(1, batch + 1).view(-1, 1, *[1] * len(shape))
    y = batch_deviation(x, parts)
    assert torch.equal(y[:, :3], x)
    extra = y[:, 3].flatten(1)
    torch.testing.assert_close(extra.amin(1), extra.amax(1))
    torch.testing.assert_close(extra[:, 0], slow_deviation(x, parts))


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_cases_do_not_deviate(shape: tuple[int, ...]) -> None:
    x = noise(1, 3, *shape).expand(4, 3, *shape)
    torch.testing.assert_close(batch_deviation(x)[:, 3], torch.full((4, *shape), 1e-4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_collapsed_fake_shows_beside_varied_reals(shape: tuple[int, ...]) -> None:
    real, fake = noise(4, 3, *shape), noise(1, 3, *shape, seed=1).expand(4, 3, *shape)
    extra = batch_deviation(torch.cat([real, fake]), parts=2)[:, 3].flatten(1)
    assert float(extra[:4].min()) > 0.5
    assert float(extra[4:].max()) < 2e-4
    torch.testing.assert_close(extra[:4], batch_deviation(real)[:, 3].flatten(1))
    mixed = batch_deviation(torch.cat([real, fake]), parts=1)[:, 3].flatten(1)  # what would hide it
    assert float(mixed[4:].min()) > 0.1


def test_batch_deviation_knows_no_order_within_a_group() -> None:
    x = noise(8, 3, 4, 6)  # groups of four: the even and the odd cases
    extra = batch_deviation(x)[:, 3, 0, 0]
    order = torch.tensor([4, 7, 0, 1, 6, 3, 2, 5])
    torch.testing.assert_close(batch_deviation(x[order])[:, 3, 0, 0], extra[order])
    across = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])  # planted: two groups exchange a member
    assert not torch.allclose(batch_deviation(x[across])[:, 3, 0, 0], extra[across])


def test_a_case_alone_does_not_deviate() -> None:
    extra = batch_deviation(noise(1, 3, 4, 6).requires_grad_())[:, 3]
    torch.testing.assert_close(extra, torch.full((1, 4, 6), 1e-4), atol=1e-6, rtol=0)


def test_a_collapse_has_a_finite_way_out() -> None:
    """The root of a variance of 0 has no slope; what is added under it gives one."""
    x = noise(1, 2, 4, 4).repeat(4, 1, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(batch_deviation(x)[:, 2].sum(), x)
    assert torch.isfinite(gradient).all()


# The pyramid of grids

AXES = st.lists(st.integers(1, 80), min_size=2, max_size=3)


@given(shape=AXES, smallest=st.integers(1, 6))
def test_pyramid_halves_each_axis_as_long_as_it_can(shape: list[int], smallest: int) -> None:
    levels = pyramid(shape, smallest)
    assert levels[0] == tuple(shape)
    assert len(set(levels)) == len(levels)
    for axis, size in enumerate(shape):
        sizes = [level[axis] for level in levels]
        halvings = 0
        while size % 2 ** (halvings + 1) == 0 and size // 2 ** (halvings + 1) >= smallest:
            halvings += 1
        expected = [size // 2 ** min(n, halvings) for n in range(len(levels))]
        assert sizes == expected


def test_short_axes_stop_first() -> None:
    assert pyramid((32, 32, 6)) == [(32, 32, 6), (16, 16, 6), (8, 8, 6), (4, 4, 6)]
    assert pyramid((32, 32, 6), 2) == [(32, 32, 6), (16, 16, 3), (8, 8, 3), (4, 4, 3), (2, 2, 3)]


GRIDS = [(16, 12), (32, 32, 6), (8, 12, 8)]


@pytest.mark.parametrize("shape", GRIDS)
def test_smaller_levels_are_means_of_cells_in_one_go_or_many(shape: tuple[int, ...]) -> None:
    x = noise(2, 3, *shape)
    levels = pyramid(shape)
    step = x
    for level in levels:
        step = resize(step, level)
        torch.testing.assert_close(resize(x, level), step)
        torch.testing.assert_close(step.flatten(2).mean(2), x.flatten(2).mean(2))
        cells = [n // m for n, m in zip(shape, level, strict=True)]
        first = x[(..., *(slice(c) for c in cells))].flatten(2).mean(2)
        torch.testing.assert_close(step.flatten(2)[:, :, 0], first)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("shape", GRIDS)
def test_larger_levels_keep_means_and_constants(shape: tuple[int, ...], smooth: bool) -> None:
    low, high = pyramid(shape)[1], shape
    x = noise(2, 3, *low)
    y = resize(x, high, smooth)
    torch.testing.assert_close(y.flatten(2).mean(2), x.flatten(2).mean(2))
    torch.testing.assert_close(resize(torch.ones(1, 1, *low), high, smooth), torch.ones(1, 1, *high))
    assert y.abs().max() <= x.abs().max()


@pytest.mark.parametrize("shape", GRIDS)
def test_repetition_comes_back_and_interpolation_is_smooth(shape: tuple[int, ...]) -> None:
    low = pyramid(shape)[-1]
    x = noise(2, 3, *low)
    torch.testing.assert_close(resize(resize(x, shape, smooth=False), low), x)
    ramp = torch.arange(low[0], dtype=torch.float32).view(1, 1, -1, *[1] * (len(low) - 1)).expand(1, 1, *low)
    steps = resize(ramp, shape).diff(dim=2)
    factor = shape[0] // low[0]
    inside = steps[:, :, factor:-factor]
    torch.testing.assert_close(inside, torch.full_like(inside, 1 / factor))
    assert set(resize(ramp, shape, smooth=False).diff(dim=2).unique().tolist()) == {0.0, 1.0}


def test_same_size_changes_nothing() -> None:
    x = noise(1, 2, 8, 6)
    assert resize(x, [8, 6]) is x
    assert resize(x, [8, 6], smooth=False) is x


@pytest.mark.parametrize("shape", SHAPES)
def test_place_stands_in_a_channel_of_its_own(shape: tuple[int, ...]) -> None:
    x, place = noise(2, 3, *shape), torch.tensor([-0.5, 0.75])
    y = with_place(x, place)
    assert torch.equal(y[:, :3], x)
    assert torch.equal(y[:, 3].flatten(1), place[:, None].expand(2, math.prod(shape)))
    assert with_place(x, None) is x
