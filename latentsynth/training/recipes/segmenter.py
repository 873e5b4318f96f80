"""Training a segmenter on any mixture of real and synthetic cohorts, from a configuration to a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from latentsynth import checkpoint
from latentsynth.config import SegmenterDataConfig, SegmenterRun, SourceConfig
from latentsynth.data.cache.loading import Positions
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.manifest import Manifest
from latentsynth.data.windows import median
from latentsynth.errors import DataError
from latentsynth.figures import Legend, Tile, contact_sheet
from latentsynth.metrics.surfaces import dice, mean_dice
from latentsynth.parallel import fill, mean_rows, share
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.randomness import Stream, generator, seed_weights
from latentsynth.segmentation import SegmentationNetwork, Segmenter, build_network
from latentsynth.segmentation.segmenter import KIND
from latentsynth.training.loop import Batch, Hooks, Modules, Player, fit, start_training
from latentsynth.training.recipes.autoencoder import copy_weights
from latentsynth.training.run import RunFolder
from latentsynth.types import Case, Domain

_SHOWN_CASES = 4


def train_segmenter(config: SegmenterRun) -> dict[str, float]:
    """Trains a segmenter as configured; the same call again resumes it.

    The checkpoint holds the averaged weights of the validation with the best mean Dice so far.

    Returns:
        Scores of that checkpoint on the validation patients, all of them real.

    Raises:
        LatentsynthError: Bad data, a leak between training and validation, another run in the folder, or a loss that
            is not finite.
    """
    accelerator = start_training(config.train)
    cohort = TrainingMixture.of(config)
    for n, cache in enumerate(cohort.training):
        fill(cache, f"preparing training volumes ({n + 1} of {len(cohort.training)})", accelerator)
    fill(cohort.validation, "preparing validation volumes", accelerator)
    run = RunFolder(config, accelerator)
    seed_weights(config.seed)
    domain = cohort.domain()
    network = initial(config, domain)
    validation = cohort.validation

    def segmenter(modules: Modules) -> Segmenter:
        net = cast(SegmentationNetwork, modules["network"])
        return Segmenter(domain, net, config.inference, cohort.trained_on, cohort.ledger)

    def validate(modules: Modules) -> dict[str, float]:
        model = segmenter(modules)

        def score(n: int) -> dict[str, float]:
            volume = validation.volume(n)
            found = model.on_grid(volume.image)
            assert volume.mask is not None
            rows = {
                f"dice_{name}": dice(volume.mask == index, found == index)
                for index, name in enumerate(domain.labels.names)
                if index
            }
            mean = mean_dice(volume.mask, found, len(domain.labels))
            return {"dice": mean if np.isfinite(mean) else 1.0, **rows}  # nothing there, and nothing found

        return mean_rows(share(accelerator, len(validation), score))

    def sketch(modules: Modules, path: Path) -> None:
        if accelerator.is_main_process:
            segmentation_sheet(path, segmenter(modules), validation)

    best = run.path / "checkpoint"

    def export(modules: Modules, last: dict[str, float]) -> None:
        if accelerator.is_main_process and last["dice"] >= best_dice(best):
            segmenter(modules).save(best, last)
        accelerator.wait_for_everyone()

    players = [Player("segmenter", {"network": network}, SegmentationLoss(config), config.train.lr)]
    items = Positions(cohort.packed, len(cohort), config.seed)
    fit(players, items, run, config.train, Hooks(validate, sketch, export))
    return dict(checkpoint.read_header(best, KIND).metrics)


def best_dice(folder: Path) -> float:
    """Validation Dice of the checkpoint that stands, or -1."""
    return checkpoint.read_header(folder, KIND).metrics["dice"] if folder.is_dir() else -1.0


def initial(config: SegmenterRun, domain: Domain) -> SegmentationNetwork:
    """The network that training starts from.

    Raises:
        CheckpointError: ``init_from`` is not a segmenter of this architecture.
    """
    network = build_network(config.network, domain.grid.channels, len(domain.labels))
    if config.train.gradient_checkpointing:
        network.checkpoint_gradients()
    if config.init_from is not None:
        copy_weights(network, Segmenter.from_pretrained(config.init_from).network, config.init_from)
    return network


@dataclass
class SegmentationLoss:
    """Soft Dice over the foreground plus cross-entropy over all labels, a mean over samples.

    With deep supervision every coarser output counts half as much as the one before (Isensee et al. 2021).
    """

    config: SegmenterRun

    def __post_init__(self) -> None:
        loss = self.config.loss
        self.criterion = DiceCELoss(
            include_background=False, softmax=True, lambda_dice=loss.dice_weight, lambda_ce=loss.ce_weight
        )

    def __call__(self, modules: Modules, batch: Batch, state: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = modules["network"](batch["image"]).float().unbind(1)
        weights = [0.5**n for n in range(len(outputs))]
        terms = [w * self.criterion(out, batch["mask"]) for w, out in zip(weights, outputs, strict=True)]
        return torch.stack(terms).sum() / sum(weights), {}


@dataclass
class TrainingMixture:
    """Training volumes of all sources, validation volumes of real patients.

    Attributes:
        config: What to train on.
        held_out: The manifest of the validation cases.
        training: One cache per source.
        repeats: How often an entry of each cache is seen per epoch.
        validation: Real cases.
        ledger: Whom the training cases show, were made from, or the first weights have seen.
        trained_on: Number of training cases by source.
    """

    config: SegmenterDataConfig
    held_out: Manifest
    training: list[VolumeCache]
    repeats: list[int]
    validation: VolumeCache
    ledger: Ledger
    trained_on: dict[str, int]

    @classmethod
    def of(cls, config: SegmenterRun) -> TrainingMixture:
        """Reads the manifests and refuses leaks, before any volume is touched.

        Raises:
            DataError: The cohorts do not fit together; a validation case is synthetic, unannotated, or was seen in
                training, directly or as a parent of a synthetic case.
        """
        data = config.data
        held_out = Manifest.load(data.validation.manifest)
        if len(held_out.channels) != data.grid.channels:
            raise DataError(
                f"manifest {data.validation.manifest} has {len(held_out.channels)} channels "
                f"({', '.join(held_out.channels)}), data.grid.windows has {data.grid.channels}: give one window per channel"
            )
        recipe = Recipe(data.grid, data.framing, held_out.labels, data.augment, config.seed)
        copies = data.augment.copies
        ledger = Segmenter.from_pretrained(config.init_from).ledger if config.init_from else Ledger()
        caches: list[VolumeCache] = []
        chosen: list[Case] = []
        for source in data.train:
            manifest = Manifest.load(source.manifest)
            _same_space(manifest, held_out, source.manifest, data.validation.manifest)
            cases = _drawn(annotated(manifest.select(source.split), source.manifest), source, config.seed)
            chosen += cases
            caches.append(VolumeCache(data.cache, recipe, cases, copies))
            ledger = ledger | Ledger.of(cases) | Ledger.beside(source.manifest)
            if any(case.source != "real" for case in cases) and not (source.manifest.parent / LEDGER).is_file():
                warnings.warn(
                    f"no {LEDGER} beside {source.manifest}: cannot verify that its generator never saw a validation patient",
                    UserWarning,
                    stacklevel=2,
                )
        validation = annotated(held_out.select(data.validation.split), data.validation.manifest)
        _check_validation(validation, ledger, data.validation.manifest)
        real = sum(case.source == "real" for case in chosen)
        return cls(
            data,
            held_out,
            caches,
            [source.repeat for source in data.train],
            VolumeCache(data.cache, recipe, validation),
            ledger,
            {"real": real, "synthetic": len(chosen) - real},
        )

    def domain(self) -> Domain:
        """What a checkpoint is bound to; the caches must be filled."""
        held_out, rows = self.held_out, [cache.median_limits() for cache in self.training]
        limits = tuple(median([row[c] for row in rows]) for c in range(self.config.grid.channels))
        return Domain(self.config.grid, self.config.framing, held_out.labels, held_out.channels, limits)

    def __len__(self) -> int:
        return sum(len(cache) * repeat for cache, repeat in zip(self.training, self.repeats, strict=True))

    def packed(self, n: int) -> dict[str, Any]:
        """Training item number ``n``; repeated entries have several numbers."""
        for cache, repeat in zip(self.training, self.repeats, strict=True):
            if n < len(cache) * repeat:
                return cache.packed(n % len(cache))
            n -= len(cache) * repeat
        raise IndexError(n)


def annotated(cases: Sequence[Case], name: Path | str) -> list[Case]:
    """The cases that have a mask.

    Raises:
        DataError: None has.
    """
    kept = [case for case in cases if case.mask is not None]
    if not kept:
        raise DataError(f"no case of {name} has a mask: a segmenter needs annotated cases")
    return kept


def _drawn(cases: Sequence[Case], source: SourceConfig, seed: int) -> Sequence[Case]:
    """Cases of as many patients as asked for; a larger number keeps the patients of a smaller one."""
    if source.patients is None:
        return cases
    patients = sorted({case.patient_id for case in cases})
    if source.patients > len(patients):
        raise DataError(
            f"{source.manifest} has {len(patients)} annotated patients in split {source.split}, patients={source.patients} asks "
            "for more: lower it"
        )
    order = generator(seed, Stream.PATIENTS).permutation(len(patients)).tolist()
    drawn = {patients[n] for n in order[: source.patients]}
    return [case for case in cases if case.patient_id in drawn]


def _same_space(manifest: Manifest, held_out: Manifest, name: Path, other: Path) -> None:
    for what, ours, theirs in (
        ("channels", manifest.channels, held_out.channels),
        ("label values", manifest.labels.values, held_out.labels.values),
    ):
        if ours != theirs:
            raise DataError(f"{name} has {what} {ours}, {other} has {theirs}: a mixture needs them alike")


def _check_validation(cases: Sequence[Case], ledger: Ledger, name: Path) -> None:
    synthetic = [case.case_id for case in cases if case.source != "real"]
    if synthetic:
        raise DataError(
            f"{name}: validation case {synthetic[0]} is synthetic ({len(synthetic)} are): choose the checkpoint on real "
            "patients, data.validation takes a manifest of them"
        )
    seen, _ = ledger.seen(cases)
    if seen:
        raise DataError(
            f"{len(seen)} validation patients ({', '.join(case.patient_id for case in seen[:3])}) are in the training "
            "cohorts, synthetic training cases were made from their masks or by a model that saw them, or init_from saw them: "
            "remove these cases from data.train, or start from other weights"
        )


def segmentation_sheet(path: Path, model: Segmenter, cache: VolumeCache) -> Path:
    """Writes a picture: validation cases with the annotation outlined, and with what the segmenter found."""
    rows = []
    for n in range(min(_SHOWN_CASES, len(cache))):
        volume, name = cache.volume(n), cache.entries[n][0].case_id
        found = model.on_grid(volume.image)
        rows.append([Tile(f"{name}, annotated", volume.image, volume.mask), Tile("found", volume.image, found)])
    return contact_sheet(path, rows, Legend.of(model.domain), "annotation, segmentation", model.domain.lesion_indices)
