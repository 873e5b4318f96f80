"""Does training on synthetic patients help? Arms x segmenters x sizes x seeds, each cell seeing its own patients alone."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from latentsynth import checkpoint
from latentsynth.config import SegmenterRun, UtilityStudy
from latentsynth.data.manifest import Manifest
from latentsynth.data.requests import requests
from latentsynth.data.splits import shuffled
from latentsynth.errors import DataError
from latentsynth.evaluation.segmentation import evaluate_segmenter
from latentsynth.experiments.grid import Cell
from latentsynth.experiments.study import Study, train_generator
from latentsynth.experiments.utility_summary import summarise
from latentsynth.provenance import LEDGER
from latentsynth.results import Result
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import load_synthesizer
from latentsynth.training.segmenter import train_segmenter

_IMAGES_PER_HOUR = 50_000  # of one process on two CPU cores, rough


@dataclass(frozen=True)
class Job:
    """One segmenter, trained on one arm's mixture of one subset.

    Attributes:
        arm: Name of the arm.
        segmenter: Name of the segmenter.
        size: Patients of the subset, or "all".
        seed: Of the subset, the generator and the segmenter.
    """

    arm: str
    segmenter: str
    size: int | str
    seed: int

    @property
    def subset(self) -> str:
        """Names its patients."""
        return f"n{self.size}-s{self.seed}"

    @property
    def name(self) -> str:
        """Names its cell."""
        return f"{self.segmenter}-{self.arm}-{self.subset}"


class Utility(Study):
    """The study on disk.

    Args:
        config: What to do.

    Raises:
        DataError: Patients do not suffice, cases are no annotated patients, or the autoencoder that was given has seen
            patients of the pool or held-out ones.
    """

    def __init__(self, config: UtilityStudy):
        super().__init__(config)
        self.config = config
        if config.pretrained_autoencoder is not None:
            self._check_autoencoder(config.pretrained_autoencoder)

    @property
    def jobs(self) -> list[Job]:
        """Every segmenter to train, small subsets first: the same seeds in every arm."""
        config = self.config
        return [
            Job(arm, segmenter, size, seed)
            for size in config.sizes
            for seed in config.seeds
            for arm in config.arms_of(size)
            for segmenter in config.segmenters
        ]

    def cells(self) -> list[Cell]:
        """All cells, in the order in which they should be done."""
        return [cell for cell, _ in self._tasks.values()]

    def work(self, cell: Cell, folder: Path) -> None:
        """Does one cell."""
        self._tasks[cell.name][1](folder)

    @cached_property
    def _tasks(self) -> dict[str, tuple[Cell, Callable[[Path], None]]]:
        """By name, every cell and what does it."""
        config = self.config
        facts = {**self.shared, "augment": config.augment, "validation": config.validation}
        tasks: dict[str, tuple[Cell, Callable[[Path], None]]] = {}
        first: tuple[str, ...] = ()
        if config.pretrained_autoencoder:
            facts["autoencoder"] = checkpoint.read_header(checkpoint.locate(config.autoencoder_folder)).fingerprint
        elif any(arm.model for arm in config.arms.values()):
            cell = self.autoencoder_cell(config)
            tasks[cell.name] = cell, lambda _: self.fit_autoencoder(config)
            first = (cell.name,)

        def add(
            name: str, more: dict[str, Any], hours: float, needs: tuple[str, ...], do: Callable[[Path], None]
        ) -> None:
            tasks.setdefault(name, (Cell(name, {**facts, **more}, hours, needs), do))

        for job in self.jobs:
            arm = config.arms[job.arm]
            needs: tuple[str, ...] = ()
            if arm.model is not None:
                model = config.models[arm.model]
                trained = f"train-{arm.model}-{job.subset}"
                add(trained, {"model": model}, _hours(model), first, partial(self._train, arm.model, job))
                painted = f"paint-{arm.model}-{job.subset}"
                count = self._per_mask(arm.model, job.size)
                add(painted, {"per_mask": count}, 0.02, (trained,), partial(self._paint, trained, count, job))
                needs = (painted,)
            segmenter = config.segmenters[job.segmenter]
            settings = {
                "segmenter": segmenter,
                "arm": arm.model_dump(mode="json", exclude_defaults=True, exclude={"sizes"}),
            }
            add(job.name, settings, _hours(segmenter), needs, partial(self._segment, job))
        return tasks

    def summarise(self) -> Result:
        """Tables, verdicts, figures and the page."""
        return summarise(self.config, self.folder, self.jobs, self.test_manifest(), self.accelerator)

    def test_manifest(self) -> Path:
        """Whom no model sees, and every segmenter is judged on."""
        return self.roles.write("test", test=self.roles.heldout, val=())

    def subset_manifest(self, job: Job) -> Path:
        """The arm's own patients: those it trains on, and those that choose its checkpoints."""
        train, val = own(self.roles.subset(job.size, job.seed), self.config.validation)
        return self.roles.write(job.subset, train, val=val)

    def _per_mask(self, model: str, size: int | str) -> int:
        """Volumes per mask, enough for every arm."""
        doses = [arm.dose for arm in self.config.arms_of(size).values() if arm.model == model]
        return max(1, math.ceil(max(doses)))

    def _train(self, model: str, job: Job, folder: Path) -> None:
        """Trains a generator on the subset."""
        train_generator(self.config.run_of(model, folder / "run", self.subset_manifest(job), job.seed))

    def _paint(self, trained: str, per_mask: int, job: Job, folder: Path) -> None:
        """Paints the masks of the subset's training patients, nobody else's."""
        synthesize(
            load_synthesizer(self.folder / "cells" / trained / "run"),
            requests(self.subset_manifest(job), "train"),
            folder / "samples",
            self.accelerator,
            per_mask=per_mask,
            seed=job.seed * 1000,
            batch=4,
        )

    def _segment(self, job: Job, folder: Path) -> None:
        """Trains a segmenter on the arm's mixture and scores it on the test patients."""
        arm = self.config.arms[job.arm]
        subset = self.subset_manifest(job)
        patients = sorted({case.patient_id for case in Manifest.load(subset).select("train")})
        real = {"manifest": subset, "split": "train", "patients": max(1, round(arm.real * len(patients)))}
        sources = [real] if arm.real else []
        if arm.model is not None:
            painted = self.folder / "cells" / f"paint-{arm.model}-{job.subset}" / "samples"
            synthetic = dosed(
                painted, round(arm.dose * len(patients)), job.seed, folder, self.accelerator.is_main_process
            )
            self.accelerator.wait_for_everyone()
            sources.append({"manifest": synthetic, "split": "train"})
        run = folder / "run"
        if arm.bridge:
            images = self._run(job, run, subset, sources).train.images
            half = {"train": {"images": images // 2}}
            train_segmenter(self._run(job, folder / "bridge", subset, sources[1:], half))
            rest = {"train": {"images": images - images // 2}, "init_from": folder / "bridge" / "checkpoint"}
            train_segmenter(self._run(job, run, subset, sources[:1], rest))
        else:
            train_segmenter(self._run(job, run, subset, sources))
        evaluate_segmenter(run, self.test_manifest(), folder / "test", self.accelerator, "test")

    def _run(
        self,
        job: Job,
        run: Path,
        subset: Path,
        sources: Sequence[dict[str, Any]],
        changes: dict[str, Any] | None = None,
    ) -> SegmenterRun:
        arm = self.config.arms[job.arm]
        return self.config.segmenter_run(job.segmenter, run, subset, sources, job.seed, arm.augment, changes)

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


def _hours(settings: dict[str, Any]) -> float:
    return float(settings.get("train", {}).get("images", 0) / _IMAGES_PER_HOUR)


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


def dosed(painted: Path, count: int, seed: int, folder: Path, write: bool) -> Path:
    """A manifest of so many volumes, every mask once before any twice, masks in random order, with the ledger beside it."""
    manifest = Manifest.load(painted / "manifest.json")
    place = {mask: n for n, mask in enumerate(shuffled([case.patient_id for case in manifest.cases], seed))}
    turns: Counter[str] = Counter()
    ordered = []
    for case in sorted(manifest.cases, key=lambda case: case.case_id):
        ordered.append((turns[case.patient_id], place[case.patient_id], case))  # one mask is one patient
        turns[case.patient_id] += 1
    chosen = [case for *_, case in sorted(ordered, key=lambda row: row[:2])[: max(1, count)]]
    path = folder / "synthetic" / "manifest.json"
    if write:
        replace(manifest, name=folder.name, cases=tuple(replace(case, split="train") for case in chosen)).save(path)
        shutil.copyfile(painted / LEDGER, path.parent / LEDGER)
    return path
