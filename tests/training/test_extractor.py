"""Training a contrastive extractor on phantoms: it learns, refuses synthetic cases, and its checkpoint is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import GRID, SCHEDULE

from latentsynth import checkpoint
from latentsynth.config import ExtractorRun, build
from latentsynth.data.intake.prepare import prepare
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError, TrainingError
from latentsynth.evaluation.features import contrastive_extractor
from latentsynth.extractors.contrastive import ContrastiveEncoder
from latentsynth.phantom.cohort import write_cohort
from latentsynth.training.recipes.extractor import train_extractor

IMAGES = 960
VIEWS = {"rotate_deg": 3.0, "scale": 0.03, "shift": 0.02, "brightness": 0.4, "gamma": 0.5}


def configured(folder: Path, name: str, **changes: Any) -> ExtractorRun:
    train = {**SCHEDULE, "batch": 8, "lr": 3e-3, "images": IMAGES, "ema_halflife_images": 16}
    train |= {"validate_every_images": IMAGES, "sample_every_images": IMAGES, **changes.pop("train", {})}
    values = {
        "run": folder / name,
        "data": {"manifest": folder / "manifest.json", "grid": GRID, "cache": folder / "cache"},
        "channels": (8, 16, 32), "projection": 16, "views": VIEWS, "train": train, **changes,
    }  # fmt: skip
    return build(ExtractorRun, values, "extractor")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> Path:
    """A folder with a manifest of 24 phantoms, half of them for validation; the ledger key is the workplace's."""
    folder = tmp_path_factory.mktemp("extractor")
    write_cohort(folder / "cohort", 24, seed=5, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0), channels=1)
    prepare(folder / "cohort", folder / "manifest.json", fractions=(0.5, 0.5, 0.0), progress=False)
    return folder


@pytest.fixture(scope="module")
def trained(cohort: Path) -> tuple[Path, dict[str, float]]:
    config = configured(cohort, "run")
    return config.run, train_extractor(config)


def test_training_tells_scans_apart(cohort: Path, trained: tuple[Path, dict[str, float]]) -> None:
    """12 validation scans, whose views differ in brightness most of all: chance is a twelfth."""
    count = len(Manifest.load(cohort / "manifest.json").select("val"))
    assert count >= 10
    idle = train_extractor(configured(cohort, "idle", train={"lr": 1e-12, "images": 8, "validate_every_images": 8}))
    learned = trained[1]["retrieval"]
    assert learned > 5 / count
    assert learned > idle["retrieval"] + 2 / count
    lines = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/retrieval"] for line in lines if "val/retrieval" in line][-1] == pytest.approx(learned)


def test_the_same_call_again_has_nothing_left_to_do(cohort: Path, trained: tuple[Path, dict[str, float]]) -> None:
    before = (trained[0] / "checkpoint" / "config.json").read_bytes()
    again = train_extractor(configured(cohort, "run"))
    assert again == pytest.approx(trained[1])
    assert (trained[0] / "checkpoint" / "config.json").read_bytes() == before
    with pytest.raises(TrainingError, match="other settings"):
        train_extractor(configured(cohort, "run", temperature=0.5))


def test_training_does_not_hang_on_the_global_state(cohort: Path) -> None:
    found = []
    for n in range(2):
        torch.manual_seed(n)
        config = configured(cohort, f"short-{n}", train={"images": 16, "validate_every_images": 16})
        train_extractor(config)
        found.append(checkpoint.read_header(config.run / "checkpoint").parts)
    assert found[0] == found[1]


def test_the_checkpoint_knows_its_patients(cohort: Path, trained: tuple[Path, dict[str, float]]) -> None:
    manifest = Manifest.load(cohort / "manifest.json")
    ledger = checkpoint.read_ledger(trained[0] / "checkpoint")
    assert ledger.seen(manifest.select("train")) == (list(manifest.select("train")), True)
    assert ledger.seen(manifest.select("val")) == ([], True)


def test_the_checkpoint_becomes_an_extractor(cohort: Path, trained: tuple[Path, dict[str, float]]) -> None:
    config = configured(cohort, "run")
    one = contrastive_extractor(trained[0], config.data.grid)
    images = torch.rand(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = ContrastiveEncoder.from_pretrained(trained[0] / "checkpoint" / "network")
    with torch.no_grad():
        torch.testing.assert_close(one.features(images), network.features(images), atol=1e-5, rtol=1e-4)
    header = checkpoint.read_header(trained[0] / "checkpoint")
    assert one.fingerprint == header.fingerprint
    assert header.fingerprint.startswith(one.name.removeprefix("contrastive:"))
    assert contrastive_extractor(trained[0] / "checkpoint", config.data.grid).fingerprint == one.fingerprint


@pytest.mark.parametrize(
    "change", [{"shape": (24, 24, 28)}, {"spacing_mm": (8.0, 8.0, 7.0)}, {"windows": None}], ids=lambda c: next(iter(c))
)
def test_an_extractor_of_another_grid_is_refused(
    cohort: Path, trained: tuple[Path, dict[str, float]], change: dict[str, Any]
) -> None:
    grid = configured(cohort, "run").data.grid
    if "windows" in change:
        change = {"windows": (replace(grid.windows[0], high=241.0),)}
    with pytest.raises(CheckpointError, match=r"was trained on .*train one for it"):
        contrastive_extractor(trained[0], replace(grid, **change))


def test_other_checkpoints_are_no_extractor(cohort: Path, trained_autoencoder: Path) -> None:
    with pytest.raises(CheckpointError, match="kind autoencoder, expected extractor"):
        contrastive_extractor(trained_autoencoder, configured(cohort, "run").data.grid)


def test_synthetic_cases_are_refused(cohort: Path) -> None:
    manifest = Manifest.load(cohort / "manifest.json")
    victim = manifest.select("train")[3]
    cases = tuple(replace(case, source="model:1") if case is victim else case for case in manifest.cases)
    replace(manifest, cases=cases).save(cohort / "mixed.json")
    data = {"manifest": cohort / "mixed.json", "grid": GRID, "cache": cohort / "cache"}
    with pytest.raises(DataError, match="holds synthetic cases"):
        train_extractor(configured(cohort, "mixed", data=data))
    assert not (cohort / "mixed").exists()
    others = tuple(replace(case, source="model:1") if case.split == "val" else case for case in manifest.cases)
    replace(manifest, cases=others).save(cohort / "mixed.json")
    train_extractor(configured(cohort, "allowed", data=data, train={"images": 8, "validate_every_images": 8}))
