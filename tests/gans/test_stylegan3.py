"""StyleGAN 3: what its filters let through, and that its images move with its input, as its sources claim."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor, nn

from latentsynth.errors import ConfigError
from latentsynth.gans.base import Generator, Inputs
from latentsynth.gans.layers import activate
from latentsynth.gans.stylegan2 import StyleGAN2Generator
from latentsynth.gans.stylegan3 import (
    Band,
    FilteredActivation,
    FourierInput,
    StyleGAN3Generator,
    TrackedScale,
    low_pass,
    schedule,
)
from latentsynth.randomness import Draws

SHAPE = (48, 64)  # both kinds of layers: keeping their grid, and doubling it (twice)
EDGE = 12  # pixels left out of comparisons, where interpolation of the output lacks neighbours
MOVES = [(1.0, 0.0), (0.0, 3.0), (-3.0, 2.0), (0.5, 0.0), (0.0, 0.5), (2.5, -1.5)]


def generator(seed: int = 0, shape: tuple[int, ...] = SHAPE, layers: int = 8, **settings: object) -> StyleGAN3Generator:
    torch.manual_seed(seed)
    return StyleGAN3Generator(shape, 1, channels=32, layers=layers, **settings).eval()


def small(seed: int = 0, **settings: object) -> StyleGAN3Generator:
    """The smallest that has every part."""
    return generator(seed, (16, 20), 4, latent=8, style=8, **settings)


def interpolated(x: Tensor, move: tuple[float, float], reach: int = 8) -> Tensor:
    """Images moved by a windowed sinc, written apart from the filters of the network."""
    for axis, distance in zip((2, 3), move, strict=True):
        n = x.shape[axis]
        gap = torch.arange(n)[:, None] - torch.arange(n) - distance
        window = torch.i0(10 * (1 - (gap / reach).square()).clamp(0).sqrt()) / torch.i0(torch.tensor(10.0))
        kernel = torch.sinc(gap) * window * (gap.abs() < reach)
        x = torch.einsum("mn,bcnw->bcmw" if axis == 2 else "mn,bchn->bchm", kernel, x)
    return x


@torch.no_grad()
def agreement(model: StyleGAN3Generator, move: tuple[float, float]) -> float:
    """Decibels by which images exceed the difference between moving the input and moving the output."""
    w = model.mapping(torch.randn(4, 64, generator=torch.Generator().manual_seed(1)))
    moved = model.synthesise(w, torch.tensor(move).expand(4, 2))
    error = moved - interpolated(model.synthesise(w), move)
    inner = (..., slice(EDGE, -EDGE), slice(EDGE, -EDGE))
    return float(10 * torch.log10(moved[inner].var() / error[inner].square().mean()))


class Nearest(nn.Module):
    """Fault: leaky ReLU on the grid as it is, and nearest neighbours."""

    def __init__(self, before: Band, after: Band):
        super().__init__()
        self.factor = round(after.rate / before.rate)
        self.grid = after.grid

    def forward(self, x: Tensor) -> Tensor:
        x = activate(x).repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
        first, second = ((have - want) // 2 for have, want in zip(x.shape[2:], self.grid, strict=True))
        return x[:, :, first : first + self.grid[0], second : second + self.grid[1]]


class Unfiltered(FilteredActivation):
    """Fault: all filters in place, but leaky ReLU before them instead of between."""

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.upsample(activate(x)))


@pytest.mark.parametrize("shape", [(32, 48), (64, 64), (20, 28), (128, 96)])
def test_bands_grow_to_the_full_grid_and_fit_their_rates(shape: tuple[int, int]) -> None:
    bands = schedule(shape, 8)
    assert bands[0].cutoff * min(shape) == pytest.approx(2)
    assert bands[-1].cutoff == bands[-2].cutoff == 0.5 > bands[-3].cutoff
    assert bands[-1].grid == shape
    growth = np.diff(np.log([band.cutoff for band in bands[1:-1]]))
    np.testing.assert_allclose(growth, growth[0])
    for band in bands[:-2]:
        assert band.stop <= band.rate / 2 or band.rate == 1
        assert band.rate < 4 * band.stop  # a grid of half the rate would be too coarse
        assert band.cutoff + band.half_width >= band.rate / 2 - 1e-12


def gain(taps: Tensor, frequency: float | np.ndarray, rate: float) -> np.ndarray:
    """How much of a wave a filter for samples of some rate lets through."""
    return np.abs(signal.freqz(taps.double().numpy(), worN=np.atleast_1d(frequency), fs=rate)[1])


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("level", range(9))
def test_filter_passes_below_its_band_and_stops_above(level: int, factor: int) -> None:
    band = schedule(SHAPE, 8)[level]
    rate = band.rate * factor
    taps = low_pass(band, factor)
    # Kaiser's formula says how well a window of this length and transition can tell frequencies apart.
    ripple = 2 * 10 ** (-signal.kaiser_atten(len(taps), 4 * band.half_width / rate) / 20)
    assert ripple < 0.1
    stopped = np.linspace(band.cutoff + band.half_width, rate / 2, 500)
    assert gain(taps, stopped, rate).max() < ripple
    if band.cutoff > band.half_width:
        np.testing.assert_allclose(
            gain(taps, np.linspace(0, band.cutoff - band.half_width, 500), rate), 1, atol=2 * ripple
        )
    assert gain(taps, band.cutoff / 2, rate)[0] > 0.85
    assert 0.45 < gain(taps, band.cutoff, rate)[0] < 0.65
    torch.testing.assert_close(taps, taps.flip(0))  # moves nothing


def waves(band: Band, frequency: tuple[float, float]) -> Tensor:
    """One wave on a band's grid, around its centre."""
    y, x = ((torch.arange(n) - (n - 1) / 2) / band.rate for n in band.grid)
    return torch.cos(2 * torch.pi * (frequency[0] * y[:, None] + frequency[1] * x) + 0.7)[None, None]


@pytest.mark.parametrize("level", range(7))
@pytest.mark.parametrize("part", [(0.25, 0.0), (0.0, 0.25), (0.6, -0.4)])
def test_up_and_down_gives_the_same_signal_on_the_next_grid(level: int, part: tuple[float, float]) -> None:
    before, after = schedule(SHAPE, 8)[level : level + 2]
    block = FilteredActivation(before, after)
    frequency = (part[0] * before.cutoff, part[1] * before.cutoff)
    result = block.downsample(block.upsample(waves(before, frequency)))
    assert result.shape[2:] == after.grid
    kept = np.prod([
        gain(taps, f, 2 * max(before.rate, after.rate))[0]
        for f in frequency for taps in (low_pass(before, block.up), low_pass(after, block.down))
    ])  # fmt: skip
    edge = math.ceil(6 * after.rate / before.rate)
    error = (result - float(kept) * waves(after, frequency))[..., edge:-edge, edge:-edge]
    assert error.abs().max() < 1e-3
    if level == 6 and 0 in part:  # bands whose filters are flat there
        assert kept == pytest.approx(1, abs=0.03)


def test_nonlinearity_acts_between_the_filters() -> None:
    """Where nothing varies the filters do nothing, and the pointwise function remains."""
    before, after = schedule(SHAPE, 8)[3:5]
    block = FilteredActivation(before, after)
    for level in (1.5, -1.5):
        x = torch.full((1, 2, *before.grid), level)
        inner = block(x)[..., 14:-14, 14:-14]
        torch.testing.assert_close(inner, activate(torch.full_like(inner, level)), atol=0.01, rtol=0)


@pytest.mark.parametrize("move", MOVES)
def test_images_move_with_the_input(move: tuple[float, float]) -> None:
    assert agreement(generator(), move) > 45  # it is 50 to 54; without filtered nonlinearities 36 to 43


def test_the_measure_of_agreement_sees_the_direction() -> None:
    model = generator()
    turned = copy.deepcopy(model)
    synthesise = turned.synthesise
    turned.synthesise = lambda w, offset=None: synthesise(w, None if offset is None else -offset)  # type: ignore
    assert agreement(turned, (1.0, 0.0)) < 25


@pytest.mark.parametrize(("fault", "loss"), [(Nearest, 35), (Unfiltered, 8)])
@pytest.mark.parametrize("move", [(1.0, 0.0), (-3.0, 2.0), (0.0, 0.5)])
def test_aliasing_breaks_the_equivariance(fault: type[nn.Module], loss: float, move: tuple[float, float]) -> None:
    sound, broken = generator(), generator()
    bands = schedule(SHAPE, 8)
    for layer, before, after in zip(broken.synthesis, bands, bands[1:], strict=False):
        layer.activation = fault(before, after)
    assert agreement(broken, move) < agreement(sound, move) - loss


@torch.no_grad()
def test_stylegan_2_is_tied_to_its_grid() -> None:
    """It starts from a learnt 6 x 6 grid: moving that by one cell should move the image by eight pixels."""
    torch.manual_seed(0)
    other = StyleGAN2Generator((48, 48), 1).eval()
    styles = other.mapping(torch.randn(4, 64))[:, None].expand(-1, other.layers, -1)
    first = other.synthesise(styles, Draws.seeded(range(4))).image
    other.start.copy_(other.start.roll(1, 2))
    moved = other.synthesise(styles, Draws.seeded(range(4))).image
    inner = slice(EDGE, -EDGE)
    error = moved[..., inner, 8 + EDGE : -EDGE] - first[..., inner, EDGE : -EDGE - 8]
    theirs = float(10 * torch.log10(moved[..., inner, inner].var() / error.square().mean()))
    assert theirs < agreement(generator(shape=(48, 48)), (0.0, 8.0)) - 20


def test_input_waves_lie_within_the_first_band() -> None:
    torch.manual_seed(0)
    band = schedule((32, 48), 8)[0]
    radii = FourierInput(8, 4000, band, 32).frequencies.norm(dim=0) / band.cutoff
    assert float(radii.max()) <= 1 + 1e-6
    assert float(radii.square().mean()) == pytest.approx(0.5, abs=0.02)  # uniform over the disc, not over its radius


def test_style_translates_and_turns_the_input() -> None:
    torch.manual_seed(0)
    entry = FourierInput(8, 16, schedule((32, 32), 8)[0], 32.0)
    w = torch.randn(3, 8)
    with torch.no_grad():
        plain, moved = entry(w), entry(w, torch.tensor([[4.0, -8.0]]).expand(3, 2))
        entry.move.bias.copy_(torch.tensor([2.0, 0.0, 4 / 32, -8 / 32]))  # its length does not count
        torch.testing.assert_close(entry(w), moved, atol=1e-4, rtol=0)
        entry.move.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
        turned = entry(w)
    errors = [float((turned - torch.rot90(plain, k, (2, 3))).abs().max()) for k in (1, -1)]
    assert min(errors) < 1e-4 < max(errors)


def test_demodulation_keeps_unit_variance() -> None:
    model = generator()
    x = torch.randn(8, 32, 40, 40, generator=torch.Generator().manual_seed(2))
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    for layer in model.synthesis:
        with torch.no_grad():
            inner = layer.conv(x, w)[..., 1:-1, 1:-1]
        assert float(inner.var()) == pytest.approx(1, abs=0.02)
        assert float((inner.var((2, 3)) - 1).abs().max()) < 0.25  # each case and channel by itself


def test_tracked_scale_brings_inputs_to_unit_square() -> None:
    scale = TrackedScale().train()
    x = 3 * torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scale(x), x)  # the batch at hand does not count
    with torch.no_grad():
        scale(x)
    assert float(scale.square) == pytest.approx(1 + 0.001 * (float(x.square().mean()) - 1))
    for _ in range(8000):
        scale(x[:1, :1])
    assert float(scale(x[:1, :1]).square().mean()) == pytest.approx(1, abs=0.02)
    tracked = float(scale.square)
    scale.eval()(100 * x)
    assert float(scale.square) == tracked


@pytest.mark.parametrize("training", [False, True])
def test_a_row_does_not_depend_on_the_others(training: bool) -> None:
    model = small().train(training)
    alone = copy.deepcopy(model)(Inputs(Draws.seeded([5]))).image
    among = copy.deepcopy(model)(Inputs(Draws.seeded([3, 5, 9]))).image
    torch.testing.assert_close(among[1:2], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(among[0], among[1], atol=0.01)


def test_seeds_decide_the_image() -> None:
    model = small()
    first, same, other = (model(Inputs(Draws.seeded([seed]))).image for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.allclose(first, other, atol=0.01)
    assert first.shape == (1, 1, 16, 20)


@torch.no_grad()
def test_untrained_images_lie_within_the_range() -> None:
    images = torch.stack([generator(seed)(Inputs(Draws.seeded(range(4)))).image for seed in range(3)])
    assert 0.1 < float(images.square().mean().sqrt()) < 0.5


def test_mixing_changes_nothing() -> None:
    model = small()
    assert torch.equal(model(Inputs(Draws.seeded([1]), mixing=1.0)).image, model(Inputs(Draws.seeded([1]))).image)


def test_truncation_leads_to_the_mean_image() -> None:
    model = small()
    model.mapping.mean.copy_(torch.randn(8, generator=torch.Generator().manual_seed(0)))
    images = [model(Inputs(Draws.seeded([1, 2]), truncation=t)).image for t in (1.0, 0.5, 0.0)]
    spread = [(image[0] - image[1]).abs().mean().item() for image in images]
    assert spread[0] > spread[1] > 0.01 > 1e-5 > spread[2]
    torch.testing.assert_close(images[2][:1], model.synthesise(model.mapping.mean[None]), atol=1e-5, rtol=0)


def test_place_matters_where_it_is_asked_for() -> None:
    places = [torch.tensor([p]) for p in (-0.5, 0.5)]
    for placed in (True, False):
        model = small(placed=placed)
        low, high = (model(Inputs(Draws.seeded([1]), place=place)).image for place in places)
        assert torch.equal(low, high) != placed


def test_saved_generator_makes_the_same_images(tmp_path: Path) -> None:
    model = small().train()
    for _ in range(3):
        model(Inputs(Draws.seeded(range(4))))  # moves what is tracked
    model.eval()
    model.save(tmp_path / "generator")
    loaded = Generator.from_pretrained(tmp_path / "generator")
    assert isinstance(loaded, StyleGAN3Generator)
    assert torch.equal(loaded(Inputs(Draws.seeded([7]))).image, model(Inputs(Draws.seeded([7]))).image)


def test_gradient_reaches_every_parameter() -> None:
    model = small(placed=True).train()
    image = model(Inputs(Draws.seeded(range(4)), place=torch.linspace(-1, 1, 4))).image
    (image * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_channels_fall_only_where_grids_are_large() -> None:
    def widths(shape: tuple[int, int]) -> list[int]:
        return [layer.bias.numel() for layer in StyleGAN3Generator(shape, 1, channels=32).synthesis]

    assert widths((64, 80)) == [32] * 8
    assert widths((256, 256))[-1] == 8


@pytest.mark.parametrize("shape", [(40, 28), (33, 50), (100, 36)])
def test_grids_need_not_be_powers_of_two(shape: tuple[int, int]) -> None:
    model = generator(shape=shape)
    assert model(Inputs(Draws.seeded([0]))).image.shape == (1, 1, *shape)
    assert agreement(model, (1.0, 0.0)) > 45  # as on other grids: the margins and filters fit these as well
    assert agreement(model, (0.0, 0.5)) > 45


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (32, 32, 32)}, "makes slices"),
        ({"shape": (4, 32)}, "at least 8 x 8"),
        ({"shape": (32, 32), "layers": 2}, "at least 3 layers, got 2"),
        ({"shape": (32, 32), "labels": 4}, "takes no mask, got 4 labels"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StyleGAN3Generator(out_channels=1, **settings)


def test_masks_and_references_are_refused() -> None:
    model = small()
    for argument in ("mask", "style"):
        with pytest.raises(ValueError, match="neither a mask nor a reference"):
            model(Inputs(Draws.seeded([0]), **{argument: torch.zeros(1, 1, 16, 20)}))
