"""Distance by parts: a part of a volume, or one of two mixed in it, is found; what volumes share without copying is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.metrics import parts
from latentsynth.metrics.parts import detail, nearest_by_parts

SIZE, TRAINED = 32, 5


def volume(seed: int, channels: int = 1) -> np.ndarray:
    """Anatomy that all share, and texture of one's own, in [-1, 1]."""
    where = np.linspace(-1, 1, SIZE)
    shared = np.exp(-4 * sum(np.meshgrid(where**2, where**2, where**2, indexing="ij")))
    noise = np.random.default_rng(seed).normal(size=(channels, SIZE, SIZE, SIZE))
    texture = ndimage.gaussian_filter(noise, (0, 1, 1, 1))
    return np.clip(shared + 0.3 * texture / texture.std() - 0.5, -1, 1).astype(np.float32)


def rows(*images: np.ndarray) -> np.ndarray:
    return np.stack([detail(image).ravel() for image in images])


def search(*queries: np.ndarray, k: int = 1, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    trained = rows(*(volume(seed, channels) for seed in range(TRAINED)))
    return nearest_by_parts(rows(*queries), trained, k, (channels, SIZE, SIZE, SIZE))


@pytest.fixture(scope="module")
def strangers() -> float:
    """The nearest that volumes of the same anatomy come which nobody copied."""
    return float(search(*(volume(100 + n) for n in range(8)))[0].min())


COPIES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "exact": lambda x, other: x,
    "mirrored left and right": lambda x, other: x[:, ::-1],
    "mirrored front and back": lambda x, other: x[:, :, ::-1],
    "inverted": lambda x, other: -x,
    "brighter where bright": lambda x, other: 2 * ((x + 1) / 2) ** 2.2 - 1,
    "moved": lambda x, other: ndimage.shift(x, (0, 3, -2, 1), order=0, mode="nearest"),
    "half of it": lambda x, other: np.concatenate([x[:, : SIZE // 2], other[:, SIZE // 2 :]], 1),
    "a third of it": lambda x, other: np.concatenate([x[..., : SIZE // 3], other[..., SIZE // 3 :]], 3),
    "mixed with another": lambda x, other: (x + other) / 2,
    "blurred": lambda x, other: ndimage.gaussian_filter(x, (0, 1, 1, 1)),
    "with noise": lambda x, other: x + np.random.default_rng(0).normal(0, 0.1, x.shape),
}


@pytest.mark.parametrize("disguise", COPIES)
def test_disguised_copies_lie_nearer_to_their_own_than_strangers_to_anybody(disguise: str, strangers: float) -> None:
    made = [COPIES[disguise](volume(n), volume(200 + n)).astype(np.float32) for n in range(TRAINED)]
    distance, row = search(*made)
    assert row[:, 0].tolist() == list(range(TRAINED))
    assert distance.max() < 0.9 * strangers


def test_an_exact_copy_has_no_distance_and_a_half_hardly_any(strangers: float) -> None:
    whole, half = (search(COPIES[name](volume(2), volume(9)))[0][0, 0] for name in ("exact", "half of it"))
    assert whole == pytest.approx(0, abs=2e-3)
    assert half < 0.3 < strangers


def test_a_mixture_of_two_training_cases_is_near_to_both(strangers: float) -> None:
    distance, row = search((volume(1) + volume(3)) / 2, k=TRAINED)
    assert sorted(row[0, :2].tolist()) == [1, 3]
    assert distance[0, 1] < 0.9 * strangers < distance[0, 2]


def test_padding_that_all_volumes_share_makes_none_alike() -> None:
    def padded(seed: int) -> np.ndarray:
        image = volume(seed)
        image[:, :6], image[..., -5:] = -1, -1
        return image

    trained = rows(*(padded(n) for n in range(TRAINED)))
    distance, _ = nearest_by_parts(rows(padded(50)), trained, 1, (1, SIZE, SIZE, SIZE))
    assert distance[0, 0] > 0.9


def test_constant_volumes_are_no_copies_of_anything() -> None:
    distance, _ = search(np.zeros((1, SIZE, SIZE, SIZE), np.float32))
    assert distance[0, 0] == pytest.approx(2**0.5)


def test_channels_count_together() -> None:
    mixed = np.concatenate([volume(1, 2)[:1], volume(60, 2)[1:]])
    assert search(mixed, channels=2)[1][0, 0] == 1


def test_the_few_displacements_that_are_looked_at_are_those_of_a_whole_inverse_transform() -> None:
    x, y = (torch.randn(2, 1, 9, 8, 7, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    reach, padded = [2, 1, 2], [11, 9, 9]
    spectra = torch.fft.rfftn(y, s=padded, dim=(2, 3, 4))
    heights, places = parts._peaks(x[0], spectra, padded, reach)
    product = (spectra * torch.fft.rfftn(x[0], s=padded, dim=(1, 2, 3)).conj()).sum(1)
    whole = torch.fft.irfftn(product, s=padded, dim=(1, 2, 3)).abs()
    for n in range(2):
        found = [whole[n][tuple((place - torch.tensor(reach)).tolist())] for place in places[n]]
        assert heights[n].tolist() == pytest.approx([float(v) * 11 * 9 * 9 for v in found], rel=1e-4)


def test_large_volumes_are_thinned_out_to_a_shape_that_depends_on_theirs_alone() -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (1, 96, 20, 70)).astype(np.float32)
    assert detail(image).shape == detail(np.zeros_like(image)).shape == (1, 48, 10, 35)


@pytest.mark.parametrize(("k", "length"), [(0, 0), (TRAINED + 1, 0), (1, 1)])
def test_what_cannot_be_searched_is_refused(k: int, length: int) -> None:
    trained = rows(*(volume(seed) for seed in range(TRAINED)))
    with pytest.raises(DataError):
        nearest_by_parts(trained[:1, length:], trained, k, (1, SIZE, SIZE, SIZE))
