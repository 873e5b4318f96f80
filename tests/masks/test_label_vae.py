"""The network of label VAEs, its loss, and sampling from the prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentsynth.config import LabelSamplingConfig
from latentsynth.masks import LabelMap, Wanted
from latentsynth.masks.label_vae import LabelVAE, LabelVAEMaker, vae_terms
from latentsynth.types import Domain, Framing, Grid, Labels

SHAPE = (8, 16, 8)


@pytest.mark.parametrize(("shape", "coarse"), [((16, 8), False), ((16, 8), True), (SHAPE, False), (SHAPE, True)])
def test_any_grid_comes_back_in_its_own_shape(shape: tuple[int, ...], coarse: bool) -> None:
    vae = LabelVAE(shape, 3, (4, 6, 8), 16, 5, coarse)
    mask = torch.zeros(2, 3, *shape)
    mask[:, 0] = 1
    logits, mean, log_variance = vae(mask, torch.zeros(2, 5))
    assert logits.shape == mask.shape
    assert mean.shape == log_variance.shape == (2, 5)
    assert torch.allclose(logits, vae.decode(mean))  # no noise: the mean is decoded
    (logits.sum() + mean.sum() + log_variance.sum()).backward()
    assert all(p.grad is not None for p in vae.parameters())


def test_the_terms_are_their_closed_forms() -> None:
    rng = torch.Generator().manual_seed(0)
    index = torch.randint(3, (2, 4, 4), generator=rng)
    mask = torch.nn.functional.one_hot(index, 3).movedim(-1, 1).float()
    sure, mean, log_variance = 50 * mask, torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.zeros(2, 2)
    terms = vae_terms(sure, mask, mean, log_variance)
    assert float(terms["cross_entropy"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["dice"]) == pytest.approx(0, abs=1e-6)
    assert terms["divergence"].tolist() == [0.0, 2.0]  # m^2 / 2
    unsure = vae_terms(torch.zeros_like(mask), mask, mean, torch.full((2, 2), np.log(4.0)))
    assert float(unsure["cross_entropy"]) == pytest.approx(16 * np.log(3), rel=1e-5)  # summed over cells
    assert unsure["divergence"][0] == pytest.approx(0.5 * (4 - 1 - np.log(4)))
    background = torch.zeros(1, 3, 4, 4)
    background[:, 0] = 1
    assert float(vae_terms(0 * background, background, mean[:1], log_variance[:1])["dice"]) == 0  # nothing to overlap


@pytest.fixture(scope="module")
def maker() -> LabelVAEMaker:
    """A model that was trained on balls of any size for some seconds."""
    torch.manual_seed(0)
    at = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 - n / 2 for n in SHAPE), indexing="ij"))
    radii = torch.linspace(1.5, 3.5, 16)
    inside = torch.stack([at.square().sum(0) < r**2 for r in radii])
    hot = torch.nn.functional.one_hot(inside.long(), 2).movedim(-1, 1).float()
    vae = LabelVAE(SHAPE, 2, (8, 16), 16, 2, coarse=False)
    optimizer = torch.optim.Adam(vae.parameters(), 5e-3)
    for _ in range(120):
        logits, mean, log_variance = vae(hot, torch.randn(16, 2))
        terms = vae_terms(logits, hot, mean, log_variance)
        optimizer.zero_grad()
        (terms["cross_entropy"] + 0.5 * terms["divergence"].sum() + 20 * terms["dice"]).backward()
        optimizer.step()
    domain = Domain(Grid(SHAPE, (2.0, 2.0, 2.0)), Framing(), Labels((0, 4)), (), ())
    return LabelVAEMaker(
        domain=domain,
        affine=np.diag([2.0, 2, 2, 1]),
        volume_ml=(0.1, 1.5),
        sampling=LabelSamplingConfig(),
        vae=vae.eval(),
    )


def volumes(maker: LabelVAEMaker, seeds: range) -> list[float]:
    return [one.volume_ml([4]) for one in maker.make(seeds, Wanted()) if isinstance(one, LabelMap)]


def test_samples_of_the_prior_are_balls_of_many_sizes(maker: LabelVAEMaker) -> None:
    found = volumes(maker, range(60))
    assert np.mean(np.array(found) > 0) > 0.9
    assert 0.05 < np.percentile(found, 10) < np.percentile(found, 90) < 2
    assert np.std(np.log([v for v in found if v])) > 0.3
    narrow = LabelVAEMaker(
        domain=maker.domain, affine=maker.affine, volume_ml=maker.volume_ml, vae=maker.vae,
        sampling=LabelSamplingConfig(spread=0.1),
    )  # fmt: skip
    assert np.std(volumes(narrow, range(60))) < 0.5 * np.std(found)


def test_scores_count_empty_masks(maker: LabelVAEMaker) -> None:
    got = maker.scores(range(20))
    found = volumes(maker, range(20))
    assert got["empty"] == pytest.approx(np.mean(np.array(found) == 0))
    assert got["volume_ml"] == pytest.approx(np.mean([v for v in found if v]))
    with torch.no_grad():
        blind = LabelVAE(SHAPE, 2, (8, 16), 16, 2).eval()
        blind.decoder[-1].bias.copy_(torch.tensor([50.0, -50.0]))
    nothing = LabelVAEMaker(
        domain=maker.domain, affine=maker.affine, volume_ml=maker.volume_ml, sampling=LabelSamplingConfig(), vae=blind
    )
    assert nothing.scores(range(4))["empty"] == 1


def test_a_mask_is_that_of_its_seed_whatever_the_batch(maker: LabelVAEMaker) -> None:
    alone, among = maker.make([5], Wanted()), maker.make([4, 5, 6], Wanted())
    assert np.array_equal(alone[0].values, among[1].values)
