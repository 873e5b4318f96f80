"""Pictures of volumes, where people would look rather than read: contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentsynth.files import atomic_path

PALETTE = ("#ffd166", "#06d6a0", "#ef476f", "#4cc9f0", "#f78c6b", "#b388eb", "#c5e063", "#ff99c8")
_VIEWS = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Tile:
    """One volume of a contact sheet.

    Attributes:
        title: Written above it.
        image: In [-1, 1], shape ``(C, I, J, K)``.
        mask: Label indices ``(I, J, K)``, or None.
        outlined: Whether the mask is drawn; slices are cut through it all the same.
    """

    title: str
    image: np.ndarray
    mask: np.ndarray | None = None
    outlined: bool = True


def contact_sheet(
    path: Path,
    rows: Sequence[Sequence[Tile]],
    spacing_mm: tuple[float, ...],
    title: str = "",
    focus: Sequence[int] = (),
    shared_cut: bool = True,
) -> Path:
    """Writes a PNG: one row per case, in it one block per tile, in each block the channels as three orthogonal slices.

    Unless told otherwise, all tiles of a row are cut at the same place: the slices that show most of the focus labels in the row's first
    mask, so that volumes made for one mask can be compared.

    Args:
        path: Where to write.
        rows: Tiles per case.
        spacing_mm: Voxel spacing, for the aspect of the slices.
        title: Written on top.
        focus: Label indices to cut through; empty means all but background.
        shared_cut: False cuts every tile through its own mask, for tiles that have nothing in common.
    """
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, whose windows are the caller's

    matplotlib.rcParams["text.parse_math"] = False  # names of cases may hold dollars

    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("contact sheet without a tile: give at least one row")
    channels = rows[0][0].image.shape[0]
    columns = max(len(row) for row in rows)
    widths, height = _panel_sizes(rows[0][0].image.shape[1:], spacing_mm)
    scale = 1.15 / height
    block = sum(widths) * scale
    figure = Figure(
        figsize=(max(columns * (block + 0.12) + 0.1, 4), len(rows) * (channels * 1.15 + 0.28) + 0.35), facecolor="black"
    )
    outer = figure.add_gridspec(
        len(rows), columns, left=0.005, right=0.995, bottom=0.005, top=1 - 0.45 / figure.get_figheight(), hspace=0.16, wspace=0.03
    )  # fmt: skip
    figure.suptitle(title, color="white", fontsize=9, y=1 - 0.06 / figure.get_figheight(), va="top")
    for r, row in enumerate(rows):
        cut = _cut(next((tile.mask for tile in row if tile.mask is not None), None), row[0].image.shape[1:], focus)
        for c, tile in enumerate(row):
            if not shared_cut:
                cut = _cut(tile.mask, tile.image.shape[1:], focus)
            inner = outer[r, c].subgridspec(channels, 3, wspace=0.02, hspace=0.02, width_ratios=widths)
            for channel in range(channels):
                for view in range(3):
                    axes = figure.add_subplot(inner[channel, view])
                    _draw(axes, tile, channel, view, cut, spacing_mm)
                    if channel == 0 and view == 0:
                        axes.set_title(tile.title, fontsize=6.5, color="white", loc="left", pad=2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="black")
    return path


def _panel_sizes(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[list[float], float]:
    """Widths of the three views and the largest height, in mm."""
    i, j, k = (n * s for n, s in zip(shape, spacing_mm, strict=True))
    return [j, i, i], max(k, j)


def _cut(mask: np.ndarray | None, shape: Sequence[int], focus: Sequence[int]) -> list[int]:
    """Along each axis, the middle one of the slices with the largest area of the focus labels, or the middle slice."""
    inside = None if mask is None else (np.isin(mask, list(focus)) if focus else mask > 0)
    if inside is None or not inside.any():
        return [n // 2 for n in shape]
    others = ((1, 2), (0, 2), (0, 1))
    areas = [inside.sum(axis=others[axis]) for axis in range(3)]
    return [int(np.median(np.flatnonzero(area == area.max()))) for area in areas]


def _draw(axes, tile: Tile, channel: int, view: int, cut: list[int], spacing_mm: Sequence[float]) -> None:  # type: ignore[no-untyped-def]
    first, second = [axis for axis in range(3) if axis != view]
    # Transposed with the origin below: anterior, superior up; the patient's right is on the left of the page.
    axes.imshow(
        np.take(tile.image[channel], cut[view], axis=view).T, cmap="gray", vmin=-1, vmax=1, origin="lower",
        aspect=spacing_mm[second] / spacing_mm[first], interpolation="nearest",
    )  # fmt: skip
    if tile.mask is not None and tile.outlined:
        outline = np.take(tile.mask, cut[view], axis=view).T
        for label in np.unique(outline[outline > 0]):
            axes.contour(outline == label, [0.5], colors=PALETTE[(int(label) - 1) % len(PALETTE)], linewidths=0.6)
    axes.set_axis_off()
