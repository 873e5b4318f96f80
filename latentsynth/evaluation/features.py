"""Features of cohorts, with ids that survive sharding, and everything they depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.numpy import load_file

from latentsynth import checkpoint
from latentsynth.config import COPY_DETECTOR, AugmentConfig, ExtractorRun, build
from latentsynth.data.cache.volumes import Recipe, VolumeCache
from latentsynth.data.intake.intensities import propose_window
from latentsynth.data.intake.survey import choose_grid, survey
from latentsynth.data.manifest import Manifest
from latentsynth.errors import CheckpointError, DataError
from latentsynth.evaluation.cohorts import Cohort
from latentsynth.extractors.contrastive import ContrastiveEncoder
from latentsynth.extractors.networks import Extractor, NetworkExtractor, extractor
from latentsynth.files import atomic_path
from latentsynth.parallel import fill, over_cases
from latentsynth.provenance import fingerprint
from latentsynth.tensors import write_tensors
from latentsynth.training.recipes.extractor import KIND, train_extractor
from latentsynth.types import Framing, Grid, Labels, Window

_VOXELS = 64**3  # of a grid that nobody chose
_BATCH = 8


@dataclass(frozen=True)
class Features:
    """Features of one cohort by one extractor.

    Attributes:
        ids: Case ids, ``N``.
        patients: Whom each case comes from, ``N``.
        values: ``(N, F)``, float32.
    """

    ids: tuple[str, ...]
    patients: tuple[str, ...]
    values: np.ndarray

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> Features:
        """Some of the cases."""
        kept = np.asarray(rows)
        return Features(tuple(self.ids[n] for n in kept), tuple(self.patients[n] for n in kept), self.values[kept])


def comparison_space(like: Path | None, manifest: Manifest) -> tuple[Grid, Framing]:
    """The grid on which volumes are compared.

    Args:
        like: Run or checkpoint folder whose grid and framing to take; None chooses a grid for the scans.
        manifest: Real scans.
    """
    if like is not None:
        domain = checkpoint.read_header(checkpoint.locate(like)).domain
        if domain.channels != manifest.channels:
            raise DataError(
                f"{like} works on channels {domain.channels}, the scans have {manifest.channels}: give another --like"
            )
        return domain.grid, domain.framing
    found = survey(manifest.cases[:32], len(manifest.channels), manifest.labels)
    shape, spacing, _ = choose_grid(np.median(found.scans, axis=0), found.spacing, _VOXELS, 1)
    proposed = zip(manifest.channels, found.intensities, strict=True)
    windows = tuple(Window(**propose_window(name, scans).window) for name, scans in proposed)
    return Grid((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]), windows), Framing()


def volumes(
    cohort: Cohort,
    grid: Grid,
    framing: Framing,
    labels: Labels,
    cache: Path,
    accelerator: Accelerator,
    masks: bool = False,
) -> VolumeCache:
    """The cases of a cohort on the grid, cached, each process its share; with their masks where these are needed."""
    recipe = Recipe(grid, framing, labels, AugmentConfig(), 0)
    # A whole scan needs no mask, and an annotation at its edge is no reason to refuse it.
    leave = framing.crop == "whole" and not masks
    cases = [replace(case, mask=None) for case in cohort.cases] if leave else cohort.cases
    made = VolumeCache(cache, recipe, cases)
    fill(made, f"preparing {cohort.name}", accelerator)
    return made


def extract(
    extractors: Sequence[Extractor],
    cohort: Cohort,
    cache: VolumeCache,
    accelerator: Accelerator,
    read: Callable[[VolumeCache, int], np.ndarray] = lambda cache, n: cache.volume(n).image,
) -> dict[str, Features]:
    """Features of a cohort by every extractor, by its name; each volume is read once, in batches, and features are kept.

    Args:
        extractors: What describes volumes.
        cohort: Whose volumes.
        cache: Where they are; features are kept beside them, under a name of everything they depend on.
        accelerator: The processes that share the cases.
        read: Image ``(C, I, J, K)`` of an entry of the cache.
    """
    stamp = [cache.path(n).name for n in range(len(cache))]
    files = {
        one.name: cache.folder / "features" / f"{fingerprint([one.fingerprint, stamp])}.safetensors"
        for one in extractors
    }
    missing = [one for one in extractors if not files[one.name].is_file()]
    accelerator.wait_for_everyone()  # every process must have looked before any of them writes
    title = f"features of {cohort.name}"
    found = extract_volumes(missing, lambda n: torch.from_numpy(read(cache, n)), len(cohort.cases), title, accelerator)
    ids = tuple(case.case_id for case in cohort.cases)
    for name, values in found.items():
        if accelerator.is_main_process:
            with atomic_path(files[name]) as temporary:
                write_tensors(temporary, {"features": values})
    accelerator.wait_for_everyone()
    rows = {
        one.name: found[one.name] if one.name in found else load_file(files[one.name])["features"] for one in extractors
    }
    return {name: Features(ids, tuple(cohort.patients), values) for name, values in rows.items()}


def extract_volumes(
    extractors: Sequence[Extractor],
    image: Callable[[int], torch.Tensor],
    count: int,
    title: str,
    accelerator: Accelerator,
) -> dict[str, np.ndarray]:
    """Features ``(count, F)`` of images ``(C, I, J, K)`` by every extractor, in batches that the processes share."""
    if not extractors:
        return {}
    batches = [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]

    def work(n: int) -> list[np.ndarray]:
        images = torch.stack([image(row) for row in batches[n]])
        return [one.features(images).numpy() for one in extractors]

    parts = over_cases(accelerator, title, batches, work, "batches")
    return {one.name: np.concatenate([part[e] for part in parts]) for e, one in enumerate(extractors)}


def load_extractors(
    specs: Sequence[str], real: Path, grid: Grid, framing: Framing, cache: Path, images: int
) -> list[Extractor]:
    """Extractors by their words; ``contrastive`` is trained on the real training patients if it is not yet.

    Args:
        specs: As :func:`extractors.extractor`, or ``contrastive`` or ``contrastive:RUN``.
        real: Manifest of real cases.
        grid: Grid of the volumes.
        framing: Where it is laid.
        cache: Where volumes and trained extractors are kept.
        images: How long to train one.

    Raises:
        DataError: An unknown word, or training cases that are not real.
        CheckpointError: A file that is missing or wrong.
    """
    found: list[Extractor] = []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        if kind != "contrastive":
            found.append(extractor(spec, grid.channels))
            continue
        folder = Path(rest) if rest else train_contrastive(real, grid, framing, cache, images)
        found.append(contrastive_extractor(folder, grid))
    return found


def contrastive_extractor(path: Path, grid: Grid, projected: bool = False) -> Extractor:
    """A trained :class:`ContrastiveEncoder`.

    Args:
        path: Its run or checkpoint folder.
        grid: Grid of the volumes.
        projected: Give the unit vectors that the loss compared, which ignore moves, mirroring and contrast, to find
            copies; else the features below them, which keep more of the image, to judge how it looks.

    Raises:
        CheckpointError: No extractor there, or one for other volumes.
    """
    folder = checkpoint.locate(path)
    header = checkpoint.read_header(folder, KIND)
    if header.domain.grid != grid:
        raise CheckpointError(
            f"{folder} was trained on {header.domain.grid}, volumes are compared on {grid}: train one for it"
        )
    network = ContrastiveEncoder.from_pretrained(folder / "network")
    name = f"contrastive:{header.fingerprint[:6]}"
    if projected:
        return NetworkExtractor(name, f"{header.fingerprint}-projected", network)
    return NetworkExtractor(name, header.fingerprint, network.features)


def train_contrastive(real: Path, grid: Grid, framing: Framing, cache: Path, images: int, copies: bool = False) -> Path:
    """The run folder of an extractor for these scans, trained once for all later measurements.

    Args:
        real: Manifest of real cases.
        grid: Grid of the volumes.
        framing: Where it is laid.
        cache: Where volumes and trained extractors are kept.
        images: How long to train it.
        copies: It is to find copies, not to judge looks.
    """
    ends = {"validate_every_images": images, "sample_every_images": images}
    short = {"images": images, "batch": 16, "lr": 1e-3, "lr_warmup_images": images // 20, "ema_halflife_images": 300}
    kind = COPY_DETECTOR if copies else {"train": short}
    values = {
        **kind,
        "data": {"manifest": real, "grid": grid, "framing": framing, "cache": cache},
        "train": {**kind["train"], **ends, "images": images},
    }
    manifest = Manifest.load(real)
    if not any(case.split == "train" for case in manifest.cases):
        raise DataError(
            f"{real} has no training patients, which the contrastive extractor learns from: give --extractor random, or "
            "contrastive:RUN with one that is trained"
        )
    key = fingerprint([manifest.fingerprint, values])
    config = build(ExtractorRun, {"run": cache / "extractors" / key, **values}, "extractor")
    if not (config.run / "checkpoint").is_dir():
        train_extractor(config)
    return config.run
