"""Populations of latents: interpolation along a case, drawing new members, and how coordinates go together.

A case of a slice model is a matrix ``(S, z)``: ``S`` slices of ``z`` latent coordinates each; a population is
``(N, S, z)``. Two ways of drawing a new member stand side by side. The published one (Amirrajab et al. 2022, sec. on
pathology synthesis, and their code) draws truncated normals and correlates them by Cholesky factors of Kendall's tau,
which mixes coordinates and so changes their marginals. The copula correlates ranks and leaves the marginals alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, stats

from latentsynth.errors import DataError

Array = NDArray[np.float64]

_SMALLEST_EIGENVALUE = 1e-6  # a correlation matrix of fewer cases than coordinates has zeros there


def equalise(latents: Array, slices: int) -> Array:
    """Brings a case to another number of slices: each coordinate along the slice axis by a cubic spline.

    Amirrajab et al. 2022 exclude cases with more slices than that; here they are interpolated downward.

    Args:
        latents: ``(n, z)``; with fewer than four slices the spline is of lower degree.
        slices: ``S``.

    Returns:
        ``(S, z)``; the first and the last slice stay what they are.

    Raises:
        DataError: There is no slice, or none is wanted.
    """
    latents = np.asarray(latents, dtype=np.float64)
    if not len(latents) or slices < 1:
        raise DataError(f"cannot bring {len(latents)} slices to {slices}: give at least one, and ask for at least one")
    if len(latents) == 1:
        return np.repeat(latents, slices, axis=0)
    spline = interpolate.make_interp_spline(np.linspace(0, 1, len(latents)), latents, k=min(3, len(latents) - 1))
    middle = np.array([0.5]) if slices == 1 else np.linspace(0, 1, slices)
    out: Array = spline(middle)
    return out


def between(start: Array, end: Array, steps: int) -> Array:
    """Straight line between two cases of equal shape, ends included, ``(steps + 1, ...)`` (ibid.).

    Raises:
        DataError: No step.
    """
    if steps < 1:
        raise DataError(f"{steps} steps lead nowhere: give at least 1")
    share = np.linspace(0, 1, steps + 1).reshape(-1, *[1] * np.ndim(start))
    out: Array = (1 - share) * np.asarray(start, np.float64) + share * np.asarray(end, np.float64)
    return out


def kendall(observations: Array) -> Array:
    """Kendall's tau between the columns of ``(n, D)``, ``(D, D)``; a constant column goes with none."""
    count = observations.shape[1]
    matrix = np.eye(count)
    for a in range(count):
        for b in range(a):
            tau = float(stats.kendalltau(observations[:, a], observations[:, b]).statistic)
            matrix[a, b] = matrix[b, a] = 0.0 if np.isnan(tau) else tau
    return matrix


def cholesky(correlation: Array) -> Array:
    """Lower factor of a correlation matrix; one that is not positive definite is replaced by its nearest by spectrum.

    Pairwise taus need not belong together; negative eigenvalues are raised to just above nothing and the diagonal
    brought back to 1 (Rebonato & Jaeckel 1999, sec. 3).
    """
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    if values[0] < _SMALLEST_EIGENVALUE:
        raised = (vectors * np.maximum(values, _SMALLEST_EIGENVALUE)) @ vectors.T
        scale = 1 / np.sqrt(np.diag(raised))
        correlation = np.asarray(raised * scale[:, None] * scale[None], dtype=np.float64)
    factor: Array = np.linalg.cholesky(correlation).astype(np.float64)
    return factor


def truncated_normal(population: Array, rng: np.random.Generator) -> Array:
    """Each coordinate by itself from a normal with the population's mean and deviation, cut at its least and largest.

    Args:
        population: ``(N, ...)``.
        rng: The only source of randomness.

    Returns:
        One member, ``(...)``. A coordinate that never varies keeps its value.
    """
    mean, deviation = population.mean(0), population.std(0, ddof=min(1, len(population) - 1))
    low, high = population.min(0), population.max(0)
    safe = np.where(deviation > 0, deviation, 1.0)
    u = rng.random(mean.shape)
    drawn = stats.truncnorm.ppf(u, (low - mean) / safe, (high - mean) / safe, loc=mean, scale=safe)
    out: Array = np.clip(np.where(deviation > 0, drawn, mean), low, high)
    return out


@dataclass(frozen=True)
class TruncatedNormals:
    """Truncated normals, correlated as published.

    Attributes:
        population: ``(N, S, z)``.
        coordinates: Cholesky factor of Kendall's tau between latent coordinates, over all slices of the population.
        slices: Cholesky factor of Kendall's tau between slices, over all coordinates of the population or a recipient.
    """

    population: Array
    coordinates: Array
    slices: Array

    @classmethod
    def of(cls, population: Array, recipient: Array | None = None) -> TruncatedNormals:
        """The factors of a population ``(N, S, z)``; slices go together as in ``recipient`` ``(S, z)`` if given."""
        _, slices, latent = population.shape
        along = population if recipient is None else recipient[None]
        return cls(
            population,
            cholesky(kendall(population.reshape(-1, latent))),
            cholesky(kendall(np.moveaxis(along, 1, 2).reshape(-1, slices))),
        )

    def draw(self, rng: np.random.Generator, correlated: bool = True) -> Array:
        """One member, ``(S, z)``; uncorrelated, it keeps within the population's least and largest."""
        drawn = truncated_normal(self.population, rng)
        if not correlated:
            return drawn
        out: Array = self.slices @ (drawn @ self.coordinates.T)
        return out


@dataclass(frozen=True)
class Copula:
    """A Gaussian copula of everything that describes a case, marginals as they were found.

    A draw weighs the normal scores of the members by independent standard normals: its covariance over coordinates is
    that of the scores (van der Waerden's rank correlation), which needs no factor and holds with any number of members.

    Attributes:
        ordered: The members' values per coordinate, ascending, ``(N, D)``.
        scores: Their normal scores, unit mean square per coordinate, ``(N, D)``.
    """

    ordered: Array
    scores: Array

    @classmethod
    def of(cls, members: Array) -> Copula:
        """The copula of members ``(N, D)``.

        Raises:
            DataError: Fewer than two members.
        """
        if len(members) < 2:
            raise DataError(f"a population of {len(members)} has no spread to draw from: give at least two cases")
        ranks = stats.rankdata(members, axis=0)
        scores = stats.norm.ppf((ranks - 0.5) / len(members))
        size = np.sqrt((scores**2).mean(0))
        return cls(np.sort(members, axis=0), scores / np.where(size > 0, size, 1.0))

    def draw(self, rng: np.random.Generator, correlated: bool = True) -> Array:
        """One member, ``(D,)``, each coordinate within the least and largest found."""
        count, width = self.scores.shape
        normal = rng.standard_normal(count) @ self.scores / np.sqrt(count) if correlated else rng.standard_normal(width)
        place = np.clip(stats.norm.cdf(normal) * count - 0.5, 0, count - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, count - 1)
        column = np.arange(width)
        out: Array = self.ordered[low, column] + (place - low) * (
            self.ordered[high, column] - self.ordered[low, column]
        )
        return out
