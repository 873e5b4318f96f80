"""Pictures of volumes, where people would look rather than read: contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentsynth.files import atomic_path
from latentsynth.types import Domain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#ffd166", "#06d6a0", "#ef476f", "#4cc9f0", "#f78c6b", "#b388eb", "#c5e063", "#ff99c8")
_FOOT = 0.22  # inches below the tiles, for scale and names
_GREY = "#c8d0d8"  # of the foot


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


@dataclass(frozen=True)
class Legend:
    """What the tiles of a sheet have in common, told below them.

    Attributes:
        spacing_mm: Voxel spacing, for the aspect of the slices and the scale bar.
        channels: Name of each channel; none are written where there are none.
        labels: Name of each label index, background first; those that are outlined are written in their colour.
    """

    spacing_mm: tuple[float, ...]
    channels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, domain: Domain) -> Legend:
        """Of volumes of a model."""
        return cls(domain.grid.spacing_mm, domain.channels, domain.labels.names)


def contact_sheet(
    path: Path,
    rows: Sequence[Sequence[Tile]],
    legend: Legend,
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
        legend: Spacing, and names of channels and labels.
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
    widths, height = _panel_sizes(rows[0][0].image.shape[1:], legend.spacing_mm)
    scale = 1.15 / height
    block = sum(widths) * scale
    tall = len(rows) * (channels * 1.15 + 0.28) + 0.35 + _FOOT
    figure = Figure(figsize=(max(columns * (block + 0.12) + 0.1, 4), tall), facecolor="black")
    outer = figure.add_gridspec(
        len(rows), columns, left=0.005, right=0.995, bottom=_FOOT / tall, top=1 - 0.45 / tall, hspace=0.16, wspace=0.03
    )
    figure.suptitle(title, color="white", fontsize=9, y=1 - 0.06 / tall, va="top")
    for r, row in enumerate(rows):
        cut = focus_cut(next((tile.mask for tile in row if tile.mask is not None), None), row[0].image.shape[1:], focus)
        for c, tile in enumerate(row):
            if not shared_cut:
                cut = focus_cut(tile.mask, tile.image.shape[1:], focus)
            inner = outer[r, c].subgridspec(channels, 3, wspace=0.02, hspace=0.02, width_ratios=widths)
            for channel in range(channels):
                for view in range(3):
                    axes = figure.add_subplot(inner[channel, view])
                    _draw(axes, tile, channel, view, cut, legend.spacing_mm)
                    if channel == 0 and view == 0:
                        axes.set_title(tile.title, fontsize=6.5, color="white", loc="left", pad=2)
                    if view == 0 and len(legend.channels) == channels > 1:
                        axes.text(
                            0.02, 0.98, legend.channels[channel], transform=axes.transAxes, color="white", fontsize=5.5, va="top",
                            bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1},
                        )  # fmt: skip
    _explain(figure, legend, rows)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, facecolor="black")
    return path


def _panel_sizes(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[list[float], float]:
    """Widths of the three views and the largest height, in mm."""
    i, j, k = (n * s for n, s in zip(shape, spacing_mm, strict=True))
    return [j, i, i], max(k, j)


def focus_cut(mask: np.ndarray | None, shape: Sequence[int], focus: Sequence[int]) -> list[int]:
    """Where to cut a volume along each axis: the middle one of the slices with the largest area of the focus labels, or the middle slice."""
    inside = None if mask is None else (np.isin(mask, list(focus)) if focus else mask > 0)
    if inside is None or not inside.any():
        return [n // 2 for n in shape]
    others = ((1, 2), (0, 2), (0, 1))
    areas = [inside.sum(axis=others[axis]) for axis in range(3)]
    return [int(np.median(np.flatnonzero(area == area.max()))) for area in areas]


def _explain(figure: Figure, legend: Legend, rows: Sequence[Sequence[Tile]]) -> None:
    """The foot of a sheet: a scale bar, and the names of the labels that are outlined in their colours."""
    from matplotlib.lines import Line2D

    axes = figure.axes[-1]  # an axial slice: along the page lies the first axis
    axes.apply_aspect()
    (left, _), (right, _) = axes.transData.transform([(0, 0), (1, 0)])
    inches_per_mm = (right - left) / figure.dpi / legend.spacing_mm[0]
    length = _round(0.5 / inches_per_mm)
    wide, tall = figure.get_size_inches()
    bar = np.array([0.08, 0.08 + length * inches_per_mm]) / wide
    figure.add_artist(Line2D(bar, [0.1 / tall] * 2, color=_GREY, linewidth=1.5))
    texts = [(f"{length:g} mm", _GREY)]
    shown = {
        int(v) for row in rows for tile in row if tile.mask is not None and tile.outlined for v in np.unique(tile.mask)
    }
    names = dict(enumerate(legend.labels))
    texts += [(names[v], PALETTE[(v - 1) % len(PALETTE)]) for v in sorted(shown) if v and v in names]
    at = 0.16 + length * inches_per_mm
    for words, colour in texts:
        if at + 0.058 * len(words) > wide - 0.5 * (words != texts[-1][0]):
            figure.text(at / wide, 0.1 / tall, "...", color="white", fontsize=6.5, va="center")
            break
        figure.text(at / wide, 0.1 / tall, words, color=colour, fontsize=6.5, va="center")
        at += 0.058 * len(words) + 0.16


def _round(mm: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(mm))
    return float(min((1, 2, 5, 10), key=lambda n: abs(n * power - mm)) * power)


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
