"""Claims: one holder at a time, whoever died or fell silent is relieved, nobody else is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentsynth.experiments.claims import Claim, holder
from latentsynth.files import write_json

HOUR = 3600.0
ROUNDS = 30


def claimed(path: Path, age: float = 0.0, **facts: Any) -> Path:
    """Writes the claim of somebody on another host, whose heart last beat so many seconds ago."""
    write_json(path, {"host": "elsewhere", "pid": 7, "token": "theirs", "began": 0.0, "started": 0.0, **facts})
    os.utime(path, (time.time() - age,) * 2)
    return path


def take(path: Path, stale_seconds: float = HOUR) -> Claim | None:
    return Claim.take(path, path.parents[1] / "claims.lock", stale_seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cell" / "claim.json"


def compete(folder: Path, wait: Callable[[], Any], say: Callable[[list[bool]], Any]) -> None:
    """Tries to claim one folder after the other at the same moment as a rival; says which it got."""
    claims = []
    for n in range(ROUNDS):
        wait()
        claims.append(take(folder / str(n) / "claim.json"))
    wait()  # a rival that has ended no longer holds anything
    say([claim is not None for claim in claims])
    for claim in claims:
        if claim is not None:
            claim.release()


def prepare_rounds(folder: Path) -> None:
    """Every other folder holds a claim that went stale, which both rivals find at once."""
    for n in range(0, ROUNDS, 2):
        claimed(folder / str(n) / "claim.json", age=2 * HOUR)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_of_two_processes_exactly_one_gets_a_claim(tmp_path: Path) -> None:
    prepare_rounds(tmp_path)
    context = get_context("fork")
    barrier, said = context.Barrier(2), context.SimpleQueue()
    rivals = [
        context.Process(target=compete, args=(tmp_path, lambda: barrier.wait(60), said.put), daemon=True)
        for _ in range(2)
    ]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(120)
    assert [rival.exitcode for rival in rivals] == [0, 0]
    assert [sum(got) for got in zip(said.get(), said.get(), strict=True)] == [1] * ROUNDS


def test_of_two_threads_exactly_one_gets_a_claim(tmp_path: Path) -> None:
    prepare_rounds(tmp_path)
    barrier, said = threading.Barrier(2), list[list[bool]]()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(compete, tmp_path, lambda: barrier.wait(60), said.append) for _ in range(2)]:
            done.result()
    assert [sum(got) for got in zip(*said, strict=True)] == [1] * ROUNDS


def test_a_claim_of_a_dead_process_is_taken_over_at_once(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from latentsynth.experiments.claims import Claim; path = Path(sys.argv[1]); "
        "assert Claim.take(path, path.parents[1] / 'claims.lock', 3600.0); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False).returncode == 9
    assert path.is_file()
    assert holder(path, HOUR) is None
    claim = take(path)
    assert claim is not None
    assert claim.held
    claim.release()


def test_a_process_number_given_anew_holds_nothing(path: Path) -> None:
    claim = take(path)
    assert claim is not None
    assert take(path) is None  # this very process, but it is alive
    claim.release()
    began = psutil.Process().create_time() - 1000
    claimed(path, host=socket.gethostname(), pid=os.getpid(), started=began)
    assert holder(path, HOUR) is None


def test_other_hosts_are_judged_by_their_heartbeat_alone(path: Path) -> None:
    claimed(path, age=HOUR / 2)
    assert take(path) is None
    assert holder(path, HOUR) == "elsewhere, process 7"
    claimed(path, age=2 * HOUR)
    assert holder(path, HOUR) is None
    claim = take(path)
    assert claim is not None
    assert claim.held
    claim.release()


def test_a_claim_lives_as_long_as_its_holder(path: Path) -> None:
    claim = take(path, 2.0)
    assert claim is not None
    silent = time.time() - 1000
    os.utime(path, (silent,) * 2)
    deadline = time.monotonic() + 30
    while path.stat().st_mtime < silent + 900 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.stat().st_mtime > silent + 900
    assert claim.held
    claim.release()


def test_a_claim_that_was_taken_over_is_left_to_its_new_holder(path: Path) -> None:
    """Neither removed, nor kept alive by a heart that is not its own."""
    claim = take(path, 0.5)
    assert claim is not None
    claimed(path, age=1000)
    written = path.stat().st_mtime
    assert not claim.held
    time.sleep(0.5)  # some beats
    assert path.stat().st_mtime == written
    claim.release()
    assert json.loads(path.read_text())["token"] == "theirs"


def test_a_released_claim_is_free(path: Path) -> None:
    first = take(path)
    assert first is not None
    first.release()
    assert not path.exists()
    second = take(path)
    assert second is not None
    first.release()  # again, by mistake
    assert second.held
    second.release()
    second.release()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "elsewhere"}'])
def test_a_damaged_claim_blocks_nobody(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    claim = take(path)
    assert claim is not None
    claim.release()
