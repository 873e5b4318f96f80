"""Moving pictures of volumes: a walk through their slices, and volumes one after another, as GIF or WebP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy import ndimage

from latentsynth.errors import DataError
from latentsynth.figures import PALETTE, Legend, Tile, focus_cut
from latentsynth.files import atomic_path

_HEIGHT = 220  # pixels of a view
_TITLE, _GAP = 18, 4
_KINDS = {".gif": "GIF", ".webp": "WEBP"}


def walk(path: Path, tiles: Sequence[Tile], legend: Legend, seconds: float = 8.0) -> Path:
    """Writes axial slices of several volumes side by side, from the feet to the head and back.

    Args:
        path: Where to write; ends in .gif or .webp.
        tiles: Volumes of one shape; of several channels the first is shown.
        legend: Spacing.
        seconds: How long the way takes.

    Raises:
        DataError: Another ending, no volume, or volumes of several shapes.
    """
    shapes = {tile.image.shape[1:] for tile in tiles}
    if len(shapes) != 1:
        raise DataError(f"a walk through volumes of shapes {sorted(shapes)}: give one volume or more of one shape")
    (shape,) = shapes
    up = range(shape[2])
    frames = [_beside([_titled(_view(tile, 2, k, legend.spacing_mm), tile.title) for tile in tiles]) for k in up]
    return _write(path, [*frames, *frames[-2:0:-1]], seconds)


def sequence(
    path: Path, tiles: Sequence[Tile], legend: Legend, focus: Sequence[int] = (), seconds: float = 6.0
) -> Path:
    """Writes volumes one after another and back, each as three slices through the first one's mask.

    Args:
        path: Where to write; ends in .gif or .webp.
        tiles: Volumes of one shape.
        legend: Spacing.
        focus: Label indices to cut through; empty means all but background.
        seconds: How long the way there and back takes.

    Raises:
        DataError: Another ending, or no volume.
    """
    if not tiles:
        raise DataError("a sequence of no volumes: give one or more")
    cut = focus_cut(tiles[0].mask, tiles[0].image.shape[1:], focus)
    frames = [
        _titled(_beside([_view(tile, view, cut[view], legend.spacing_mm) for view in range(3)]), tile.title)
        for tile in tiles
    ]
    return _write(path, [*frames, *frames[-2:0:-1]], seconds)


def _write(path: Path, frames: Sequence[Image.Image], seconds: float) -> Path:
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise DataError(f"{path} is no moving picture: give a name that ends in {' or '.join(_KINDS)}")
    each = max(20, round(1000 * seconds / len(frames)))  # viewers slow down what is faster
    with atomic_path(path) as temporary:
        frames[0].save(temporary, kind, save_all=True, append_images=frames[1:], duration=each, loop=0, quality=88)
    return path


def _view(tile: Tile, axis: int, at: int, spacing_mm: Sequence[float]) -> Image.Image:
    """One slice with the outlines of its labels, oriented as contact sheets are: superior or anterior up."""
    first, second = (other for other in range(3) if other != axis)
    plane = np.take(tile.image[0], at, axis=axis).T[::-1]
    wide = round(_HEIGHT * plane.shape[1] * spacing_mm[first] / (plane.shape[0] * spacing_mm[second]))
    grey = Image.fromarray(((np.clip(plane, -1, 1) + 1) * 127.5).astype(np.uint8)).resize(
        (wide, _HEIGHT), Image.Resampling.BICUBIC
    )
    drawn = np.array(grey.convert("RGB"))
    if tile.mask is not None and tile.outlined:
        labels = np.take(tile.mask, at, axis=axis).T[::-1].astype(np.uint8)
        labels = np.array(Image.fromarray(labels).resize((wide, _HEIGHT), Image.Resampling.NEAREST))
        for label in np.unique(labels[labels > 0]):
            drawn[_edge(labels == label)] = ImageColor.getrgb(PALETTE[(int(label) - 1) % len(PALETTE)])
    return Image.fromarray(drawn)


def _edge(inside: np.ndarray) -> np.ndarray:
    """The outer two pixels of a region: thinner lines lose their colour when a picture is compressed."""
    return inside & ~ndimage.binary_erosion(inside, iterations=2)


def _beside(parts: Sequence[Image.Image]) -> Image.Image:
    wide = sum(part.width for part in parts) + _GAP * (len(parts) - 1)
    page = Image.new("RGB", (wide, max(part.height for part in parts)))
    at = 0
    for part in parts:
        page.paste(part, (at, 0))
        at += part.width + _GAP
    return page


def _titled(picture: Image.Image, title: str) -> Image.Image:
    page = Image.new("RGB", (picture.width, picture.height + _TITLE))
    page.paste(picture, (0, _TITLE))
    ImageDraw.Draw(page).text((3, 2), title, fill="white", font=ImageFont.load_default(12))
    return page
