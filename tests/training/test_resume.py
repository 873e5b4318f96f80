"""Killed with SIGKILL, the same command goes on and ends with the same weights as an unbroken run, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import autoencoder_config, gan_config, ldm_config

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def command(verb: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "latentsynth", "train", verb, str(config)]


def finish(verb: str, config: Path) -> None:
    subprocess.run(command(verb, config), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)


def kill_after_state(verb: str, config: Path, run: Path) -> None:
    """Starts a run and kills it some steps after its first saved state."""
    process = subprocess.Popen(
        command(verb, config), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if (run / "state" / "0000000008").is_dir():
                break
            assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: make it longer"
    finally:
        process.kill()
        if process.stderr:
            process.stderr.close()


def weights(run: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted((run / "checkpoint").rglob("*.safetensors")):
        found |= {f"{file.parent.name}/{name}": tensor for name, tensor in load_file(file).items()}
    return found


# Between them: an image pool, fading noise, growing stages, lazy penalties, path lengths, adaptive augmentation, styles.
GAMES = {
    "pix2pix": {"pool": 6, "noise": 0.2, "noise_decay": 1e-2},
    "spade": {},
    "stylegan2": {"r1_every": 2, "path_length_every": 2, "augment_ramp_images": 50, "augment_target": 0.1},
    "stylegan1": {"grow_images": 8},
    "cyclegan": {"pool": 6},
}


@pytest.mark.parametrize("what", ["autoencoder", "ldm", *GAMES])
def test_a_killed_run_resumes_to_the_same_weights(what: str, workplace: Path, trained_autoencoder: Path) -> None:
    verb = "gan" if what in GAMES else what

    def config(name: str) -> Path:
        if verb == "autoencoder":
            return autoencoder_config(workplace, name)
        if verb == "gan":
            return gan_config(workplace, name, what, game=GAMES[what])
        return ldm_config(workplace, name, trained_autoencoder.name)

    whole, broken = f"{what}-whole", f"{what}-broken"
    finish(verb, config(whole))
    kill_after_state(verb, config(broken), workplace / broken)
    assert not (workplace / broken / "checkpoint").exists()
    finish(verb, config(broken))
    expected, found = weights(workplace / whole), weights(workplace / broken)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different
    lines = [(workplace / name / "metrics.jsonl").read_text().splitlines() for name in (whole, broken)]
    assert len(lines[0]) == len(lines[1])  # work done twice is logged once


def test_metrics_of_a_run_killed_before_its_first_state_are_not_kept(workplace: Path) -> None:
    from latentsynth.config import AutoencoderRun, load
    from latentsynth.outputs import claim
    from latentsynth.training.recipes.autoencoder import train_autoencoder
    from latentsynth.training.run import read_metrics

    config = load(AutoencoderRun, autoencoder_config(workplace, "ae-early"), ["train.images=8"])
    claim(config.run, "run")
    (config.run / "metrics.jsonl").write_text('{"images_seen": 4, "autoencoder/loss": 123.0}\n')
    train_autoencoder(config)
    assert [line["images_seen"] for line in read_metrics(config.run) if "autoencoder/loss" in line] == [4, 8]
