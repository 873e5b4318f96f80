"""Synthetic patients in somebody else's training loop, and trainings without a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import latentsynth
from latentsynth import LatentDiffusion, SampledPatients, StoredPatients
from latentsynth.config import AutoencoderRun, Run, load
from latentsynth.data.exchange.requests import requests
from latentsynth.errors import ConfigError, DataError
from latentsynth.parallel import start
from latentsynth.synthesis import synthesize


def test_a_patient_is_the_same_in_any_batch_and_any_process() -> None:
    patients = SampledPatients("hippocampus", 6, mask_model="hippocampus-masks", seed=4, steps=2)
    alone = [patients[n] for n in range(3)]
    for workers in (0, 1):
        (batch,) = [b for _, b in zip(range(1), DataLoader(patients, batch_size=3, num_workers=workers), strict=False)]
        assert batch["name"] == ["synthetic-4", "synthetic-5", "synthetic-6"]
        for n, one in enumerate(alone):
            assert torch.equal(batch["label"][n], one["label"])
            torch.testing.assert_close(batch["image"][n], one["image"], atol=1e-4, rtol=0)
    assert alone[0]["image"].shape == (1, 32, 48, 40)
    assert alone[0]["label"].shape == (1, 32, 48, 40)
    assert set(alone[0]["label"].unique().tolist()) == {0, 1, 2}
    assert not torch.equal(alone[0]["label"], alone[1]["label"])
    later = SampledPatients("hippocampus", 6, mask_model="hippocampus-masks", seed=5, steps=2)
    assert torch.equal(later[0]["label"], patients[1]["label"])  # the seed is where one starts
    with pytest.raises(IndexError):
        patients[6]


def test_sampled_patients_are_the_volumes_that_sample_writes(
    trained_ldm: Path, workplace: Path, tmp_path: Path
) -> None:
    manifest = workplace / "manifest.json"
    asked = requests(manifest, "test")
    made = synthesize(LatentDiffusion.from_pretrained(trained_ldm), asked, tmp_path / "made", start(), seed=7)
    there = StoredPatients(tmp_path / "made" / "manifest.json", trained_ldm, cache=tmp_path / "cache")
    here = SampledPatients(trained_ldm, len(asked), masks=manifest, split="test", seed=7)
    assert len(there) == len(here) == len(made.cases)
    assert torch.equal(there[0]["label"], here[0]["label"])
    inside = there[0]["image"] > -1  # beyond the mask's own scan nothing was written
    apart = (there[0]["image"] - here[0]["image"])[inside].abs()
    assert apart.mean() < 0.05
    assert apart.mean() < 0.2 * (there[0]["image"] - there[1]["image"])[inside].abs().mean()


def test_masks_are_painted_in_turn_each_time_anew(trained_ldm: Path, workplace: Path) -> None:
    masks = len(requests(workplace / "manifest.json", "train"))
    patients = SampledPatients(trained_ldm, 2 * masks, masks=workplace / "manifest.json", steps=1)
    assert torch.equal(patients[0]["label"], patients[masks]["label"])
    assert not torch.equal(patients[0]["image"], patients[masks]["image"])


def test_what_does_not_fit_is_refused(trained_ldm: Path, workplace: Path) -> None:
    with pytest.raises(ConfigError, match=r"give masks, or the mask_model"):
        SampledPatients(trained_ldm, 1)
    with pytest.raises(DataError, match=r"has channels .* hippocampus"):
        StoredPatients(workplace / "manifest.json", "hippocampus")
    with pytest.raises(ConfigError, match=r"guidence"):
        SampledPatients(trained_ldm, 1, masks=workplace / "manifest.json", guidence=2)


def test_a_training_needs_no_file(trained_autoencoder: Path, tmp_path: Path) -> None:
    """What a YAML file says can be said in Python, with dictionaries for sections."""
    file = load(AutoencoderRun, trained_autoencoder / "config.yaml")
    sections = {name: getattr(file, name).model_dump() for name in ("data", "autoencoder", "train")}
    sections["train"] |= {"images": 2, "batch": 2}
    scores = latentsynth.train(AutoencoderRun(run=tmp_path / "run", **sections))
    assert scores["psnr"] > 0
    assert (tmp_path / "run" / "checkpoint" / "config.json").is_file()
    with pytest.raises(ConfigError, match=r"Run is no configuration of a training"):
        latentsynth.train(Run(run=tmp_path / "other"))
