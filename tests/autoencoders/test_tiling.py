"""A large volume goes through an autoencoder in parts, and nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import perturb
from torch import Tensor

from latentsynth.autoencoders import Autoencoder, build_autoencoder
from latentsynth.autoencoders.space_to_depth import SpaceToDepthDecoder, SpaceToDepthEncoder
from latentsynth.autoencoders.tiling import tiled
from latentsynth.config.autoencoder import FSQConfig, KLConfig, VQConfig

KINDS: dict[str, Any] = {
    "kl": KLConfig,
    "fsq": FSQConfig,
    "vq": VQConfig,
}
SHAPE = (52, 40, 24)  # 13, 10 and 6 cells: no multiple of a part


def autoencoder(kind: str, downsampling: Any = 4) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = KINDS[kind](latent_channels=4, downsampling=downsampling, trunk={"width": 16, "res_blocks": 1})
        model = build_autoencoder(config, 1)
    perturb(model, 0, 0.1)  # layers that start at zero would see no farther than a cell
    model.latent_mean.zero_()
    model.latent_std.fill_(1)
    return model.eval()


def image(shape: tuple[int, ...] = SHAPE, rows: int = 1) -> Tensor:
    return torch.rand(rows, 1, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for network in (SpaceToDepthEncoder, SpaceToDepthDecoder):
        monkeypatch.setattr(network, "TILE", 5)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("downsampling", "rows"), [(4, 1), ((4, 2, 1), 2)])
def test_parts_equal_the_whole(kind: str, downsampling: Any, rows: int) -> None:
    model = autoencoder(kind, downsampling)
    x = image(rows=rows)
    whole = model.encoder(x)  # the network itself knows no parts
    assert model.encoded(x).requires_grad  # with gradients, which training takes crop by crop
    with torch.no_grad():
        torch.testing.assert_close(model.encoded(x), whole.detach(), atol=1e-4, rtol=1e-4)
        raw = model.moments(x).mean
        torch.testing.assert_close(model.decoded(raw), model.decoder(raw), atol=1e-4, rtol=1e-4)
        assert float(model.decoder(raw).std()) > 0.05


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_the_reach_is_what_the_network_sees_and_no_less_would_do(half: str) -> None:
    model = autoencoder("kl")
    network = getattr(model, half)
    x = image() if half == "encoder" else model.encode(image())
    taken, given = ((4, 4, 4), (1, 1, 1)) if half == "encoder" else ((1, 1, 1), (4, 4, 4))
    with torch.no_grad():
        whole = network(x)

        def apart(reach: int) -> float:
            return float((tiled(network, x, taken, given, 5, reach) - whole).abs().max())

        assert apart(network.reach) < 1e-4
        assert apart(network.reach - 1) > 10 * apart(network.reach)


def test_no_part_is_larger_than_asked() -> None:
    seen: list[tuple[int, ...]] = []

    def remember(part: Tensor) -> Tensor:
        seen.append(tuple(part.shape[2:]))
        return part

    x = torch.rand(1, 1, 23, 7, 11)
    assert torch.equal(tiled(remember, x, (1, 1, 1), (1, 1, 1), 6, 2), x)
    assert max(max(shape) for shape in seen) <= 6 + 2 * 2
    assert len(seen) == 4 * 2 * 2
