"""Plots of numbers: curves of a run, scores of every case, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentsynth.files import atomic_path

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6a4c93", "#5c6b73", "#00798c", "#a44a3f")
_COLUMNS = 4


def curves(
    path: Path, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, title: str = ""
) -> Path:
    """Writes a PNG with one panel per curve.

    Args:
        path: Where to write.
        series: Name to (x, y).
        x_label: Label of the shared x axis.
        title: Written on top.
    """
    columns = min(max(len(series), 1), _COLUMNS)
    rows = -(-len(series) // columns)
    figure = _figure((2.6 * columns, 1.9 * rows), title)
    for n, (name, (x, y)) in enumerate(series.items()):
        axes = _axes(figure, rows, columns, n, name)
        axes.plot(x, y, linewidth=1, marker="." if len(x) < 20 else "", color=COLOURS[0])
        axes.set_xlabel(x_label, fontsize=7)
    return _save(figure, path)


def strips(path: Path, groups: Mapping[str, Sequence[float] | np.ndarray], y_label: str, title: str = "") -> Path:
    """Writes a PNG with one column of points per group, a point per case, and a bar at the mean."""
    figure = _figure((1.3 * max(len(groups), 2) + 0.8, 3.0), title)
    axes = _axes(figure, 1, 1, 0, "")
    rng = np.random.default_rng(0)  # places the points beside each other; the same every time
    for n, values in enumerate(groups.values()):
        y = np.asarray(values, dtype=float)
        colour = COLOURS[n % len(COLOURS)]
        axes.plot(n + rng.uniform(-0.18, 0.18, len(y)), y, ".", markersize=4, alpha=0.6, color=colour)
        if len(y):
            axes.hlines(np.nanmean(y), n - 0.3, n + 0.3, color=colour, linewidth=2)
    axes.set_xticks(range(len(groups)), list(groups), fontsize=7, rotation=15, ha="right")
    axes.set_ylabel(y_label, fontsize=8)
    return _save(figure, path)


def histograms(
    path: Path,
    panels: Mapping[str, Mapping[str, np.ndarray]],
    edges: np.ndarray,
    x_label: str,
    columns: int,
    title: str = "",
) -> Path:
    """Writes a PNG of histograms.

    Args:
        path: Where to write.
        panels: Panel title to (name to shares per bin, shape ``(bins,)``).
        edges: Bin edges, ``(bins + 1,)``.
        x_label: Label of the x axis.
        columns: Panels per row.
        title: Written on top.
    """
    rows = -(-len(panels) // columns)
    figure = _figure((2.6 * columns, 1.9 * rows + 0.3), title)
    for n, (name, lines) in enumerate(panels.items()):
        axes = _axes(figure, rows, columns, n, name)
        for m, (label, shares) in enumerate(lines.items()):
            axes.stairs(shares, edges, label=label, color=COLOURS[m % len(COLOURS)], linewidth=1.1, fill=False)
        axes.set_xlabel(x_label, fontsize=7)
        axes.set_yticks([])
        if n == 0:
            axes.legend(fontsize=6, frameon=False)
    return _save(figure, path)


def scatters(path: Path, panels: Mapping[str, Mapping[str, np.ndarray]], title: str = "") -> Path:
    """Writes a PNG with one scatter plot per panel; each holds sets of points ``(N, 2)`` by name."""
    figure = _figure((3.2 * max(len(panels), 1), 3.0), title)
    for n, (name, sets) in enumerate(panels.items()):
        axes = _axes(figure, 1, len(panels), n, name)
        for m, (label, points) in enumerate(sets.items()):
            axes.plot(
                points[:, 0], points[:, 1], ".", markersize=4, alpha=0.6, label=label, color=COLOURS[m % len(COLOURS)]
            )
        axes.legend(fontsize=6, frameon=False)
    return _save(figure, path)


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        name: In the legend.
        x: Where.
        y: Values.
        low: Lower ends of error bars, or None.
        high: Upper ends.
        level: Draws a dashed horizontal line at this height instead.
        ticks: Names of the places on the x axis, if they are no numbers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    level: float | None = None
    ticks: Sequence[str] = ()


def panels(
    path: Path, drawn: Mapping[str, Sequence[Line]], columns: int, x_labels: Sequence[str], title: str = ""
) -> Path:
    """Writes a PNG of lines with error bars, some panels per row.

    Args:
        path: Where to write.
        drawn: Panel title to lines.
        columns: Panels per row.
        x_labels: One per panel.
        title: Written on top.
    """
    rows = -(-len(drawn) // columns)
    figure = _figure((3.0 * columns, 2.5 * rows + 0.3), title)
    colours: dict[str, str] = {}
    for n, ((name, lines), label) in enumerate(zip(drawn.items(), x_labels, strict=True)):
        axes = _axes(figure, rows, columns, n, name)
        for line in lines:
            if line.level is not None:
                axes.axhline(line.level, color="black", linestyle="--", linewidth=0.8, label=line.name)
                continue
            colour = colours.setdefault(line.name, COLOURS[len(colours) % len(COLOURS)])
            spread = None
            if line.low is not None and line.high is not None:
                spread = [np.subtract(line.y, line.low), np.subtract(line.high, line.y)]
            axes.errorbar(
                line.x,
                line.y,
                yerr=spread,
                label=line.name,
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1,
                capsize=2,
            )
        ticks = {x: tick for line in lines for x, tick in zip(line.x, line.ticks, strict=False)}
        if ticks:
            axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xlabel(label, fontsize=7)
        if n % columns == 0:
            axes.legend(fontsize=5.5, frameon=False)
    return _save(figure, path)


def critical_differences(path: Path, ranks: Mapping[str, float], critical_difference: float, title: str = "") -> Path:
    """Writes a PNG of mean ranks on a line, best left; a bar joins models that do not differ (Demsar 2006, figure 1).

    Args:
        path: Where to write.
        ranks: Model to mean rank.
        critical_difference: Two models differ if their mean ranks differ by more.
        title: Written on top.
    """
    from pandas import DataFrame
    from scikit_posthocs import critical_difference_diagram

    places = np.array(list(ranks.values()))
    alike = np.abs(places[:, None] - places) <= critical_difference
    joined = DataFrame(alike.astype(float), index=list(ranks), columns=list(ranks))  # in the place of p-values
    figure = _figure((7.0, 1.2 + 0.4 * len(ranks)), title)  # so high that the bar on top clears the numbers of the axis
    axes = figure.add_subplot(1, 1, 1)
    axes.tick_params(labelsize=6, length=2, pad=1)
    drawn = critical_difference_diagram(
        dict(ranks),
        joined,
        cd=critical_difference,
        ax=axes,
        label_fmt_left="{label} ({rank:.2f}) ",
        label_fmt_right=" {label} ({rank:.2f})",
        label_props={"fontsize": 7},
        marker_props={"s": 8},
        elbow_props={"color": "black", "linewidth": 0.7},
        crossbar_props={"color": COLOURS[1], "linewidth": 2},
    )
    for (line,) in drawn["crossbars"]:  # through their models in the order of a set, which changes from run to run
        line.set_xdata(np.sort(line.get_xdata()))
    return _save(figure, path)


def _figure(size: tuple[float, float], title: str) -> Any:
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, whose windows are the caller's

    matplotlib.rcParams["text.parse_math"] = False  # names of cases may hold dollars

    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


def _axes(figure: Any, rows: int, columns: int, n: int, title: str) -> Any:
    axes = figure.add_subplot(rows, columns, n + 1)
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _save(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
    return path
