"""Does training on synthetic patients help? Arms x segmenters x sizes x seeds, each cell seeing its own patients alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latentsynth import checkpoint
from latentsynth.config import SegmenterRun, UtilityStudy
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.segmentation.evaluate import evaluate_segmenter
from latentsynth.experiments.grid import Cell
from latentsynth.experiments.roles import Roles
from latentsynth.experiments.runs import RunPlace, segmenter_run
from latentsynth.experiments.study import Study
from latentsynth.experiments.utility.jobs import FinishedStudy, Job
from latentsynth.experiments.utility.summary import summarise
from latentsynth.experiments.utility.synthetic import IMAGES_PER_HOUR, Subset, Synthetic
from latentsynth.metrics.conformal import smallest_rank
from latentsynth.results import Result
from latentsynth.training.recipes.segmenter import train_segmenter


class Utility(Study):
    """The study on disk.

    Args:
        config: What to do.

    Raises:
        DataError: Patients do not suffice, cases are no annotated patients, or the autoencoder that was given has seen
            patients of the pool or held-out ones.
    """

    def __init__(self, config: UtilityStudy):
        super().__init__(config, config.folds)
        self.config = config
        self.folds = [Roles.draw(config, fold, config.folds) for fold in range(config.folds)]
        for roles in self.folds:
            for size in config.sizes:
                roles.subset(size, config.seed)
        if any(arm.drop.copies for arm in config.arms.values()):
            smallest_rank(len(self.roles.outside) // 2, config.copy_level)
        if config.pretrained_autoencoder is not None:
            self._check_autoencoder(config.pretrained_autoencoder)

    @property
    def jobs(self) -> list[Job]:
        """Every segmenter to train, small subsets first: the same seeds in every arm."""
        config = self.config
        return [
            Job(arm, segmenter, size, seed, fold)
            for size in config.sizes
            for seed in config.seeds
            for fold in (range(config.folds) if config.folds > 1 else [None])
            for arm in config.arms_of(size)
            for segmenter in config.segmenters
        ]

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they should be done."""
        config = self.config
        facts = {**self.shared, "augment": config.augment, "validation": config.validation}
        if config.folds > 1:
            facts["folds"] = config.folds
        cells: dict[str, Cell] = {}
        first: tuple[str, ...] = ()
        if config.pretrained_autoencoder:
            facts["autoencoder"] = checkpoint.read_header(checkpoint.locate(config.autoencoder_folder)).fingerprint
        elif config.autoencoder_patients == "outside" and any(
            arm.model in config.models for arm in config.arms.values()
        ):
            cell = self.autoencoder_cell(config)
            cells[cell.name] = cell
            first = (cell.name,)
        # The baseline goes first where other arms ask its segmenter.
        for job in sorted(self.jobs, key=lambda job: (self._place(job), job.arm != config.baseline)):
            needs: tuple[str, ...] = ()
            if config.arms[job.arm].model is not None:
                segmenter = Job(config.baseline, next(iter(config.segmenters)), job.size, job.seed, job.fold)
                for cell in self._synthetic(job).cells(facts, segmenter.name, first):
                    cells.setdefault(cell.name, cell)
                    needs = (cell.name,)
            cells[job.name] = self._segmenting(job, facts, needs)
        return list(cells.values())

    def _segmenting(self, job: Job, facts: dict[str, Any], needs: tuple[str, ...]) -> Cell:
        """The cell of a job."""
        settings = self.config.segmenters[job.segmenter]
        arm = self.config.arms[job.arm].model_dump(mode="json", exclude_defaults=True, exclude={"sizes"})
        hours = float(settings.get("train", {}).get("images", 0)) / IMAGES_PER_HOUR * self.config.scale
        return Cell(job.name, partial(self._segment, job), {**facts, "segmenter": settings, "arm": arm}, hours, needs)

    def summarise(self) -> Result:
        """Tables, verdicts, figures and the page."""
        made = [self._synthetic(job) for job in self.jobs if self.config.arms[job.arm].drop.copies]
        finished = FinishedStudy(
            tuple(self.jobs),
            self.test_manifest(),
            self.roles.cohort.fingerprint,
            {one.copy_free: self.folder / "cells" / one.uncopied for one in made},
            tuple(self._short_of()),
        )
        return summarise(self.config, finished, self.accelerator)

    def test_manifest(self, fold: int | None = None) -> Path:
        """Whom no model sees, and every segmenter is evaluated on."""
        roles = self.folds[fold or 0]
        return roles.write("test", test=roles.heldout, val=())

    def subset(self, job: Job) -> Subset:
        """The arm's own patients: those it trains on, and those that choose its checkpoints."""
        roles = self.folds[job.fold or 0]
        return Subset(
            job.subset, roles, job.size, job.seed, *own(roles.subset(job.size, job.seed), self.config.validation)
        )

    def _short_of(self) -> list[str]:
        """In words, arms that were trained on fewer synthetic volumes than their dose, because filters left no more."""
        lines = []
        for job in self.jobs:
            if self.config.arms[job.arm].model is not None:
                asked = self._synthetic(job).asked
                found = len(Manifest.load(self.folder / "cells" / job.name / "synthetic" / "manifest.json").cases)
                if found < asked:
                    lines.append(f"{job.name} was trained on {found} synthetic volumes of {asked}: no more were left")
        return lines

    def _place(self, job: Job) -> tuple[int, int, int]:
        return self.config.sizes.index(job.size), self.config.seeds.index(job.seed), job.fold or 0

    def _synthetic(self, job: Job) -> Synthetic:
        return Synthetic(self.config, self.config.arms[job.arm], self.subset(job), lambda: self.accelerator)

    def _segment(self, job: Job, folder: Path) -> None:
        """Trains a segmenter on the arm's mixture and scores it on the test patients."""
        arm, subset = self.config.arms[job.arm], self.subset(job)
        real = {"manifest": subset.manifest, "split": "train", "patients": max(1, round(arm.real * len(subset.train)))}
        sources: list[dict[str, Any]] = [real] if arm.real else []
        if arm.model is not None:
            chosen = self._synthetic(job).choose(folder)
            self.accelerator.wait_for_everyone()
            sources.append({"manifest": chosen, "split": "train"})
        run = folder / "run"
        if arm.bridge:
            images = self._run(job, run, subset, sources).train.images
            half = {"train": {"images": images // 2}}
            train_segmenter(self._run(job, folder / "bridge", subset, sources[1:], half))
            rest = {"train": {"images": images - images // 2}, "init_from": folder / "bridge" / "checkpoint"}
            train_segmenter(self._run(job, run, subset, sources[:1], rest))
        else:
            train_segmenter(self._run(job, run, subset, sources))
        evaluate_segmenter(run, self.test_manifest(job.fold), folder / "test", self.accelerator, "test")

    def _run(
        self,
        job: Job,
        run: Path,
        subset: Subset,
        sources: Sequence[dict[str, Any]],
        changes: dict[str, Any] | None = None,
    ) -> SegmenterRun:
        augment = self.config.arms[job.arm].augment
        place = RunPlace(run, subset.manifest, job.seed)
        return segmenter_run(self.config, job.segmenter, place, sources, augment, changes)

    def _check_autoencoder(self, run: Path) -> None:
        """An autoencoder that has seen a patient of the pool would carry it into every arm."""
        ledger = checkpoint.read_ledger(checkpoint.locate(run))
        mine = {*self.roles.pool, *self.roles.heldout}
        seen, _ = ledger.seen([case for case in self.roles.cohort.cases if case.patient_id in mine])
        if seen:
            raise DataError(
                f"the autoencoder of {run} was trained on {len(seen)} patients of this study's pool or held-out patients "
                f"({', '.join(case.patient_id for case in seen[:3])}): train one on other patients, or let the study do it"
            )


def own(subset: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """A subset's training and validation patients, spread so that those of nested subsets are nested.

    Raises:
        DataError: A subset that leaves nobody to train on, or to validate on.
    """
    if len(subset) < 2:
        raise DataError(f"a subset of {len(subset)} patients cannot both train and validate: give at least 2")
    due = [math.floor(n * share + 1e-9) for n in range(len(subset) + 1)]
    val = [patient for n, patient in enumerate(subset) if due[n + 1] > due[n]] or list(subset[-1:])
    return [patient for patient in subset if patient not in set(val)], val
