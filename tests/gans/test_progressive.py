"""Networks that grow: what each size shows, that fading has no jumps, and what learns when."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import perturb
from torch import Tensor

from latentsynth.gans.base import Discriminator, Generator, Inputs, pyramid, resize
from latentsynth.gans.progressive import GrownDiscriminator, Growth, ProgressiveGenerator, StyleGAN1Generator
from latentsynth.randomness import Draws
from latentsynth.training.recipes.adversarial import grown_level

SHAPES = [(16, 12), (16, 8, 4)]  # three levels each; one axis stops first
FAMILIES: dict[str, Callable[[tuple[int, ...]], Generator]] = {
    "progressive": lambda shape: ProgressiveGenerator(shape, 2, latent=8, channels=4, max_channels=8),
    "stylegan1": lambda shape: StyleGAN1Generator(
        shape, 2, latent=8, style=8, mapping_layers=1, channels=4, max_channels=8
    ),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_family = pytest.mark.parametrize("family", FAMILIES)


def generator(family: str, shape: tuple[int, ...]) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family](shape)
    perturb(model, 1)
    return model.eval()


def discriminator(shape: tuple[int, ...]) -> GrownDiscriminator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GrownDiscriminator(shape, 2, channels=4, max_channels=8)


@torch.no_grad()
def painted(model: Generator, level: float) -> Tensor:
    model.grow(level)
    return model(Inputs(Draws.seeded([1, 2]))).image


def images(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(4, 2, *shape, generator=torch.Generator().manual_seed(seed))


@every_family
@every_shape
def test_each_size_is_repeated_to_the_full_grid(family: str, shape: tuple[int, ...]) -> None:
    """Constant on the cells of its own grid, not of the grid below."""
    model, grids = generator(family, shape), pyramid(shape)[::-1]
    for level, grid in enumerate(grids):
        for part in {0.0, 0.5} if level else {0.0}:
            image = painted(model, level - part)
            assert image.shape == (2, 2, *shape)
            torch.testing.assert_close(resize(resize(image, grid), shape, smooth=False), image)
            if level:
                coarse = resize(resize(image, grids[level - 1]), shape, smooth=False)
                assert float((coarse - image).abs().mean()) > 1e-3 * float(image.std())


@every_family
@every_shape
def test_a_new_size_fades_in_without_a_jump(family: str, shape: tuple[int, ...]) -> None:
    model = generator(family, shape)
    last = len(pyramid(shape)) - 1
    for level in range(last):
        before, after = painted(model, level), painted(model, level + 1)
        way = (after - before).abs().max()
        torch.testing.assert_close(painted(model, level + 1e-3), before, atol=float(way) * 2e-3, rtol=0)
        torch.testing.assert_close(painted(model, level + 1 - 1e-3), after, atol=float(way) * 2e-3, rtol=0)
        torch.testing.assert_close(painted(model, level + 0.25), torch.lerp(before, after, 0.25))
        assert float(way) > 0.01


@every_shape
def test_a_judge_grows_without_a_jump(shape: tuple[int, ...]) -> None:
    judge, image = discriminator(shape).eval(), images(shape)

    def searches(level: float) -> Tensor:
        judge.grow(level)
        return judge(image).logits[0].detach()

    for level in range(len(judge.levels) - 1):
        before, after = searches(level), searches(level + 1)
        way = float((after - before).abs().max())
        assert way > 0.01
        assert float((searches(level + 1e-3) - before).abs().max()) < 0.02 * way
        assert float((searches(level + 1 - 1e-3) - after).abs().max()) < 0.02 * way
        assert min(float((searches(level + 0.5) - end).abs().max()) for end in (before, after)) > 0.1 * way


def used(model: Generator | Discriminator, loss: Tensor) -> set[str]:
    """Parameters that a loss reaches, by the first two words of their names."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        ".".join(name.split(".")[:2])
        for name, weight in model.named_parameters()
        if weight.grad is not None and float(weight.grad.abs().max()) > 0
    }


# Level -> blocks and layers between images and features that learn. Images of stages that are overgrown do not.
LEARNING = {0: ((0,), (0,)), 0.5: ((0, 1), (0, 1)), 1: ((0, 1), (1,)), 1.25: ((0, 1, 2), (1, 2)), 2: ((0, 1, 2), (2,))}


@pytest.mark.parametrize("level", LEARNING)
@every_family
@every_shape
def test_stages_learn_once_they_are_grown(family: str, shape: tuple[int, ...], level: float) -> None:
    model = generator(family, shape).train()
    model.grow(level)
    image = model(Inputs(Draws.seeded([1, 2]))).image
    blocks, outputs = LEARNING[level]
    expected = {f"blocks.{n}" for n in blocks} | {f"images.{n}" for n in outputs}
    if family == "progressive":
        expected |= {"dense.weight", "dense.bias"}
    else:
        expected |= {f"norms.{n}" for n in blocks} | {"start", "mapping.layers"}
    assert used(model, (image * images(shape)[:2]).sum()) == expected


@pytest.mark.parametrize("level", LEARNING)
@every_shape
def test_a_judges_stages_learn_once_they_are_grown(shape: tuple[int, ...], level: float) -> None:
    judge = discriminator(shape)
    judge.grow(level)
    blocks, inputs = LEARNING[level]
    expected = {f"blocks.{n - 1}" for n in blocks if n} | {f"starts.{n}" for n in inputs}
    expected |= {f"{name}.{kind}" for name in ("last", "dense", "out") for kind in ("weight", "bias")}
    assert used(judge, judge(images(shape)).logits[0].square().sum()) == expected


@every_family
@every_shape
def test_what_is_grown_does_not_depend_on_what_is_not(family: str, shape: tuple[int, ...]) -> None:
    model = generator(family, shape)
    before = painted(model, 1)
    with torch.no_grad():
        for part in (model.blocks[2], model.images[2]):
            for weight in part.parameters():
                weight.zero_()
    assert torch.equal(painted(model, 1), before)
    assert not torch.allclose(painted(model, 1.5), before)


def test_growth_counts_from_the_smallest_grid_alone_to_all() -> None:
    growth = Growth([(4,), (8,), (16,)])
    assert (growth.top, growth.share) == (2, 1)  # full-grown unless told otherwise
    places = {-1: (0, 1), 0: (0, 1), 0.25: (1, 0.25), 1: (1, 1), 1.5: (2, 0.5), 2: (2, 1), 7.5: (2, 1)}
    for level, (top, share) in places.items():
        growth.set(level)
        assert growth.top == top
        assert growth.share == pytest.approx(share)
    for thousandth in range(2001):
        growth.set(thousandth / 1000)
        assert 0 < growth.share <= 1
        assert growth.top - 1 + growth.share == pytest.approx(thousandth / 1000)


@every_family
def test_size_survives_saving(tmp_path: Path, family: str) -> None:
    model = generator(family, SHAPES[0])
    for level in (0, 1.375, 2):
        image = painted(model, level)
        model.save(tmp_path / "part")
        again = Generator.from_pretrained(tmp_path / "part")
        assert torch.equal(again(Inputs(Draws.seeded([1, 2]))).image, image)
    judge = discriminator(SHAPES[0]).eval()
    judge.grow(0.75)
    judge.save(tmp_path / "judge")
    again = Discriminator.from_pretrained(tmp_path / "judge")
    assert torch.equal(again(images(SHAPES[0])).logits[0], judge(images(SHAPES[0])).logits[0])


def test_styles_are_those_of_the_layers_in_use() -> None:
    model = generator("stylegan1", SHAPES[0])
    for level, layers in ((0, 1), (0.5, 3), (1, 3), (1.001, 5), (2, 5)):
        model.grow(level)
        assert model(Inputs(Draws.seeded([1, 2]), mixing=1.0)).styles.shape == (2, layers, 8)


@pytest.mark.parametrize("stage", [1, 8, 1000])
def test_stages_alternate_between_growing_and_staying(stage: int) -> None:
    """Corners of Karras et al. 2018, app. A: stay, fade, stay, fade, each for a stage's images."""
    corners = {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3, 20: 10}
    for stages, level in corners.items():
        assert grown_level(stages * stage, stage) == level
    between = {0.5: 0, 1.25: 0.25, 1.5: 0.5, 2.75: 1, 3.125: 1.125, 4.5: 2}
    for stages, level in between.items():
        if (stages * stage) % 1 == 0:
            assert grown_level(int(stages * stage), stage) == pytest.approx(level)


def test_growing_never_goes_back_or_jumps() -> None:
    levels = [grown_level(seen, 100) for seen in range(1500)]
    steps = [b - a for a, b in pairwise(levels)]
    assert min(steps) >= 0
    assert max(steps) == pytest.approx(0.01)
