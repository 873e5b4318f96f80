"""Nearest neighbours after registration: is a volume a moved, turned, scaled or mirrored copy of another?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from latentsynth.metrics.neighbours import check_volumes

# The largest moves that still count as the same volume: those that training augmentation makes, and some more.
_ROTATE, _SCALE, _SHIFT = math.radians(25), math.log(1.35), 0.25  # radians, log, share of half an axis
_MARGIN = 8  # an eighth of each axis on either side is not compared: it may have moved in from outside
_COARSE = ((4, 1.0), (4, 0.4), (4, 0.15))  # steps of the search, and of which share of the pairs, the best so far
_FINE = 20  # steps of the best few
_KEPT = 4  # pairs per query that are registered finely
_CHUNK = 1 << 22  # voxels that are moved at a time
_FLAT = 1e-4  # a channel of less range holds nothing
_SMALLEST = 6  # voxels per axis of the coarse level


def describe(image: np.ndarray, most: int = 32) -> np.ndarray:
    """A volume without its finest detail, which generators lose and copies do not need.

    Args:
        image: In [-1, 1], shape ``(C, I, J, K)``.
        most: Cells of the longest axis.

    Returns:
        Smoothed and thinned out, float32; its shape follows from that of the image alone.
    """
    step = max(2, -(-max(image.shape[1:]) // most))
    sigma = (0.0, step / 2, step / 2, step / 2)
    return ndimage.gaussian_filter(image.astype(np.float32), sigma, mode="nearest")[:, ::step, ::step, ::step]


def nearest_by_registration(
    queries: np.ndarray, reference: np.ndarray, k: int, shape: Sequence[int], mirror: Sequence[int] = (0, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """The reference volumes that come nearest after a small rigid move, scaling and mirroring.

    Every reference volume, as it is and mirrored, is moved by gradient ascent to the highest absolute correlation with the
    query, so that an inverted one is found too: all of them on a coarse grid for a few steps, fewer for more, the best few on the
    full one. Equal volumes
    have a distance below 0.001, constant ones the square root of 2.

    Args:
        queries: Volumes as rows, shape ``(N, C I J K)``.
        reference: Shape ``(M, C I J K)``.
        k: How many neighbours.
        shape: ``(C, I, J, K)``.
        mirror: Axes along which volumes may be mirrored, each by itself: 0 left and right, 1 back and front.

    Returns:
        ``sqrt(2 (1 - |r|))`` with Pearson's r over the inner voxels, averaged over the channels that the reference volume was
        scanned in (an empty one has no correlation, so that copies of it would look strange), ascending, and rows of the
        reference, both ``(N, k)``. Neighbours behind the first few are registered coarsely alone.

    Raises:
        DataError: Rows of other lengths, or more neighbours than rows.
    """
    check_volumes(queries, reference, k, shape)
    x, y = (torch.from_numpy(np.require(a, np.float32, ["C", "W"])).view(-1, *shape) for a in (queries, reference))
    ways = [y, *(y.flip(1 + axis + 1) for axis in mirror)]
    moving = torch.cat(ways)
    coarse = [_halved(v) for v in (x, moving)]
    distances = np.empty((len(x), k))
    rows = np.empty((len(x), k), dtype=np.int64)
    for n in range(len(x)):
        level, moves = _coarsely(coarse[0][n], coarse[1], _KEPT + k)
        kept = level.topk(min(max(_KEPT, k), len(level))).indices
        fine, _ = _register(x[n], moving[kept], moves[kept], _FINE)
        # Coarse values are higher, so those that were not looked at closely stand behind those that were.
        behind = level - 2
        behind[kept] = fine
        best = behind.view(len(ways), -1).max(0).values
        order = torch.argsort(best, descending=True, stable=True)[:k]
        value = best[order]
        value = torch.where(value < -1, value + 2, value).double()
        distances[n] = (2 * (1 - value).clamp(min=0)).sqrt().numpy()
        rows[n] = order.numpy()
    return np.maximum.accumulate(distances, 1), rows


def _coarsely(query: Tensor, moving: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """As :func:`_register`, with further steps of the best pairs alone, as many as ``least`` of them to the end."""
    value, moves = torch.full((len(moving),), -2.0), torch.zeros(len(moving), 7)
    for steps, share in _COARSE:
        some = value.topk(min(max(least, math.ceil(share * len(value))), len(value))).indices
        value[some], moves[some] = _register(query, moving[some], moves[some], steps)
    return value, moves


def _register(query: Tensor, moving: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Highest absolute correlation of each moving volume ``(P, C, I, J, K)`` with the query, ``(P,)``, and the moves ``(P, 7)``."""
    inner = (slice(None), *(slice(n // _MARGIN, n - n // _MARGIN) for n in query.shape[1:]))
    goal = _standardised(query[inner].flatten(1))  # (C, voxels)
    size = max(1, _CHUNK // query.numel())
    values, moves = [], []
    for first in range(0, len(moving), size):
        part = moving[first : first + size]
        value, move = _ascend(goal, part, inner, start[first : first + size], steps)
        values.append(value)
        moves.append(move)
    return torch.cat(values), torch.cat(moves)


def _ascend(goal: Tensor, part: Tensor, inner: tuple[slice, ...], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    move = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([move], lr=0.15)
    best, at = torch.full((len(part),), -2.0), start.clone()
    varying = (part.flatten(2).amax(2) - part.flatten(2).amin(2) > _FLAT).to(part)
    share = varying / varying.sum(1, keepdim=True).clamp(min=1)  # of each channel in the mean
    for step in range(steps + 1):
        with torch.enable_grad():
            moved = _moved(part, move)[(slice(None), *inner)]
            value = ((goal * _standardised(moved.flatten(2))).sum(2).abs() * share).sum(1)
        found = value.detach()
        better = found > best
        best, at = torch.where(better, found, best), torch.where(better[:, None], move.detach(), at)
        if step < steps:
            optimiser.zero_grad()
            (-value.sum()).backward()
            optimiser.step()
    return best, at


def _moved(volumes: Tensor, move: Tensor) -> Tensor:
    """Volumes ``(P, C, I, J, K)`` after three rotations, a scaling and three shifts ``(P, 7)`` without units."""
    bounded = torch.tanh(move)  # so that no step leaves the allowed moves
    angles, scale, shift = bounded[:, :3] * _ROTATE, torch.exp(bounded[:, 3] * _SCALE), bounded[:, 4:] * _SHIFT
    # grid_sample speaks of K, J, I, each from -1 to 1; a cell of an axis is as long as one of another.
    sizes = torch.tensor(volumes.shape[:1:-1], dtype=volumes.dtype)
    turn = rotations(angles) * scale.view(-1, 1, 1) * sizes.view(1, 1, 3) / sizes.view(1, 3, 1)
    grid = functional.affine_grid(torch.cat([turn, shift.unsqueeze(2)], 2), list(volumes.shape), align_corners=False)
    return functional.grid_sample(volumes, grid, padding_mode="border", align_corners=False)


def rotations(angles: Tensor) -> Tensor:
    """Rotation matrices ``(B, 3, 3)`` about the three axes in turn, from angles ``(B, 3)`` in radians."""
    matrix = torch.eye(3, dtype=angles.dtype, device=angles.device).expand(len(angles), 3, 3)
    for axis in range(3):
        a, b = (n for n in range(3) if n != axis)
        cos, sin, one = torch.cos(angles[:, axis]), torch.sin(angles[:, axis]), torch.ones_like(angles[:, axis])
        zero = torch.zeros_like(one)
        entries = {(axis, axis): one, (a, a): cos, (b, b): cos, (a, b): -sin, (b, a): sin}
        rows = [torch.stack([entries.get((i, j), zero) for j in range(3)], 1) for i in range(3)]
        matrix = matrix @ torch.stack(rows, 1)
    return matrix


def _standardised(x: Tensor) -> Tensor:
    """Rows of mean 0 and length 1 along the last axis; constant rows become 0."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def _halved(x: Tensor) -> Tensor:
    """Means of two cells along every axis that is long enough."""
    size = [2 if n >= 2 * _SMALLEST else 1 for n in x.shape[2:]]
    return functional.avg_pool3d(x, size)
