"""Families of networks: the same answers after saving, the same gradients with less memory, one memory layout."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentsynth.config import DynUNetConfig, SwinUNETRConfig, UNetConfig
from latentsynth.errors import CheckpointError
from latentsynth.segmentation import SegmentationNetwork, build_network

CONFIGS: dict[str, Any] = {
    "unet": UNetConfig(channels=(4, 8, 8)),
    "unet, plain": UNetConfig(channels=(4, 8), res_units=0),
    "unet, dropout": UNetConfig(channels=(4, 8), dropout=0.4),
    "dynunet": DynUNetConfig(channels=(4, 8, 8, 8), deep_supervision=False),
    "dynunet, supervised deeply": DynUNetConfig(channels=(4, 8, 8, 8)),
    "dynunet, three levels": DynUNetConfig(channels=(4, 8, 8)),
}
OUTPUTS = {"dynunet, supervised deeply": 3, "dynunet, three levels": 2}  # in training; one for every other


def made(name: str) -> SegmentationNetwork:
    """The network of a configuration for two channels and three labels, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return build_network(CONFIGS[name], image_channels=2, labels=3)


def image(edge: int, rows: int = 2) -> torch.Tensor:
    return 2 * torch.rand(rows, 2, edge, edge, edge, generator=torch.Generator().manual_seed(0)) - 1


def gradients(network: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(1)  # of dropout
        answer = network(x)
        (answer * torch.randn(answer.shape)).sum().backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert not missing  # several processes would wait for them
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_network_answers_the_same(name: str, tmp_path: Path) -> None:
    network = made(name).eval()
    network.save(tmp_path / "network")
    loaded = SegmentationNetwork.from_pretrained(tmp_path / "network")
    assert type(loaded) is type(network)
    x = image(CONFIGS[name].smallest)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
        assert not torch.equal(loaded(x), loaded(x.flip(2)))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_batch_then_outputs_then_labels_then_voxels(name: str) -> None:
    """The first output in training is the one in evaluation, and no row knows of the others."""
    network = made(name)
    edge, unit = CONFIGS[name].smallest, CONFIGS[name].units[0]
    x = image(edge + 2 * unit)[:, :, :edge, : edge + unit]
    x = torch.cat([x, x[:1]])
    for training in (True, False):
        network.train(training)
        with torch.no_grad():
            logits = network(x)
            outputs = OUTPUTS.get(name, 1) if training else 1
            assert logits.shape == (3, outputs, 3, *x.shape[2:])
            if "dropout" not in name:
                assert torch.allclose(logits[0], logits[2], atol=1e-5)  # the same image twice in the batch
                assert torch.allclose(network(x[1:2]), logits[1:2], atol=1e-4)
    if "dropout" not in name:  # instance norms know no difference, so training and evaluation agree on the finest
        with torch.no_grad():
            assert torch.allclose(network.train()(x)[:, 0], network.eval()(x)[:, 0], atol=1e-5)


def test_every_output_of_deep_supervision_has_half_the_resolution_of_the_one_before() -> None:
    network = made("dynunet, supervised deeply").train()
    with torch.no_grad():
        outputs = network(image(16))[0]
    for output, repeated in zip(outputs, (1, 2, 4), strict=True):  # brought to full resolution by repeating voxels
        blocks = output.unfold(1, repeated, repeated)
        assert torch.equal(blocks.amin(-1), blocks.amax(-1))
        twice = output.unfold(1, 2 * repeated, 2 * repeated)
        assert not torch.allclose(twice.amin(-1), twice.amax(-1), atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, frugal = made(name).train(), made(name).train()
    frugal.checkpoint_gradients()
    frugal = copy.deepcopy(frugal)  # the weight average is such a copy
    calls = count_calls(monkeypatch, type(plain.blocks[0]))
    x = image(CONFIGS[name].smallest)
    expected = gradients(plain, x)
    once = len(calls)
    found = gradients(frugal, x)
    assert len(calls) == 3 * once > 0  # forward, and again in the backward pass
    assert all(torch.allclose(expected[key], found[key], rtol=1e-4, atol=1e-6) for key in expected)
    assert any(value.abs().max() > 0 for value in expected.values())


def count_calls(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]) -> list[int]:
    """A list that grows with every run of a block of this kind."""
    calls: list[int] = []
    forward: Callable[..., Any] = kind.forward

    def counted(self: nn.Module, *arguments: Any) -> Any:
        calls.append(1)
        return forward(self, *arguments)

    monkeypatch.setattr(kind, "forward", counted)
    return calls


@pytest.mark.parametrize("name", CONFIGS)
def test_the_smallest_grid_trains_and_one_unit_less_does_not(name: str) -> None:
    network, smallest = made(name).train(), CONFIGS[name].smallest
    gradients(network, image(smallest, rows=1))
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(image(CONFIGS[name].units[0], rows=1))


def test_swin_unetr(tmp_path: Path) -> None:
    """Once, since it is slow: one memory layout, a backward pass through recomputed blocks, saving."""
    config = SwinUNETRConfig(feature_size=12, window=4)
    torch.manual_seed(0)
    network = build_network(config, image_channels=1, labels=3)
    network.checkpoint_gradients()
    x = image(config.smallest, rows=1)[:, :1]
    logits = network.train()(x)
    assert logits.shape == (1, 1, 3, *x.shape[2:])
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    network.save(tmp_path / "network")
    loaded = SegmentationNetwork.from_pretrained(tmp_path / "network")
    with torch.no_grad():
        answer = loaded(x)
        assert torch.equal(answer, network.eval()(x))
    assert torch.allclose(answer, logits, atol=1e-4)


def test_a_network_of_another_kind_is_no_segmentation_network(tmp_path: Path) -> None:
    from helpers import tiny_denoiser

    tiny_denoiser("rectified").save(tmp_path / "part")
    with pytest.raises(CheckpointError, match=r"expected one of DynUNet, .*UNet"):
        SegmentationNetwork.from_pretrained(tmp_path / "part")
