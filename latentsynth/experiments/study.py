"""What every study does: draw roles, name cells, run them, summarise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latentsynth import outputs
from latentsynth.config import GanRun, LdmRun, StudyConfig
from latentsynth.experiments.grid import Cell, CellGrid
from latentsynth.experiments.roles import Roles
from latentsynth.experiments.runs import autoencoder_run
from latentsynth.parallel import start
from latentsynth.results import Result
from latentsynth.training.recipes.autoencoder import train_autoencoder
from latentsynth.training.recipes.gan import train_gan
from latentsynth.training.recipes.ldm import train_ldm

FITTING_HOURS = 0.4  # rough estimate for whatever is fitted once


class Study(ABC):
    """A study on disk: manifests, cells, results.

    Args:
        config: What to do.
        folds: In how many parts the patients are held out.

    Raises:
        DataError: Patients do not suffice, or cases are no annotated patients.
    """

    def __init__(self, config: StudyConfig, folds: int = 1):
        self.folder = config.folder
        self.roles = Roles.draw(config, 0, folds)
        facts = {"grid": config.grid, "framing": config.framing, "roles": config.roles, "seed": config.seed}
        self.shared = {key: plain(value) for key, value in facts.items()} | {"cohort": self.roles.cohort.fingerprint}
        if config.scale < 1:
            self.shared["scale"] = config.scale

    @cached_property
    def accelerator(self) -> Accelerator:
        """The processes that share the work."""
        return start()

    @abstractmethod
    def cells(self) -> list[Cell]:
        """All cells, in the order in which they should be done."""

    @abstractmethod
    def summarise(self) -> Result:
        """Says what all cells found."""

    def grid(self) -> CellGrid:
        """The cells on disk.

        Raises:
            TrainingError: The folder holds cells of other settings.
        """
        return CellGrid(self.folder, self.cells())

    def run(self) -> Result:
        """Does what is not done yet and summarises everything.

        Raises:
            TrainingError: Some cells failed.
        """
        if self.accelerator.is_main_process:
            outputs.claim(self.folder, "study", alone=False)
        self.accelerator.wait_for_everyone()
        self.grid().run(self.accelerator)
        return self.summarise()

    def autoencoder_cell(self, config: StudyConfig) -> Cell:
        """Fits the autoencoder on the outside patients."""
        facts = {**self.shared, "autoencoder": config.autoencoder, "augment": config.augment}

        def fit(_: Path) -> None:
            train_autoencoder(autoencoder_run(config, config.autoencoder_folder, self.roles.outside_manifest()))

        return Cell("autoencoder", fit, facts, FITTING_HOURS)


def train_generator(config: LdmRun | GanRun) -> None:
    """Trains a generator of either kind; the same call again resumes it."""
    train_ldm(config) if isinstance(config, LdmRun) else train_gan(config)


def plain(value: Any) -> Any:
    """As JSON can hold it."""
    if value is None or not hasattr(value, "model_dump"):
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return value.model_dump(mode="json")
