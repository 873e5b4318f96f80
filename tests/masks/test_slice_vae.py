"""Masks from a VAE of slices: paths through latent space make whole lesions, of the class and on the way asked for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentsynth.config import SliceSamplingConfig
from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.masks import LabelMap, Wanted
from latentsynth.masks.label_vae import LabelVAE, vae_terms
from latentsynth.masks.pathology import STRATA, population_of
from latentsynth.masks.slice_vae import SliceVAEMaker, describe
from latentsynth.provenance import Ledger
from latentsynth.types import Domain, Framing, Grid, Labels

SHAPE = (16, 16, 20)
DOMAIN = Domain(Grid(SHAPE, (2.0, 2.0, 3.0)), Framing(), Labels((0, 7), ("background", "lesion")), (), ())
AFFINE = np.array([[2.0, 0, 0, -5], [0, 2.0, 0, 7], [0, 0, 3.0, 11], [0, 0, 0, 1]])


def lesions(count: int = 24, seed: int = 0) -> list[np.ndarray]:
    """Ellipsoids of many sizes and places, cut along the last axis."""
    rng = np.random.default_rng(seed)
    at = np.indices(SHAPE)
    found = []
    for _ in range(count):
        size = rng.uniform(2, 5)
        centre = [rng.uniform(6, 10), rng.uniform(6, 10), rng.uniform(8, 12)]
        radii = [size, size * rng.uniform(0.7, 1.2), 1.3 * size]
        inside = sum(((x - c) / r) ** 2 for x, c, r in zip(at, centre, radii, strict=True)) < 1
        found.append(inside.astype(np.uint8))
    return found


@pytest.fixture(scope="module")
def maker() -> SliceVAEMaker:
    """A model trained for some seconds, with its population."""
    torch.manual_seed(0)
    vae, cases = LabelVAE(SHAPE[:2], 2, (8, 16), 32, 4), lesions()
    slices = np.concatenate([np.moveaxis(case, 2, 0)[case.any((0, 1))] for case in cases])
    hot = torch.nn.functional.one_hot(torch.from_numpy(slices).long(), 2).movedim(-1, 1).float()
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(150):
        batch = hot[torch.randint(len(hot), (32,))]
        logits, mean, log_variance = vae(batch, torch.randn(32, 4))
        terms = vae_terms(logits, batch, mean, log_variance)
        optimizer.zero_grad()
        (terms["cross_entropy"] + 0.5 * terms["divergence"].sum()).backward()
        optimizer.step()
    vae.eval()
    latents, extents = zip(*(describe(vae, case, 2, 12) for case in cases), strict=True)
    volumes = [float(case.sum()) for case in cases]
    ids = [f"case-{n}" for n in range(len(cases))]
    population = population_of(np.stack(latents), np.stack(extents), ids, volumes, {})
    return SliceVAEMaker(
        domain=DOMAIN, affine=AFFINE, volume_ml=(0.1, 9.0), sampling=SliceSamplingConfig(), vae=vae,
        population=population, slice_axis=2,
    )  # fmt: skip


def sampling(maker: SliceVAEMaker, **settings: object) -> SliceVAEMaker:
    return SliceVAEMaker(
        domain=DOMAIN, affine=AFFINE, volume_ml=maker.volume_ml, vae=maker.vae, population=maker.population, slice_axis=2,
        sampling=SliceSamplingConfig.model_validate(settings),
    )  # fmt: skip


def made(maker: SliceVAEMaker, count: int = 40) -> list[LabelMap]:
    return [one for one in maker.make(range(count), Wanted()) if isinstance(one, LabelMap)]


def neighbour_dice(maps: list[LabelMap]) -> float:
    """Mean Dice of slices that lie next to each other, where either holds something."""
    scores = []
    for one in maps:
        stack = np.moveaxis(one.values > 0, 2, 0)
        for a, b in pairwise(stack):
            if a.any() or b.any():
                scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(scores))


def test_a_described_case_is_decoded_where_it_was(maker: SliceVAEMaker) -> None:
    scores = []
    for case in lesions(count=6, seed=1):
        again = maker.decode(*describe(maker.vae, case, 2, 12))
        scores.append(2 * (case & again).sum() / (case.sum() + again.sum()))
    assert np.mean(scores) > 0.75


@pytest.mark.parametrize("method", ["copula", "truncated_normal"])
def test_neighbouring_slices_go_together_only_if_they_are_correlated(maker: SliceVAEMaker, method: str) -> None:
    together, alone = (made(sampling(maker, method=method, correlated=c)) for c in (True, False))
    assert neighbour_dice(together) > neighbour_dice(alone)  # the published claim; how much depends on the little model


def test_samples_of_the_copula_are_lesions_as_large_as_those_of_the_cases(maker: SliceVAEMaker) -> None:
    real = np.array([case.sum() for case in lesions()])
    maps = made(maker)
    volumes = np.array([(one.values > 0).sum() for one in maps])
    assert (volumes > 0).mean() > 0.9
    assert 0.5 < np.median(volumes) / np.median(real) < 2
    assert set(np.unique([one.values for one in maps])) == {0, 7}
    whole = []
    for one in maps:
        parts, count = ndimage.label(one.values > 0, np.ones((3, 3, 3)))
        if count:
            whole.append(np.bincount(parts.ravel())[1:].max() / (parts > 0).sum())
    assert np.mean(whole) > 0.9  # one lesion each, as in the cases, not a piece per slice


def test_a_class_is_sampled_by_itself(maker: SliceVAEMaker) -> None:
    assert maker.population.classes == STRATA
    assert maker.population.member.sum(1).tolist() == [8, 8, 8]
    sizes = [np.median([(m.values > 0).sum() for m in made(sampling(maker, population=name))]) for name in STRATA]
    assert sizes[0] < sizes[1] < sizes[2]
    with pytest.raises(ConfigError, match="unknown class of masks 'huge': choose one of large, medium, small"):
        made(sampling(maker, population="huge"))


def test_a_recipient_is_led_towards_a_class(maker: SliceVAEMaker) -> None:
    small = min(lesions(), key=lambda case: case.sum())
    recipient = LabelMap("him", (small * 7).astype(np.int16), AFFINE, ("patient-3",))
    for method in ("copula", "truncated_normal"):
        way = sampling(maker, method=method).towards(recipient, "large", seed=1, steps=5)
        assert len(way) == 6
        assert {one.parents for one in way} == {("patient-3",)}
        first = maker.decode(*describe(maker.vae, small, 2, 12))
        assert np.array_equal(way[0].values > 0, first > 0)
        if method == "copula":
            assert way[-1].volume_ml([7]) > 1.5 * way[0].volume_ml([7])


def test_the_way_between_two_cases_starts_at_one_and_ends_at_the_other(maker: SliceVAEMaker) -> None:
    a, b = (
        LabelMap(name, (case * 7).astype(np.int16), AFFINE, (name,))
        for name, case in zip("ab", lesions(), strict=False)
    )
    way = maker.between(a, b, 4)
    back = maker.between(b, a, 4)
    for one, other in zip(way, reversed(back), strict=True):
        assert np.array_equal(one.values, other.values)
    assert way[0].parents == ("a", "b")
    assert np.array_equal(way[0].affine, AFFINE)
    with pytest.raises(DataError, match="without any label"):
        maker.between(a, LabelMap("nobody", np.zeros(SHAPE, np.int16), AFFINE), 4)


def test_a_mask_is_that_of_its_seed_whatever_the_batch(maker: SliceVAEMaker) -> None:
    alone, among = maker.make([5], Wanted()), maker.make([4, 5, 6], Wanted())
    assert np.array_equal(alone[0].values, among[1].values)
    assert not np.array_equal(among[0].values, among[1].values)


def test_it_comes_back_from_disk_with_its_population(maker: SliceVAEMaker, tmp_path: Path) -> None:
    maker.save(tmp_path / "c", Ledger(), {})
    again = SliceVAEMaker.from_pretrained(tmp_path / "c")
    assert np.array_equal(made(again, 3)[2].values, made(maker, 3)[2].values)
    assert np.array_equal(again.affine, AFFINE)
    other = SliceVAEMaker.from_pretrained(tmp_path / "c", population="small")
    assert other.fingerprint != again.fingerprint  # what is sampled otherwise is named otherwise
    assert "case-" not in (tmp_path / "c/population/config.json").read_text()  # nobody is named
    with pytest.raises(ConfigError, match="unknown key metod"):
        SliceVAEMaker.from_pretrained(tmp_path / "c", metod="copula")
    (tmp_path / "c/population/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="part population"):
        SliceVAEMaker.from_pretrained(tmp_path / "c")


def test_classes_must_be_of_training_cases() -> None:
    rows = (np.zeros((3, 4, 2)), np.zeros((3, 2)), ["a", "b", "c"], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="class ill names d, which is no training case"):
        population_of(*rows, {"ill": ["a", "d"]})
    with pytest.raises(DataError, match="class ill has 1 case"):
        population_of(*rows, {"ill": ["a"]})
    found = population_of(*rows, {"ill": ["c", "a"]})
    assert found.member.tolist() == [[1, 0, 1]]
