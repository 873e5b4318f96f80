"""Losses against plain formulas, penalties against finite differences and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.gans.base import Opinion
from latentsynth.gans.losses import (
    LOSSES,
    RELATIVE,
    accuracy,
    discriminator_loss,
    feature_matching,
    generator_loss,
    gradient_penalty,
    middle,
    path_lengths,
    split,
    squared_gradient,
)

SHAPES = [(3, 4), (2, 3, 2)]
SCALES = [(3, 1), (3, 1, 2, 5), (3, 1, 4, 2, 3)]  # of different sizes: a mean over all would be another number


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(x: Tensor) -> float:
    return x.item()


def logits(seed: int, shift: float = 0.0) -> list[Tensor]:
    return [(shift + 1.5 * noise(*shape, seed=seed + n)).requires_grad_() for n, shape in enumerate(SCALES)]


PLAIN_DISCRIMINATOR: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "hinge": lambda r, f: 0.5 * np.maximum(0, 1 - r).mean() + 0.5 * np.maximum(0, 1 + f).mean(),
    "least_squares": lambda r, f: 0.5 * ((r - 1) ** 2).mean() + 0.5 * (f**2).mean(),
    "non_saturating": lambda r, f: -np.log(1 / (1 + np.exp(-r))).mean() - np.log(1 - 1 / (1 + np.exp(-f))).mean(),
    "relativistic": lambda r, f: np.log(1 + np.exp(f - r)).mean(),
    "wasserstein": lambda r, f: f.mean() - r.mean(),
}
PLAIN_GENERATOR: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "hinge": lambda r, f: -f.mean(),
    "least_squares": lambda r, f: ((f - 1) ** 2).mean(),
    "non_saturating": lambda r, f: -np.log(1 / (1 + np.exp(-f))).mean(),
    "relativistic": lambda r, f: np.log(1 + np.exp(r - f)).mean(),
    "wasserstein": lambda r, f: -f.mean(),
}


def test_every_loss_is_tested() -> None:
    assert set(LOSSES) == set(PLAIN_DISCRIMINATOR) == set(PLAIN_GENERATOR)


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_their_formulas_averaged_over_scales(kind: str) -> None:
    real, fake = logits(0, 0.3), logits(10, -0.2)
    plain = [PLAIN_DISCRIMINATOR[kind](r.detach().numpy(), f.detach().numpy()) for r, f in zip(real, fake, strict=True)]
    assert number(discriminator_loss(kind, real, fake)) == pytest.approx(np.mean(plain), rel=1e-12)
    plain = [PLAIN_GENERATOR[kind](r.detach().numpy(), f.detach().numpy()) for r, f in zip(real, fake, strict=True)]
    assert number(generator_loss(kind, fake, real)) == pytest.approx(np.mean(plain), rel=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_players_pull_in_opposite_directions(kind: str) -> None:
    """The discriminator lifts reals and lowers fakes, the generator lifts fakes, from wherever they are near a draw."""
    start = middle(kind)
    real, fake = ([torch.full((4, 1), start, requires_grad=True)] for _ in range(2))
    up, down = torch.autograd.grad(discriminator_loss(kind, real, fake), [*real, *fake])
    (lift,) = torch.autograd.grad(generator_loss(kind, fake, real), fake)
    assert number(up.max()) < 0 < number(down.min())
    assert number(lift.max()) < 0


def test_hinge_leaves_alone_what_is_clear() -> None:
    real, fake = ([torch.tensor([[v], [-v]], requires_grad=True)] for v in (2.0, -2.0))
    up, down = torch.autograd.grad(discriminator_loss("hinge", real, fake), [*real, *fake])
    assert up[0] == down[0] == 0
    assert up[1] < 0 < down[1]


def test_no_logit_is_too_large_for_the_non_saturating_loss() -> None:
    far = [torch.tensor([[-500.0], [500.0]], requires_grad=True)]
    assert number(generator_loss("non_saturating", far)) == pytest.approx(250)
    assert number(discriminator_loss("non_saturating", far, far)) == pytest.approx(500)


@pytest.mark.parametrize("shift", [-30.0, 4.0])
def test_relative_losses_see_differences_alone(shift: float) -> None:
    """Where a critic's logits lie as a whole says nothing: neither loss, nor accuracy, changes with it."""
    real, fake = logits(0, 0.3), logits(10, -0.2)
    moved = [one + shift for one in real], [one + shift for one in fake]
    for kind in RELATIVE:
        assert number(discriminator_loss(kind, *moved)) == pytest.approx(number(discriminator_loss(kind, real, fake)))
        assert number(accuracy(kind, *moved)) == number(accuracy(kind, real, fake))


def test_an_unknown_loss_is_refused_with_the_choices() -> None:
    real = logits(0)
    for call in (lambda: discriminator_loss("log", real, real), lambda: generator_loss("log", real)):
        with pytest.raises(ValueError, match=f"'log': choose one of {', '.join(LOSSES)}"):
            call()


def test_reals_and_fakes_must_have_the_same_scales() -> None:
    with pytest.raises(ValueError, match="shorter"):
        discriminator_loss("hinge", logits(0), logits(0)[:2])


@pytest.mark.parametrize("kind", LOSSES)
def test_accuracy_counts_the_right_side_of_the_middle(kind: str) -> None:
    edge = 0.5 if kind == "least_squares" else 0.0
    above, below = torch.full((4, 1), edge + 0.1), torch.full((4, 1), edge - 0.1)
    assert accuracy(kind, [above], [below]) == 1
    assert accuracy(kind, [below], [above]) == 0
    assert accuracy(kind, [above], [above]) == 0.5  # reals right, fakes wrong
    assert accuracy(kind, [torch.cat([above, below])], [below]) == 0.75
    # Scales count alike, however many places each judges.
    assert accuracy(kind, [above, below.expand(4, 9)], [below, above.expand(4, 9)]) == 0.5
    assert 0.3 < number(accuracy(kind, logits(0), logits(0))) < 0.7


class Small(nn.Module):
    """A nonlinear discriminator with a patch map and a single logit, in double precision."""

    def __init__(self, dims: int):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        with torch.random.fork_rng():
            torch.manual_seed(dims)
            self.one, self.two = conv(1, 3, 3, padding=1).double(), conv(3, 1, 1).double()

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.two(self.one(2 * x).tanh()) * 3
        return [maps, maps.pow(2).flatten(1).sum(1, keepdim=True)]


def slopes(judge: Small, x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of the mean logit over scales and places, ``(B, cells)``."""
    result = torch.zeros(len(x), x[0].numel(), dtype=x.dtype)
    with torch.no_grad():
        for cell in range(result.shape[1]):
            shift = torch.zeros(x[0].numel(), dtype=x.dtype)
            shift[cell] = step
            ends = [
                torch.stack([one.flatten(1).mean(1) for one in judge(x + sign * shift.view(x.shape[1:]))]).mean(0)
                for sign in (1, -1)
            ]
            result[:, cell] = (ends[0] - ends[1]) / (2 * step)
    return result


PENALTIES: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]] = {
    "r1": (squared_gradient, lambda g: g.square().sum(1).mean()),
    "gradient_penalty": (gradient_penalty, lambda g: (g.norm(dim=1) - 1).square().mean()),
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_are_those_of_finite_differences(shape: tuple[int, ...], penalty: str) -> None:
    judge, x = Small(len(shape)), noise(3, 1, *shape).requires_grad_()
    exact, plain = PENALTIES[penalty]
    assert number(exact(judge(x), x)) == pytest.approx(number(plain(slopes(judge, x.detach()))), rel=1e-7)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_have_the_right_gradient_for_the_weights(shape: tuple[int, ...], penalty: str) -> None:
    """The training step differentiates the penalty again: against central differences in a random direction."""
    judge, x = Small(len(shape)), noise(2, 1, *shape).requires_grad_()
    exact = PENALTIES[penalty][0]
    weight = judge.one.weight
    (gradient,) = torch.autograd.grad(exact(judge(x), x), weight)
    direction = noise(*weight.shape, seed=3)
    ends = []
    for sign in (1, -2):  # there, and back past the start
        with torch.no_grad():
            weight += sign * 1e-5 * direction
        ends.append(number(exact(judge(x), x)))
    difference = (ends[0] - ends[1]) / 2e-5
    assert difference == pytest.approx(number((gradient * direction).sum()), rel=1e-5)
    assert abs(difference) > 1e-2


@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_penalties_of_a_linear_discriminator(shape: tuple[int, ...], size: float) -> None:
    """R1 and R2 are |w|^2 and the gradient penalty (|w| - 1)^2, whatever the images; so one at 1 costs nothing."""
    w = functional.normalize(noise(math.prod(shape)), dim=0) * size
    for seed in range(2):
        x = noise(4, 1, *shape, seed=seed).requires_grad_()
        line = [x.flatten(1) @ w[:, None] + 7]
        assert number(squared_gradient(line, x)) == pytest.approx(size**2)
        assert number(gradient_penalty(line, x)) == pytest.approx((size - 1) ** 2, abs=1e-12)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalty_of_a_batch_is_the_mean_over_cases(penalty: str) -> None:
    judge, exact = Small(2), PENALTIES[penalty][0]
    x = (noise(3, 1, 3, 4) * torch.tensor([0.2, 1.0, 2.0])[:, None, None, None]).requires_grad_()
    alone = [one.detach().clone().requires_grad_() for one in x.split(1)]
    separate = [number(exact(judge(one), one)) for one in alone]
    assert number(exact(judge(x), x)) == pytest.approx(np.mean(separate))
    assert max(separate) > 1.3 * min(separate)


def test_flat_regions_cost_their_distance_from_one() -> None:
    """Where a discriminator is constant the norm has no slope; the penalty is 1 and its gradient finite."""
    x = noise(2, 1, 3, 4).requires_grad_()
    w = torch.zeros(12, 1, dtype=torch.float64, requires_grad=True)
    loss = gradient_penalty([x.flatten(1) @ w], x)
    assert number(loss) == 1
    assert torch.isfinite(torch.autograd.grad(loss, w)[0]).all()


def paint(styles: Tensor, shape: tuple[int, ...], curved: bool = True) -> Tensor:
    """A generator of images ``(B, 2, *shape)`` from styles ``(B, 3, 4)``, linear unless curved."""
    weights = noise(12, 2 * math.prod(shape), seed=5)
    image = styles.flatten(1) @ weights
    return (image.sin() * 2 if curved else image).view(-1, 2, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_path_lengths_are_norms_of_jacobian_vector_products(shape: tuple[int, ...]) -> None:
    styles, step = noise(3, 3, 4, seed=1).requires_grad_(), noise(3, 2, *shape, seed=2)
    lengths = path_lengths(paint(styles, shape), styles, step)
    for case in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda w: paint(w[None], shape)[0], styles[case].detach())
        moved = torch.tensordot(step[case], jacobian, dims=1 + len(shape)) / math.sqrt(math.prod(shape))
        assert number(lengths[case]) == pytest.approx(number(moved.norm(dim=1).square().mean().sqrt()))


@pytest.mark.parametrize("shape", SHAPES)
def test_path_lengths_of_a_linear_generator(shape: tuple[int, ...]) -> None:
    """The same wherever the styles are and whatever is added, and they grow with the generator's gain."""
    step = noise(1, 2, *shape, seed=2).expand(5, 2, *shape)
    styles = noise(5, 3, 4, seed=1).requires_grad_()
    lengths = path_lengths(paint(styles, shape, curved=False), styles, step)
    torch.testing.assert_close(lengths, lengths[:1].expand(5))
    louder = path_lengths(-3 * paint(styles, shape, curved=False) + 4, styles, step)
    torch.testing.assert_close(louder, 3 * lengths)
    bent = path_lengths(paint(styles, shape), styles, step)
    assert number(bent.std()) > 0.01


@pytest.mark.parametrize("sides", [(4, 4), (16, 16), (4, 8, 8)])
def test_path_lengths_do_not_grow_with_the_grid(sides: tuple[int, ...]) -> None:
    """Repeating a style over a grid of n cells: the projection sums n noises over root n, so its variance stays 1."""
    styles = torch.zeros(4000, 1, 1, dtype=torch.float64, requires_grad=True)
    image = styles.view(4000, 1, *[1] * len(sides)).expand(4000, 1, *sides)
    lengths = path_lengths(image, styles, noise(4000, 1, *sides))
    assert number(lengths.square().mean()) == pytest.approx(1, rel=0.1)  # 4.5 standard errors of a chi-square


def test_path_lengths_teach_the_generator() -> None:
    styles, gain = noise(2, 3, 4).requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    lengths = path_lengths(gain * paint(styles, (3, 4), curved=False), styles, noise(2, 2, 3, 4))
    (gradient,) = torch.autograd.grad(lengths.sum(), gain)
    assert number(gradient) == pytest.approx(number(lengths.sum()) / 1.5)


def opinion(seed: int, batch: int = 3, scales: int = 2) -> Opinion:
    """Two scales of two and one feature maps, of different sizes."""
    features = [
        [noise(batch, 2 + n, 4, 3, seed=seed + 10 * s + n).requires_grad_() for n in range(2 - s)]
        for s in range(scales)
    ]
    return Opinion([noise(batch, 1, 2 + s, seed=seed + 50 + s) for s in range(scales)], features)


def test_feature_matching_is_nothing_for_equal_opinions_and_a_mean_distance_else() -> None:
    fake, real = opinion(0), opinion(100)
    assert feature_matching(fake, fake) == 0
    gaps = [
        sum(number((f - r).abs().mean()) for f, r in zip(ours, theirs, strict=True))
        for ours, theirs in zip(fake.features, real.features, strict=True)
    ]
    assert number(feature_matching(fake, real)) == pytest.approx(np.mean(gaps))
    assert min(gaps) > 0.1


def test_feature_matching_moves_the_fake_alone() -> None:
    fake, real = opinion(0), opinion(100)
    feature_matching(fake, real).backward()
    assert all(f.grad is not None and number(f.grad.abs().sum()) > 0 for scale in fake.features for f in scale)
    assert all(r.grad is None for scale in real.features for r in scale)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_split_undoes_concatenation(parts: int) -> None:
    apart = [opinion(100 * n) for n in range(parts)]
    together = Opinion(
        [torch.cat(rows) for rows in zip(*(one.logits for one in apart), strict=True)],
        [
            [torch.cat(maps) for maps in zip(*scale, strict=True)]
            for scale in zip(*(one.features for one in apart), strict=True)
        ],
    )
    again = split(together, parts)
    assert len(again) == parts
    for one, two in zip(apart, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.logits, two.logits, strict=True))
        for ours, theirs in zip(one.features, two.features, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
