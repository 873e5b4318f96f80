"""Pictures that the training of a mask generator writes: real validation masks, and samples."""

from __future__ import annotations

from pathlib import Path

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.figures import Legend, contact_sheet
from latentsynth.masks.base import Rejected, Wanted
from latentsynth.masks.trained import TrainedMaker
from latentsynth.masks.write import tile

_REAL, _SAMPLES, _PER_ROW = 4, 8, 4


def mask_sheet(path: Path, maker: TrainedMaker, validation: VolumeCache, seed: int) -> Path:
    """Writes a contact sheet: a row of validation masks, then samples, each cut through the middle of its lesions.

    Args:
        path: PNG to write.
        maker: What samples.
        validation: Real masks on the same grid.
        seed: First seed.
    """
    shown = []
    for n in validation.annotated[:_REAL]:
        index = validation.volume(n).mask
        assert index is not None
        shown.append((f"{validation.entries[n][0].case_id}, real", maker.placed(n, index)))
    seeds = range(seed, seed + _SAMPLES)
    for number, made in zip(seeds, maker.make(seeds, Wanted()), strict=True):
        if not isinstance(made, Rejected):
            shown.append((f"sample, seed {number}", made))
    grid = maker.domain.grid
    tiles = [
        tile(f"{title}, {made.volume_ml(maker.lesions):.3g} ml", made, maker.labels, grid) for title, made in shown
    ]
    rows = [tiles[n : n + _PER_ROW] for n in range(0, len(tiles), _PER_ROW)]
    focus = maker.domain.lesion_indices
    return contact_sheet(
        path, rows, Legend(grid.spacing_mm, (), maker.labels.names), "masks: real, and sampled", focus, shared_cut=False
    )
