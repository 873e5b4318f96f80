"""The trunk that starts from a linear map: what it starts as, and that no cell sees the whole volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentsynth.autoencoders import Autoencoder, build_autoencoder
from latentsynth.autoencoders.principal import principal_components
from latentsynth.autoencoders.space_to_depth import CellNorm, DepthToSpace, SpaceToDepth, SpaceToDepthDecoder
from latentsynth.config import FSQConfig, KLConfig, VQConfig
from latentsynth.errors import TrainingError
from tests.helpers import TRUNK, perturb

Axes = tuple[int, int, int]
every_block = pytest.mark.parametrize("block", [(2, 2, 2), (4, 4, 1), (1, 2, 8)])


def smooth(count: int = 3, channels: int = 2, size: int = 16, seed: int = 0) -> Tensor:
    """Images whose neighbours are alike, with a mean that is not zero."""
    rough = torch.rand(
        (count, channels, size // 2, size // 2, size // 2), generator=torch.Generator().manual_seed(seed)
    )
    return nn.functional.interpolate(rough, size=(size, size, size), mode="trilinear") - 0.2


def started(kind: str = "kl", **changes: Any) -> Autoencoder:
    torch.manual_seed(0)
    config = {"kl": KLConfig, "vq": VQConfig, "fsq": FSQConfig}[kind]
    facts = {"kind": kind, "downsampling": 2, "latent_channels": 4, "trunk": TRUNK, **changes}
    model = build_autoencoder(config.model_validate(facts), 2)
    model.start_from([smooth()])
    return model.eval()


@every_block
def test_depth_is_space_rearranged(block: Axes) -> None:
    image = torch.arange(2 * 3 * 8**3).float().view(2, 3, 8, 8, 8)
    cells = SpaceToDepth(block)(image)
    assert cells.shape == (2, 3 * np.prod(block), *(8 // n for n in block))
    assert torch.equal(DepthToSpace(block)(cells), image)
    first = image[0, :, : block[0], : block[1], : block[2]].flatten()
    assert torch.equal(cells[0, :, 0, 0, 0], first)


@every_block
def test_components_are_those_of_a_singular_value_decomposition(block: Axes) -> None:
    cells = SpaceToDepth(block)(smooth())
    found = principal_components(cells.split(1), 3)
    rows = cells.movedim(1, -1).flatten(0, -2).double().numpy()
    _, values, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.deviation, values[:3] / np.sqrt(len(rows)), rtol=1e-4)
    cosines = np.abs((found.directions.numpy() * directions[:3]).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-4)
    largest = found.directions.gather(1, found.directions.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()  # the same on every machine


def test_too_few_directions_are_refused() -> None:
    with pytest.raises(TrainingError, match="give at least one training case"):
        principal_components([], 2)
    flat = torch.rand(1, 1, 4, 4, 4).expand(1, 8, 4, 4, 4)  # all voxels of a block alike
    with pytest.raises(TrainingError, match=r"vary in 1 directions, autoencoder.latent_channels is 2"):
        principal_components([flat], 2)


@torch.no_grad()
def test_it_starts_as_the_best_linear_autoencoder_of_blocks() -> None:
    """Its squared error is the variance of the components that were left out (Eckart and Young 1936)."""
    image = smooth()
    model = started()
    rebuilt = model.decoder(model.moments(image).mean)
    every = principal_components([SpaceToDepth((2, 2, 2))(image)], 16)
    left_out = float((every.deviation[4:] ** 2).sum()) / 16
    assert float((rebuilt - image).square().mean()) == pytest.approx(left_out, rel=1e-3)
    assert left_out > 1e-5


@pytest.mark.parametrize(("kind", "spread"), [("kl", 1.0), ("vq", 1.0), ("fsq", 0.5)])
@torch.no_grad()
def test_latents_start_with_the_same_spread_and_uncorrelated(kind: str, spread: float) -> None:
    moments = started(kind).moments(smooth())
    rows = moments.mean.movedim(1, 0).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(rows, correction=0), spread**2 * torch.eye(4), atol=1e-3, rtol=0)
    if kind == "kl":
        torch.testing.assert_close(moments.deviation, torch.full_like(moments.deviation, np.exp(-3.0)))


@torch.no_grad()
def test_rounding_costs_little_at_the_start() -> None:
    """A tanh that is nearly straight where the latents are: rounding to 64 levels is nearly the linear map."""
    image = smooth()
    exact, rounded = started("kl"), started("fsq", levels=64)
    plain = (exact.decoder(exact.moments(image).mean) - image).square().mean()
    assert (rounded(image).image - image).square().mean() < 1.5 * plain


@torch.no_grad()
def test_other_trunks_keep_their_weights() -> None:
    model = build_autoencoder(KLConfig(downsampling=2, trunk={"kind": "resnet", "channels": (8,)}), 2)
    before = [weight.clone() for weight in model.parameters()]
    model.start_from([smooth()])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@torch.no_grad()
def test_norm_looks_at_one_cell() -> None:
    norm = CellNorm(6)
    x = torch.randn(2, 6, 4, 4, 4)
    expected = x / x.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)
    changed = x.clone()
    changed[:, :, 0, 0, 0] *= 100
    assert torch.equal(norm(changed)[:, :, 1:], norm(x)[:, :, 1:])


@torch.no_grad()
def test_a_part_decodes_as_it_does_in_the_whole() -> None:
    torch.manual_seed(0)
    decoder = SpaceToDepthDecoder(4, 1, (4, 4, 4), 8, 2).eval()
    perturb(decoder, 1)
    z = torch.randn(1, 4, 24, 16, 16)
    whole = decoder(z)
    part = decoder(z[:, :, 4:20])
    margin = 4 * 5  # voxels: five 3 x 3 x 3 convolutions on cells reach five of them
    torch.testing.assert_close(part[:, :, margin:-margin], whole[:, :, 16 + margin : 80 - margin], atol=1e-5, rtol=1e-5)
    far = z.clone()
    far[:, :, :4] *= 50  # statistics of the whole volume would carry this everywhere
    torch.testing.assert_close(decoder(far)[:, :, 16 + margin :], whole[:, :, 16 + margin :], atol=1e-5, rtol=1e-5)
