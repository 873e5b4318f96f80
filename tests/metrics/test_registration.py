"""Registered distance: small moves of a volume are undone, and none of them turns one volume into another."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from latentsynth.errors import DataError
from latentsynth.metrics.registration import describe, nearest_by_registration, rotations

SIZE = 24


def volume(seed: int, channels: int = 1) -> np.ndarray:
    """Smooth random content in [-1, 1]."""
    noise = np.random.default_rng(seed).normal(size=(channels, SIZE, SIZE, SIZE))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 2))
    return np.clip(smooth / smooth.std() / 2, -1, 1).astype(np.float32)


def turned(image: np.ndarray, degrees: float, axes: tuple[int, int]) -> np.ndarray:
    return ndimage.rotate(image, degrees, axes=axes, reshape=False, order=1, mode="nearest")


def scaled(image: np.ndarray, factor: float) -> np.ndarray:
    """About the middle of the grid."""
    offset = (SIZE - 1) / 2 * (1 - 1 / factor)
    matrix, shift = np.diag([1, *[1 / factor] * 3]), np.array([0, *[offset] * 3])
    return ndimage.affine_transform(image, matrix, shift, order=1, mode="nearest")


MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned by 5 degrees": lambda x: turned(x, 5, (1, 2)),
    "turned by -10 degrees about another axis": lambda x: turned(x, -10, (2, 3)),
    "flipped": lambda x: x[:, ::-1],
    "flipped and turned": lambda x: turned(x[:, ::-1], 5, (1, 3)),
    "shifted": lambda x: ndimage.shift(x, (0, 2, -1, 1), order=1, mode="nearest"),
    "mirrored front-back": lambda x: x[:, :, ::-1],
    "turned by 20 degrees": lambda x: turned(x, 20, (1, 2)),
    "zoomed .8": lambda x: scaled(x, 0.8),
    "inverted": lambda x: -x,
    "inverted and turned": lambda x: -turned(x, 5, (1, 2)),
    "scaled up": lambda x: scaled(x, 1.1),
    "scaled down": lambda x: scaled(x, 1 / 1.1),
    "with noise": lambda x: x + np.random.default_rng(0).normal(0, 0.1, x.shape),
}


def rows(*images: np.ndarray) -> np.ndarray:
    return np.concatenate([describe(image).reshape(1, -1) for image in images])


def search(queries: np.ndarray, reference: np.ndarray, k: int = 1, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    side = SIZE // 2
    return nearest_by_registration(queries, reference, k, (channels, side, side, side))


def still(a: np.ndarray, b: np.ndarray) -> float:
    """The same distance without any registration."""
    return math.sqrt(2 * (1 - float(np.corrcoef(a, b)[0, 1])))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_undone(name: str, channels: int) -> None:
    """A moved volume finds its original, at a fifth of the distance of strangers and less than it would lying still."""
    images = [volume(seed, channels) for seed in range(4)]
    query, reference = rows(MOVES[name](images[2])), rows(*images)
    distances, found = search(query, reference, 4, channels)
    assert found[0, 0] == 2
    assert distances[0, 0] < 0.2 * distances[0, 1]
    assert distances[0, 0] < 0.7 * still(query[0], reference[2]) or name == "with noise"


def test_a_volume_equals_itself_in_any_contrast() -> None:
    reference = rows(*(volume(seed) for seed in range(3)))
    for query in (reference, 0.4 * reference - 0.3):
        distances, found = search(query, reference, 3)
        np.testing.assert_array_equal(found[:, 0], [0, 1, 2])
        np.testing.assert_allclose(distances[:, 0], 0, atol=2e-3)  # float32's 1 - r
        assert (distances[:, 1] > 0.5).all()
        assert (np.diff(distances, axis=1) >= 0).all()


def test_a_copy_of_a_patient_with_an_empty_channel_is_found() -> None:
    """The channel that was never scanned has no correlation, which must not make strangers of equal volumes."""
    first, second = volume(0, 2), volume(1, 2)
    first[1] = -1
    distance, found = search(rows(first), rows(second, first), channels=2)
    assert found[0, 0] == 1
    assert distance[0, 0] < 0.01
    assert search(rows(second), rows(first), channels=2)[0][0, 0] > 0.5


def test_roles_may_be_swapped() -> None:
    """Which of two is moved matters little, for copies and for strangers."""
    a, b = volume(0), volume(1)
    for one, other, tolerance in ((a, MOVES["turned by 5 degrees"](a), 0.1), (a, b, 0.25)):
        first, second = search(rows(one), rows(other))[0].item(), search(rows(other), rows(one))[0].item()
        assert first == pytest.approx(second, abs=tolerance)


def test_strangers_are_never_nearer_than_they_lie() -> None:
    """Registration starts where they lie, over the inner voxels, and keeps the best; distances stay within [0, 2]."""
    images = rows(*(volume(seed) for seed in range(5)))
    inner = images.reshape(5, 12, 12, 12)[:, 1:-1, 1:-1, 1:-1].reshape(5, -1)
    distances, _ = search(images[:1], images[1:], 1)
    assert 0.5 < distances[0, 0] <= min(still(inner[0], other) for other in inner[1:]) + 1e-6


def test_large_moves_make_another_volume() -> None:
    """Turned by 90 degrees, or mirrored up and down, which no augmentation makes."""
    image = volume(3)
    for moved in (np.rot90(image, axes=(1, 2)), image[:, :, :, ::-1]):
        assert search(rows(moved), rows(image))[0].item() > 0.7
    side = SIZE // 2
    upside = nearest_by_registration(rows(image[:, :, :, ::-1]), rows(image), 1, (1, side, side, side), mirror=(2,))
    assert upside[0].item() < 0.2


def test_neighbours_do_not_depend_on_company() -> None:
    """Queries are registered one by one, and rows keep their numbers whatever their order."""
    reference, queries = (
        rows(*(volume(seed) for seed in range(6))),
        rows(*(MOVES["shifted"](volume(n)) for n in (4, 1))),
    )
    together = search(queries, reference)
    np.testing.assert_array_equal(together[1], [[4], [1]])
    for n in range(2):
        np.testing.assert_allclose(search(queries[n : n + 1], reference)[0], together[0][n : n + 1], rtol=1e-4)
    np.testing.assert_array_equal(search(queries, reference[::-1].copy())[1], [[1], [4]])


def test_rotations_are_those_of_scipy() -> None:
    angles = np.random.default_rng(0).uniform(-3, 3, (20, 3))
    got = rotations(torch.from_numpy(angles)).numpy()
    np.testing.assert_allclose(np.linalg.det(got), 1)
    np.testing.assert_allclose(got @ got.transpose(0, 2, 1), np.broadcast_to(np.eye(3), got.shape), atol=1e-12)
    for matrix, turn in zip(got, angles, strict=True):
        reference = Rotation.from_euler("XYZ", turn * [1, -1, 1]).as_matrix()
        np.testing.assert_allclose(matrix, reference, atol=1e-12)


@pytest.mark.parametrize(("shape", "step"), [((24, 24, 24), 2), ((40, 20, 90), 3), ((128, 64, 64), 4)])
def test_description_is_smooth_and_small(shape: tuple[int, int, int], step: int) -> None:
    """What stays: constants and slow waves. What goes: the finest detail."""
    got = describe(np.full((2, *shape), 0.3))
    assert got.shape == (2, *(-(-n // step) for n in shape))
    np.testing.assert_allclose(got, 0.3, atol=1e-6)
    grid = np.indices(shape).sum(0)
    assert np.abs(describe((-1.0) ** grid[None])[:, 1:-1, 1:-1, 1:-1]).max() < 0.01
    slow = np.sin(2 * np.pi * np.arange(shape[0]) / shape[0])[None, :, None, None] * np.ones((1, *shape))
    np.testing.assert_allclose(describe(slow), slow[:, ::step, ::step, ::step], atol=0.15)


def test_what_cannot_be_compared_is_refused() -> None:
    few = np.zeros((3, 512))
    for bad, shape in ((few[:, :500], (1, 8, 8, 8)), (few, (2, 8, 8, 8))):
        with pytest.raises(DataError, match="are not volumes of shape"):
            nearest_by_registration(bad, few, 1, shape)
    for k in (0, 4):
        with pytest.raises(DataError, match=f"{k} neighbours among 3 volumes do not exist"):
            nearest_by_registration(few, few, k, (1, 8, 8, 8))
