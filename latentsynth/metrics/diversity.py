"""How alike the images of a set are: multi-scale structural similarity between pairs of different patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from latentsynth.errors import DataError

_RANGE = 2.0  # images live in [-1, 1]
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_KERNELS = (7, 5, 3)
_WANTED = 3  # scales for which a smaller window is accepted
SMALLEST = 16


def ms_ssim_scales(shape: Sequence[int]) -> tuple[tuple[float, ...], int]:
    """Weights of the scales and size of the window that a volume of this shape allows.

    The standard weights (Wang et al. 2003, section 3.2), the first s of them made to sum to 1, for the largest s up
    to 5 with a window of 7 voxels. Where fewer than 3 scales would be left, the window shrinks to 5 or 3 voxels.

    Args:
        shape: Voxels per axis, each at least 16.

    Returns:
        The weights, finest scale first, and the edge of the window in voxels. Scores of different scales are not
        comparable.

    Raises:
        DataError: An axis is shorter than 16 voxels.
    """
    edge = min(shape)
    if edge < SMALLEST:
        raise DataError(
            f"volume of shape {tuple(shape)} is too small for multi-scale similarity: "
            f"expected at least {SMALLEST} voxels per axis; use a larger grid"
        )
    size, scales = next((size, s) for size in _KERNELS if (s := _scales(edge, size)) >= _WANTED)
    weights = np.array(_WEIGHTS[:scales])
    return tuple((weights / weights.sum()).tolist()), size


def _scales(edge: int, size: int) -> int:
    """MONAI asks for (s - 1)^2 windows per axis; from 3 scales on, the window then fits into the coarsest."""
    return max(s for s in range(1, 6) if edge // max(s - 1, 1) ** 2 >= size)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003, eq. 7) per case, on the scales of :func:`ms_ssim_scales`.

    The same as for images in [0, 1] with a data range of 1: its luminance term is made for values from 0, and takes
    two means of opposite sign, however small, for opposites.

    Args:
        a: Images in [-1, 1], shape ``(B, C, I, J, K)``, each axis at least 16 voxels.
        b: Same shape.

    Returns:
        Shape ``(B,)``; 1 for equal images, 0 where a scale is unrelated or opposed.

    Raises:
        DataError: An axis is shorter than 16 voxels.
    """
    from monai.metrics import MultiScaleSSIMMetric

    weights, size = ms_ssim_scales(a.shape[2:])
    metric = MultiScaleSSIMMetric(spatial_dims=3, data_range=_RANGE, kernel_size=size, weights=weights)
    values: Tensor = metric(a + 1, b + 1)
    return values.flatten()


def random_pairs(groups: Sequence[str], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of rows that belong to different groups (patients), drawn without repeats, every pair equally likely.

    Args:
        groups: The group of each row, length N.
        count: Number of pairs wanted.
        rng: Source of the draw.

    Returns:
        Pairs ``(row, later row)`` in random order: ``count`` of them, or all there are. None if there is one group.
    """
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    first, second = np.triu_indices(len(groups), 1)
    apart = np.flatnonzero(index[first] != index[second])
    chosen = rng.choice(apart, min(count, len(apart)), replace=False)
    return [(int(first[n]), int(second[n])) for n in chosen]


def mean_similarity(
    image: Callable[[int], Tensor], pairs: Sequence[tuple[int, int]], progress: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Similarity :func:`ms_ssim` of each pair; its mean tells how little a set varies (lower is more diverse).

    Args:
        image: Row to image in [-1, 1], ``(C, I, J, K)``; a set need not fit into memory.
        pairs: Rows to compare, as from :func:`random_pairs`.
        progress: Called after each pair.

    Returns:
        Float64, one value per pair, not yet averaged.

    Raises:
        DataError: As :func:`ms_ssim`.
    """
    values = np.empty(len(pairs))
    with torch.no_grad():
        for n, (i, j) in enumerate(pairs):
            values[n] = ms_ssim(image(i)[None], image(j)[None]).item()
            progress()
    return values
