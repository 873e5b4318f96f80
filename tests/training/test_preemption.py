"""SIGUSR1 costs no image: the state is saved where it came, and a queue that starts the command again ends with the same weights."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import SCHEDULE, autoencoder_config

from latentsynth.autoencoders import Autoencoder
from latentsynth.config import AutoencoderRun, load
from latentsynth.errors import PreemptedError
from latentsynth.training.recipes.autoencoder import train_autoencoder

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no POSIX signals")
ROOT = Path(__file__).parents[2]
LONG = {**SCHEDULE, "save_every_images": 4000, "validate_every_images": 4000, "sample_every_images": 4000}

# Stands for srun: starts two tasks, numbered as Slurm numbers them, and ends with the largest exit code.
SRUN = """#!/usr/bin/env bash
pids=()
for n in 0 1; do SLURM_PROCID=$n SLURM_LOCALID=$n SLURM_NTASKS=2 "$@" & pids+=($!); done
echo "${pids[@]}" > "$TASKS"
code=0
for pid in "${pids[@]}"; do wait "$pid"; ended=$?; [ $ended -gt $code ] && code=$ended; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


def weights(run: Path) -> dict[str, torch.Tensor]:
    return Autoencoder.from_pretrained(run / "checkpoint" / "autoencoder").state_dict()


def tell_when(ready: Path, pids: list[int]) -> None:
    """Sends SIGUSR1 as soon as a file stands."""
    until = time.monotonic() + 240
    while not (ready.is_file() and ready.read_bytes()) and time.monotonic() < until:
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGUSR1)


def test_a_training_that_is_told_goes_on_to_the_same_weights(workplace: Path, tmp_path: Path) -> None:
    train = {**LONG, "images": 48}
    whole = autoencoder_config(workplace, "unbroken", run=str(tmp_path / "unbroken"), train=train)
    broken = autoencoder_config(workplace, "preempted", run=str(tmp_path / "preempted"), train=train)
    before = signal.getsignal(signal.SIGUSR1)
    train_autoencoder(load(AutoencoderRun, whole))
    teller = threading.Thread(target=tell_when, args=(tmp_path / "preempted" / "metrics.jsonl", [os.getpid()]))
    teller.start()
    with pytest.raises(PreemptedError, match="saved its state at") as told:
        train_autoencoder(load(AutoencoderRun, broken))
    teller.join()
    (state,) = (tmp_path / "preempted" / "state").glob("[0-9]*")
    assert f"at {int(state.name)} images" in str(told.value)
    assert 0 < int(state.name) < 48
    assert signal.getsignal(signal.SIGUSR1) is before
    train_autoencoder(load(AutoencoderRun, broken))
    ours, theirs = weights(tmp_path / "preempted"), weights(tmp_path / "unbroken")
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_slurm_file_queues_a_told_job_again_and_an_ended_one_never(workplace: Path, tmp_path: Path) -> None:
    """Its commands run as they stand; srun and scontrol are played by scripts, two tasks by two processes of this machine."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    config = autoencoder_config(workplace, "queued", run=str(tmp_path / "run"), train={**LONG, "images": 160})
    environment = {
        **os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here",
        "TASKS": str(tmp_path / "tasks"), "REQUEUED": str(tmp_path / "requeued"), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        "bash",
        str(ROOT / "configs/slurm/train.sbatch"),
        str(ROOT / "scripts/train_autoencoder.py"),
        str(config),
    ]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    tell_when(tmp_path / "run" / "metrics.jsonl", [])
    tell_when(tmp_path / "tasks", list(map(int, (tmp_path / "tasks").read_text().split())))
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 75, said
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout + again.stderr
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"
    assert (tmp_path / "run" / "checkpoint").is_dir()
