"""Running a network over a volume in parts, so that memory is bounded by the part and not by the volume.

Each part is given so much of its surroundings as the network can see, and what comes out for the surroundings is thrown away.
Where nothing in the network looks at a whole volume, the parts together equal it. At the volume's own borders a part ends
where the volume does, so it meets the same padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from latentsynth.autoencoders.space_to_depth import Axes


def tiled(call: Callable[[Tensor], Tensor], x: Tensor, taken: Axes, given: Axes, tile: int, reach: int) -> Tensor:
    """``call(x)``, in parts.

    Args:
        call: A network between a volume and its latent cells, either way.
        x: Shape ``(B, C, I, J, K)``.
        taken: Voxels of ``x`` per cell along each axis.
        given: Voxels of the result per cell along each axis.
        tile: A part has at most so many cells along an axis, its surroundings aside.
        reach: How many cells away the network sees.

    Returns:
        What ``call(x)`` gives, exactly where the network sees no farther than ``reach``. ``x`` itself goes in where it has
        no more cells than a part.
    """
    cells = [n // f for n, f in zip(x.shape[2:], taken, strict=True)]
    if max(cells) <= tile:
        return call(x)
    out: Tensor | None = None
    for part in product(*(_parts(n, tile) for n in cells)):
        wide = [(max(0, start - reach), min(n, stop + reach)) for (start, stop), n in zip(part, cells, strict=True)]
        made = call(x[_slices(wide, taken)])
        if out is None:
            out = made.new_empty(*made.shape[:2], *(n * f for n, f in zip(cells, given, strict=True)))
        own = [(start - low, stop - low) for (start, stop), (low, _) in zip(part, wide, strict=True)]
        out[_slices(part, given)] = made[_slices(own, given)]
    assert out is not None
    return out


def _parts(cells: int, tile: int) -> list[tuple[int, int]]:
    """Where the parts of an axis begin and end; as few as will do, of nearly equal length."""
    count = -(-cells // tile)
    edges = torch.linspace(0, cells, count + 1).round().int().tolist()
    return list(pairwise(edges))


def _slices(ranges: Sequence[tuple[int, int]], factors: Axes) -> tuple[slice, ...]:
    """Of a tensor ``(B, C, I, J, K)``."""
    return (slice(None), slice(None), *(slice(a * f, b * f) for (a, b), f in zip(ranges, factors, strict=True)))
