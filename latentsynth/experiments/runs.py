"""The training runs of a study: its settings, with a folder, patients and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsynth.config import (
    AutoencoderRun,
    ExtractorRun,
    GanRun,
    LdmRun,
    MaskRun,
    MemorizationStudy,
    SegmenterRun,
    StudyConfig,
    UtilityStudy,
    build,
)  # fmt: skip
from latentsynth.config.study import merged, scaled


@dataclass(frozen=True)
class RunPlace:
    """What a run has of its own.

    Attributes:
        folder: Of the run.
        manifest: Its training and validation cases; of a segmenter, those that choose its checkpoint.
        seed: Of weights, noise and order.
    """

    folder: Path
    manifest: Path
    seed: int = 0

    def on(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The values of a run with these settings."""
        return merged({"run": self.folder, "seed": self.seed, "data": {"manifest": self.manifest}}, settings)


def autoencoder_run(config: StudyConfig, folder: Path, manifest: Path) -> AutoencoderRun:
    """Training the autoencoder under all latent models."""
    values = RunPlace(folder, manifest).on(config.autoencoder_settings)
    return scaled(build(AutoencoderRun, values, "autoencoder"), config.scale)


def generator_run(
    config: StudyConfig,
    model: str,
    place: RunPlace,
    autoencoder: Path | None = None,
) -> LdmRun | GanRun:
    """Training one of the study's models.

    Args:
        config: The study.
        model: Name of the model.
        place: Of the run.
        autoencoder: Run of the autoencoder under it; None takes the study's.
    """
    values = place.on(config.model_settings(model))
    if autoencoder is not None and "autoencoder" in values:
        values["autoencoder"] = autoencoder
    return scaled(build(config.model_kind(model), values, model), config.scale)


def masks_run(config: UtilityStudy, name: str, place: RunPlace) -> MaskRun | GanRun:
    """Training a generator of masks, by the name of the way to make new masks."""
    values = place.on(config.masks_settings(name))
    return scaled(build(config.masks_kind(name), values, f"masks.{name}.model"), config.scale)


def segmenter_run(
    config: UtilityStudy,
    name: str,
    place: RunPlace,
    sources: Sequence[dict[str, Any]],
    augment: bool,
    changes: dict[str, Any] | None = None,
) -> SegmenterRun:
    """Training one segmenter.

    Args:
        config: The study.
        name: Of the segmenter.
        place: Of the run.
        sources: What to train on, as in ``data.train``.
        augment: With classical augmentation.
        changes: Settings that differ.
    """
    data = {"validation": {"manifest": place.manifest}, "train": list(sources)}
    values = {"run": place.folder, "seed": place.seed, "data": data}
    values = merged(values, config.segmenter_settings(name, augment))
    return scaled(build(SegmenterRun, values, f"segmenters.{name}"), config.scale, changes)


def detector_run(config: MemorizationStudy, folder: Path, manifest: Path) -> ExtractorRun:
    """Training the copy detector."""
    values = {"run": folder, "data": {**config.detector_data, "manifest": manifest}, **config.detector_settings}
    return build(ExtractorRun, values, "detector")
