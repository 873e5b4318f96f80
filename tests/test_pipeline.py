"""The whole road: each stage once, in order, by a command that could be typed; what fails is said and gone on from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from latentsynth.config import LdmRun, load
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.evaluation.memorization.cost import SearchCost
from latentsynth.pipeline import STAGES, run
from latentsynth.pipeline.runner import StageError, forecast
from latentsynth.pipeline.stages import Work, check
from latentsynth.types import Case, Labels

ROAD = "latentsynth.pipeline.runner._do"


class Typed:
    """Stands for the commands: remembers them, and fails where it is told to."""

    def __init__(self, workplace: Path):
        self.commands: list[list[str]] = []
        self.failing: set[str] = set()
        self.painted = 12
        self.workplace = workplace

    def __call__(self, command: list[str], folder: Path) -> int:
        self.commands.append(command)
        if command[0] in self.failing or " ".join(command[:2]) in self.failing:
            return 3
        if command[0] == "prepare":
            cohort("phantoms", 12, 4, 4).save(folder / command[3])
        if command[0] == "sample":
            out = folder / command[command.index("--out") + 1]
            cohort("samples", self.painted, 0, 0).save(out / "manifest.json")
        if command[0] == "plan":
            (folder / "configs").mkdir()
            for part in ("autoencoder", "ldm"):
                values = {"run": f"runs/{part}", "train": {"images": 6000}}
                if part == "ldm":
                    values["autoencoder"] = "runs/autoencoder"
                else:
                    values["data"] = {
                        "manifest": "m.json",
                        "grid": {"shape": [8, 8, 8], "spacing_mm": [1, 1, 1], "windows": [{}]},
                    }
                file = folder / "configs" / f"{Path(command[1]).stem}_{part}.yaml"
                file.write_text(yaml.safe_dump(values))
        return 0

    @property
    def names(self) -> list[str]:
        return [" ".join(c[:2]) if c[0] in ("train", "evaluate") else c[0] for c in self.commands]


def cohort(name: str, *counts: int) -> Manifest:
    cases = [
        Case(f"{split}{n}", f"{split}{n}", (Path(f"{split}{n}.nii.gz"),), Path(f"{split}{n}_mask.nii.gz"), split)
        for split, count in zip(("train", "val", "test"), counts, strict=True)
        for n in range(count)
    ]
    return Manifest(name, ("CT",), Labels((0, 1)), tuple(cases))


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    (tmp_path / "My Scans").mkdir()
    commands = Typed(tmp_path)
    monkeypatch.setattr(ROAD, commands)
    return commands


def test_the_road_is_walked_once_and_its_commands_can_be_typed(typed: Typed, tmp_path: Path) -> None:
    outcome = run(tmp_path / "My Scans", tmp_path / "road", 4)
    assert outcome.failed == ()
    assert len(typed.commands) == len(STAGES)
    assert typed.names[:6] == [
        "prepare",
        "plan",
        "train autoencoder",
        "train segmenter",
        "train ldm",
        "train segmenter",
    ]
    assert typed.names[-4:] == ["memorization", "filter", "export", "report"]
    script = (tmp_path / "road" / "commands.sh").read_text().splitlines()
    assert script[:3] == ["#!/bin/sh", "set -e", 'cd "$(dirname "$0")"']
    assert [line.split()[1] for line in script[3:]] == [command[0] for command in typed.commands]
    assert subprocess.run(["sh", "-n", str(tmp_path / "road" / "commands.sh")]).returncode == 0
    typed.commands.clear()
    again = run(tmp_path / "My Scans", tmp_path / "road", 4)
    assert typed.commands == []
    assert again.seconds.keys() == outcome.seconds.keys()


def test_it_stops_at_what_is_needed_and_goes_on_there(typed: Typed, tmp_path: Path) -> None:
    typed.failing = {"train ldm"}
    with pytest.raises(StageError, match="stage ldm ended with status 3") as caught:
        run(tmp_path / "My Scans", tmp_path / "road", 4)
    assert caught.value.stage == "ldm"
    assert typed.names[-1] == "train ldm"
    typed.failing.clear()
    typed.commands.clear()
    assert run(tmp_path / "My Scans", tmp_path / "road", 4).failed == ()
    assert typed.names[0] == "train ldm"


def test_a_measure_that_cannot_be_made_stops_nothing_and_is_tried_again(typed: Typed, tmp_path: Path) -> None:
    typed.failing = {"memorization", "filter", "export"}
    outcome = run(tmp_path / "My Scans", tmp_path / "road", 4)
    assert outcome.failed == ("copies", "filter", "export")
    assert typed.names[-1] == "report"
    typed.failing.clear()
    typed.commands.clear()
    assert run(tmp_path / "My Scans", tmp_path / "road", 4).failed == ()
    assert typed.names == ["memorization", "filter", "export"]


def test_the_denoiser_takes_the_time_that_is_left(typed: Typed, tmp_path: Path) -> None:
    run(tmp_path / "My Scans", tmp_path / "road", 4)
    images = {}
    for slower in (0.5, 1.0, 2.0):
        work = Work(tmp_path / "My Scans", "my-scans", 4, 0, "none", tmp_path / "road")
        for stage in STAGES[:4]:
            work.seconds[stage.name] = stage.share * 4 * 3600 * slower
        command = next(stage for stage in STAGES if stage.name == "ldm").command(work)
        images[slower] = load(LdmRun, tmp_path / "road" / command[2], command[3:]).train.images
    assert images[1.0] == 6000  # as planned
    assert images[0.5] > 10_000  # what was planned takes half as long, and time was saved before
    assert images[2.0] < 3000
    seconds_of_all = (
        4
        * 3600
        * (2.0 * sum(s.share for s in STAGES[:4]) + images[2.0] / 6000 * 0.47 * 2.0 + sum(s.share for s in STAGES[5:]))
    )
    assert seconds_of_all == pytest.approx(4 * 3600, rel=0.1)


def test_the_search_for_copies_fits_into_the_time_or_looks_by_less(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for seconds in (1.0, 2000.0, 1e6):
        costs = {1: SearchCost(1.0, 0.0), 2: SearchCost(seconds / 4, 0.1), 3: SearchCost(seconds, 0.2)}
        monkeypatch.setattr(Work, "search", lambda self, spaces, costs=costs: costs[len(spaces)])
        typed.commands.clear()
        run(tmp_path / "My Scans", tmp_path / f"road{seconds:g}", 1)
        masks = next(command for command in typed.commands if command[0] == "masks")
        copies = next(command for command in typed.commands if command[0] == "memorization")
        work = Work(tmp_path, "my-scans", 1, 0, "none", tmp_path / f"road{seconds:g}")
        work.seconds.update({stage.name: stage.share * 3600 for stage in STAGES[:4]})
        ldm = next(stage for stage in STAGES if stage.name == "ldm").command(work)
        images = load(LdmRun, work.folder / ldm[2], ldm[3:]).train.images
        asked.append((images, int(masks[masks.index("--n") + 1]), copies.count("--space")))
    # The denoiser makes way for a search that is worth it; a search that would take days looks by less.
    assert [spaces for *_, spaces in asked] == [0, 0, 1]
    assert asked[0][0] > asked[1][0] == asked[2][0]
    assert all(10 <= count <= 1000 for _, count, _ in asked)


def test_a_cohort_that_supports_nothing_is_refused_before_training(typed: Typed, tmp_path: Path) -> None:
    check(cohort("enough", 5, 2, 2))
    for counts in ((3, 0, 0), (4, 2, 2), (9, 2, 1)):
        with pytest.raises(DataError, match=r"too few patients with lesions .* give more patients"):
            check(cohort("few", *counts))
    cohort("three", 2, 1, 1).save(tmp_path / "three.json")
    with pytest.raises(DataError, match="too few patients with lesions"):
        run(tmp_path / "three.json", tmp_path / "road", 4)
    assert typed.commands == []  # a manifest is taken as it is


def test_other_settings_in_the_same_folder_are_refused(typed: Typed, tmp_path: Path) -> None:
    run(tmp_path / "My Scans", tmp_path / "road", 4)
    with pytest.raises(DataError, match="hours"):
        run(tmp_path / "My Scans", tmp_path / "road", 5)
    with pytest.raises(ConfigError, match=r"hours 0\.01: expected"):
        run(tmp_path / "My Scans", tmp_path / "other", 0.01)
    with pytest.raises(DataError, match="does not exist: give the folder of scans"):
        run(tmp_path / "Nothing", tmp_path / "other", 4)
    assert not (tmp_path / "other").exists()


def test_the_licence_of_the_scans_is_said_where_they_are_prepared(typed: Typed, tmp_path: Path) -> None:
    run(tmp_path / "My Scans", tmp_path / "road", 4, scans_licence="CC-BY-4.0", scans_credit="A. Author")
    assert typed.commands[0][-4:] == ["--licence", "CC-BY-4.0", "--credit", "A. Author"]
    with pytest.raises(DataError, match="scans_licence"):
        run(tmp_path / "My Scans", tmp_path / "road", 4, scans_licence="CC0-1.0")
    cohort("ready", 12, 4, 4).save(tmp_path / "ready.json")
    with pytest.raises(ConfigError, match="is prepared already"):
        run(tmp_path / "ready.json", tmp_path / "other", 4, scans_licence="CC0-1.0")


def test_a_forecast_writes_nothing_and_shares_out_the_hours(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    rows = forecast(tmp_path / "scans", tmp_path / "road", 8)
    assert sum(float(hours) for _, hours, _ in rows if hours) == pytest.approx(8, abs=0.05)
    assert {"disk", "memory"} <= {name for name, _, _ in rows}
    assert not (tmp_path / "road").exists()
    assert sum(stage.share for stage in STAGES) == pytest.approx(1)
