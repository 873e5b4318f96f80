"""Nearest neighbours by what images and label maps show: structural similarity, and overlap of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from latentsynth.errors import DataError
from latentsynth.metrics.neighbours import check_count

_RANGE = 2.0  # images live in [-1, 1]
_WINDOW, _STRIDE = 7, 2
_CHUNK = 1 << 24  # voxels of the reference that are compared at a time


def nearest_by_ssim(
    queries: np.ndarray, reference: np.ndarray, k: int, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The reference volumes of the highest structural similarity (Wang et al. 2004).

    Windows are cubes of 7 voxels (of the whole axis where it is shorter) with equal weights and unbiased covariances,
    as in scikit-image's default, at every second voxel; channels are averaged. Values are moved to [0, 2] first, the same
    as [0, 1] with a data range of 1, since the luminance term is made for values from 0. Time grows with pairs.

    Args:
        queries: Volumes in [-1, 1] as rows, shape ``(N, C I J K)``.
        reference: Shape ``(M, C I J K)``.
        k: How many neighbours.
        shape: ``(C, I, J, K)``.

    Returns:
        ``1 - SSIM``, ascending, and rows of the reference, both ``(N, k)``.
    """
    _check(queries, reference, k)
    window = [min(_WINDOW, n) for n in shape[1:]]
    unbias = float(np.prod(window)) / max(float(np.prod(window)) - 1, 1)
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    x, y = (torch.from_numpy(np.require(a, np.float32, ["C", "W"])).view(-1, *shape) + 1 for a in (queries, reference))
    step = max(1, _CHUNK // y[0].numel())
    found = torch.empty(len(x), len(y), dtype=torch.float64)
    for start in range(0, len(y), step):
        part = y[start : start + step]
        my = _pool(part, window)
        vy = unbias * (_pool(part * part, window) - my * my)
        for n, one in enumerate(x):
            mx = _pool(one[None], window)
            vx = unbias * (_pool((one * one)[None], window) - mx * mx)
            covariance = unbias * (_pool(one * part, window) - mx * my)
            top = (2 * mx * my + c1) * (2 * covariance + c2)
            bottom = (mx * mx + my * my + c1) * (vx + vy + c2)
            found[n, start : start + step] = 1 - (top / bottom).flatten(1).double().mean(1)
    return _smallest(found, k)


def nearest_by_dice(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The reference label maps of the highest overlap.

    Args:
        queries: Label indices as rows, 0 for background, shape ``(N, I J K)``.
        reference: Shape ``(M, I J K)``.
        k: How many neighbours.

    Returns:
        ``1 - Dice`` with Dice = 2 (voxels of equal label) / (labelled voxels of both), over all labels but background
        (two empty maps have Dice 1), ascending, and rows of the reference, both ``(N, k)``.
    """
    _check(queries, reference, k)
    x, y = (torch.from_numpy(np.ascontiguousarray(a, np.uint8)) for a in (queries, reference))
    labels = sorted((set(x.unique().tolist()) | set(y.unique().tolist())) - {0})
    step = max(1, _CHUNK // y.shape[1])
    found = torch.empty(len(x), len(y), dtype=torch.float64)
    for start in range(0, len(y), step):
        part = y[start : start + step]
        # Counts below 2^24 are whole in float32.
        common = torch.zeros(len(x), len(part), dtype=torch.float64)
        for label in labels:
            common += ((x == label).float() @ (part == label).float().T).double()
        sizes = (x > 0).sum(1, keepdim=True) + (part > 0).sum(1)
        found[:, start : start + step] = 1 - torch.where(sizes > 0, 2 * common / sizes.clamp(min=1), 1.0)
    return _smallest(found, k)


def _pool(x: Tensor, window: Sequence[int]) -> Tensor:
    """Means over windows, axis after axis."""
    for axis, size in enumerate(window):
        kernel, stride = [1, 1, 1], [1, 1, 1]
        kernel[axis], stride[axis] = size, _STRIDE
        x = functional.avg_pool3d(x, kernel, stride)
    return x


def _smallest(distances: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = distances.sort(dim=1, stable=True)
    return order.values[:, :k].clamp(min=0).numpy(), order.indices[:, :k].numpy()


def _check(queries: np.ndarray, reference: np.ndarray, k: int) -> None:
    if queries.ndim != 2 or reference.ndim != 2 or queries.shape[1] != reference.shape[1]:
        raise DataError(
            f"volumes of shape {queries.shape} and {reference.shape} are not rows of equal length: bring them to one grid"
        )
    check_count(k, reference)
