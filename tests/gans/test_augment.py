"""Adaptive augmentation: what each map does where that is known, what moves together, what leaks, what adapts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.nn import functional

from latentsynth.gans import augment as module
from latentsynth.gans.augment import adapt, adaptive_state, augment, geometry, shades, warp
from latentsynth.randomness import Draws

SHAPES = [(16, 24), (8, 12, 10)]


def noise(batch: int, channels: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine(linear: Tensor, shift: Tensor | None = None) -> Tensor:
    shift = torch.zeros(len(linear), dtype=torch.float64) if shift is None else shift
    return torch.cat([linear.double(), shift.double()[:, None]], 1)[None]


def ball(shape: tuple[int, ...], radius: float) -> Tensor:
    """A ball at the centre with a soft surface, so that its sum is its volume."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in shape]
    distance = torch.stack(torch.meshgrid(*axes, indexing="ij")).norm(dim=0)
    return torch.sigmoid((radius - distance) * 2)[None, None]


def moments(image: Tensor) -> Tensor:
    """Second moments about the centre of the grid, ``(d, d)``."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in image.shape[2:]]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    return (places * image.flatten()) @ places.T / image.sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_identity_changes_no_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = noise(2, 3, shape).to(dtype)
    moves = torch.cat([affine(torch.eye(len(shape))), affine(torch.eye(len(shape)) * 0.8)])
    y = warp(x, moves)
    assert y.dtype == dtype
    assert torch.equal(y[0], x[0])
    assert not torch.equal(y[1], x[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirror_is_a_flip_and_twice_is_nothing(shape: tuple[int, ...]) -> None:
    x = noise(1, 2, shape)
    for axis in range(len(shape)):
        linear = torch.eye(len(shape))
        linear[axis, axis] = -1
        y = warp(x, affine(linear))
        torch.testing.assert_close(y, x.flip(2 + axis), atol=1e-12, rtol=0)
        torch.testing.assert_close(warp(y, affine(linear)), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_translation_by_whole_voxels_is_a_roll_inside(shape: tuple[int, ...]) -> None:
    x = noise(1, 2, shape)
    shift = torch.tensor([2, -3, 1][: len(shape)])
    y = warp(x, affine(torch.eye(len(shape)), shift))
    rolled = x.roll([-int(s) for s in shift], list(range(2, x.ndim)))
    inside = (..., *(slice(3, n - 3) for n in shape))
    torch.testing.assert_close(y[inside], rolled[inside], atol=1e-12, rtol=0)


def test_beyond_the_edge_the_image_is_mirrored() -> None:
    x = noise(1, 1, (4, 6))
    y = warp(x, affine(torch.eye(2), torch.tensor([-2, 0])))
    torch.testing.assert_close(y, torch.cat([x[:, :, :2].flip(2), x[:, :, :2]], 2), atol=1e-12, rtol=0)


def test_a_quarter_turn_on_a_square_grid_is_rot90() -> None:
    x = noise(1, 1, (6, 6))
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    torch.testing.assert_close(warp(x, affine(quarter)), x.rot90(-1, (2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 16), (24, 16, 20)])
def test_a_ball_stays_a_ball_under_rotation(shape: tuple[int, ...]) -> None:
    """On a grid that is no cube, a rotation that is rigid in anything but voxels would make it an egg."""
    x = ball(shape, 5.0)
    angles = torch.tensor([module.ANGLE, -0.3, 0.2])
    moves = torch.eye(len(shape), len(shape) + 1).repeat(3, 1, 1)
    moves[:, :, : len(shape)] = module._rotations(
        torch.tensor([[1.0, 2, 3], [0, 1, 0], [1, -1, 0]]), angles, len(shape)
    )
    y = warp(x.expand(3, *x.shape[1:]), moves)
    for case in y.split(1):
        assert float((case - x).abs().max()) > 1e-4  # it was resampled
        assert float(case.sum() / x.sum()) == pytest.approx(1, abs=2e-3)
        spread = moments(case)  # linear interpolation adds up to a sixth of a voxel's square, across the axis only
        torch.testing.assert_close(
            spread, torch.eye(len(shape)).double() * spread.diagonal().mean(), atol=1 / 6, rtol=0
        )


def test_a_rotation_turns_by_its_angle_around_its_axis() -> None:
    axis = noise(20, 3, ()).view(20, 3)
    angle = torch.linspace(-1, 1, 20, dtype=torch.float64)
    turns = module._rotations(axis, angle, 3)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=torch.float64).expand(20, 3, 3))
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close((turns @ axis[:, :, None])[:, :, 0], axis)
    torch.testing.assert_close(turns.diagonal(dim1=1, dim2=2).sum(1), 1 + 2 * angle.cos())
    flat = module._rotations(axis, angle, 2)
    torch.testing.assert_close(flat[:, 1, 0].atan2(flat[:, 0, 0]), angle)


@pytest.mark.parametrize("shape", SHAPES)
def test_channels_move_together_and_only_the_first_are_shaded(shape: tuple[int, ...]) -> None:
    x = noise(6, 1, shape).float().expand(-1, 2, *shape)
    y = augment(x, Draws.seeded(range(6)), 0.7, intensity_channels=0)
    assert torch.equal(y[:, 0], y[:, 1])
    assert not torch.equal(y, x)
    shaded = augment(x, Draws.seeded(range(6)), 0.7, intensity_channels=1)
    assert torch.equal(shaded[:, 1], y[:, 1])
    brightness, contrast = (v.view(-1, *[1] * len(shape)) for v in expected_shades(6, shape, 0.7))
    torch.testing.assert_close(shaded[:, 0], (y[:, 0] + brightness) * contrast)
    assert not torch.equal(shaded[:, 0], y[:, 0])
    every = augment(x, Draws.seeded(range(6)), 0.7)
    assert torch.equal(every[:, 0], shaded[:, 0])
    assert torch.equal(every[:, 1], shaded[:, 0])


def expected_shades(batch: int, shape: tuple[int, ...], probability: float) -> tuple[Tensor, Tensor]:
    draws = Draws.seeded(range(batch))
    geometry(draws, shape, probability)
    return shades(draws, probability)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_hot_masks_stay_shares(shape: tuple[int, ...]) -> None:
    labels = torch.randint(0, 3, (8, *shape), generator=torch.Generator().manual_seed(0))
    mask = functional.one_hot(labels, 3).movedim(-1, 1).float()
    y = augment(mask, Draws.seeded(range(8)), 0.9, intensity_channels=0)
    torch.testing.assert_close(y.sum(1), torch.ones(8, *shape), atol=1e-5, rtol=0)
    assert float(y.min()) >= 0


@pytest.mark.parametrize("shape", SHAPES)
def test_each_case_depends_on_its_own_generator_only(shape: tuple[int, ...]) -> None:
    x = noise(5, 2, shape).float()
    together = augment(x, Draws.seeded(range(5)), 0.6, 1)
    for i in range(5):
        torch.testing.assert_close(augment(x[i : i + 1], Draws.seeded([i]), 0.6, 1), together[i : i + 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_drawn_do_not_depend_on_the_probability(shape: tuple[int, ...]) -> None:
    x = noise(2, 1, shape).float()
    after = []
    for probability in (0.0, 0.3, 1.0):
        draws = Draws.seeded([1, 2])
        augment(x, draws, probability)
        after.append(draws.uniform(4))
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


def test_at_probability_zero_the_images_come_back_themselves() -> None:
    x = noise(2, 1, (8, 8)).float()
    assert augment(x, Draws.seeded([1, 2]), 0.0) is x


def test_draws_must_have_a_row_per_case() -> None:
    with pytest.raises(ValueError, match="3 cases need as many rows of draws, not 1"):
        augment(noise(3, 1, (8, 8)), Draws.seeded([1]), 0.5)


CASES = 1500


def transformations(shape: tuple[int, ...], probability: float) -> dict[str, Tensor]:
    """Which cases each transformation changed, told apart by what each leaves alone."""
    dims = len(shape)
    draws = Draws.seeded(range(CASES))
    matrices = geometry(draws, shape, probability).double()
    linear, shift = matrices[:, :, :dims], matrices[:, :, dims]
    brightness, contrast = shades(draws, probability)
    mirror = torch.linalg.det(linear) < 0
    gram = linear.mT @ linear  # of the stretch alone, up to the scale
    volume = torch.linalg.det(linear).abs()
    return {
        "odd mirrors": mirror,
        "scale": (volume.log() / dims).abs() > 1e-5,
        "stretch": (gram / volume[:, None, None] ** (2 / dims) - torch.eye(dims)).abs().amax((1, 2)) > 1e-5,
        "rotation": (linear - linear.diagonal(dim1=1, dim2=2).diag_embed()).abs().amax((1, 2)) > 1e-5,
        "shift": shift.abs().amax(1) > 0,
        "brightness": brightness != 0,
        "contrast": contrast != 1,
    }


@pytest.mark.parametrize("shape", [(64, 48), (48, 64, 32)])
@pytest.mark.parametrize("probability", [0.15, 0.8])
def test_each_transformation_comes_with_its_probability(shape: tuple[int, ...], probability: float) -> None:
    seen = transformations(shape, probability)
    # Each axis is mirrored with p / 2; an odd number of mirrors shows in the sign of the determinant.
    expected = dict.fromkeys(seen, probability)
    expected["odd mirrors"] = (1 - (1 - probability) ** len(shape)) / 2
    # A shift of less than half a voxel along every axis is none.
    expected["shift"] *= 1 - math.prod(1 / (n / 4) for n in shape)
    for name, changed in seen.items():
        low, high = stats.binom.interval(1 - 1e-6, CASES, expected[name])
        assert low <= int(changed.sum()) <= high, name
    # Independent of each other: pairs occur together as often as products say.
    names = [n for n in seen if n != "odd mirrors"]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = expected[first] * expected[second]
            low, high = stats.binom.interval(1 - 1e-6, CASES, both)
            assert low <= int((seen[first] & seen[second]).sum()) <= high, (first, second)


@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 12)])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_the_identity_keeps_its_weight(shape: tuple[int, ...], probability: float) -> None:
    """What makes augmentation safe: some share of the images is left as it is, and mirrors never prevail."""
    matrices = geometry(Draws.seeded(range(CASES)), shape, probability)
    dims = len(shape)
    still = (matrices == torch.eye(dims, dims + 1)).flatten(1).all(1)
    none = 1 - probability
    tiny = 1 - probability + probability * math.prod(1 / (n / 4) for n in shape)  # shifts that round to none
    weight = (1 - probability / 2) ** dims * none**3 * tiny
    low, high = stats.binom.interval(1 - 1e-6, CASES, weight)
    assert low <= int(still.sum()) <= high
    for axis in range(dims):
        alone = geometry(Draws.seeded(range(CASES)), shape, probability)[:, axis, axis] < 0
        low, high = stats.binom.interval(1 - 1e-6, CASES, probability / 2)
        assert low <= int(alone.sum()) <= high


@pytest.mark.parametrize("shape", [(64, 48), (48, 64, 32)])
def test_amounts_follow_their_distributions(shape: tuple[int, ...]) -> None:
    dims = len(shape)
    draws = Draws.seeded(range(CASES))
    matrices = geometry(draws, shape, 1.0).double()
    brightness, contrast = shades(draws, 1.0)
    linear, shift = matrices[:, :, :dims], matrices[:, :, dims]
    scale = torch.linalg.det(linear).abs().log() / dims
    assert stats.kstest(scale, "norm", (0, module.SCALE)).pvalue > 1e-4
    gram = linear.mT @ linear  # of the stretch along the grid's own axes alone, up to the scale
    assert float((gram - gram.diagonal(dim1=1, dim2=2).diag_embed()).abs().max()) < 1e-5
    stretch = linear.norm(dim=1).log() - scale[:, None]  # columns are unit vectors but for scale and stretch
    for axis in range(dims):
        assert stats.kstest(stretch[:, axis], "norm", (0, module.SCALE)).pvalue > 1e-4
    assert stats.kstest(brightness, "norm", (0, module.BRIGHTNESS)).pvalue > 1e-4
    assert stats.kstest(contrast.log(), "norm", (0, module.CONTRAST)).pvalue > 1e-4
    assert torch.equal(shift, shift.round())
    for axis, n in enumerate(shape):
        assert int(shift[:, axis].abs().max()) == n // 8
        assert float(shift[:, axis].std()) == pytest.approx(n / 8 / math.sqrt(3), rel=0.08)
    # Mirror, scale and stretch come off the left and the right; what stays turns by at most the angle, evenly.
    upright = linear / linear.norm(dim=1, keepdim=True)
    upright = upright * upright.diagonal(dim1=1, dim2=2).sign()[:, :, None]
    trace = upright.diagonal(dim1=1, dim2=2).sum(1)
    angle = torch.acos(((trace - (dims - 2)) / 2).clamp(-1, 1))
    assert stats.kstest(angle, "uniform", (0, module.ANGLE)).pvalue > 1e-4


@pytest.mark.parametrize("shape", [(5, 4), (4, 5, 3)])
def test_resampling_has_right_derivatives_of_both_orders(shape: tuple[int, ...]) -> None:
    x = noise(2, 2, shape).requires_grad_()
    matrices = geometry(Draws.seeded([3, 4]), shape, 1.0)
    matrices[0, :, -1] += 2.3  # far enough to meet the mirrored edge

    def curved(images: Tensor) -> Tensor:
        return warp(images, matrices).pow(3)

    assert torch.autograd.gradcheck(curved, x)
    assert torch.autograd.gradgradcheck(curved, x)


def penalty(x: Tensor, weight: Tensor) -> Tensor:
    """R1 of a small nonlinear discriminator that sees augmented images."""
    seen = augment(x, Draws.seeded(range(len(x))), 0.8, intensity_channels=1)
    (gradient,) = torch.autograd.grad((seen.flatten(1) @ weight).tanh().sum(), x, create_graph=True)
    return gradient.square().sum()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6, 3)])
def test_the_gradient_penalty_has_the_right_gradient(shape: tuple[int, ...]) -> None:
    """Against central differences, for the image and for a weight of the discriminator."""
    x = (noise(3, 2, shape) * 0.3).requires_grad_()
    weight = (noise(2 * math.prod(shape), 3, (), seed=1) * 0.1).requires_grad_()
    exact = torch.autograd.grad(penalty(x, weight), (x, weight))
    for i, (tensor, gradient) in enumerate(zip((x, weight), exact, strict=True)):
        direction = noise(*tensor.shape[:2], tuple(tensor.shape[2:]), seed=2)
        step = 1e-5 * direction
        near = [penalty(*[t + s * step if j == i else t for j, t in enumerate((x, weight))]) for s in (1, -1)]
        difference = float((near[0] - near[1]).detach()) / 2e-5
        assert difference == pytest.approx(float((gradient * direction).sum()), rel=1e-6)
        assert abs(difference) > 1e-3


def test_mixed_precision_does_not_coarsen_the_grid() -> None:
    x = noise(4, 1, (32, 40, 32)).float()
    matrices = geometry(Draws.seeded(range(4)), (32, 40, 32), 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = warp(x, matrices)
    assert torch.equal(inside, warp(x, matrices))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_resampled_in_single(dtype: torch.dtype) -> None:
    x = noise(4, 1, (16, 20, 12)).to(dtype)
    matrices = geometry(Draws.seeded(range(4)), (16, 20, 12), 1.0)
    assert torch.equal(warp(x, matrices), warp(x.float(), matrices).to(dtype))


def run(state: dict[str, Any], sign: float, updates: int, interval: int = 4, limit: float = 0.8) -> list[float]:
    return [adapt(state, torch.full((8,), sign), 0.6, 1000, interval, limit) for _ in range(updates)]


def test_the_probability_follows_the_overfitting_within_its_limits() -> None:
    state = adaptive_state()
    steps = run(state, 1.0, 8)
    assert steps[:3] == [0.0] * 3  # changes come once per interval
    assert steps[3:7] == pytest.approx([0.032] * 4)  # four updates of eight images, of a thousand
    assert steps[7] == pytest.approx(0.064)
    assert run(state, 1.0, 400)[-1] == 0.8
    assert run(state, -1.0, 4)[-1] == pytest.approx(0.8 - 0.032)
    assert run(state, -1.0, 400)[-1] == 0.0
    assert run(state, 1.0, 2, interval=2)[-1] == pytest.approx(0.016)
    assert run(state, 1.0, 400, limit=0.3)[-1] == 0.3


def test_the_measure_is_compared_with_its_target() -> None:
    for positive, rises in [(0.75, False), (0.85, True)]:  # E[sign] 0.5 and 0.7
        signs = torch.where(torch.arange(20) < 20 * positive, 1.0, -1.0)
        state = adaptive_state(0.4)
        for _ in range(4):
            adapt(state, signs, 0.6, 1000)
        assert (state["probability"] > 0.4) == rises
    state = adaptive_state(0.4)
    for _ in range(4):
        adapt(state, torch.tensor([1.0, 1.0, 1.0, -1.0]), 0.5, 1000)
    assert state["probability"] == 0.4  # on target, nothing changes


def test_patches_of_a_case_count_as_one_image() -> None:
    whole, patches = adaptive_state(0.4), adaptive_state(0.4)
    signs = torch.tensor([1.0, 1.0, -1.0])
    for _ in range(4):
        adapt(whole, signs, 0.6, 1000)
        adapt(patches, signs[:, None, None, None].expand(3, 1, 4, 5), 0.6, 1000)
    assert whole == patches


def test_a_logit_that_is_no_number_moves_nothing() -> None:
    state = adaptive_state(0.4)
    run(state, math.nan, 4)
    assert state["probability"] == 0.4
    run(state, 1.0, 4)
    assert state["probability"] == pytest.approx(0.432)


@given(before=st.integers(0, 11), signs=st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=12, max_size=12))
def test_a_copied_state_resumes_exactly(before: int, signs: list[float]) -> None:
    through = adaptive_state(0.3)
    for sign in signs:
        run(through, sign, 1)
    first = adaptive_state(0.3)
    for sign in signs[:before]:
        run(first, sign, 1)
    resumed = adaptive_state()
    resumed.update(copy.deepcopy(first))
    for sign in signs[before:]:
        run(resumed, sign, 1)
    assert resumed == through
    assert all(type(value) in (int, float) for value in resumed.values())
