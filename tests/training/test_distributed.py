"""Two processes: the same weights on both, the same loss curve as one, the same volumes as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import autoencoder_config, ldm_config

from latentsynth.data import nifti
from latentsynth.data.manifest import Manifest
from latentsynth.data.requests import requests
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import load_synthesizer
from latentsynth.training.launch import start
from latentsynth.training.run import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(workplace: Path, trained_autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains an autoencoder and a diffusion model and samples, on two processes; returns the folder of digests."""
    folder = tmp_path_factory.mktemp("digests")
    arguments = [
        autoencoder_config(workplace, "ae-pair"),
        ldm_config(workplace, "ldm-pair", trained_autoencoder.name),
        workplace / "manifest.json",
        folder / "samples",
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(ROOT / "configs/accelerate/cpu_2_processes.yaml"), "--main_process_port", "0"]
    subprocess.run(
        [*launch, str(Path(__file__).with_name("worker.py")), str(folder), *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=500,
    )
    return folder


@pytest.mark.parametrize("name", ["ae-pair", "ldm-pair"])
def test_both_processes_end_with_the_same_weights(name: str, pair: Path) -> None:
    ranks = [json.loads((pair / f"{name}-32-rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["world"] for rank in ranks] == [2, 2]
    assert ranks[0]["digests"] == ranks[1]["digests"]
    early = json.loads((pair / f"{name}-8-rank0.json").read_text())
    assert all(a != b for a, b in zip(early["digests"][:1], ranks[0]["digests"], strict=False))  # and they did train


def test_two_processes_have_the_loss_curve_of_one(pair: Path, workplace: Path, trained_ldm: Path) -> None:
    curves = []
    for run in (trained_ldm, workplace / "ldm-pair"):
        lines = [line for line in read_metrics(run) if "denoiser/loss" in line]
        curves.append([line["denoiser/loss"] for line in lines])
        assert [line["images_seen"] for line in lines] == list(range(4, 33, 4))
    assert np.allclose(curves[0], curves[1], rtol=1e-4)
    assert curves[0][0] != curves[0][-1]


def test_two_processes_sample_the_volumes_of_one(pair: Path, workplace: Path, tmp_path: Path) -> None:
    model = load_synthesizer(workplace / "ldm-pair")
    alone = synthesize(model, requests(workplace / "manifest.json"), tmp_path, start(), per_mask=3)
    together = Manifest.load(pair / "samples" / "manifest.json")
    assert [case.case_id for case in together.cases] == [case.case_id for case in alone.cases]
    assert len(together.cases) >= 3
    for ours, theirs in zip(alone.cases, together.cases, strict=True):
        a, b = nifti.read(ours.images[0])[0], nifti.read(theirs.images[0])[0]
        assert np.allclose(a, b, atol=0.5)  # Hounsfield units, of a window of 400
