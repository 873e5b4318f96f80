"""A phantom cohort and runs small enough to train in seconds, made once per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_runs import autoencoder_config, ldm_config, segmenter_config

from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun, load
from latentsynth.data.intake.prepare import prepare
from latentsynth.phantom.cohort import write_cohort


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort of 8 phantoms and its manifest; the ledger key lives there too."""
    folder = tmp_path_factory.mktemp("workplace")
    os.environ["LATENTSYNTH_KEY"] = str(folder / "key")
    write_cohort(folder / "cohort", 8, seed=0, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0), channels=1)
    prepare(folder / "cohort", folder / "manifest.json", fractions=(0.6, 0.2, 0.2), progress=False)
    return folder


@pytest.fixture(scope="session")
def trained_autoencoder(workplace: Path) -> Path:
    """The run folder of a tiny trained autoencoder."""
    from latentsynth.training.recipes.autoencoder import train_autoencoder

    config = load(AutoencoderRun, autoencoder_config(workplace, "ae"))
    train_autoencoder(config)
    return config.run


@pytest.fixture(scope="session")
def trained_ldm(workplace: Path, trained_autoencoder: Path) -> Path:
    """The run folder of a tiny trained latent diffusion model."""
    from latentsynth.training.recipes.ldm import train_ldm

    config = load(LdmRun, ldm_config(workplace, "ldm", trained_autoencoder.name))
    train_ldm(config)
    return config.run


@pytest.fixture(scope="session")
def trained_segmenter(workplace: Path) -> Path:
    """The run folder of a tiny trained segmenter."""
    from latentsynth.training.recipes.segmenter import train_segmenter

    changes = ["train.images=160", "train.save_every_images=160"]
    config = load(SegmenterRun, segmenter_config(workplace, "segmenter"), changes)
    train_segmenter(config)
    return config.run
