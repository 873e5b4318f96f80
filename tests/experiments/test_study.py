"""The debug study on phantoms, from the first cell to the figure: killed, it goes on, and once done it is done."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from helpers import run
from reported_set import times

from latentsynth.config import MemorizationStudy, load
from latentsynth.data.manifest import Manifest
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.experiments.claims import holder
from latentsynth.experiments.memorization.study import Memorization
from latentsynth.results import Result

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "configs" / "debug" / "memorization.yaml"
FIRST = "diffusion-nall-s0"
ARMS = (FIRST, "latent_gan-nall-s0")
SPACES = ("voxels", "contrastive")  # registration takes minutes
SEARCHED = (*SPACES, "joint")
REWRITTEN = ("output.json", "study.json", "study.csv", "study.png")  # the claim of the folder, and the summary
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Finished:
    """A study that was killed within a cell and started again by two processes at once."""

    folder: Path
    overrides: Sequence[str]
    killed: dict[Path, int]  # all files at that moment, and when they were written
    claimed: tuple[bool, bool]  # whether a claim was left, and whether anybody held it
    said: Sequence[str]  # what each of the two printed

    @property
    def study(self) -> Memorization:
        return Memorization(load(MemorizationStudy, DEBUG, self.overrides))


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory, phantoms: list[str]) -> list[str]:
    """Points the debug configuration at phantoms, and makes it shorter still."""
    return [f"folder={tmp_path_factory.mktemp('study') / 'study'}", *phantoms,
            "sizes=[all]", f"spaces=[{', '.join(SPACES)}]"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(overrides: list[str]) -> Finished:
    folder = Path(overrides[0].removeprefix("folder="))
    command = [sys.executable, str(ROOT / "scripts" / "compare_memorization.py"), str(DEBUG), *overrides]
    cell = folder / "cells" / FIRST
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (cell / "0.5" / "checkpoint").is_dir():  # the first of its two stages is trained
            assert process.poll() is None, "the study ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    claimed = (cell / "claim.json").is_file(), holder(cell / "claim.json", 600.0) is not None
    killed = times(folder)
    start = partial(subprocess.run, command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500, check=False)
    with ThreadPoolExecutor(2) as pool:
        pair = [one.result() for one in [pool.submit(start) for _ in range(2)]]
    said = [one.stdout + one.stderr for one in pair]
    assert [one.returncode for one in pair] == [0, 0], said
    return Finished(folder, overrides, killed, claimed, said)


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*overrides[1:], f"folder={tmp_path / 'study'}", "sizes=[4, all]", f"cache={tmp_path / 'cache'}"]
    assert run(monkeypatch, "experiment", "memorization", DEBUG, *changes, "--dry-run") == 0
    said = capsys.readouterr().out
    arms = [f"{model}-n{size}-s0" for model in ("diffusion", "latent_gan") for size in (4, "all")]
    for name in (
        "autoencoder",
        "pilot-diffusion",
        "pilot-latent_gan",
        "detector",
        *arms,
        *(f"measure-{a}" for a in arms),
    ):
        assert any(name in line.split() and "waiting" in line for line in said.splitlines()), name
    assert "0 of 12 cells done, about 1.2 hours of one process left" in said
    assert not list(tmp_path.iterdir())


def test_an_interrupted_cell_goes_on(finished: Finished) -> None:
    """What was trained is not trained again; the claim of the killed process held nobody up."""
    cell = finished.folder / "cells" / FIRST
    assert finished.claimed == (True, False)
    assert cell / "done.json" not in finished.killed
    now = times(finished.folder)
    made = [path for path in finished.killed if path.is_relative_to(cell / "0.5" / "checkpoint")]
    made += [cell / "0.5" / "cost.json", finished.folder / "cells" / "autoencoder" / "done.json"]
    assert len(made) > 3
    assert [now[path] for path in made] == [finished.killed[path] for path in made]
    seen = [json.loads((cell / stage / "cost.json").read_text())["images_seen"] for stage in ("0.5", "1")]
    assert f"at {seen[0]} images" in " ".join(" ".join(finished.said).split())
    assert seen[0] < seen[1]


def test_two_processes_share_the_cells(finished: Finished) -> None:
    names = [cell.name for cell in finished.study.cells()]
    began = [[name for name in names if f"cell {name}\n" in said] for said in finished.said]
    before = [name for name in names if finished.folder / "cells" / name / "done.json" in finished.killed]
    assert sorted([*before, *began[0], *began[1]]) == sorted(names)
    assert FIRST in (*began[0], *began[1])
    assert min(map(len, began)) > 0


def test_every_cell_is_done_and_the_result_stands(finished: Finished) -> None:
    grid = finished.study.grid()
    assert sum(grid.done(cell) for cell in grid.cells) == len(grid.cells) == 8
    result = Result.load(finished.folder / "study.json")
    assert {str(row[0]) for row in result.tables[0].rows} == {"diffusion", "latent_gan"}
    assert (finished.folder / "study.png").read_bytes().startswith(b"\x89PNG")
    assert [claim["size"] for claim in result.facts["claims"]] == ["all"]
    assert {curve["model"] for curve in result.facts["copies_from"]} == {"diffusion", "latent_gan"}
    with (finished.folder / "study.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(ARMS) * 2 * len(SEARCHED)
    assert {(row["model"], row["size"], row["stage"]) for row in rows} == {
        (model, "all", stage) for model in ("diffusion", "latent_gan") for stage in ("0.5", "1")
    }
    for row in rows:
        assert 0 <= float(row["low"]) <= float(row["copy_rate"]) <= float(row["high"]) <= 1
        assert bool(row["membership_auc"]) == (row["model"] == "diffusion")  # a GAN has no loss of a case
        assert float(row["frechet"]) > float(row["frechet_floor"]) > 0  # after seconds of training


def test_planted_copies_are_found_in_every_cell(finished: Finished) -> None:
    for file in finished.folder.glob("cells/measure-*/*/measures.json"):
        spaces = json.loads(file.read_text())["spaces"]
        found = {name.partition(":")[0]: facts["found"]["exact"] for name, facts in spaces.items()}
        assert found == dict.fromkeys(SEARCHED, 1.0)
        assert Result.load(file.with_name("memorization.json")).facts["calibration"]["cases"] == 3


def test_every_model_gets_the_same_compute(finished: Finished) -> None:
    """As many images as its pilot says it sees in the CPU minutes asked for."""
    minutes = finished.study.config.minutes
    for arm in ARMS:
        pilot = json.loads((finished.folder / "cells" / f"pilot-{arm.split('-')[0]}" / "pilot.json").read_text())
        for stage in (0.5, 1.0):
            cost = json.loads((finished.folder / "cells" / arm / f"{stage:g}" / "cost.json").read_text())
            wanted = pilot["images_per_cpu_second"] * minutes * 60 * stage
            assert abs(cost["images_seen"] - wanted) <= 4  # a batch


def test_held_out_patients_lend_their_masks_and_nothing_else(finished: Finished) -> None:
    roles = finished.study.roles
    held = [case for case in Manifest.load(roles.heldout_manifest()).cases if case.split == "test"]
    for arm in ARMS:
        for samples in (finished.folder / "cells" / arm).glob("*/samples/manifest.json"):
            made = Cohort.load("made", samples)
            assert sorted(p for case in made.cases for p in case.parents) == sorted(roles.heldout)
            assert not any(made.ledger.voxels & case.scans for case in held)
            seen = {c.patient_id for c in roles.cohort.cases if c.scans & made.ledger.voxels}
            assert seen & set(roles.pool) == set(roles.subset("all", 0))


def test_a_finished_study_is_not_done_again(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: at for path, at in times(finished.folder).items() if path.name not in REWRITTEN}
    assert run(monkeypatch, "experiment", "memorization", DEBUG, *finished.overrides) == 0
    assert {path: at for path, at in times(finished.folder).items() if path.name not in REWRITTEN} == before
    assert "8 of 8 cells done, about 0.0 hours" in capsys.readouterr().err


def test_other_settings_need_another_folder(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in ("minutes=9", "models.diffusion.train.lr=2", "level=0.3", "seed=5", "detector.projection=8"):
        assert run(monkeypatch, "experiment", "memorization", DEBUG, *finished.overrides, change) == 1
        assert "was made with other settings, or needs a cell that was: give another folder" in capsys.readouterr().err
