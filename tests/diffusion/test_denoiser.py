"""The denoiser: a function of the signal-to-noise ratio alone, exact where there is no noise, saved and recomputed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import tiny_denoiser
from torch import Tensor

from latentsynth.diffusion import SCHEDULES, Denoiser, sample, sampler_table
from latentsynth.diffusion.gaussian import gaussian_denoiser
from latentsynth.errors import ConfigError
from latentsynth.types import Conditioning

PREDICTIONS = ("v", "epsilon", "x0")


def inputs(rows: int = 2, seed: int = 0) -> tuple[Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, 4, 4, 4, generator=generator)
    return x, Conditioning(torch.rand(rows, 3, 4, 4, 4, generator=generator))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("other", ["cosine", "linear"])
@torch.no_grad()
def test_weights_serve_another_schedule(other: str, prediction: str) -> None:
    """At matched signal-to-noise ratio and rescaled x the posterior mean is the same."""
    here, there = tiny_denoiser("rectified", prediction), tiny_denoiser(other, prediction, seed=7)
    there.network.load_state_dict(here.network.state_dict())
    x, conditioning = inputs(3)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    ratio = here.schedule.sigma(t) / here.schedule.alpha(t)
    u = there.schedule.time(ratio)
    factor = (there.schedule.alpha(u) / here.schedule.alpha(t)).float().view(-1, 1, 1, 1, 1)
    expected = here(x, t.float(), conditioning)
    torch.testing.assert_close(there(factor * x, u.float(), conditioning), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(there(x, t.float(), conditioning), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction", ["v", "epsilon"])
@torch.no_grad()
def test_without_noise_it_returns_its_input(name: str, prediction: str) -> None:
    denoiser = tiny_denoiser(name, prediction)
    x, conditioning = inputs()
    errors = [float((denoiser(x, torch.tensor(t), conditioning) - x).abs().max()) for t in (0.3, 1e-2, 1e-6)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05  # sigma is 0.008 at the start of the cosine schedule
    if name == "rectified":
        assert errors[2] < 1e-4


@torch.no_grad()
def test_pure_noise_leaves_v_prediction_to_the_network() -> None:
    denoiser = tiny_denoiser("rectified")
    x, conditioning = inputs()
    raw = denoiser.network(torch.cat([x, conditioning.spatial], 1), timesteps=torch.full((2,), 1000.0))
    torch.testing.assert_close(denoiser(x, torch.tensor(1.0), conditioning), -raw)


@torch.no_grad()
def test_the_network_sees_unit_variance_and_the_angle() -> None:
    denoiser = tiny_denoiser("rectified")
    seen: dict[str, Tensor] = {}

    def monitor(module: torch.nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.update(x=args[0], timesteps=kwargs["timesteps"])

    denoiser.network.register_forward_pre_hook(monitor, with_kwargs=True)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(4, 4, 8, 8, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.5, 0.9])
    denoiser(denoiser.schedule.noisy(x0, t, noise), t, Conditioning(torch.zeros(4, 3, 8, 8, 8)))
    assert seen["x"][:, :4].flatten(1).std(1).numpy() == pytest.approx([1] * 4, abs=0.05)
    expected = [1000 * 2 / math.pi * math.atan(v / (1 - v)) for v in t.tolist()]
    assert seen["timesteps"].tolist() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_each_case_follows_its_own_time_and_condition() -> None:
    denoiser = tiny_denoiser("cosine")
    x, conditioning = inputs(3)
    t = torch.tensor([0.1, 0.5, 0.9])
    together = denoiser(x, t, conditioning)
    for n in range(3):
        alone = denoiser(x[n : n + 1], t[n], Conditioning(conditioning.spatial[n : n + 1]))
        torch.testing.assert_close(alone[0], together[n], rtol=1e-4, atol=1e-5)
    swapped = denoiser(x, t, Conditioning(conditioning.spatial.flip(0)))
    assert float((swapped - together).abs().max()) > 1e-3


@torch.no_grad()
def test_save_and_load_are_bit_equal(tmp_path: Path) -> None:
    denoiser = tiny_denoiser("cosine", "epsilon")
    denoiser.save(tmp_path / "part")
    again = Denoiser.from_pretrained(tmp_path / "part")
    x, conditioning = inputs()
    t = torch.tensor([0.3, 0.6])
    torch.testing.assert_close(again(x, t, conditioning), denoiser(x, t, conditioning), rtol=0, atol=0)
    assert again.prediction == "epsilon"
    assert not again.training


def test_recomputing_gives_the_same_gradients() -> None:
    plain, saving = tiny_denoiser("rectified"), tiny_denoiser("rectified")
    names = list(saving.state_dict())
    saving.checkpoint_gradients()
    assert list(saving.state_dict()) == names
    x, conditioning = inputs()
    t = torch.tensor([0.3, 0.6])
    kept: list[int] = []
    for denoiser in (plain, saving):
        count = 0

        def hold(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            loss = denoiser.train()(x, t, conditioning).square().mean()
        kept.append(count)
        loss.backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)
    assert kept[1] < 0.7 * kept[0]  # or nothing was recomputed


def test_latents_that_cannot_be_halved_are_padded_and_cropped_inside() -> None:
    denoiser = tiny_denoiser("rectified")
    x, spatial = torch.randn(2, 4, 5, 8, 3), torch.randn(2, 3, 5, 8, 3)
    t = torch.tensor(0.4)
    padding = [0, 1, 0, 0, 0, 1]  # to 6, 8 and 4, as the two levels need

    def padded(maps: Tensor) -> Tensor:
        return torch.nn.functional.pad(maps, padding, mode="replicate")

    expected = denoiser(padded(x), t, Conditioning(padded(spatial)))[..., :5, :, :3]
    torch.testing.assert_close(denoiser(x, t, Conditioning(spatial)), expected)


class OfGaussianData(torch.nn.Module):
    """The network that is right for data ``N(0, std^2)``, whatever it is asked to predict; takes no mask into account."""

    def __init__(self, prediction: str, std: float):
        super().__init__()
        self.prediction, self.std = prediction, std

    def forward(self, x: Tensor, timesteps: Tensor, **residuals: None) -> Tensor:
        angle = (timesteps.double() * math.pi / 2000).view(-1, 1, 1, 1, 1)
        a, s, y = torch.cos(angle), torch.sin(angle), x[:, :4].double()
        x0, noise = (share / (a**2 * self.std**2 + s**2) * y for share in (a * self.std**2, s))
        return {"x0": x0, "epsilon": noise, "v": a * noise - s * x0}[self.prediction].float()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("sampler", "schedule"), [row[:2] for row in sampler_table() if row[1] != "linear"])
@torch.no_grad()
def test_a_right_network_samples_the_closed_form_whatever_it_predicts(
    sampler: str, schedule: str, prediction: str
) -> None:
    denoiser = tiny_denoiser(schedule, prediction)
    denoiser.network = OfGaussianData(prediction, 0.5)
    x, conditioning = inputs()
    made = sample(lambda x_t, t: denoiser(x_t, t, conditioning), denoiser.schedule, x, sampler, 3)
    expected = sample(gaussian_denoiser(denoiser.schedule, 0.0, 0.5), denoiser.schedule, x, sampler, 3)
    torch.testing.assert_close(made, expected, atol=5e-4, rtol=0)


def test_unknown_prediction_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"unknown prediction 'score': choose one of epsilon, v, x0"):
        tiny_denoiser("cosine", "score")
