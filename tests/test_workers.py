"""Work spread over processes is the work done here: the same results in order, the same errors, the same files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from latentsynth import workers
from latentsynth.config import AugmentConfig
from latentsynth.data import nifti
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.errors import DataError, VolumeError
from latentsynth.types import Case, Framing, Grid, Labels, Window
from latentsynth.workers import in_background, spread


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts workers after the first item, as for hours of work, on two cores whatever the machine has."""
    monkeypatch.setattr(workers, "_LOOK_S", 0.0)
    monkeypatch.setattr(workers, "_WORTH_S", -1.0)
    monkeypatch.setattr(workers, "cores", lambda: 2)


@pytest.mark.usefixtures("eager")
def test_results_come_in_order_from_other_processes() -> None:
    rows = list(spread(lambda n: (n * n, os.getpid()), list(range(12))))
    assert [square for square, _ in rows] == [n * n for n in range(12)]
    assert rows[0][1] == os.getpid()
    assert os.getpid() not in {pid for _, pid in rows[1:]}


def test_little_work_starts_no_process() -> None:
    assert {pid for pid in spread(lambda _: os.getpid(), list(range(50)))} == {os.getpid()}


@pytest.mark.usefixtures("eager")
def test_an_error_comes_as_it_was_raised() -> None:
    def work(n: int) -> int:
        if n == 3:
            raise VolumeError("case 3 is broken: mend it", found="broken", cure="mend it")
        return n

    with pytest.raises(DataError, match=r"^case 3 is broken: mend it$"):
        list(spread(work, list(range(5))))


def test_processes_launched_together_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.joblib, "cpu_count", lambda: 8)
    assert workers.cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert workers.cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert workers.cores() == 1


@pytest.mark.usefixtures("eager")
def test_a_cache_is_the_same_whoever_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = []
    for seed in range(4):
        image, mask = tmp_path / f"{seed}.nii.gz", tmp_path / f"{seed}_mask.nii.gz"
        rng = np.random.default_rng(seed)
        nifti.write(image, rng.normal(size=(12, 10, 8)).astype(np.float32), np.eye(4))
        lesion = np.zeros((12, 10, 8), np.uint8)
        lesion[5:7, 4:6, 3 : 4 + seed % 2] = 1
        nifti.write(mask, lesion, np.eye(4))
        cases.append(Case(str(seed), str(seed), (image,), mask))
    grid = Grid((8, 8, 8), (1.0, 1.0, 1.0), (Window("fixed", -3, 3),))
    recipe = Recipe(grid, Framing(), Labels((0, 1)), AugmentConfig(rotate_deg=20), 0)
    spread_out = VolumeCache(tmp_path / "spread", recipe, cases, copies=2)
    counted: list[None] = []
    spread_out.build(advance=lambda: counted.append(None))
    assert len(counted) == len(spread_out) == 12
    monkeypatch.setattr(workers, "cores", lambda: 1)
    here = VolumeCache(tmp_path / "here", recipe, cases, copies=2)
    here.build()
    for entry in range(len(here)):
        one, other = here.volume(entry), spread_out.volume(entry)
        assert np.array_equal(one.image, other.image)
        assert one.mask is not None
        assert np.array_equal(one.mask, other.mask)
        assert (one.limits, one.zoom) == (other.limits, other.zoom)
    files = [
        sorted(str(file.relative_to(cache.folder)) for file in cache.folder.rglob("*")) for cache in (here, spread_out)
    ]
    assert files[0] == files[1]


def test_work_in_the_background_is_done_at_the_end_and_never_piles_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    done, waiting, most = [], 0, 0
    lock = threading.Lock()

    def job(n: int) -> None:
        nonlocal waiting
        with lock:
            waiting -= 1
            done.append(n)

    with in_background() as hand_over:
        for n in range(40):
            with lock:
                waiting += 1
                most = max(most, waiting)
            hand_over(job, n)
    assert sorted(done) == list(range(40))
    assert most <= 2 * 2 + 1


def test_an_error_in_the_background_is_raised_and_what_was_handed_over_is_finished() -> None:
    done = []

    def job(n: int) -> None:
        if n == 1:
            raise DataError("volume 1 cannot be written: make room")
        done.append(n)

    def run() -> None:
        with in_background() as hand_over:
            for n in range(100):
                hand_over(job, n)

    with pytest.raises(DataError, match="make room"):
        run()
    assert 0 in done
    assert len(done) < 99


def test_an_error_in_front_leaves_nothing_half_done() -> None:
    started, finished, gate = [], [], threading.Event()

    def job() -> None:
        started.append(1)
        gate.wait(5)
        finished.append(1)

    def run() -> None:
        with in_background() as hand_over:
            hand_over(job)
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert started == finished == [1]
