"""Pictures are written, show what they were given, and refuse to be empty."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from latentsynth.figures import PALETTE, Legend, Tile, contact_sheet

SHAPE = (14, 12, 10)
COLOURS = np.array([[int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)] for colour in PALETTE])


def tile(title: str = "case", channels: int = 1, grey: float = 0.0, masked: bool = False) -> Tile:
    mask = None
    if masked:
        mask = np.zeros(SHAPE, np.uint8)
        mask[3:11, 3:9, 2:8], mask[5:9, 5:8, 4:7] = 1, 2
    return Tile(title, np.full((channels, *SHAPE), grey, np.float32), mask)


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG")
    return matplotlib.image.imread(path)[..., :3]


def share(picture: np.ndarray, colour: np.ndarray | float, tolerance: float = 0.01) -> float:
    """Share of the picture's pixels that have a colour."""
    return float((np.abs(picture - colour) < tolerance).all(axis=-1).mean())


def hue_share(picture: np.ndarray, colour: np.ndarray) -> float:
    """Share of the pixels that have a colour's hue; thin lines are blended with the grey below."""
    hue, wanted = picture - picture.mean(axis=-1, keepdims=True), colour - colour.mean()
    strength = np.linalg.norm(hue, axis=-1)
    alike = (hue @ wanted) / (np.maximum(strength, 1e-6) * np.linalg.norm(wanted))
    return float(((strength > 0.1) & (alike > 0.97)).mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_every_tile_is_drawn(tmp_path: Path, channels: int) -> None:
    greys = (-0.5, 0.0, 0.5)
    row = [tile(str(grey), channels, grey) for grey in greys]
    picture = pixels(contact_sheet(tmp_path / "sheet.png", [row], Legend((2.0, 2.0, 2.0)), "title"))
    shares = [share(picture, (grey + 1) / 2) for grey in greys]
    assert min(shares) > 0.1
    assert max(shares) < 1.1 * min(shares)  # all alike in size


def test_more_channels_make_a_taller_sheet(tmp_path: Path) -> None:
    heights = []
    for channels in (1, 3):
        path = contact_sheet(tmp_path / f"{channels}.png", [[tile(channels=channels)]], Legend((1.0, 1.0, 1.0)))
        heights.append(pixels(path).shape[0])
    assert heights[1] > 2 * heights[0]


def test_channels_are_drawn_each_for_itself(tmp_path: Path) -> None:
    one = Tile("case", np.stack([np.full(SHAPE, grey, np.float32) for grey in (-0.6, 0.6)]))
    picture = pixels(contact_sheet(tmp_path / "sheet.png", [[one]], Legend((1.0, 1.0, 1.0))))
    assert share(picture, 0.2) > 0.1
    assert share(picture, 0.8) > 0.1


def test_masks_are_outlined_in_the_colour_of_their_label(tmp_path: Path) -> None:
    plain, masked = (
        pixels(contact_sheet(tmp_path / f"{masked}.png", [[tile(masked=masked)]], Legend((1.0, 1.0, 1.0)), focus=(2,)))
        for masked in (False, True)
    )
    assert [hue_share(plain, colour) for colour in COLOURS[:2]] == [0, 0]
    assert min(hue_share(masked, colour) for colour in COLOURS[:2]) > 1e-3
    assert max(hue_share(masked, colour) for colour in COLOURS[2:4]) < 1e-4  # there is no third label


def test_rows_may_differ_in_length_and_be_empty(tmp_path: Path) -> None:
    rows = [[tile(grey=0.5)] * 3, [], [tile(grey=-0.5, masked=True)]]
    picture = pixels(contact_sheet(tmp_path / "sheet.png", rows, Legend((1.0, 1.0, 3.0))))
    assert 2.3 < share(picture, 0.75) / share(picture, 0.25) < 3.7


@pytest.mark.parametrize(("focus", "shown"), [((), 0.5), ((2,), 1.0)])
def test_slices_go_through_the_focus(tmp_path: Path, focus: tuple[int, ...], shown: float) -> None:
    """Two labels in different places: the larger one by default, the lesion if asked for."""
    mask, image = np.zeros((20, 20, 20), np.uint8), np.full((1, 20, 20, 20), -1, np.float32)
    mask[2:10, 2:10, 2:10], mask[14:17, 14:17, 14:17] = 1, 2
    image[0][mask == 1], image[0][mask == 2] = 0.0, 1.0
    picture = pixels(contact_sheet(tmp_path / "s.png", [[Tile("", image, mask)]], Legend((1.0, 1.0, 1.0)), focus=focus))
    assert share(picture, shown, 0.02) > 0.005
    assert share(picture, 1.5 - shown, 0.02) < 0.0005


def test_all_tiles_of_a_row_are_cut_at_one_place(tmp_path: Path) -> None:
    """Grey follows the slice; the second tile has no mask of its own and must be cut where the first is."""
    ramp = np.linspace(-0.9, 0.9, 10, dtype=np.float32)
    image = np.broadcast_to(ramp[:, None, None], (1, 10, 10, 10)).copy()
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[8, 4:6, 4:6] = 1
    picture = pixels(
        contact_sheet(tmp_path / "s.png", [[Tile("", image, mask), Tile("", image)]], Legend((1.0, 1.0, 1.0)))
    )
    half = picture.shape[1] // 2
    sagittal = (ramp[8] + 1) / 2
    assert share(picture[:, half:], sagittal) > 0.1
    assert share(picture[:, half:], (ramp[5] + 1) / 2) < 0.05  # the middle slice


def test_anisotropic_voxels_are_stretched(tmp_path: Path) -> None:
    """Voxels four times as tall make the coronal view four times as tall as wide."""
    cube = Tile("", np.full((1, 10, 10, 10), 0.5, np.float32))
    picture = pixels(contact_sheet(tmp_path / "s.png", [[cube]], Legend((1.0, 1.0, 4.0))))
    grey = (np.abs(picture - 0.75) < 0.01).all(axis=-1)
    left = np.argwhere(grey.any(axis=0))[0, 0]
    width = int(np.argmin(grey.any(axis=0)[left:]))  # the sagittal view
    height = int(grey[:, left : left + width].any(axis=1).sum())
    assert height / width == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_an_empty_sheet_is_refused(tmp_path: Path, rows: list[list[Tile]]) -> None:
    with pytest.raises(ValueError, match="without a tile"):
        contact_sheet(tmp_path / "sheet.png", rows, Legend((1.0, 1.0, 1.0)))
    assert not list(tmp_path.iterdir())
