"""The memorization study: models trained on nested subsets of patients, at equal compute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.config.autoencoder import AutoencoderRun
from latentsynth.config.extractor import COPY_DETECTOR, ExtractorRun
from latentsynth.config.gan import GanRun
from latentsynth.config.ldm import LdmRun
from latentsynth.strict import Positive, Strict, build
from latentsynth.types import Framing, Grid

Share = Annotated[float, Field(gt=0, lt=1)]


class RolesConfig(Strict):
    """Shares of the patients; drawn at random by the study's seed, whatever split the manifest has."""

    pool: Share = Field(0.4, description="the generators' training patients, or subsets of them")
    outside: Share = Field(0.3, description="patients of the autoencoder and of every validation")
    heldout: Share = Field(0.3, description="half of them calibrate, half pose as a generator")

    @model_validator(mode="after")
    def _whole(self) -> RolesConfig:
        if abs(self.pool + self.outside + self.heldout - 1) > 1e-6:
            raise ValueError(f"pool, outside and heldout add up to {self.pool + self.outside + self.heldout:g}, not 1")
        return self


class OvertrainedConfig(Strict):
    """A run that is meant to memorize and must be caught: models too young to memorize prove nothing."""

    model: str = Field(description="name of one of the models")
    size: Positive = Field(10, description="training patients")
    seed: int = Field(0, ge=0)
    factor: Annotated[float, Field(gt=1)] = Field(6.0, description="times the compute of the other cells")
    changes: dict[str, Any] = Field({}, description="settings of the model that differ, for example its augmentation")


class MemorizationStudy(Strict):
    """Models x sizes x seeds, each at several times of its training, against controls."""

    folder: Path = Field(description="folder of the study; the same command again resumes it, also on another machine")
    manifest: Path = Field(description="real annotated cases")
    grid: Grid
    framing: Framing = Framing()
    cache: Path = Path("runs/cache")
    seed: int = Field(0, ge=0, description="draws the roles of the patients")
    roles: RolesConfig = RolesConfig()
    sizes: Annotated[tuple[Positive | Literal["all"], ...], Field(min_length=1)] = (10, 40, "all")
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        (0, 1), description="each draws nested subsets and trains anew"
    )
    minutes: Annotated[float, Field(gt=0)] = Field(5.0, description="CPU minutes of training per cell")
    stages: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = Field(
        (0.25, 0.5, 1.0), description="shares of the training at which volumes are sampled"
    )
    autoencoder: dict[str, Any] = Field({}, description="settings of an AutoencoderRun; run and data are the study's")
    models: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = Field(
        description="by name, settings of an LdmRun or, with a generator, of a GanRun; run and data are the study's"
    )
    overtrained: tuple[OvertrainedConfig, ...] = ()
    detector: dict[str, Any] = Field(
        {}, description="settings of the ExtractorRun that finds copies; run and data are the study's"
    )
    rulers: tuple[str, ...] = ("voxels", "registered", "contrastive")
    level: Share = Field(0.05, description="share of unseen patients that a ruler may flag")
    augment: dict[str, Any] = Field({}, description="augmentation of every model's training, as in data.augment")

    @model_validator(mode="after")
    def _buildable(self) -> MemorizationStudy:
        """Every run of the study, built once, so that a wrong key shows before anything is trained."""
        if any(a >= b for a, b in zip(self.stages, self.stages[1:], strict=False)):
            raise ValueError(f"stages {self.stages} must ascend")
        for one in self.overtrained:
            if one.model not in self.models:
                raise ValueError(f"overtrained model {one.model!r} is none of {', '.join(self.models)}")
            self.run_of(one.model, Path("x"), Path("x"), 0, one.changes)
        self.autoencoder_run(Path("x"), Path("x"))
        self.detector_run(Path("x"), Path("x"))
        for name in self.models:
            self.run_of(name, Path("x"), Path("x"), 0)
        return self

    @property
    def data(self) -> dict[str, Any]:
        """The section ``data`` of runs on volumes, without the manifest."""
        return {"grid": self.grid, "framing": self.framing, "cache": self.cache, "augment": self.augment}

    def autoencoder_run(self, run: Path, manifest: Path) -> AutoencoderRun:
        """The autoencoder under all latent models."""
        values = merged({"run": run, "data": {**self.data, "manifest": manifest}}, self.autoencoder)
        return build(AutoencoderRun, values, "autoencoder")

    def detector_run(self, run: Path, manifest: Path) -> ExtractorRun:
        """The copy detector."""
        values = {"run": run, "data": {**self.data, "augment": {}, "manifest": manifest}}
        return build(ExtractorRun, {**values, **self.detector_settings}, "detector")

    @property
    def detector_settings(self) -> dict[str, Any]:
        """What the detector's training depends on, besides the data."""
        return merged(COPY_DETECTOR, self.detector)

    def run_of(
        self, model: str, folder: Path, manifest: Path, seed: int, changes: dict[str, Any] | None = None
    ) -> LdmRun | GanRun:
        """One training run.

        Args:
            model: Name of the model.
            folder: Of the run.
            manifest: Its training and validation cases.
            seed: Of its weights and noise.
            changes: Settings that differ.
        """
        wanted = merged(self.models[model], changes or {})
        latent = {"manifest": manifest, "cache": self.cache, "augment": self.augment}
        start: dict[str, Any] = {"run": folder, "seed": seed}
        autoencoder = self.folder / "autoencoder"
        if "generator" not in wanted:
            return build(LdmRun, merged({**start, "autoencoder": autoencoder, "data": latent}, wanted), model)
        if wanted["generator"].get("kind") == "latent_gan":
            return build(GanRun, merged({**start, "autoencoder": autoencoder, "data": latent}, wanted), model)
        return build(GanRun, merged({**start, "data": {**self.data, "manifest": manifest}}, wanted), model)


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` put over them, section by section."""
    made = dict(values)
    for key, value in changes.items():
        inner = made.get(key)
        made[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return made
