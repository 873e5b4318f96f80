"""Sharpness of reconstructions: nothing lost is a share of 1, and what is planted is found in its octave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentsynth.autoencoders.sharpness import measures, shares, sharpness_table
from latentsynth.data.cache.volumes import Volume
from latentsynth.types import Domain, Framing, Grid, Labels, Window

SHAPE = (40, 40, 40)


@pytest.fixture(scope="module")
def domain() -> Domain:
    grid = Grid(SHAPE, (1.0, 1.0, 1.0), (Window("fixed", 0, 1),) * 2)
    return Domain(grid, Framing(), Labels((0, 1)), ("T1", "T2"), ((0.0, 1.0),) * 2)


@pytest.fixture(scope="module")
def volume() -> Volume:
    """Edges and texture in two channels."""
    rng = np.random.default_rng(0)
    rough = ndimage.gaussian_filter(rng.standard_normal((2, *SHAPE)), (0, 1, 1, 1))
    image = np.where(rough > 0, 0.4, -0.3) + 0.1 * rng.standard_normal((2, *SHAPE))
    return Volume(image.clip(-0.9, 0.9).astype(np.float32), None, ((0.0, 1.0),) * 2, 1.0)


def found(volume: Volume, image: np.ndarray, domain: Domain) -> dict[str, float]:
    """Shares of the first channel, by measure."""
    rows = np.exp(shares(volume, torch.from_numpy(image.astype(np.float32)), domain, (4, 4, 4)))
    assert rows.shape == (2, len(measures(domain)))
    return dict(zip(measures(domain), rows[0].tolist(), strict=True))


def test_what_lost_nothing_has_shares_of_one(volume: Volume, domain: Domain) -> None:
    assert found(volume, volume.image, domain) == pytest.approx(dict.fromkeys(measures(domain), 1.0))


def test_blur_takes_the_finest_octave_first_and_noise_adds_to_it(volume: Volume, domain: Domain) -> None:
    finest, middle, coarse = (f"power, {band}" for band in ("2 to 4 mm", "4 to 8 mm", "8 to 16 mm"))
    blurred = found(volume, ndimage.gaussian_filter(volume.image, (0, 0.7, 0.7, 0.7)), domain)
    assert blurred[finest] < 0.5
    assert blurred[finest] < blurred[middle] < blurred[coarse] <= 1.02
    noise = 0.1 * np.random.default_rng(1).standard_normal(volume.image.shape)
    noisy = found(volume, volume.image + noise, domain)
    assert noisy[finest] > 1.1
    assert noisy["kurtosis, 2 to 4 mm"] < 0.98


def test_planted_cells_show(volume: Volume, domain: Domain) -> None:
    blocks = volume.image.reshape(2, 10, 4, 10, 4, 10, 4).mean((2, 4, 6), keepdims=True)
    image = np.broadcast_to(blocks, (2, 10, 4, 10, 4, 10, 4)).reshape(volume.image.shape)
    assert found(volume, image, domain)["seams"] > 100
    checkered = volume.image.copy()
    checkered[:, ::4, ::4, ::4] += 0.2
    assert found(volume, checkered, domain)["pattern"] > 1.5


def test_the_table_holds_geometric_means(domain: Domain) -> None:
    sharp = np.log(np.full((2, 2, len(measures(domain))), 1.0))
    sharp[0, 1, 0], sharp[1, 1, 0] = np.log(0.5), np.log(2.0)
    sharp[:, 0, 1] = np.nan
    rows = sharpness_table(sharp, domain).rows
    assert len(rows) == 2 * len(measures(domain))
    assert rows[len(measures(domain))][2:] == pytest.approx((1.0, 0.5, 2.0))
    assert np.isnan(rows[1][2])
