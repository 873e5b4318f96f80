"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from accelerate import Accelerator
from helpers import GEOMETRIES, SMALL, lesion_mask, tiny_model, write_mask
from trained_runs import trained_autoencoder, trained_ldm, trained_segmenter, workplace  # noqa: F401 (fixtures)

from latentsynth.data.exchange.requests import Request
from latentsynth.synthesizers import LatentDiffusion

hypothesis.settings.register_profile("latentsynth", deadline=None, derandomize=True)  # a busy machine is no failure
hypothesis.settings.load_profile("latentsynth")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trainings first: they are few and long, and one that begins last keeps a process waiting for another."""
    items.sort(key=lambda item: "training" not in item.path.parts)


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], LatentDiffusion]:
    """Tiny latent diffusion models by the kind of their autoencoder, each built once; tests must not change them."""
    return cache(tiny_model)


@pytest.fixture(scope="session")
def cpu() -> Accelerator:
    """One process without a GPU."""
    return Accelerator(cpu=True)


@pytest.fixture
def masks(tmp_path: Path) -> list[Request]:
    """One mask on every geometry, each from a patient."""
    return [
        write_mask(tmp_path / "masks" / f"{name}.nii.gz", lesion_mask(*GEOMETRIES[name], SMALL), GEOMETRIES[name][0],
                   parents=(f"patient-{name}",))
        for name in GEOMETRIES
    ]  # fmt: skip
