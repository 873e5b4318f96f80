"""Does diffusion memorize more than a GAN? Models on nested subsets, equal compute, several seeds, with controls."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from latentsynth.checkpoint import is_checkpoint
from latentsynth.config import GanRun, LdmRun, MemorizationStudy
from latentsynth.data.exchange.requests import requests
from latentsynth.documents import read_fields
from latentsynth.experiments.grid import Cell
from latentsynth.experiments.memorization.arms import Arm
from latentsynth.experiments.memorization.measuring import measure_stage
from latentsynth.experiments.memorization.summary import summarise
from latentsynth.experiments.runs import RunPlace, detector_run, generator_run
from latentsynth.experiments.study import FITTING_HOURS, Study, train_generator
from latentsynth.files import atomic_folder, write_json
from latentsynth.metrics.conformal import smallest_rank
from latentsynth.results import Result
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import load_synthesizer
from latentsynth.training.recipes.extractor import train_extractor
from latentsynth.training.run import read_metrics

_PILOT_BATCHES = 24  # enough to tell images per second
_MEASURING_HOURS = 0.05  # of each stage


class Memorization(Study):
    """The study on disk.

    Args:
        config: What to do.

    Raises:
        DataError: Patients do not suffice, for the sizes or for the level, or cases are no annotated patients.
    """

    def __init__(self, config: MemorizationStudy):
        super().__init__(config)
        self.config = config
        smallest_rank(len(self.roles.heldout) // 2, config.level)
        for arm in self.arms:
            self.roles.subset(arm.size, arm.seed)

    @property
    def arms(self) -> list[Arm]:
        """Every model, size and seed; whole seeds first, so that a study that is stopped has compared something."""
        config = self.config
        return [Arm(m, size, seed) for seed in config.seeds for size in config.sizes for m in config.models]

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they should be done."""
        config, shared = self.config, self.shared
        pilots = [
            Cell(f"pilot-{m}", partial(self._pilot, m), {**shared, "model": config.models[m]}, 0.02, ("autoencoder",))
            for m in config.models
        ]
        cells = [self.autoencoder_cell(config), *pilots]
        if self._detects:
            facts = {**shared, "detector": config.detector_settings}
            cells.append(Cell("detector", self._fit_detector, facts, FITTING_HOURS))
        for arm in self.arms:
            cells += [self._training(arm), self._measuring(arm)]
        return cells

    @property
    def _detects(self) -> bool:
        return "contrastive" in self.config.spaces

    def _training(self, arm: Arm) -> Cell:
        config = self.config
        facts = {
            **self.shared, "model": config.models[arm.model], "minutes": config.minutes, "stages": config.stages,
            "augment": config.augment,
        }  # fmt: skip
        hours = config.minutes / 60
        return Cell(arm.name, partial(self._train, arm), facts, hours, ("autoencoder", f"pilot-{arm.model}"))

    def _measuring(self, arm: Arm) -> Cell:
        config = self.config
        facts = {
            **self.shared, "spaces": config.spaces, "level": config.level, "detector": config.detector_settings,
            "of": arm.name,
        }  # fmt: skip
        needs = (arm.name, "detector") if self._detects else (arm.name,)
        hours = _MEASURING_HOURS * len(config.stages)
        return Cell(f"measure-{arm.name}", partial(self._measure, arm), facts, hours, needs)

    def summarise(self) -> Result:
        """Table and figure of all cells."""
        return summarise(self.config, self.arms, self.accelerator)

    def _fit_detector(self, _: Path) -> None:
        train_extractor(detector_run(self.config, self.folder / "detector", self.roles.detector_manifest()))

    def _measure(self, arm: Arm, folder: Path) -> None:
        for stage in self.config.stages:
            at = self._stage(arm, stage)
            measure_stage(self.config, self.roles, arm, at, folder / f"{stage:g}", self.accelerator)

    def _stage(self, arm: Arm, stage: float) -> Path:
        return self.folder / "cells" / arm.name / f"{stage:g}"

    def _pilot(self, model: str, folder: Path) -> None:
        """Images per CPU second, so that every model can be given the same compute."""
        config = self._run_config(Arm(model, self.config.sizes[-1], self.config.seeds[0]), folder / "run", 1)
        batch = config.train.batch
        config = _lengthened(config, _PILOT_BATCHES * batch, batch)
        train_generator(config)
        lines = [line for line in read_metrics(config.run) if "cpu_seconds" in line]
        first, last = lines[len(lines) // 4], lines[-1]  # the first steps also set things up
        rate = (last["images_seen"] - first["images_seen"]) / (last["cpu_seconds"] - first["cpu_seconds"])
        write_json(folder / "pilot.json", {"images_per_cpu_second": rate})

    def _train(self, arm: Arm, folder: Path) -> None:
        """Trains in stages; keeps the checkpoint of each and paints the masks of the held-out patients with it."""
        file = self.folder / "cells" / f"pilot-{arm.model}" / "pilot.json"
        pilot = read_fields(file, images_per_cpu_second=float)
        whole = pilot["images_per_cpu_second"] * self.config.minutes * self.config.scale * 60
        masks = requests(self.roles.heldout_manifest(), "test")
        for stage in self.config.stages:
            kept = self._stage(arm, stage)
            config = self._run_config(arm, folder / "run", max(1, round(whole * stage)))
            if not (kept / "checkpoint").is_dir():
                train_generator(config)
                if self.accelerator.is_main_process:  # the checkpoint last: it says that all is here
                    last = [line for line in read_metrics(config.run) if "cpu_seconds" in line][-1]
                    write_json(kept / "cost.json", {key: last[key] for key in ("images_seen", "cpu_seconds")})
                    with atomic_folder(kept / "checkpoint", is_checkpoint) as temporary:
                        shutil.copytree(config.run / "checkpoint", temporary)
                self.accelerator.wait_for_everyone()
            if not (kept / "samples" / "manifest.json").is_file():
                model = load_synthesizer(kept / "checkpoint")
                synthesize(model, masks, kept / "samples", self.accelerator, seed=arm.seed, batch=4)

    def _run_config(self, arm: Arm, run: Path, images: int) -> LdmRun | GanRun:
        train = self.roles.subset(arm.size, arm.seed)
        manifest = self.roles.write(f"n{arm.size}-s{arm.seed}", train)
        config = generator_run(self.config, arm.model, RunPlace(run, manifest, arm.seed))
        return _lengthened(config, images, images)


def _lengthened(config: Any, images: int, every: int) -> Any:
    """The same run, so long, looked at only at its end (and logged every batch if it is a pilot)."""
    ends = ("save_every_images", "validate_every_images", "sample_every_images")
    log = min(config.train.log_every_images, max(every, 1))
    train = config.train.model_copy(update={"images": images, "log_every_images": log, **dict.fromkeys(ends, 1 << 40)})
    return config.model_copy(update={"train": train})
