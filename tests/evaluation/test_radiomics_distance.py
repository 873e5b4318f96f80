"""The radiomics distance of planted textures: told from 10 patients a side as from 40."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentsynth.evaluation.features import Features
from latentsynth.evaluation.fidelity.comparison import FLOOR, compare
from latentsynth.evaluation.fidelity.radiomics import RegionRadiomics, body, regions
from latentsynth.types import Framing, Grid, Window

GRID = Grid((14, 14, 14), (2.0, 2.0, 2.0), (Window("fixed", -160.0, 240.0),))


def texture(rng: np.random.Generator, smooth: float = 0.8, noise: float = 0.0) -> np.ndarray:
    """A ball of smooth noise of a patient's own brightness and coarseness, in air."""
    own = smooth * rng.uniform(0.8, 1.2)
    field = ndimage.gaussian_filter(rng.normal(size=GRID.shape), own)
    field = rng.normal(0, 0.1) + 0.25 * field / field.std() + noise * rng.normal(size=GRID.shape)
    ball = sum((axis - 6.5) ** 2 for axis in np.indices(GRID.shape)) < 36
    return np.where(ball, np.clip(field, -0.9, 1), -1)[None]


def described(count: int, seed: int, **how: float) -> Features:
    rng, one = np.random.default_rng(seed), RegionRadiomics("body", GRID)
    images = [texture(rng, **how) for _ in range(count)]
    rows = [one.features(torch.tensor(np.concatenate([image, body(image)[None]])[None])).numpy()[0] for image in images]
    names = tuple(f"{seed}-{n}" for n in range(count))
    return Features(names, names, np.array(rows))


@pytest.fixture(scope="module")
def sets() -> dict[str, Features]:
    how = {"same": {}, "blurred": {"smooth": 1.3}, "noisy": {"noise": 0.12}}
    return {"real": described(80, 0), **{name: described(40, n, **one) for n, (name, one) in enumerate(how.items(), 1)}}


@pytest.mark.parametrize("count", [10, 40])
def test_texture_is_told_from_few_patients_as_from_many(sets: dict[str, Features], count: int) -> None:
    fakes = {name: one[range(count)] for name, one in sets.items() if name != "real"}
    found = compare(sets["real"][range(2 * count)], fakes, each=True)
    assert found.at == count
    beyond = {one.name: one.frechet for one in found.differences if one.other == FLOOR}
    assert beyond["same"].low < 0 < beyond["same"].high
    for fault in ("blurred", "noisy"):
        assert beyond[fault].low > 0
        assert beyond[fault].value > 3 * abs(beyond["same"].value)


def test_the_body_is_what_stands_out_of_the_air_and_what_it_encloses() -> None:
    shell = np.full((2, 32, 32, 32), -1.0)
    shell[1, 6:26, 6:26, 6:26] = 0.2
    shown = shell[1] > 0
    shell[1, 14:18, 14:18, 14:18] = -1  # air inside
    found = body(shell)  # whichever channel shows it
    assert found[ndimage.binary_erosion(shown, iterations=5)].all()
    assert not found[~ndimage.binary_dilation(shown)].any()
    assert body(np.full((1, 4, 4, 4), -1.0)).all()  # nothing stands out


def test_lesions_are_described_where_volumes_are_cropped_around_them() -> None:
    assert [one.region for one in regions(GRID, Framing())] == ["body"]
    assert [one.region for one in regions(GRID, Framing("lesion"))] == ["body", "lesion"]
    whole, lesion = regions(GRID, Framing("lesion"))
    images = torch.rand(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 1] = 0
    images[0, 1, 2:5, 2:5, 2:5] = 1
    found = lesion.features(images)
    assert torch.isfinite(found[0]).all()
    assert found[1].isnan().all()  # no lesion, no texture
    assert found.shape[1] == whole.features(images[:1]).shape[1] + 6  # its form
