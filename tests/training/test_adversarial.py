"""The game: what the players are shown, what they remember, how collapse is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latentsynth.config import GanRun, build
from latentsynth.gans import Opinion, Painted
from latentsynth.gans.base import Discriminator, Generator, Inputs
from latentsynth.gans.losses import accuracy
from latentsynth.parallel import start
from latentsynth.training.recipes.adversarial import Game, grown_level
from latentsynth.training.recipes.collapse import Health, share, spread
from latentsynth.training.recipes.scenes import Scene

GRID = {"shape": [8, 8, 8], "spacing_mm": [1, 1, 1], "windows": [{}]}


def config(game: dict[str, Any], kind: str = "stylegan2", **more: Any) -> GanRun:
    values = {"run": "r", "data": {"manifest": "m", "grid": GRID}, "generator": {"kind": kind}, "game": game, **more}
    return build(GanRun, {**values, "train": {"batch": 4}})


class Still:
    """Scenes of ones with a mask of halves."""

    intensity_channels = 1

    def __call__(self, batch: dict[str, Any]) -> Scene:
        rows = len(batch["position"])
        half = torch.full((rows, 1, 8, 8, 8), 0.5)
        return Scene(torch.ones(rows, 1, 8, 8, 8), half, None, half)


class Level(Generator):
    """Answers with one learnt number, plus its noise."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(0.25))
        self.noise = noise
        self.shape, self.labels = (8, 8, 8), 1
        self.levels: list[float] = []

    def grow(self, level: float) -> None:
        self.levels.append(level)

    def forward(self, inputs: Inputs) -> Painted:
        return Painted(self.value + self.noise * inputs.draws.normal(1, 8, 8, 8))


class Judge(Discriminator):
    """Opinion: ``sharpness`` times (mean of the image - 1/2). Keeps what it was shown."""

    def __init__(self, sharpness: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(sharpness))
        self.shown: list[tuple[Tensor, Tensor | None, int]] = []

    def forward(self, image, mask=None, place=None, parts=1):  # type: ignore[no-untyped-def]
        self.shown.append((image.detach(), mask, parts))
        mean = image.flatten(1).mean(1, keepdim=True)
        return Opinion([self.weight * (mean - 0.5)], [[mean]])


def play(game: Game, generator: Generator, judge: Discriminator, steps: int) -> list[dict[str, Tensor]]:
    """Both players' losses step by step, without any optimizer."""
    start()
    logs = []
    for step in range(steps):
        batch = {"position": torch.arange(4 * step, 4 * step + 4), "seen": 4 * step}
        modules = {"generator": generator, "discriminator": judge}
        _, ours = game.generator_loss(modules, batch, {})
        _, theirs = game.discriminator_loss(modules, batch, game.state)
        logs.append({**ours, **theirs})
    return logs


def test_augmentation_grows_while_the_discriminator_knows_every_real_one() -> None:
    settings = {"augment_target": 0.6, "augment_ramp_images": 100, "path_length": 0, "r1": 0}
    sharp = Game(config(settings), Still())
    play(sharp, Level(), Judge(10.0), 12)
    assert sharp.state["probability"] == pytest.approx(48 / 100)  # one image in a hundred per image
    fooled = Game(config(settings), Still())
    fooled.state["probability"] = 0.4
    play(fooled, Level(), Judge(-10.0), 12)
    assert fooled.state["probability"] == 0
    never = Game(config({**settings, "augment_target": 0}), Still())
    play(never, Level(), Judge(10.0), 12)
    assert never.state["probability"] == 0


def test_a_least_squares_judge_calls_real_what_lies_above_a_half() -> None:
    """Its reals score 0.4: sure of being fake, though the sign of the logit says otherwise."""
    game = Game(config({"loss": "least_squares", "augment_target": 0.6, "augment_ramp_images": 100, "path_length": 0, "r1": 0}), Still())  # fmt: skip
    game.state["probability"] = 0.4
    play(game, Level(), Judge(0.8), 4)
    assert game.state["probability"] < 0.4


def test_terms_enter_with_their_weights() -> None:
    plain = {"loss": "wasserstein", "augment_target": 0, "path_length": 0, "r1": 0}
    judge = Judge(2.0)
    batch = {"position": torch.arange(4), "seen": 0}
    modules = {"generator": Level(), "discriminator": judge}
    start()

    def total(**terms: Any) -> float:
        return float(Game(config({**plain, **terms}), Still()).generator_loss(modules, dict(batch), {})[0].detach())

    base = total()
    assert base == pytest.approx(-2.0 * (0.25 - 0.5))
    assert total(l1=3.0) - base == pytest.approx(3.0 * 0.75, rel=1e-5)
    assert total(feature_matching=2.0) - base == pytest.approx(2.0 * 0.75, rel=1e-5)
    loss, logs = Game(config({**plain, "r1": 4.0, "r1_every": 1, "drift": 0.5}), Still()).discriminator_loss(modules, dict(batch), {"probability": 0.0, "accuracy": 0.5})  # fmt: skip
    assert float(logs["r1"]) == pytest.approx(2.0**2 / 512, rel=1e-4)  # a mean over 512 voxels, times 2
    expected = 2.0 * (0.25 - 0.5) - 2.0 * (1 - 0.5) + 4.0 / 2 * 4 / 512 + 0.5 * (2.0 * 0.5) ** 2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    loss, logs = Game(config({**plain, "r2": 6.0, "r1_every": 1}), Still()).discriminator_loss(modules, dict(batch), {"probability": 0.0, "accuracy": 0.5})  # fmt: skip
    assert float(loss.detach()) == pytest.approx(2.0 * (0.25 - 0.5) - 2.0 * (1 - 0.5) + 6.0 / 2 * 4 / 512, rel=1e-4)


def test_a_relativistic_player_is_judged_beside_the_real_image() -> None:
    """Fakes of .25 beside reals of 1 by a judge of weight 2: each loss is the softplus of the logits' difference."""
    game = Game(config({"loss": "relativistic", "augment_target": 0, "path_length": 0, "r1": 0}), Still())
    (logs,) = play(game, Level(), Judge(2.0), 1)
    assert float(logs["adversarial"]) == pytest.approx(math.log1p(math.exp(2.0 * (1 - 0.25))), rel=1e-5)
    batch = {"position": torch.arange(4), "seen": 0}
    loss, _ = game.discriminator_loss({"generator": Level(), "discriminator": Judge(2.0)}, batch, game.state)
    assert float(loss.detach()) == pytest.approx(math.log1p(math.exp(2.0 * (0.25 - 1))), rel=1e-5)


def test_lazy_terms_are_used_seldom_and_strongly() -> None:
    logs = play(Game(config({"r1": 1.0, "r1_every": 3, "path_length": 0, "augment_target": 0}), Still()), Level(), Judge(1.0), 7)  # fmt: skip
    assert ["r1" in step for step in logs] == [True, False, False, True, False, False, True]


def test_the_discriminator_sees_reals_and_fakes_of_this_step_in_one_call() -> None:
    generator, judge = Level(noise=1.0), Judge(1.0)
    game = Game(config({"augment_target": 0, "path_length": 0, "r1": 0}), Still())
    play(game, generator, judge, 1)
    (fake, _, _), (both, mask, parts) = judge.shown
    assert parts == 2
    assert torch.equal(both[:4], torch.ones(4, 1, 8, 8, 8))
    assert torch.equal(both[4:], fake)
    assert mask is not None
    assert len(mask) == 8


def test_noise_on_the_discriminators_view_fades_and_differs_between_real_and_fake() -> None:
    settings = {
        "loss": "least_squares",
        "noise": 0.5,
        "noise_decay": 0.1,
        "augment_target": 0,
        "path_length": 0,
        "r1": 0,
    }
    judge = Judge(1.0)
    play(Game(config(settings), Still()), Level(), judge, 8)
    views = [image for image, _, parts in judge.shown if parts == 2]
    noise = [view - torch.cat([torch.ones(4, 1, 8, 8, 8), torch.full((4, 1, 8, 8, 8), 0.25)]) for view in views]
    for step, one in enumerate(noise):
        assert float(one.std()) == pytest.approx(0.5 * 0.9**step, rel=0.06)
        assert abs(float((one[:4] * one[4:]).mean() / one.var())) < 0.1


def test_growing_networks_are_told_their_size_each_step() -> None:
    generator = Level()
    play(Game(config({"grow_images": 4, "augment_target": 0, "path_length": 0, "r1": 0}), Still()), generator, Judge(1.0), 4)  # fmt: skip
    assert sorted(set(generator.levels)) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("seen", "level"), [(0, 0), (99, 0), (100, 0), (150, 0.5), (200, 1), (299, 1), (300, 1), (350, 1.5), (400, 2)]
)
def test_stages_stand_still_then_fade_by_turns(seen: int, level: float) -> None:
    assert grown_level(seen, 100) == pytest.approx(level)


def test_collapse_is_told_in_plain_words() -> None:
    assert Health(0.9, 0.8, 0.6).words == "no sign of collapse"
    assert "differ by 5% of what real volumes differ by" in Health(0.05, 0.8, 0.6).words
    assert "one answer per mask" in Health(0.9, 0.01, 0.6).words
    assert "the discriminator has won" in Health(0.9, None, 0.99).words
    assert "raise discriminator.lr" in Health(0.9, None, 0.0).words
    both = Health(0.05, None, 0.99)
    assert "collapsed" in both.words
    assert "won" in both.words
    assert both.scores == {"diversity": 0.05, "discriminator_accuracy": 0.99}


def test_spread_is_the_mean_distance_of_pairs() -> None:
    images = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1)
    assert spread(images) == pytest.approx((1 + 3 + 2) / 3)
    assert spread(images[:1].repeat(5, 1, 1)) == 0


def test_features_of_a_fake_like_its_real_match_whatever_the_augmentation() -> None:
    """Both are moved alike; the discriminator's own turn moves each its own way."""
    game = Game(config({"feature_matching": 1, "augment_target": 0.6, "path_length": 0, "r1": 0}), Still())
    game.state["probability"] = 0.8
    generator, judge = Level(), Judge(1.0)
    with torch.no_grad():
        generator.value.fill_(1.0)  # as the reals are
    start()
    batch = {"position": torch.arange(16), "seen": 0}
    modules = {"generator": generator, "discriminator": judge}
    _, logs = game.generator_loss(modules, batch, {})
    assert float(logs["features"]) == 0
    game.discriminator_loss(modules, batch, game.state)
    real, fake = judge.shown[-1][0].chunk(2)
    assert float((real - fake).abs().mean()) > 1e-3


def test_pooled_fakes_bring_their_places_along() -> None:
    """A fake of place p holds the value p everywhere: what the discriminator is told must be what it sees."""

    class Slices(Still):
        def __call__(self, batch: dict[str, Any]) -> Scene:
            place = (batch["position"] % 16) / 16
            real = place.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
            return Scene(real, None, place, real)

    class Own(Level):
        def forward(self, inputs: Inputs) -> Painted:
            assert inputs.place is not None
            return Painted(inputs.place.view(-1, 1, 1, 1).expand(-1, 1, 8, 8) + 0 * self.value)

    class Told(Judge):
        def forward(self, image, mask=None, place=None, parts=1):  # type: ignore[no-untyped-def]
            assert torch.equal(image[:, 0, 0, 0], place)
            return super().forward(image, mask, place, parts)

    game = Game(config({"pool": 5, "augment_target": 0, "path_length": 0, "r1": 0}), Slices())
    judge = Told(1.0)
    play(game, Own(), judge, 10)
    fakes = [image[4:, 0, 0, 0].tolist() for image, _, parts in judge.shown if parts == 2]
    assert any(
        fake != [(4 * n + m) % 16 / 16 for m in range(4)] for n, fake in enumerate(fakes)
    )  # some are earlier ones


def test_a_wasserstein_critic_wins_wherever_its_logits_lie() -> None:
    real, fake = [torch.tensor([5.0, 6.0])], [torch.tensor([2.0, 3.0])]
    assert float(accuracy("wasserstein", real, fake)) == 1
    assert float(accuracy("wasserstein", fake, real)) == 0
    assert float(accuracy("hinge", real, fake)) == 0.5


def test_too_few_validation_cases_are_not_called_healthy() -> None:
    assert "too few different validation cases" in Health(share(0.5, 0.0), None, 0.5).words
    assert share(0.5, 2.0) == 0.25
