"""What every scheduler keeps of Gaussians: the defaults are near the closed form, and the documentation says the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentsynth.config import SCHEDULER_SHIFTS, SamplingConfig
from latentsynth.diffusion import SAMPLERS, sampler_table, schedule_named
from latentsynth.diffusion.gaussian import deviation_kept
from latentsynth.diffusion.sampling import sampler_named
from latentsynth.diffusion.times import automatic_shift

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "diffusion.md"
STDS = (1.0, 0.3, 0.1)
ROW = re.compile(r"^\| `(\w+)` \| `(\w+)` \| ([\w.]+) \|(.*)\|$", re.MULTILINE)
ROWS = {(name, schedule): (shift, figures) for name, schedule, shift, figures in ROW.findall(PAGE.read_text())}


@pytest.mark.parametrize(("steps", "within"), [(20, (0.02, 0.02, 0.05)), (8, (0.05, 0.10, 0.20))])
def test_the_default_keeps_fine_detail(steps: int, within: tuple[float, ...]) -> None:
    flow = schedule_named("rectified")
    chosen = SamplingConfig().resolved(flow.flow)
    for std, tolerance in zip(STDS, within, strict=True):
        kept = deviation_kept(flow, chosen.scheduler, steps, std, chosen.grid_shift)
        assert kept == pytest.approx(1, abs=tolerance), std


def test_a_grid_that_starves_fine_detail_would_be_seen() -> None:
    """The grid of a sampler that takes over training's shift for large latents, and one without any shift."""
    flow = schedule_named("rectified")
    assert deviation_kept(flow, "dpmpp_2m", 20, 0.1, 8.0) < 0.5
    assert deviation_kept(flow, "dpmpp_2m", 8, 0.1) < 0.6


def test_the_table_holds_every_pair_on_offer() -> None:
    assert set(ROWS) == {(name, schedule) for name, schedule, _, _ in sampler_table()}


@pytest.mark.parametrize(("name", "schedule"), ROWS)
def test_the_table_is_what_the_code_does(name: str, schedule: str) -> None:
    process = schedule_named(schedule)
    shift = SamplingConfig(scheduler=name).resolved(process.flow).grid_shift
    printed, figures = ROWS[name, schedule]
    assert printed == ("none" if shift is None else f"{shift:g}")
    kept = [deviation_kept(process, name, steps, std, shift) for steps in (8, 20) for std in STDS]
    assert [float(one) for one in figures.split("|")] == pytest.approx(kept, abs=0.011)


def test_settings_know_which_schedulers_take_a_shift() -> None:
    assert set(SCHEDULER_SHIFTS) == set(SAMPLERS)
    for name, best in SCHEDULER_SHIFTS.items():
        assert (best is not None) == sampler_named(name, schedule_named("rectified")).flow
        assert not sampler_named(name, schedule_named("cosine")).flow


@pytest.mark.parametrize(("side", "shift"), [(8, 1.0), (32, 1.0), (48, 1.5), (64, 2.0), (96, 3.0), (128, 3.0)])
def test_training_shifts_by_the_cube_root_of_cells(side: int, shift: float) -> None:
    assert automatic_shift(side**3) == pytest.approx(shift)
