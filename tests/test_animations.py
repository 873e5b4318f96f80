"""Moving pictures hold a frame per slice or volume, show what is there, and refuse what they cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from latentsynth.animations import sequence, walk
from latentsynth.errors import DataError
from latentsynth.figures import PALETTE, Legend, Tile

LEGEND = Legend((1.0, 1.0, 2.0))


def frames(path: Path) -> list[np.ndarray]:
    picture = Image.open(path)
    found = []
    for n in range(picture.n_frames):
        picture.seek(n)
        found.append(np.array(picture.convert("RGB"), dtype=float))
    return found


def rising(depth: int = 6) -> Tile:
    """Each axial slice brighter than the one below, a label in slices 2 and 3 alone."""
    image = np.broadcast_to(np.linspace(-0.8, 0.8, depth), (1, 10, 8, depth)).astype(np.float32)
    mask = np.zeros((10, 8, depth), np.uint8)
    mask[3:7, 2:6, 2:4] = 1
    return Tile("a case", image, mask)


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_walk_goes_up_and_comes_back(tmp_path: Path, ending: str) -> None:
    found = frames(walk(tmp_path / f"walk.{ending}", [rising(), rising()], LEGEND))
    assert len(found) == 6 + 4  # the ends are not shown twice
    grey = [float(np.median(frame[30:])) for frame in found]
    assert np.argmax(grey) == 5
    assert (np.diff(grey[:6]) > 10).all()
    assert (np.diff(grey[5:]) < -10).all()
    colour = ImageColor.getrgb(PALETTE[0])
    outlined = [(np.abs(frame - colour).max(-1) < 60).sum() > 20 for frame in found]
    assert outlined == [n in (2, 3, 7, 8) for n in range(10)]


def test_a_sequence_shows_each_volume_where_the_first_ones_mask_lies(tmp_path: Path) -> None:
    tiles = [
        Tile(str(n), np.full((1, 10, 8, 6), grey, np.float32), rising().mask, False)
        for n, grey in enumerate((-0.5, 0.0, 0.5))
    ]
    found = frames(sequence(tmp_path / "cases.webp", tiles, LEGEND))
    assert len(found) == 3 + 1
    assert [round(float(np.median(frame[30:])) / 64) for frame in found] == [1, 2, 3, 2]


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in \.gif or \.webp"):
        walk(tmp_path / "walk.png", [rising()], LEGEND)
    with pytest.raises(DataError, match="of one shape"):
        walk(tmp_path / "walk.gif", [rising(), rising(7)], LEGEND)
    with pytest.raises(DataError, match="no volumes"):
        sequence(tmp_path / "walk.gif", [], LEGEND)
    assert not list(tmp_path.iterdir())
