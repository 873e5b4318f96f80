"""Plots are written, show every number they were given, and come out the same every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.plots import COLOURS, critical_differences, curves, histograms, scatters, strips

EDGES = np.linspace(-1, 1, 101)


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG")
    return matplotlib.image.imread(path)[..., :3]


def inked(picture: np.ndarray, n: int) -> np.ndarray:
    """Where a picture has the hue of the colour of group ``n``; points and thin lines are blended with the paper."""
    wanted = np.array([int(COLOURS[n][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    hue, wanted = picture - picture.mean(axis=-1, keepdims=True), wanted - wanted.mean()
    strength = np.linalg.norm(hue, axis=-1)
    alike = (hue @ wanted) / (np.maximum(strength, 1e-6) * np.linalg.norm(wanted))
    return np.asarray((strength > 0.1) & (alike > 0.97))


def height(where: np.ndarray) -> float:
    """Mean row of the marked pixels, counted from the bottom."""
    return float(where.shape[0] - np.argwhere(where)[:, 0].mean())


def test_curves_are_drawn(tmp_path: Path) -> None:
    series = {"loss": ([0.0, 1, 2], [3.0, 2, 1]), "psnr": ([0.0, 2], [20.0, 30])}
    one = pixels(curves(tmp_path / "one.png", {"loss": series["loss"]}, "images", "run"))
    two = pixels(curves(tmp_path / "two.png", series, "images", "run"))
    assert two.shape[1] == pytest.approx(2 * one.shape[1], rel=0.05)
    assert 0.001 < (two < 0.9).any(axis=-1).mean() < 0.5


def test_a_falling_curve_falls(tmp_path: Path) -> None:
    where = inked(pixels(curves(tmp_path / "a.png", {"loss": ([0.0, 1, 2], [3.0, 2, 1])}, "images")), 0)
    columns = np.flatnonzero(where.any(axis=0))
    left, right = where[:, columns[: len(columns) // 3]], where[:, columns[-len(columns) // 3 :]]
    assert height(left) > height(right) + 20


def test_many_curves_are_wrapped(tmp_path: Path) -> None:
    series = {str(n): ([0.0, 1], [0.0, 1]) for n in range(5)}
    four = pixels(curves(tmp_path / "4.png", {name: series[name] for name in "0123"}, "images"))
    five = pixels(curves(tmp_path / "5.png", series, "images"))
    assert five.shape[1] == four.shape[1]
    assert five.shape[0] == pytest.approx(2 * four.shape[0], rel=0.05)


def test_strips_show_every_group_at_its_height(tmp_path: Path) -> None:
    groups = {"real": [0.9, 0.92, 0.88], "none": [], "samples": [0.1, 0.12, float("nan"), 0.08]}
    picture = pixels(strips(tmp_path / "a.png", groups, "Dice"))
    real, empty, samples = (inked(picture, n) for n in range(3))
    assert real.sum() > 30
    assert samples.sum() > 30
    assert not empty.any()
    assert height(real) > height(samples) + 100
    assert np.argwhere(real)[:, 1].max() < np.argwhere(samples)[:, 1].min()  # beside each other, in order


def test_strips_mark_the_mean(tmp_path: Path) -> None:
    """The bar is wider than the points and lies at the mean, which an outlier pulls away from the points."""
    where = inked(pixels(strips(tmp_path / "a.png", {"a": [0.0] * 9 + [1.0]}, "y")), 0)
    points = np.argwhere(where)[:, 0]
    bar = int(where.sum(axis=1).argmax())
    assert (points.max() - bar) / (points.max() - points.min()) == pytest.approx(0.1, abs=0.03)


def test_histograms_are_drawn_where_they_are(tmp_path: Path) -> None:
    low, high = np.zeros(100), np.zeros(100)
    low[10:20], high[80:90] = 0.1, 0.1
    path = histograms(tmp_path / "a.png", {"CT, inside": {"real": low, "samples": high}}, EDGES, "intensity", 1)
    picture = pixels(path)
    peaks = []
    for n in range(2):
        where = inked(picture, n)
        above = where[: np.argwhere(where)[:, 0].max() - 20]  # without the base line, which both have
        peaks.append(np.median(np.argwhere(above)[:, 1]))
    assert peaks[1] > peaks[0] + 50


def test_histograms_of_nothing_are_no_error(tmp_path: Path) -> None:
    nothing = np.full(100, np.nan)
    panels = {name: {"real": nothing, "samples": np.full(100, 0.01)} for name in ("CT, inside", "CT, around", "MR")}
    two = pixels(histograms(tmp_path / "a.png", panels, EDGES, "intensity", 2))
    one = pixels(histograms(tmp_path / "b.png", panels, EDGES, "intensity", 1))
    assert inked(two, 1).any()
    assert one.shape[1] < two.shape[1]
    assert one.shape[0] > two.shape[0]


def test_scatters_show_every_set_at_its_place(tmp_path: Path) -> None:
    cloud = np.random.default_rng(0).normal(size=(60, 2))
    picture = pixels(scatters(tmp_path / "a.png", {"random": {"real": cloud, "samples": cloud + 8}}))
    real, samples = (np.argwhere(inked(picture, n)).mean(0) for n in range(2))
    assert samples[0] < real[0] - 50  # up
    assert samples[1] > real[1] + 50  # to the right
    two = pixels(scatters(tmp_path / "b.png", {name: {"real": cloud} for name in "ab"}))
    assert two.shape[1] == pytest.approx(2 * picture.shape[1], rel=0.05)


def test_bars_join_the_models_that_do_not_differ(tmp_path: Path) -> None:
    """One bar shows the critical difference; those below join neighbours, overlapping ones on lines of their own."""
    ranks = {"best": 1.0, "second": 2.0, "third": 3.0, "worst": 4.0}
    lines = {}
    for difference in (0.5, 1.5, 3.5):
        path = critical_differences(tmp_path / "a.png", ranks, difference, "ranks")
        rows = inked(pixels(path), 1).sum(axis=1) > 20
        lines[difference] = int((np.diff(rows.astype(int)) == 1).sum())
    assert lines == {0.5: 1, 1.5: 1 + 2, 3.5: 1 + 1}


def test_the_same_numbers_give_the_same_picture(tmp_path: Path) -> None:
    for name in "ab":
        strips(tmp_path / f"{name}.png", {"real": [0.5, 0.6]}, "y", "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_names_are_shown_as_they_are_written(tmp_path: Path) -> None:
    """Dollars are no formulas: most formulas that a name could be are faults of matplotlib's parser."""
    name = "case_$x^$_and_$\\frac$"
    assert strips(tmp_path / "a.png", {name: [1.0, 2.0]}, name, name).is_file()
    tile = Tile(name, np.zeros((1, 4, 4, 4), np.float32))
    assert contact_sheet(tmp_path / "b.png", [[tile]], Legend((1.0, 1.0, 1.0)), name).is_file()


def test_drawing_leaves_the_callers_backend_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook goes on showing its own figures after a training has drawn some."""
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    curves(tmp_path / "curves.png", {"loss": ([0.0, 1], [1.0, 0])}, "images")
    image = np.zeros((1, 4, 4, 4), np.float32)
    contact_sheet(tmp_path / "sheet.png", [[Tile("one", image)]], Legend((1.0, 1.0, 1.0)))
    critical_differences(tmp_path / "ranks.png", {"a": 1.0, "b": 2.0}, 0.5)
    assert matplotlib.get_backend() == "svg"
