"""Populations of latents: what is drawn has the marginals and the dependence of what was found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from latentsynth.errors import DataError
from latentsynth.masks.latent_space import (
    Copula,
    TruncatedNormals,
    between,
    cholesky,
    equalise,
    kendall,
    truncated_normal,
)


def population(cases: int = 60, slices: int = 6, latent: int = 3, seed: int = 0) -> np.ndarray:
    """Cases whose slices go along with their neighbours, with marginals that are no normals."""
    rng = np.random.default_rng(seed)
    along = 0.9 ** np.abs(np.subtract.outer(np.arange(slices), np.arange(slices)))
    normal = np.linalg.cholesky(along) @ rng.standard_normal((cases, slices, latent))
    normal[..., 1] = 0.8 * normal[..., 0] + 0.6 * normal[..., 1]  # and coordinates with each other
    return np.exp(normal)


@given(degree=st.integers(0, 3), count=st.integers(4, 12), slices=st.integers(2, 20))
@settings(max_examples=30)
def test_a_cubic_path_is_brought_to_any_number_of_slices_exactly(degree: int, count: int, slices: int) -> None:
    powers = np.array([1.0, -2.0, 0.5, 3.0])[: degree + 1]

    def path(at: np.ndarray) -> np.ndarray:
        return np.polynomial.polynomial.polyval(at, powers)[:, None]

    got = equalise(path(np.linspace(0, 1, count)), slices)
    np.testing.assert_allclose(got, path(np.linspace(0, 1, slices)), atol=1e-9)


def test_equalising_keeps_the_ends_and_short_cases() -> None:
    case = np.random.default_rng(0).standard_normal((3, 2))
    assert np.allclose(equalise(case, 9)[[0, 4, 8]], case)
    assert np.allclose(equalise(case[:1], 5), case[0])
    with pytest.raises(DataError, match="cannot bring 0 slices"):
        equalise(case[:0], 5)


def test_the_way_between_two_cases_is_straight_and_includes_both() -> None:
    a, b = np.zeros((4, 2)), np.arange(8.0).reshape(4, 2)
    way = between(a, b, 4)
    assert np.array_equal(way[0], a)
    assert np.array_equal(way[-1], b)
    assert np.allclose(np.diff(way, axis=0), b / 4)
    with pytest.raises(DataError, match="lead nowhere"):
        between(a, b, 0)


def test_kendall_is_scipys_and_knows_constants() -> None:
    x = np.random.default_rng(1).standard_normal((30, 3))
    x[:, 2] = 4.0
    tau = kendall(x)
    assert tau[0, 1] == pytest.approx(stats.kendalltau(x[:, 0], x[:, 1]).statistic)
    assert np.array_equal(tau[2], [0, 0, 1])
    assert np.array_equal(tau, tau.T)


def test_a_factor_is_exact_where_the_matrix_is_one_and_near_where_it_is_not() -> None:
    good = 0.7 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert np.allclose(cholesky(good) @ cholesky(good).T, good)
    impossible = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    assert np.linalg.eigvalsh(impossible)[0] < 0
    factor = cholesky(impossible)
    assert np.allclose(np.diag(factor @ factor.T), 1)
    assert np.abs(factor @ factor.T - impossible).max() < 0.5


def test_truncated_normals_stay_within_the_population_and_have_its_moments() -> None:
    found = np.random.default_rng(0).uniform(-1, 3, (400, 2, 3))
    found[:, 0, 0] = 2.5  # never varies
    rng = np.random.default_rng(1)
    drawn = np.stack([truncated_normal(found, rng) for _ in range(2000)])
    assert (drawn >= found.min(0)).all()
    assert (drawn <= found.max(0)).all()
    assert (drawn[:, 0, 0] == 2.5).all()
    low, high = (-1 - 1) / found[:, 1, 1].std(), (3 - 1) / found[:, 1, 1].std()
    expected = stats.truncnorm(low, high, 1, found[:, 1, 1].std())
    assert stats.kstest(drawn[:, 1, 1], expected.cdf).statistic < 0.05


def test_the_copula_keeps_marginals_and_rank_correlations() -> None:
    members = population().reshape(60, -1)
    copula = Copula.of(members)
    rng = np.random.default_rng(0)
    drawn = np.stack([copula.draw(rng) for _ in range(1500)])
    worst = max(stats.ks_2samp(drawn[:, d], members[:, d]).statistic for d in range(members.shape[1]))
    assert worst < 0.08
    assert np.abs(stats.spearmanr(drawn).statistic - stats.spearmanr(members).statistic).max() < 0.12
    alone = np.stack([copula.draw(rng, correlated=False) for _ in range(1500)])
    assert np.abs(np.corrcoef(alone.T) - np.eye(members.shape[1])).max() < 0.15
    assert max(stats.ks_2samp(alone[:, d], members[:, d]).statistic for d in range(members.shape[1])) < 0.08


def test_the_published_way_correlates_slices_but_not_without_the_marginals() -> None:
    """Why there are two ways: the published one mixes coordinates, so their distribution is no longer that of the cases."""
    found = population()
    drawing, rng = TruncatedNormals.of(found), np.random.default_rng(0)
    drawn = np.stack([drawing.draw(rng) for _ in range(1500)])
    plain = np.stack([drawing.draw(rng, correlated=False) for _ in range(1500)])
    neighbours = [stats.kendalltau(x[:, 2, 0], x[:, 3, 0]).statistic for x in (found, drawn, plain)]
    assert neighbours[1] > 0.5 * neighbours[0] > 5 * abs(neighbours[2])
    assert (plain >= found.min(0)).all()
    assert (plain <= found.max(0)).all()
    ks = [stats.ks_2samp(x[:, 4, 0], found[:, 4, 0]).statistic for x in (drawn, plain)]
    assert ks[0] > 0.3  # the marginal is lost
    recipient = np.arange(18.0).reshape(6, 3)  # slices of one mind
    together = TruncatedNormals.of(found, recipient).slices
    assert np.allclose(together @ together.T, 1, atol=1e-3)


def test_draws_depend_on_the_generator_alone() -> None:
    found = population()
    for drawing in (TruncatedNormals.of(found), Copula.of(found.reshape(60, -1))):
        a, b, c = (drawing.draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_one_case_is_no_population() -> None:
    with pytest.raises(DataError, match="at least two cases"):
        Copula.of(np.zeros((1, 4)))
