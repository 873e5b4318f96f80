"""The plan: grids that cover, divide and fit; windows by unit; configurations that run as they are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun, load
from latentsynth.data.intake.survey import choose_grid, propose_window
from latentsynth.plan import plan_runs, write_plan
from latentsynth.training.recipes.autoencoder import train_autoencoder
from latentsynth.training.recipes.ldm import train_ldm
from latentsynth.training.recipes.segmenter import train_segmenter

lengths = st.floats(20, 600)
spacings = st.floats(0.4, 6)


@settings(max_examples=60, deadline=None)
@given(
    extent=st.tuples(lengths, lengths, lengths),
    spacing=st.tuples(spacings, spacings, spacings),
    voxels=st.sampled_from([80_000, 128**3]),
    halvings=st.integers(1, 2),
)
def test_a_grid_covers_divides_and_fits(
    extent: tuple[float, ...], spacing: tuple[float, ...], voxels: int, halvings: int
) -> None:
    shape, step, factors = choose_grid(np.array(extent), np.array(spacing), voxels, halvings)
    assert math.prod(shape) <= max(voxels, 16**3)
    for n, s, f, e in zip(shape, step, factors, extent, strict=True):
        assert n % (f * 2**halvings) == 0
        assert n * s >= e * 0.999
        assert s >= min(spacing) * 0.99  # never finer than the finest axis of the scans


def test_thick_slices_stay_thick() -> None:
    _, step, factors = choose_grid(np.array([200.0, 200.0, 100.0]), np.array([1.0, 1.0, 8.0]), 128**3, 1)
    assert step[2] > 4 * step[0]
    assert factors == (4, 4, 2)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("CT", [-1000, -100, 0, 40, 300], "fixed"),
        ("unnamed", [-1000, -100, 0, 40, 300], "fixed"),
        ("PET", [1, 5, 20, 900], "fixed"),
        ("T1", [10, 200, 900], "percentile"),
    ],
)
def test_windows_are_fixed_where_units_mean_the_same_in_every_scan(name: str, values: list[float], kind: str) -> None:
    window = propose_window(name, np.array(values, dtype=np.float32))
    assert window["kind"] == kind
    assert window["low"] < window["high"]
    assert name != "PET" or window["low"] == 0


def test_a_planned_folder_trains_from_the_files_as_written(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_runs(workplace / "manifest.json", 0.01)
    write_plan(plan, tmp_path / "configs", Console(quiet=True))
    short = [
        "train.images=8",
        "train.validate_every_images=8",
        "train.sample_every_images=8",
        "train.save_every_images=8",
    ]
    first = load(AutoencoderRun, tmp_path / "configs" / "manifest_vq.yaml", short)
    second = load(LdmRun, tmp_path / "configs" / "manifest_ldm.yaml", [*short, "train.batch=8"])
    assert first.data.framing.crop == "whole"  # these lesions are large beside their scans
    assert train_autoencoder(first)["psnr"] > 0
    assert train_ldm(second)["loss"] > 0
    third = load(SegmenterRun, tmp_path / "configs" / "manifest_unet.yaml", short)
    assert third.data.grid.spacing_mm == first.data.grid.spacing_mm
    assert train_segmenter(third)["dice"] >= 0
    assert all(estimate.gib < 4 for estimate in plan.memory)
