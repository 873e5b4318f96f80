"""The autoencoder's game: each term by hand, the adversary's entrance, and feature networks from disk."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentsynth.autoencoders.base import Reconstruction
from latentsynth.config import PerceptualConfig, ReconstructionConfig
from latentsynth.errors import TrainingError
from latentsynth.training.recipes.reconstruction import (
    GeneratorLoss,
    adaptive_weight,
    build_discriminator,
    discriminator_loss,
    high_band,
    load_perceptual,
    local_energy,
)


class Blur(nn.Module):
    """An autoencoder of one weight: it scales the image."""

    def __init__(self, scale: float = 0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([[scale]]))
        self.noises: list[Tensor] = []
        self.levels: list[Tensor | None] = []

    def forward(self, image: Tensor, noise: Tensor | None = None, level: Tensor | None = None) -> Reconstruction:
        assert noise is not None
        self.noises.append(noise)
        self.levels.append(level)
        return Reconstruction(image * self.scale, torch.tensor(0.25), torch.tensor(3.0))


@dataclass
class Judge:
    """A discriminator whose logits are planted."""

    logits: list[float]
    calls: list[Tensor] = field(default_factory=list)

    def __call__(self, image: Tensor) -> list[Tensor]:
        self.calls.append(image)
        rows = torch.tensor(self.logits).view(-1, 1, 1, 1, 1).expand(len(image), 1, 1, 1, 1)
        return [torch.full((1,), 77.0), rows + 0 * image.sum()]  # features first, the opinion last


class Mean(nn.Module):
    """A discriminator whose opinion is the mean of the image."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.mean(dim=(1, 2, 3, 4), keepdim=True)]


def batch(first: int = 0, count: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(first)
    mask = torch.zeros(count, 3, 4, 4, 4)
    mask[:, 0], mask[:, 0, :2], mask[:, 2, :2] = 1, 0, 1
    return {
        "image": torch.rand((count, 1, 4, 4, 4), generator=generator) * 2 - 1,
        "mask": mask,
        "position": torch.arange(first, first + count),
        "seen": first,
    }


def loss_of(model: Blur, network: nn.Module | None = None, **terms: Any) -> GeneratorLoss:
    plain = {"high_band_weight": 0.0, "energy_weight": 0.0, **terms}
    return GeneratorLoss(
        ReconstructionConfig(**plain), [2], lambda shape: (1, *(n // 2 for n in shape)), model.scale, 0, network
    )


def test_high_band_is_what_a_neighbourhood_does_not_say() -> None:
    ramp = torch.arange(8.0).expand(1, 2, 8, 8, 8)
    inside = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(high_band(torch.full_like(ramp, 3.0)), torch.zeros_like(ramp))
    torch.testing.assert_close(high_band(ramp)[inside], torch.zeros(1, 2, 6, 6, 6), atol=1e-5, rtol=0)
    spike = torch.zeros(1, 1, 8, 8, 8)
    spike[0, 0, 4, 4, 4] = 27
    expected = torch.zeros_like(spike)
    expected[0, 0, 3:6, 3:6, 3:6] = -1
    expected[0, 0, 4, 4, 4] = 26
    torch.testing.assert_close(high_band(spike), expected)


def test_energy_sees_how_much_detail_there_is_and_not_where_its_edges_lie() -> None:
    signs = torch.where(torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5, 1.0, -1.0)
    torch.testing.assert_close(local_energy(0.3 * signs), torch.full_like(signs, 0.3), atol=1e-3, rtol=0)
    torch.testing.assert_close(local_energy(-0.3 * signs), local_energy(0.3 * signs))
    here = torch.zeros_like(signs)
    here[..., :4] = signs[..., :4]
    energy = local_energy(here)
    assert energy[..., 6:].max() < 0.01
    assert energy[..., :2].min() > 0.9


@pytest.mark.parametrize("name", ["high_band", "energy"])
def test_terms_of_detail_are_added_with_their_weight(name: str) -> None:
    values = {}
    for weight in (0.0, 1.0, 3.0):
        total, logs = loss_of(Blur(), **{f"{name}_weight": weight})({"autoencoder": Blur()}, batch(), {})
        values[weight] = total.item()
        assert (name in logs) is (weight > 0)
    image = batch()["image"]
    ours, theirs = high_band(image / 2), high_band(image)
    difference = ours - theirs if name == "high_band" else local_energy(ours) - local_energy(theirs)
    by_hand = difference.abs().mean()
    assert values[1.0] - values[0.0] == pytest.approx(float(by_hand), rel=1e-4)
    assert values[3.0] - values[0.0] == pytest.approx(3 * float(by_hand), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [("l1", lambda d: d.abs()), ("l2", lambda d: d**2), ("robust", lambda d: (d**2 + 1e-6).sqrt())],
)
def test_pointwise_terms_weigh_the_lesion(kind: str, by_hand: Any) -> None:
    model, one = Blur(), batch()
    total, logs = loss_of(model, reconstruction=kind, lesion_weight=5)({"autoencoder": model}, one, {})
    weight = 1 + 4 * one["mask"][:, 2:3]
    expected = (by_hand(0.5 * one["image"]) * weight).sum() / weight.sum()
    torch.testing.assert_close(logs["reconstruction"], expected)
    torch.testing.assert_close(total, expected + 0.25)  # and the bottleneck's own
    assert torch.equal(one["fake"], 0.5 * one["image"])
    assert not one["fake"].requires_grad


def test_noise_of_the_bottleneck_belongs_to_the_position() -> None:
    model = Blur()
    loss = loss_of(model)
    loss({"autoencoder": model}, batch(0, 4), {})
    loss({"autoencoder": model}, batch(2, 2), {})
    torch.testing.assert_close(model.noises[0][2:], model.noises[1])
    assert model.noises[0].shape == (4, 1, 2, 2, 2)
    assert not torch.equal(model.noises[0][0], model.noises[0][1])


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = nn.Parameter(torch.tensor([[1.0, 2], [3, 4]]))
    one, other = (3 * layer).sum(), (layer * torch.tensor([[0.0, 0.6], [0.8, 0]])).sum()
    assert adaptive_weight(one, other, layer) == pytest.approx(6 / (1 + 1e-4))  # |3 3 3 3| = 6, |0.6 0.8| = 1
    assert adaptive_weight(other, one, layer) == pytest.approx(1 / (6 + 1e-4))
    assert adaptive_weight(one, 1e-9 * other, layer) == pytest.approx(1e4)  # bounded
    assert not adaptive_weight(one, other, layer).requires_grad


def test_adversary_joins_at_its_hour_and_pulls_as_hard_as_the_reconstruction() -> None:
    model = Blur()
    modules = {"autoencoder": model, "discriminator": Mean()}
    loss = loss_of(model, adversarial_weight=0.5, adversarial_after_images=8)
    early, logs = loss(modules, batch(6), {})
    assert "adversarial" not in logs
    torch.testing.assert_close(early, logs["reconstruction"] + 0.25)
    one = batch(8)
    late, logs = loss(modules, one, {})
    torch.testing.assert_close(logs["adversarial"], -(0.5 * one["image"]).mean())  # the hinge of a generator
    balance = logs["adversarial_balance"]
    torch.testing.assert_close(late, logs["reconstruction"] + 0.5 * balance * logs["adversarial"] + 0.25)
    gradients = [torch.autograd.grad(logs[name], model.scale, retain_graph=True)[0].norm()
                 for name in ("reconstruction", "adversarial")]  # fmt: skip
    torch.testing.assert_close(balance, gradients[0] / (gradients[1] + 1e-4))


def test_without_weight_the_discriminator_is_never_asked() -> None:
    model, judge = Blur(), Judge([0.0])
    loss_of(model)({"autoencoder": model, "discriminator": judge}, batch(10**6), {})  # type: ignore[dict-item]
    assert not judge.calls


@pytest.mark.parametrize(
    ("real", "fake", "loss", "accuracy"),
    [
        ([2.0, 3.0], [-1.5, -9.0], 0.0, 1.0),  # beyond the margin there is nothing to gain
        ([0.5, 1.0], [-1.0, -0.2], ((0.5 + 0) / 2 + (0 + 0.8) / 2) / 2, 1.0),
        ([0.0, 0.0], [0.0, 0.0], 1.0, 0.0),
        ([-1.0, 2.0], [3.0, -4.0], ((2 + 0) / 2 + (4 + 0) / 2) / 2, 0.5),
    ],
)
def test_discriminator_loss_is_the_hinge(real: list[float], fake: list[float], loss: float, accuracy: float) -> None:
    one = batch()
    one["fake"] = 0.5 * one["image"]
    judge = Judge(real + fake)
    got, logs = discriminator_loss({"discriminator": judge}, one, {})  # type: ignore[dict-item]
    assert float(got) == pytest.approx(loss)
    assert float(logs["accuracy"]) == pytest.approx(accuracy)
    assert len(judge.calls) == 1  # both in one call
    assert torch.equal(judge.calls[0], torch.cat([one["image"], one["fake"]]))


def test_discriminator_judges_each_case_by_itself() -> None:
    torch.manual_seed(0)
    network = build_discriminator(ReconstructionConfig(discriminator_channels=8, discriminator_layers=2), 1)
    image = torch.rand(4, 1, 16, 16, 16)
    torch.testing.assert_close(network(image)[-1][1:2], network(image[1:2])[-1], atol=1e-5, rtol=1e-4)
    assert network(image)[-1].std() > 0


@pytest.fixture
def features(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 1))
    torch.jit.script(network).save(str(tmp_path / "features.ts"))
    return tmp_path / "features.ts"


def test_perceptual_term_reaches_the_image_and_leaves_the_network_alone(features: Path) -> None:
    network = load_perceptual(features)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training
    model, one = Blur(), batch()
    terms = {"perceptual": PerceptualConfig(path=features, weight=2.0)}
    total, logs = loss_of(model, network, **terms)({"autoencoder": model}, one, {})
    torch.testing.assert_close(total, logs["reconstruction"] + 2 * logs["perceptual"] + 0.25)
    ours, theirs = (nn.functional.normalize(network(x), dim=1) for x in (0.5 * one["image"], one["image"]))
    torch.testing.assert_close(logs["perceptual"], (ours - theirs).square().sum(1).mean())
    (gradient,) = torch.autograd.grad(logs["perceptual"], model.scale)
    assert gradient.abs().sum() > 0
    perfect = Blur(1.0)
    assert loss_of(perfect, network, **terms)({"autoencoder": perfect}, one, {})[1]["perceptual"] == 0


def test_missing_feature_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss\.perceptual\.path .*absent\.ts does not exist"):
        load_perceptual(tmp_path / "absent.ts")


@pytest.mark.parametrize("content", ["text", "empty", "weights", "zip"])
def test_files_that_are_not_torchscript_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "features.ts"
    if content == "weights":
        torch.save({"weight": torch.ones(3)}, path)
    elif content == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    else:
        path.write_bytes(b"not a network" if content == "text" else b"")
    with pytest.raises(TrainingError, match=r"features\.ts is not TorchScript"):
        load_perceptual(path)


def test_in_the_decoder_phase_every_case_gets_a_level_of_noise_of_its_own_and_no_term_of_energy() -> None:
    model = Blur()
    loss = loss_of(model, energy_weight=1.0)
    loss.decoder_noise, loss.decoder_from = 0.5, 100
    _, before = loss({"autoencoder": model}, {**batch(0, 64), "seen": 99}, {})
    _, after = loss({"autoencoder": model}, {**batch(0, 64), "seen": 100}, {})
    _, again = loss({"autoencoder": model}, {**batch(0, 64), "seen": 164}, {})
    assert "energy" in before
    assert "energy" not in after
    none, levels, same = model.levels
    assert none is None
    assert levels is not None
    assert same is not None
    torch.testing.assert_close(levels, same)  # of the position, not of the moment
    assert 0 <= levels.min() < 0.05
    assert 0.45 < levels.max() <= 0.5
    assert len(levels.unique()) == 64
    torch.testing.assert_close(again["reconstruction"], after["reconstruction"])
