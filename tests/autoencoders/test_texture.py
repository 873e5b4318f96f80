"""What is drawn about a decoder's mean: the size and the likeness of residuals come back, and nothing is drawn unasked."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from latentsynth.autoencoders import Autoencoder, build_autoencoder
from latentsynth.autoencoders.space_to_depth import DepthToSpace, SpaceToDepth
from latentsynth.autoencoders.texture import Texture, filter_of
from latentsynth.config import FSQConfig, KLConfig, VQConfig

FACTORS, SHAPE = (2, 4, 2), (24, 32, 24)
CELLS = tuple(n // f for n, f in zip(SHAPE, FACTORS, strict=True))
FEATURES, CHANNELS = 5, 2


def texture() -> Texture:
    return Texture(FEATURES, CHANNELS, SpaceToDepth(FACTORS), DepthToSpace(FACTORS), math.prod(FACTORS))


def features(seed: int) -> Tensor:
    return torch.randn(1, FEATURES, *CELLS, generator=torch.Generator().manual_seed(seed))


def known() -> Texture:
    """A texture of known deviation and grain."""
    generator, made = torch.Generator().manual_seed(7), texture()
    made.log_variance.copy_(0.3 * torch.randn(made.log_variance.shape, generator=generator))
    made.offset.copy_(-4 + 0.5 * torch.randn(made.offset.shape, generator=generator))
    made.grain.copy_(
        filter_of(
            torch.tensor([[[1, 0.4, 0.1], [1, 0.0, 0.0]], [[1, 0.2, 0.05], [1, 0.3, 0.0]], [[1, 0, 0], [1, 0.5, 0.2]]])
        )
    )
    return made  # fmt: skip


def residuals(of: Texture, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for seed in range(count):
        white = torch.randn(1, CHANNELS, *SHAPE, generator=torch.Generator().manual_seed(100 + seed))
        made = torch.zeros_like(white)
        yield features(seed), made, made + of.deviation(features(seed)) * of.grained(white)


def test_deviation_and_grain_are_those_that_images_were_made_with() -> None:
    truth, fitted = known(), texture()
    fitted.fit(lambda: residuals(truth, 12))
    other = features(99)
    ratio = torch.log(fitted.deviation(other) / truth.deviation(other))
    assert ratio.abs().mean() < 0.06
    assert ratio.mean().abs() < 0.01
    torch.testing.assert_close(fitted.grain, truth.grain, atol=0.03, rtol=0)


@pytest.mark.parametrize("lags", [(1.0, 0.0, 0.0), (1.0, 0.4, 0.1), (1.0, 0.2, 0.05)])
def test_filtered_noise_is_as_alike_as_asked_with_variance_one(lags: tuple[float, ...]) -> None:
    taps = filter_of(torch.tensor(lags))
    full = [float((taps[lag:] * taps[: len(taps) - lag]).sum()) for lag in range(3)]
    assert full == pytest.approx(lags, abs=0.01)
    made = known().grained(torch.randn(1, CHANNELS, 40, 40, 40, generator=torch.Generator().manual_seed(0)))
    assert made.var((0, 2, 3, 4)).tolist() == pytest.approx([1, 1], abs=0.06)


def test_lags_that_no_noise_has_give_the_nearest_that_some_has() -> None:
    taps = filter_of(torch.tensor([1.0, 0.9, -0.9]))
    assert torch.isfinite(taps).all()
    assert float(taps.square().sum()) == pytest.approx(1)


def test_a_channel_that_is_always_empty_gets_no_grain() -> None:
    made = texture()
    empty = torch.zeros(1, CHANNELS, *SHAPE)
    half = torch.cat([torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.1, empty[:, :1]], 1)
    made.fit(lambda: [(torch.zeros(1, FEATURES, *CELLS), empty, half)])
    drawn = made.deviation(torch.zeros(1, FEATURES, *CELLS)) * made.grained(torch.randn(1, CHANNELS, *SHAPE))
    assert torch.isfinite(drawn).all()
    assert float(drawn[:, 0].std()) == pytest.approx(0.1, rel=0.1)
    assert float(drawn[:, 1].abs().max()) < 1e-6


def test_axes_shorter_than_the_filter_are_left_white() -> None:
    white = torch.randn(1, CHANNELS, 3, 2, 5)
    assert torch.equal(known().grained(white), white)


def trained(kind: str) -> Autoencoder:
    """An autoencoder with a fitted scale, and a texture that was fitted to noise of a deviation of 0.2."""
    config = {
        "kl": KLConfig(kind="kl", latent_channels=4, downsampling=FACTORS, trunk={"width": 8, "res_blocks": 1}),
        "vq": VQConfig(kind="vq", latent_channels=4, codebook_size=16, downsampling=FACTORS, trunk={"width": 8, "res_blocks": 1}),
        "fsq": FSQConfig(kind="fsq", downsampling=FACTORS, trunk={"width": 8, "res_blocks": 1}),
    }[kind]  # fmt: skip
    torch.manual_seed(0)
    model = build_autoencoder(config, CHANNELS).eval()
    model.start_from(noise())
    model.latent_mean.zero_()
    model.latent_std.fill_(1)
    return model


def noise(count: int = 6) -> Iterator[Tensor]:
    for seed in range(count):
        yield 0.2 * torch.randn(1, CHANNELS, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["kl", "vq", "fsq"])
@torch.no_grad()
def test_what_is_drawn_is_as_far_from_the_mean_as_images_are(kind: str) -> None:
    model = trained(kind)
    z, white = model.encode(next(noise())), torch.randn(1, CHANNELS, *SHAPE)
    torch.testing.assert_close(model.decode(z, white), model.decode(z), atol=1e-6, rtol=0)  # before it is fitted
    model.fit_texture(noise)
    drawn, mean = model.decode(z, white), model.decode(z)
    assert torch.equal(drawn, model.decode(z, white))
    torch.testing.assert_close(model.decode(z, 0 * white), mean, atol=1e-6, rtol=0)
    left = next(noise()) - mean
    assert float((drawn - mean).square().mean()) == pytest.approx(float(left.square().mean()), rel=0.1)


@torch.no_grad()
def test_a_volume_in_parts_has_the_grain_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("kl")
    model.fit_texture(noise)
    z, white = model.encode(next(noise())), torch.randn(1, CHANNELS, *SHAPE)
    whole = model.decode(z, white)
    monkeypatch.setattr(type(model.decoder), "TILE", 5)
    torch.testing.assert_close(model.decode(z, white), whole, atol=1e-4, rtol=0)


def test_a_trunk_without_texture_gives_its_mean() -> None:
    config = KLConfig(kind="kl", latent_channels=2, downsampling=4, trunk={"kind": "resnet", "channels": [8, 8], "res_blocks": 1})  # fmt: skip
    model = build_autoencoder(config, 1).eval()
    model.latent_mean.zero_()
    model.latent_std.fill_(1)
    model.fit_texture(noise)
    with torch.no_grad():
        z = torch.randn(1, 2, 4, 4, 4)
        assert torch.equal(model.decode(z, torch.randn(1, 1, 16, 16, 16)), model.decode(z))
