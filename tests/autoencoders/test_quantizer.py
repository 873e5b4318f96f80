"""The codebook: nearest codes, restarts of dead ones, and what perplexity says about them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentsynth.autoencoders import KLAutoencoder, VQAutoencoder
from latentsynth.metrics.reconstruction import perplexity
from tests.helpers import TRUNK

CODES = 16


def build(codebooks: int, restart_below: float = 1.0, decay: float = 0.8) -> VQAutoencoder:
    torch.manual_seed(0)
    return VQAutoencoder(1, 8, [4, 4, 4], TRUNK, CODES, codebooks, 0.25, decay, restart_below).eval()


def raw(count: int = 2, cells: int = 4, seed: int = 1) -> Tensor:
    return torch.randn((count, 8, cells, cells, cells), generator=torch.Generator().manual_seed(seed))


def codebook(model: VQAutoencoder) -> Tensor:
    """All codes, ``(codebooks, codes, channels of a group)``."""
    codes = model.quantizer.codebook
    return codes if codes.ndim == 3 else codes[None]


@pytest.mark.parametrize("codebooks", [1, 2, 4])
@torch.no_grad()
def test_picks_the_nearest_code_of_each_group(codebooks: int) -> None:
    model = build(codebooks)
    codes, indices, _ = model.quantize(raw())
    assert indices.shape == (2, codebooks, 4, 4, 4)
    width = 8 // codebooks
    for book in range(codebooks):
        group = raw()[:, book * width : (book + 1) * width].movedim(1, -1)  # (B, i, j, k, channels of the group)
        nearest = torch.cdist(group.reshape(-1, width), codebook(model)[book]).argmin(1).view(2, 4, 4, 4)
        assert torch.equal(indices[:, book], nearest)
        chosen = codebook(model)[book][nearest].movedim(-1, 1)
        torch.testing.assert_close(codes[:, book * width : (book + 1) * width], chosen)
    assert len(indices.unique()) > 4


@pytest.mark.parametrize("codebooks", [1, 4])
@torch.no_grad()
def test_quantising_twice_is_quantising_once(codebooks: int) -> None:
    model = build(codebooks)
    codes, indices, commitment = model.quantize(raw())
    again, same, nothing = model.quantize(codes)
    torch.testing.assert_close(again, codes)
    assert torch.equal(same, indices)
    assert (codes - raw()).abs().mean() > 0.1
    assert nothing == pytest.approx(0, abs=1e-8)
    assert commitment >= 0


@torch.no_grad()
def test_decoding_removes_small_errors_of_a_sampler() -> None:
    model = build(4)
    codes, _, _ = model.quantize(raw())
    assert torch.equal(model.decode_raw(codes + 1e-4 * raw(seed=2)), model.decode_raw(codes))
    assert not torch.equal(model.decode_raw(codes + raw(seed=2)), model.decode_raw(codes))


def test_commitment_is_the_weighted_squared_distance_and_pulls_the_encoder() -> None:
    model = build(1, restart_below=0).train()
    latent = raw().requires_grad_()
    before = codebook(model)[0].clone()
    codes, indices, commitment = model.quantize(latent)
    nearest = before[indices[:, 0]].movedim(-1, 1)
    torch.testing.assert_close(commitment, 0.25 * (latent - nearest).square().mean())
    (gradient,) = torch.autograd.grad(commitment, latent, retain_graph=True)
    torch.testing.assert_close(gradient, 0.25 * 2 * (latent - nearest).detach() / latent.numel())
    (through,) = torch.autograd.grad(codes.sum(), latent)
    torch.testing.assert_close(through, torch.ones_like(through))  # straight through


@torch.no_grad()
def test_codes_move_to_the_mean_of_what_they_stand_for_in_training_alone() -> None:
    model = build(1, restart_below=0, decay=0.0)
    before = codebook(model).clone()
    _, indices, _ = model.quantize(raw())
    assert torch.equal(codebook(model), before)
    model.train().quantize(raw())
    rows = raw().movedim(1, -1).reshape(-1, 8)
    used = indices.unique().tolist()
    for code in used:
        torch.testing.assert_close(
            codebook(model)[0, code], rows[indices.flatten() == code].mean(0), atol=1e-4, rtol=1e-3
        )
    assert len(used) > 4


@pytest.mark.parametrize("codebooks", [1, 4])
@torch.no_grad()
def test_dead_codes_are_restarted(codebooks: int) -> None:
    usages = {}
    for restart_below in (0.0, 1.0):
        model = build(codebooks, restart_below).train()
        codes = codebook(model)
        codes[:, 1:] = 1e3  # out of reach: all but one are dead
        codes[:, 0] = 0
        model.quantizer._codebook.embed_avg.copy_(codes.view_as(model.quantizer._codebook.embed_avg))
        first = model.quantize(raw())[1]
        assert len(first.unique()) == 1
        for _ in range(20):
            _, indices, _ = model.quantize(raw())
        usages[restart_below] = float(perplexity(model._usage(indices)))
    assert usages[0.0] == pytest.approx(1)  # without restarts they stay dead
    assert usages[1.0] > CODES / 2


@torch.no_grad()
def test_perplexity_lies_between_one_code_and_all() -> None:
    assert perplexity(torch.full((3, CODES), 7.0)) == pytest.approx(CODES)
    single = torch.zeros(2, CODES)
    single[:, 3] = 9
    assert perplexity(single) == pytest.approx(1)
    assert perplexity(torch.tensor([[5.0, 5, 0, 0]])) == pytest.approx(2)
    mixed = torch.cat([single[:1], torch.ones(1, CODES)])
    assert perplexity(mixed) == pytest.approx((1 + CODES) / 2)  # the mean over codebooks
    random = torch.rand(4, CODES, generator=torch.Generator().manual_seed(0))
    assert 1 < perplexity(random) < CODES
    assert perplexity(random) == pytest.approx(float(perplexity(100 * random)))  # counts or shares


@pytest.mark.parametrize("codebooks", [1, 4])
@torch.no_grad()
def test_usage_counts_every_cell_once(codebooks: int) -> None:
    model = build(codebooks)
    image = torch.rand((2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(3)) * 2 - 1
    usage = model.code_usage(image)
    assert usage.shape == (codebooks, CODES)
    assert usage.sum(1).tolist() == [2 * 4**3] * codebooks
    _, indices, _ = model.quantize(model.moments(image).mean)
    for book in range(codebooks):
        assert torch.equal(usage[book].nonzero().flatten(), indices[:, book].unique())
    assert model(image).perplexity == pytest.approx(float(perplexity(usage)))


def test_a_model_without_codebook_has_no_usage() -> None:
    model = KLAutoencoder(1, 4, [4, 4, 4], TRUNK, 1.0)
    assert model.code_usage(torch.zeros(2, 1, 8, 8, 8)) is None


@torch.no_grad()
def test_low_precision_does_not_change_which_code_is_nearest() -> None:
    model = build(1)
    codes = codebook(model)
    codes[:] = 10 + 0.01 * torch.arange(CODES).view(1, -1, 1)  # bfloat16 has steps of 0.06 here
    wanted = torch.arange(64).view(1, 1, 4, 4, 4) % CODES
    latent = codes[0][wanted[:, 0]].movedim(-1, 1).contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, indices, _ = model.quantize(latent)
    assert torch.equal(indices, wanted)
