"""Pictures that a generator's training writes: real validation volumes beside samples."""

from __future__ import annotations

from pathlib import Path

import torch

from latentsynth.data.cache.volumes import VolumeCache
from latentsynth.errors import DataError
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.synthesizers import Synthesizer
from latentsynth.types import Condition

_SHOWN_CASES, _SHOWN_SEEDS = 3, 2


def sample_sheet(path: Path, model: Synthesizer, volumes: VolumeCache, seed: int, how: str = "") -> Path:
    """Writes a contact sheet: per validation case the real volume and two samples for its mask, the mask outlined.

    A model that makes its own masks gets none; each tile then shows the sample's own mask.

    Args:
        path: PNG to write.
        model: What samples.
        volumes: Validation volumes.
        seed: First seed; every tile has another, so that likeness is not borrowed.
        how: Said in the title.
    """
    annotated = volumes.annotated[:_SHOWN_CASES]
    if not annotated:
        raise DataError("no validation case has a mask: give at least one, so that pictures can show what is painted")
    masks = torch.stack([volumes.item(n)["mask"] for n in annotated for _ in range(_SHOWN_SEEDS)])
    seeds = [seed + s for s in range(len(masks))]
    context = None
    if model.takes_context:
        context = torch.stack(
            [torch.from_numpy(volumes.volume(n).image) for n in annotated for _ in range(_SHOWN_SEEDS)]
        )
    made = model.generate(None if model.makes_masks else Condition(masks, context), seeds)
    rows = []
    for row, n in enumerate(annotated):
        volume = volumes.volume(n)
        tiles = [Tile(f"{volumes.entries[n][0].case_id}, real", volume.image, volume.mask)]
        for place in range(row * _SHOWN_SEEDS, (row + 1) * _SHOWN_SEEDS):
            shown = made.mask[place].argmax(0).numpy() if model.makes_masks else volume.mask
            tiles.append(Tile(f"sample, seed {seeds[place]}", made.image[place].numpy(), shown))
        rows.append(tiles)
    what = "real, and sampled with masks of its own" if model.makes_masks else "validation masks: real, and sampled"
    return contact_sheet(path, rows, Legend.of(model.domain), f"{what}{how}", model.domain.lesion_indices)
