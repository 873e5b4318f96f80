"""Fixtures of the tests of studies, of filtering and of exporting."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported_set import reported  # noqa: F401 (fixture)

from latentsynth.data.intake.prepare import prepare
from latentsynth.phantom.cohort import write_cohort


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> list[str]:
    """What points a debug study at twenty small phantoms."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_cohort(folder / "patients", 20, seed=0, shape=(24, 24, 24), spacing_mm=(8.0, 8.0, 8.0), channels=1)
    prepare(folder / "patients", folder / "patients.json", progress=False)
    return [f"manifest={folder / 'patients.json'}", f"cache={folder / 'cache'}"]
