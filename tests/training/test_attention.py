"""Attention by xFormers: the same numbers from the same weights, and a refusal by name where it cannot be."""

from __future__ import annotations

import copy
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn
from torch.nn import functional

from latentsynth.diffusion.denoiser import Denoiser
from latentsynth.errors import ConfigError
from latentsynth.training.attention import use_xformers
from latentsynth.types import Conditioning


def documented(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, scale: float | None = None) -> Tensor:
    """What xFormers says of its attention, on ``(B, N, heads, C)``, by torch."""
    rows = (part.transpose(1, 2) for part in (q, k, v))
    return functional.scaled_dot_product_attention(*rows, dropout_p=p, scale=scale).transpose(1, 2)


@pytest.fixture
def pretending(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that says it is a GPU, and an xFormers that works on it, so that what is put in can be watched on a CPU."""
    operators = ModuleType("xformers.ops")
    operators.memory_efficient_attention = documented  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)

    class Pretended:
        type = "cuda"

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: zeros(*size, **more))
    return Pretended()  # type: ignore[return-value]


def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = Denoiser(2, 3, "rectified", "v", (8, 16), (False, True), 1, 8, 4)
    for weights in network.parameters():  # layers that begin at nought would hide a difference
        nn.init.normal_(weights, std=0.2)
    return network


def step(network: Denoiser, device: str = "cpu") -> list[Tensor]:
    """What the network says, and every gradient."""
    generator = torch.Generator().manual_seed(1)
    x, spatial = (torch.randn(2, c, 4, 6, 4, generator=generator).to(device) for c in (2, 3))
    said = network(x, torch.tensor([0.3, 0.8], device=device), Conditioning(spatial))
    return [said, *torch.autograd.grad(said.square().mean(), list(network.parameters()))]


def test_the_denoiser_and_its_gradients_stay_what_they_are(pretending: torch.device) -> None:
    plain = denoiser()
    other = copy.deepcopy(plain)
    use_xformers({"denoiser": other}, pretending)
    assert sum(type(block) is SABlock for block in plain.modules()) >= 2
    assert not any(type(block) is SABlock for block in other.modules())
    assert other.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(step(other), step(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_it_is_refused_by_name_where_it_cannot_be(pretending: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs a GPU, and this is cpu: set it to torch"):
        use_xformers({"denoiser": denoiser()}, torch.device("cpu"))
    with pytest.raises(ConfigError, match="nothing in trunk attends"):
        use_xformers({"trunk": nn.Conv3d(1, 1, 1)}, pretending)
    with pytest.raises(ConfigError, match="attends causally or by position"):
        use_xformers({"blocks": SABlock(16, 2, causal=True, sequence_length=4)}, pretending)

    def without_kernel(*rows: Tensor) -> Tensor:
        raise NotImplementedError("No operator found")

    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", without_kernel)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    with pytest.raises(ConfigError, match="no kernel for a card with torch"):
        use_xformers({"denoiser": denoiser()}, pretending)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'latentsynth\[xformers\]'"):
        use_xformers({"denoiser": denoiser()}, pretending)


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("xformers") is None, reason="needs a GPU and xformers"
)
def test_on_a_gpu_it_is_torchs_attention() -> None:
    plain = denoiser().cuda()
    other = copy.deepcopy(plain)
    use_xformers({"denoiser": other}, torch.device("cuda"))
    for ours, theirs in zip(step(other, "cuda"), step(plain, "cuda"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
