"""Feature spaces: correlation over the foreground, copies found by every one of them, and doubt where voxels do not correspond."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentsynth.evaluation.memorization.spaces import (
    OWN,
    FeatureSpace,
    ForegroundVoxels,
    alignment,
    mask_space,
    own_space,
    remembered,
    voxel_space,
)
from latentsynth.metrics.neighbours import nearest
from latentsynth.metrics.structural import nearest_by_ssim

SHAPE = (16, 16, 16)


Cache = Callable[[np.ndarray], Any]


class Volumes(list[SimpleNamespace]):
    """Stands for a cache."""

    folder: Path

    def volume(self, n: int) -> SimpleNamespace:
        return self[n]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    def make(images: np.ndarray) -> Volumes:
        made = Volumes(SimpleNamespace(image=image, mask=None) for image in images)
        made.folder = tmp_path
        return made

    return make


def blobs(count: int, roam: float, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A round organ with texture of its own on black; its centre is within ``roam`` voxels of the middle, or beyond."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE)
    images = []
    for _ in range(count):
        centre = 7.5 + rng.uniform(-roam, roam, 3)
        away = (grid - centre[:, None, None, None] + 8) % 16 - 8  # content wraps around, as if anatomy lay anywhere
        texture = ndimage.gaussian_filter(rng.normal(size=(channels, *SHAPE)), (0, 1, 1, 1))
        inside = (away**2).sum(0) < 5.0**2
        images.append(np.where(inside, np.clip(texture, -0.5, 0.5), -1))
    return np.stack(images).astype(np.float32)


def rows(space: FeatureSpace, images: np.ndarray) -> np.ndarray:
    return space.extractor.features(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("channels", [1, 3])
def test_half_the_squared_distance_of_voxels_is_one_minus_correlation(channels: int) -> None:
    images, foreground = blobs(6, 1, channels), np.random.default_rng(1).random(SHAPE) < 0.3
    images = images * np.linspace(0.2, 0.9, 6, dtype=np.float32)[:, None, None, None, None] + 0.05
    features = ForegroundVoxels(foreground).features(torch.from_numpy(images)).double().numpy()
    squared = ((features[:, None] - features) ** 2).sum(2) / 2
    inside = images[..., foreground].astype(float)
    expected = 1 - np.mean([np.corrcoef(inside[:, c]) for c in range(channels)], axis=0)
    np.testing.assert_allclose(squared, expected, atol=1e-5)
    assert np.ptp(expected) > 0.3


def test_what_is_outside_the_foreground_does_not_count() -> None:
    images, foreground = blobs(2, 1), np.zeros(SHAPE, bool)
    foreground[4:12, 4:12, 4:12] = True
    changed = np.where(foreground, images, -images)
    one = ForegroundVoxels(foreground)
    assert torch.equal(one.features(torch.from_numpy(images)), one.features(torch.from_numpy(changed)))
    other = foreground.copy()
    other[0, 0, 0] = True
    assert one.fingerprint == ForegroundVoxels(foreground).fingerprint != ForegroundVoxels(other).fingerprint


def test_a_constant_volume_correlates_with_nothing() -> None:
    images = blobs(3, 1)
    images[1] = 0.1
    features = ForegroundVoxels(np.ones(SHAPE, bool)).features(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 0, 1], atol=1e-4)


def test_aligned_volumes_are_told_from_those_that_lie_anywhere() -> None:
    """Half of those that lie anywhere happen to be more alike in place: 40 coins are within 0.25 of that."""
    assert alignment(blobs(30, 1)) > 0.95
    assert alignment(blobs(40, 8)) == pytest.approx(0.5, abs=0.25)
    assert alignment(np.random.default_rng(0).normal(size=(60, 1, *SHAPE))) == pytest.approx(0.5, abs=0.25)


def test_alignment_by_hand() -> None:
    """Two volumes of one bright voxel each: at the same place they win, an eighth of the grid apart they lose."""
    for step, expected in ((0, 1.0), (2, 0.0)):
        images = np.zeros((2, 1, *SHAPE))
        images[0, 0, 8, 8, 8] = images[1, 0, 8 + step, 8, 8] = 1
        assert alignment(images) == expected


def test_only_volumes_that_lie_anywhere_are_doubted(cache: Cache) -> None:
    assert voxel_space(cache(blobs(30, 1))).doubt == ""
    doubtful = voxel_space(cache(blobs(60, 8))).doubt
    assert "volumes of different patients are not aligned" in doubtful
    assert "so voxels do not correspond" in doubtful
    assert all(own_space(name, cache(blobs(60, 8))).doubt == "" for name in OWN if name != "voxels")


def test_the_foreground_is_where_training_volumes_are_not_black(cache: Cache) -> None:
    images = blobs(20, 1)
    foreground = voxel_space(cache(images)).extractor.foreground.numpy()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(foreground, images.mean((0, 1)) > -0.95)
    assert 0.05 < foreground.mean() < 0.5
    nothing = voxel_space(cache(np.full((3, 1, *SHAPE), -1, np.float32)))
    assert nothing.extractor.foreground.all()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OWN)
def test_every_space_finds_the_training_case_that_was_copied(name: str, cache: Cache) -> None:
    training = blobs(8, 1, seed=3)
    space = own_space(name, cache(training))
    distances, found = space.search(rows(space, training[[5, 2]]), rows(space, training), 2)
    np.testing.assert_array_equal(found[:, 0], [5, 2])
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-3)
    assert (distances[:, 1] > 0.05).all()
    assert (space.name, space.wide) == (name, True)


def test_only_registration_sees_through_mirroring(cache: Cache) -> None:
    training = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(8, 1, 24, 24, 24)), (0, 0, 2, 2, 2))
    training = np.clip(training / training.std() / 2, -1, 1).astype(np.float32)
    near = {}
    for name in OWN:
        space = own_space(name, cache(training))
        mirrored = np.ascontiguousarray(training[[5], :, ::-1])
        distances, _ = space.search(rows(space, mirrored), rows(space, training), 2)
        near[name] = distances[0, 0] / distances[0, 1]
    assert near["registered"] < 0.2 < 0.8 < min(near["voxels"], near["ssim"])


def test_ssim_is_measured_on_the_shape_of_the_volumes(cache: Cache) -> None:
    """Of two channels, say; taken for another shape it would be another number."""
    training, queries = blobs(5, 1, 2), blobs(3, 1, 2, seed=1)
    space = own_space("ssim", cache(training))
    got = space.search(rows(space, queries), rows(space, training), 5)
    wanted = nearest_by_ssim(queries.reshape(3, -1), training.reshape(5, -1), 5, (2, *SHAPE))
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(got[1], wanted[1])


def test_slow_searches_are_remembered_by_what_they_compare(tmp_path: Path) -> None:
    """And give what the search itself gives, whatever was asked before."""
    asked: list[int] = []

    def slow(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(k)
        return nearest(queries, reference, k)

    search = remembered(slow, tmp_path, "slow")
    a, b = (np.random.default_rng(seed).normal(size=(9, 4)) for seed in (0, 1))
    for queries, reference, k in (
        (a, b, 1),
        (a, b, 2),
        (b, a, 2),
        (a, b, 1),
        (a, b, 5),
        (a[::-1], b, 1),
        (a, b[:1], 1),
    ):
        for got, wanted in zip(search(queries, reference, k), nearest(queries, reference, k), strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert asked[::2] == asked[1::2] == [2, 2, 5, 2, 1]  # nine queries are searched in two parts
    remembered(slow, tmp_path, "other version")(a, b, 1)
    assert len(asked) == 12


def test_masks_are_compared_by_overlap_as_they_lie_and_mirrored() -> None:
    masks = (blobs(6, 3) > -1).astype(np.float32)
    space = mask_space(masks.shape[2:])
    distances, found = space.search(rows(space, masks), rows(space, masks), 2)
    np.testing.assert_array_equal(found[:, 0], np.arange(6))
    assert (distances[:, 0] == 0).all()
    assert (found[:, 0] != found[:, 1]).all()

    def dice(a: np.ndarray, b: np.ndarray) -> float:
        return float(2 * np.logical_and(a, b).sum() / (a.sum() + b.sum()))

    ways = [masks[1], masks[1][:, ::-1], masks[1][:, :, ::-1]]
    alone = space.search(rows(space, masks[:1]), rows(space, masks[1:2]), 1)[0].item()
    assert alone == pytest.approx(1 - max(dice(masks[0], way) for way in ways))
    for axis in (1, 2):
        turned = np.flip(masks, 1 + axis).copy()
        distances, found = space.search(rows(space, turned), rows(space, masks), 1)
        assert (distances[:, 0] == 0).all()
        np.testing.assert_array_equal(found[:, 0], np.arange(6))
