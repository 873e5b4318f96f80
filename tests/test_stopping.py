"""Ctrl-C and SIGTERM at any moment: two lines, what was kept and how to go on, and nothing is lost that was saved."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import SCHEDULE, autoencoder_config

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no POSIX signals")

# Sends a signal to itself as soon as a module is looked for: the first second of a command is spent on imports.
AT_IMPORT = """
import os, signal, sys
class Plant:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), int(sys.argv[2]))
sys.meta_path.insert(0, Plant())
from latentsynth.cli import main
main(sys.argv[3:])
"""


def says(done: subprocess.CompletedProcess[str], number: int) -> list[str]:
    """The lines of a stopped command, which ended as it should."""
    assert "Traceback" not in done.stderr
    assert done.returncode == 128 + number, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("interrupted", "stopped", "to "))]
    assert len(lines) == 2, done.stderr
    assert lines[0].startswith({signal.SIGINT: "interrupted: ", signal.SIGTERM: "stopped by SIGTERM: "}[number])
    return lines


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("typer", signal.SIGINT),
        ("latentsynth.cli.app", signal.SIGTERM),
        ("numpy", signal.SIGINT),
        ("torch.nn", signal.SIGTERM),
    ],
)
def test_from_the_first_import(module: str, number: int, tmp_path: Path) -> None:
    command = ["phantom", "--out", str(tmp_path / "a b"), "--cases", "1"]
    if module == "torch.nn":
        command = ["demo", "--out", str(tmp_path / "a b")]
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, str(int(number)), *command],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    kept, again = says(done, number)
    assert kept.endswith(": nothing half-written was left")
    assert again.startswith(f"to start again: latentsynth {command[0]} --out '{tmp_path / 'a b'}'")


def stopped_when(command: list[str], ready: Callable[[], bool], number: int) -> subprocess.CompletedProcess[str]:
    """The command, with a signal sent to it as soon as something is so."""
    process = subprocess.Popen(
        [sys.executable, "-m", "latentsynth", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 120
        while not ready() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_a_training_says_what_it_saved_and_goes_on(workplace: Path, tmp_path: Path) -> None:
    number = signal.SIGINT
    long = {**SCHEDULE, "images": 4000, "validate_every_images": 4000, "sample_every_images": 4000}
    config = autoencoder_config(workplace, "stopped", run=str(tmp_path / "run"), train={**long, "workers": 1})
    command = ["train", "autoencoder", str(config)]
    states = tmp_path / "run" / "state"
    kept, again = says(stopped_when(command, lambda: bool([*states.glob("[0-9]*")]), number), number)
    saved = max(int(path.name) for path in states.glob("[0-9]*"))
    assert kept.endswith(f"{tmp_path / 'run'} is kept as it was saved at {saved} images")
    assert again == f"to go on: latentsynth train autoencoder {config}"
    assert not [path for path in (tmp_path / "run").rglob(".partial-*")]
    command = [*command, f"train.images={saved + 8}"]
    done = subprocess.run([sys.executable, "-m", "latentsynth", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoint").is_dir()


def test_a_folder_that_is_being_filled_is_kept_and_filled_to_the_end(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    command = ["phantom", "--out", str(out), "--cases", "400", "--size", "24"]
    kept, again = says(stopped_when(command, lambda: bool([*out.rglob("*.nii.gz")]), signal.SIGTERM), signal.SIGTERM)
    assert kept.endswith(f"what is complete in {out} is kept")
    assert again == f"to go on: latentsynth {' '.join(command)}"
    assert not [*out.rglob(".partial-*")]
