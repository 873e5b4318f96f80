"""The synthetic side of a utility study: by arm, the cells that train a generator, paint with it, and drop volumes."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latentsynth.config import ArmConfig, UtilityStudy
from latentsynth.data.exchange.requests import Request, requests
from latentsynth.data.intake.splits import shuffled
from latentsynth.data.manifest import Manifest
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.features import volumes
from latentsynth.evaluation.inputs import halves
from latentsynth.evaluation.memorization.measures import PatientGroups, search_copies
from latentsynth.evaluation.memorization.report import write_memorization
from latentsynth.evaluation.memorization.spaces import own_space
from latentsynth.experiments.grid import Cell
from latentsynth.experiments.roles import Roles
from latentsynth.experiments.runs import RunPlace, autoencoder_run, generator_run, masks_run
from latentsynth.experiments.study import FITTING_HOURS, train_generator
from latentsynth.experiments.utility.jobs import KEPT
from latentsynth.masks import MaskMaker, make_masks
from latentsynth.masks.build import annotated, build_maker, into
from latentsynth.masks.learnt import load_mask_maker
from latentsynth.provenance import LEDGER
from latentsynth.sharing.filter import filter_disagreeing, filter_set
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import Synthesizer, load_synthesizer
from latentsynth.synthesizers.rules import RuleBased
from latentsynth.training.recipes.autoencoder import train_autoencoder
from latentsynth.training.recipes.masks import train_masks
from latentsynth.types import Domain

IMAGES_PER_HOUR = 50_000  # of one process on two CPU cores, rough
_PAINTING_HOURS = 0.02
_SET = Path("samples") / "manifest.json"


@dataclass(frozen=True)
class Subset:
    """The patients of one cell.

    Attributes:
        name: Names them in cells.
        roles: Of the study's patients, in this fold.
        size: As configured.
        seed: Of everything that is trained on it.
        train: Whom it trains on.
        val: Who choose its checkpoints.
    """

    name: str
    roles: Roles
    size: int | str
    seed: int
    train: Sequence[str]
    val: Sequence[str]

    @property
    def manifest(self) -> Path:
        """Training and validation patients."""
        return self.roles.write(f"n{self.size}-s{self.seed}", self.train, val=self.val)


class Synthetic:
    """What one arm adds to its real patients.

    Args:
        config: The study.
        arm: An arm with a model.
        subset: Whose masks are painted, and whom the generator learns from.
        accelerator: Gives the processes that share the work.
    """

    def __init__(self, config: UtilityStudy, arm: ArmConfig, subset: Subset, accelerator: Callable[[], Accelerator]):
        assert arm.model is not None
        self.config, self.arm, self.subset, self.accelerator = config, arm, subset, accelerator
        self.model: str = arm.model
        self.trained = f"train-{arm.model}-{subset.name}"
        self.source = arm.model if arm.masks == "own" else f"{arm.model}-{arm.masks}"  # names what is painted in cells
        self.painted = f"paint-{self.source}-{subset.name}"
        self.copy_free = f"{config.copy_space}-{self.source}-{subset.name}"  # what tables call volumes without copies
        self.uncopied = f"uncopied-{self.copy_free}"

    @property
    def file(self) -> Path:
        """Manifest of the volumes that are left to choose from."""
        *_, last = self.cells({}, "", ())
        return self._cell(last.name) / (_SET if last.name == self.painted else KEPT)

    def cells(self, shared: Mapping[str, Any], segmenter: str, first: tuple[str, ...]) -> Iterator[Cell]:
        """The cells it needs, in order.

        Args:
            shared: Facts of every cell.
            segmenter: The cell of the segmenter that volumes must agree with.
            first: Cells that training needs.
        """
        needs: tuple[str, ...] = ()
        if self.model in self.config.models:
            yield from self._training(shared, first)
            needs = (self.trained,)
        facts = {**shared, "per_mask": self._per_mask}
        if self.arm.masks != "own":
            yield from self._masking(shared)
            facts, needs = {**shared}, (*needs, self._new_masks)
        yield Cell(self.painted, self._paint, facts, _PAINTING_HOURS, needs)
        yield from self._dropping(shared, segmenter)

    def _training(self, shared: Mapping[str, Any], first: tuple[str, ...]) -> Iterator[Cell]:
        """The cells of its generator."""
        config, settings = self.config, self.config.models[self.model]
        if self._own_autoencoder:
            facts = {**shared, "autoencoder": config.autoencoder}
            yield Cell(self._own_autoencoder, self._fit_autoencoder, facts, FITTING_HOURS)
            first = (self._own_autoencoder,)
        yield Cell(self.trained, self._train, {**shared, "model": settings}, _hours(settings, config.scale), first)

    def _masking(self, shared: Mapping[str, Any]) -> Iterator[Cell]:
        """The cells of its new masks."""
        settings = self.config.masks[self.arm.masks]
        learnt: tuple[str, ...] = ()
        if settings.model is not None:
            learnt = (f"train-{self._new_masks}",)
            hours = _hours(settings.model, self.config.scale)
            yield Cell(learnt[0], self._train_masks, {**shared, "masks": settings.model}, hours)
        facts = {**shared, "masks": settings.model_dump(mode="json"), "count": self._count}
        yield Cell(self._new_masks, self._make_masks, facts, _PAINTING_HOURS, learnt)

    def _dropping(self, shared: Mapping[str, Any], segmenter: str) -> Iterator[Cell]:
        """The cells that leave volumes out."""
        config, drop = self.config, self.arm.drop
        last, file = self.painted, self._cell(self.painted) / _SET
        if drop.copies:
            facts = {**shared, "space": config.copy_space, "level": config.copy_level}
            yield Cell(self.uncopied, partial(self._drop_copies, file), facts, _PAINTING_HOURS, (last,))
            last, file = self.uncopied, self._cell(self.uncopied) / KEPT
        if drop.agreement:
            name = f"agreed-{drop.agreement:g}{'-uncopied' if drop.copies else ''}-{self.source}-{self.subset.name}"
            work = partial(self._drop_disagreeing, file, segmenter)
            yield Cell(name, work, {**shared, "agreement": drop.agreement}, _PAINTING_HOURS, (last, segmenter))

    @property
    def asked(self) -> int:
        """Volumes that its dose asks for."""
        return max(1, round(self.arm.dose * len(self.subset.train)))

    def choose(self, folder: Path) -> Path:
        """The arm's own manifest: as many of the volumes as its dose asks for."""
        main = self.accelerator().is_main_process
        return dosed(self.file, self.asked, self.subset.seed, folder, main)

    def _cell(self, name: str) -> Path:
        return self.config.folder / "cells" / name

    @property
    def _per_mask(self) -> int:
        """Volumes per mask, enough for every arm that this model serves at this size."""
        return max(1, math.ceil(self._dose(self.model)))

    @property
    def _count(self) -> int:
        """New masks, one volume each, enough for every arm, whatever paints them."""
        return max(1, math.ceil(self._dose(None) * len(self.subset.train)))

    def _dose(self, model: str | None) -> float:
        """The largest of the arms that share these masks (and the model, if one is given), with what filters may drop."""
        arms = self.config.arms_of(self.subset.size).values()
        same = [arm for arm in arms if arm.masks == self.arm.masks and model in (None, arm.model)]
        return max(arm.dose * (self.config.surplus if arm.drop.any else 1) for arm in same)

    @property
    def _new_masks(self) -> str:
        return f"masks-{self.arm.masks}-{self.subset.name}"

    @property
    def _own_autoencoder(self) -> str:
        """Cell of the subset's own autoencoder, or "" where all share one."""
        return f"autoencoder-{self.subset.name}" if self.config.autoencoder_patients == "subset" else ""

    def _fit_autoencoder(self, folder: Path) -> None:
        train_autoencoder(autoencoder_run(self.config, folder / "run", self.subset.manifest))

    def _train(self, folder: Path) -> None:
        own = self._cell(self._own_autoencoder) / "run" if self._own_autoencoder else None
        train_generator(generator_run(self.config, self.model, self._place(folder), autoencoder=own))

    def _train_masks(self, folder: Path) -> None:
        train_masks(masks_run(self.config, self.arm.masks, self._place(folder)))

    def _place(self, folder: Path) -> RunPlace:
        return RunPlace(folder / "run", self.subset.manifest, self.subset.seed)

    def _make_masks(self, folder: Path) -> None:
        """New masks, from those of the subset's training patients alone."""
        if self.accelerator().is_main_process:
            settings, cohort = self.config.masks[self.arm.masks], self.subset.roles.cohort
            cases = Manifest.load(self.subset.manifest).select("train")
            lesions = [value for value in cohort.labels.lesions(self.config.framing) if value not in settings.inside]
            maker: MaskMaker
            if settings.model is None:
                maker = build_maker(settings, cases, cohort.labels, lesions)
            else:
                maker = load_mask_maker(self._cell(f"train-{self._new_masks}") / "run")
            if settings.into_hosts:
                beside = settings.model_copy(
                    update={"compose": settings.compose.model_copy(update={"replace_lesions": False})}
                )
                maker = into(maker, annotated(cases, cohort.labels), cohort.labels, lesions, beside)
            make_masks(maker, self._count, folder / "masks", seed=self.subset.seed * 1000)
        self.accelerator().wait_for_everyone()

    def _paint(self, folder: Path) -> None:
        """Paints masks of the subset's training patients, nobody else's, or new ones; or lets the model make its own."""
        config, accelerator = self.config, self.accelerator()
        cases = Manifest.load(self.subset.manifest).select("train")
        model: Synthesizer
        if self.model in config.models:
            model = load_synthesizer(self._cell(self.trained) / "run")
        else:
            train = Cohort.load("training patients", self.subset.manifest, ("train",), filled=True)
            cache = volumes(
                train, config.grid, config.framing, train.manifest.labels, config.cache, accelerator, masks=True
            )
            channels = train.manifest.channels
            domain = Domain(config.grid, config.framing, train.manifest.labels, channels, cache.median_limits())
            model = RuleBased.fit(domain, cache)
        masks, count = requests(self.subset.manifest, "train"), self._per_mask
        if self.arm.masks != "own":
            masks, count = requests(self._cell(self._new_masks) / "masks" / "manifest.json", "train"), 1
        if model.makes_masks:
            masks, count = [Request("new", None)], count * len(masks)
        synthesize(
            model, masks, folder / "samples", accelerator, per_mask=count, seed=self.subset.seed * 1000, batch=4,
            fit="scale" if self.arm.masks != "own" else None, hosts=cases if model.takes_context else (),
        )  # fmt: skip

    def _drop_copies(self, file: Path, folder: Path) -> None:
        """Calibrated by patients outside the study, who are real scans here, whatever model has seen them."""
        config, accelerator, roles = self.config, self.accelerator(), self.subset.roles
        train = Cohort.load("training patients", self.subset.manifest, ("train",), filled=True)
        outside = Cohort.load(
            "patients outside", roles.write("calibration", test=list(roles.outside), val=()), ("test",)
        )
        groups, samples = PatientGroups(train, *halves(outside)), Cohort.load(self.model, file)
        caches = {
            c.name: volumes(
                c, config.grid, config.framing, train.manifest.labels, config.cache, accelerator, masks=True
            )
            for c in (*groups.all, samples)
        }
        spaces, level = [own_space(config.copy_space, caches[train.name])], config.copy_level
        searches = search_copies(spaces, groups, [samples], caches, accelerator, level)
        write_memorization(folder, groups, [samples], searches, None, caches, level, accelerator)
        if accelerator.is_main_process:
            filter_set(file, folder / "memorization.json", folder / KEPT)
        accelerator.wait_for_everyone()

    def _drop_disagreeing(self, file: Path, segmenter: str, folder: Path) -> None:
        run = self._cell(segmenter) / "run"
        filter_disagreeing(file, run, folder / KEPT, self.arm.drop.agreement, self.config.cache, self.accelerator())


def _hours(settings: dict[str, Any], scale: float) -> float:
    return float(settings.get("train", {}).get("images", 0)) / IMAGES_PER_HOUR * scale


def dosed(painted: Path, count: int, seed: int, folder: Path, write: bool) -> Path:
    """A manifest of so many volumes, every mask once before any twice, masks in random order, with the ledger beside it.

    Args:
        painted: Manifest of all volumes; fewer than ``count`` are all taken.
        count: How many to take.
        seed: Of the order.
        folder: Where ``synthetic/manifest.json`` is written.
        write: False on all processes but the first.
    """
    manifest = Manifest.load(painted)
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
        shutil.copyfile(painted.parent / LEDGER, path.parent / LEDGER)
    return path
