"""Discriminators: whom they judge together, what they are shown, and how steep they can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from latentsynth.errors import ConfigError
from latentsynth.gans.base import Discriminator, resize
from latentsynth.gans.discriminators import PatchDiscriminators, ResidualDiscriminator
from latentsynth.gans.losses import split
from latentsynth.gans.progressive import GrownDiscriminator

FLAT, DEEP = (16, 12), (8, 12, 8)
LABELS = 3

FAMILIES: dict[str, Callable[..., Discriminator]] = {
    "residual": lambda shape, **given: ResidualDiscriminator(shape, 2, channels=4, max_channels=8, **given),
    "grown": lambda shape, **given: GrownDiscriminator(shape, 2, channels=4, max_channels=8, **given),
    "patch": lambda shape, **given: PatchDiscriminators(shape, 2, channels=4, layers=1, **given),
    "scales": lambda shape, **given: PatchDiscriminators(shape, 2, channels=4, layers=1, scales=2, **given),
    "spectral": lambda shape, **given: PatchDiscriminators(shape, 2, channels=4, layers=1, spectral=True, **given),
}
SHAPES = {name: [(16, 12), (16, 12, 12)] if name == "scales" else [FLAT, DEEP] for name in FAMILIES}
CASES = [pytest.param(name, shape, id=f"{name}-{len(shape)}d") for name in FAMILIES for shape in SHAPES[name]]


def build(name: str, shape: tuple[int, ...], **given: Any) -> Discriminator:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return FAMILIES[name](shape, **given).eval()


def images(shape: tuple[int, ...], batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, *shape, generator=torch.Generator().manual_seed(seed))


def masks(shape: tuple[int, ...], batch: int = 4, seed: int = 0) -> Tensor:
    index = torch.randint(0, LABELS, (batch, *shape), generator=torch.Generator().manual_seed(seed))
    return functional.one_hot(index, LABELS).movedim(-1, 1).float()


@pytest.mark.parametrize("level", [9.0, 0.5])  # what does not grow does not mind
@pytest.mark.parametrize(("name", "shape"), CASES)
@torch.no_grad()
def test_parts_are_judged_as_if_alone(name: str, shape: tuple[int, ...], level: float) -> None:
    """Reals and fakes in one call: neither sees the other, in logits and in features."""
    judge = build(name, shape, labels=LABELS)
    judge.grow(level)
    apart = [(images(shape, seed=n) * (1 + n), masks(shape, seed=n)) for n in range(2)]
    together = judge(*(torch.cat(pair) for pair in zip(*apart, strict=True)), parts=2)
    for one, (image, mask) in zip(split(together, 2), apart, strict=True):
        alone = judge(image, mask)
        torch.testing.assert_close(one.logits, alone.logits)
        torch.testing.assert_close(one.features, alone.features)
        assert all(float(logits.std()) > 1e-6 for logits in alone.logits)


@pytest.mark.parametrize("name", ["residual", "grown"])
@torch.no_grad()
def test_without_parts_they_would_see_each_other(name: str) -> None:
    """The planted fault that the test above has to tell."""
    judge, real, fake = build(name, FLAT), images(FLAT), 2 * images(FLAT, seed=1)
    mixed = judge(torch.cat([real, fake]), parts=1).logits[0][:4]
    assert not torch.allclose(mixed, judge(real).logits[0], atol=1e-4)


@pytest.mark.parametrize(("name", "shape"), CASES)
@torch.no_grad()
def test_mask_and_place_are_seen(name: str, shape: tuple[int, ...]) -> None:
    judge, image = build(name, shape, labels=LABELS, placed=True), images(shape)
    one, two = masks(shape), masks(shape, seed=1)
    here, there = torch.zeros(4), torch.full((4,), 0.7)
    start = judge(image, one, here)
    assert all(torch.equal(a, b) for a, b in zip(start.logits, judge(image, one, here).logits, strict=True))
    for other in (judge(image, two, here), judge(image, one, there)):
        for a, b in zip(start.logits, other.logits, strict=True):
            assert float((a - b).abs().flatten(1).amax(1).min()) > 1e-5


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_every_image_voxel_and_every_weight_counts(name: str, shape: tuple[int, ...]) -> None:
    """A full-grown judge no longer uses the inputs of its smaller sizes."""
    judge, image = build(name, shape, labels=LABELS).double(), images(shape).double().requires_grad_()
    opinion = judge(image, masks(shape).double())
    sum(logits.square().sum() for logits in opinion.logits).backward()
    assert image.grad is not None
    assert float((image.grad != 0).double().mean()) > 0.95
    idle = {key for key, weight in judge.named_parameters() if weight.grad is None or float(weight.grad.abs().max()) < 1e-12}  # fmt: skip
    if name == "grown":
        assert idle == {f"starts.{n}.{kind}" for n in range(len(judge.starts) - 1) for kind in ("weight", "bias")}
    else:
        assert idle == set()


@pytest.mark.parametrize("shape", [FLAT, (16, 8, 4)])
@torch.no_grad()
def test_a_grown_discriminator_sees_no_detail_beyond_its_level(shape: tuple[int, ...]) -> None:
    judge, image = build("grown", shape), images(shape)
    for level, grid in enumerate(judge.levels):
        judge.grow(level)
        coarse = resize(resize(image, grid), shape, smooth=False)
        same = judge(image).logits[0] - judge(coarse).logits[0]
        if grid != shape:
            torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-5, rtol=0)
            finer = resize(resize(image, judge.levels[level + 1]), shape, smooth=False)
            judge.grow(level + 1)
            assert float((judge(finer).logits[0] - judge(coarse).logits[0]).abs().max()) > 1e-3


@torch.no_grad()
def test_scales_judge_smaller_images() -> None:
    """The second judge sees cells of 2 x 2 alone: a chessboard of single pixels is nothing to it."""
    judge, image = build("scales", (16, 12)), images((16, 12))
    y, x = torch.arange(16)[:, None], torch.arange(12)
    changed = judge(image + 2 * (1 - 2 * ((x + y) % 2)))
    before = judge(image)
    assert float((changed.logits[0] - before.logits[0]).abs().max()) > 1e-4
    torch.testing.assert_close(changed.logits[1], before.logits[1], atol=1e-5, rtol=0)


def test_patches_judge_their_neighbourhoods() -> None:
    """Normalisation aside, a logit sees a patch: here 4 + 2 x 3 + 2 x 3 pixels wide, far from the other end."""
    judge = build("patch", (48, 12))
    for module in judge.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.forward = lambda x: x  # type: ignore[method-assign]
    image = images((48, 12), batch=1).requires_grad_()
    first = judge(image).logits[0][0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(first, image)
    reached = gradient[0, 0].abs().amax(1).nonzero()
    assert 8 <= int(reached.max()) + 1 <= 16


@pytest.mark.parametrize(("shape", "layers", "scales"), [((16, 12), 3, 1), ((32, 32), 3, 3), ((64, 64, 6), 3, 1)])
def test_a_grid_too_small_for_its_layers_is_refused_with_a_cure(
    shape: tuple[int, ...], layers: int, scales: int
) -> None:
    message = rf"{layers} layers at {scales} scales halves the grid .* use fewer layers or scales"
    with pytest.raises(ConfigError, match=message):
        PatchDiscriminators(shape, 1, channels=4, layers=layers, scales=scales)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("size", "layers", "scales"),
    [
        (size, layers, scales)
        for size in (4, 6, 8, 10, 12, 16, 24)
        for layers, scales in ((1, 1), (2, 1), (3, 1), (1, 2))
    ],
)
def test_a_grid_that_is_accepted_can_be_judged(size: int, layers: int, scales: int, dims: int) -> None:
    try:
        judge = PatchDiscriminators((size,) * dims, 1, channels=2, layers=layers, scales=scales)
    except ConfigError:
        return
    opinion = judge(torch.zeros(1, 1, *[size] * dims))
    assert all(logits.numel() for logits in opinion.logits)


def singular_value(weight: Tensor) -> float:
    return torch.linalg.matrix_norm(weight.detach().flatten(1).double(), 2).item()


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_spectral_normalisation_bounds_every_layer(shape: tuple[int, ...]) -> None:
    judge = build("spectral", shape)
    convs = [module for module in judge.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
    assert len(convs) == 3
    with torch.no_grad():
        for n, conv in enumerate(convs):  # weights that training has moved, far from 1 as they stand
            conv.parametrizations.weight.original.copy_(
                3 * torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(n))
            )
    wild = [singular_value(conv.weight) for conv in convs]
    assert max(wild) > 1.2  # the estimate is of other weights yet
    judge.train()
    for _ in range(200):
        judge(images(shape, batch=1))
    judge.eval()
    for conv in convs:
        assert singular_value(conv.weight) == pytest.approx(1, abs=0.02)
        assert singular_value(conv.parametrizations.weight.original) > 2
    plain = build("patch", shape)
    assert not any(parametrize.is_parametrized(module) for module in plain.modules())


@pytest.mark.parametrize("name", ["residual", "grown"])
@torch.no_grad()
def test_logits_begin_within_reach(name: str) -> None:
    """Equalised layers: an untrained judge of standard noise answers neither nothing nor hundreds."""
    logits = build(name, DEEP)(images(DEEP, batch=8)).logits[0]
    assert 0.01 < float(logits.abs().mean()) < 5
