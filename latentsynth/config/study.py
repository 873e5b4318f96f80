"""What every study shares: patients with roles, sizes and seeds, and the models that are trained on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from latentsynth.config.autoencoder import AutoencoderRun
from latentsynth.config.gan import GanRun
from latentsynth.config.ldm import LdmRun
from latentsynth.config.numbers import Seed
from latentsynth.config.training import Run
from latentsynth.strict import Positive, Strict, build, chosen
from latentsynth.types import Framing, Grid

_MODEL = re.compile(r"[A-Za-z0-9_+.]+")  # without a hyphen, which parts the names of cells
_RESERVED = ("autoencoder", "detector", "pilot", "measure", "train", "masks", "paint", "uncopied", "agreed")
PLACED: dict[str, Any] = {"run": "x", "data": {"manifest": "x"}}  # completes settings that are built to be checked
RunT = TypeVar("RunT", bound=Run)
Share = Annotated[float, Field(gt=0, lt=1)]


class RolesConfig(Strict):
    """Shares of the patients; drawn at random by the study's seed, whatever split the manifest has."""

    pool: Share = Field(0.4, description="the generators' training patients, or subsets of them")
    outside: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.3, description="patients of the autoencoder and, in a memorization study, of every validation"
    )
    heldout: Share = Field(0.3, description="half of them calibrate, half pose as a generator")

    @model_validator(mode="after")
    def _whole(self) -> RolesConfig:
        if abs(self.pool + self.outside + self.heldout - 1) > 1e-6:
            raise ValueError(f"pool, outside and heldout add up to {self.pool + self.outside + self.heldout:g}, not 1")
        return self


class StudyConfig(Strict):
    """Models trained on nested subsets of patients, several seeds each."""

    folder: Path = Field(description="folder of the study; the same command again resumes it, also on another machine")
    manifest: Path = Field(description="real annotated cases")
    grid: Grid
    framing: Framing = Framing()
    cache: Path = Path("runs/cache")
    seed: Seed = Field(0, description="draws the roles of the patients")
    scale: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="below 1 shortens every training by this factor, to try a study before it is run in full"
    )
    roles: RolesConfig = RolesConfig()
    sizes: Annotated[tuple[Positive | Literal["all"], ...], Field(min_length=1)] = (10, 40, "all")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0, 1), description="each draws nested subsets and trains anew"
    )
    augment: dict[str, Any] = Field({}, description="augmentation of every model's training, as in data.augment")
    autoencoder: dict[str, Any] = Field({}, description="settings of an AutoencoderRun; run and data are the study's")
    models: dict[str, dict[str, Any]] = Field(
        description="by name, settings of an LdmRun or, with a generator, of a GanRun; run and data are the study's"
    )

    @model_validator(mode="after")
    def _models_can_be_built(self) -> StudyConfig:
        """Every run of the study, built once, so that a wrong key shows before anything is trained."""
        once("sizes", self.sizes)
        once("seeds", self.seeds)
        refuse(self.autoencoder, ("run", "seed", "data"), "autoencoder")
        values = merged(PLACED, self.autoencoder_settings)
        scaled(build(AutoencoderRun, values, "autoencoder"), self.scale)
        for name in self.models:
            cell_name(name)
            self.check_model(name)
        return self

    @property
    def data(self) -> dict[str, Any]:
        """The section ``data`` of runs on volumes, without the manifest."""
        return {"grid": self.grid, "framing": self.framing, "cache": self.cache, "augment": self.augment}

    @property
    def autoencoder_folder(self) -> Path:
        """Run of the autoencoder under all latent models."""
        return self.folder / "autoencoder"

    @property
    def autoencoder_settings(self) -> dict[str, Any]:
        """Values of an AutoencoderRun, but for its folder and manifest."""
        return merged({"data": self.data}, self.autoencoder)

    def model_kind(self, model: str) -> type[LdmRun] | type[GanRun]:
        """What trains a model."""
        return GanRun if "generator" in self.models[model] else LdmRun

    def model_settings(self, model: str) -> dict[str, Any]:
        """Values of a model's run, but for its folder, manifest and seed; of a latent one, on the study's autoencoder."""
        wanted = self.models[model]
        family = chosen(GanRun, "generator", wanted)
        if "generator" in wanted and (family is None or family.space == "voxels"):
            return merged({"data": self.data}, wanted)
        latent = {"cache": self.cache, "augment": self.augment}
        return merged({"autoencoder": self.autoencoder_folder, "data": latent}, wanted)

    def check_model(self, model: str) -> None:
        """Refuses settings of a model that are the study's to decide or that cannot be built.

        Raises:
            ValueError: What is wrong with them.
        """
        wanted = self.models[model]
        refuse(wanted, ("run", "seed", "autoencoder"), f"models.{model}")
        refuse(wanted.get("data") or {}, ("manifest", "grid", "framing", "cache"), f"models.{model}.data")
        generator = wanted.get("generator", {})
        if not isinstance(generator, dict):
            raise ValueError(f"models.{model}.generator is {generator!r}, expected keys and values: kind: {generator}")
        if generator.get("form") == "mask_only":
            raise ValueError(f"models.{model}: form mask_only makes no images: give a model that does")
        scaled(build(self.model_kind(model), merged(PLACED, self.model_settings(model)), model), self.scale)


def scaled(run: RunT, scale: float, changes: dict[str, Any] | None = None) -> RunT:
    """A run as short as a study's scale asks, then with settings that differ; these are not scaled."""
    values = run.model_dump(mode="json", exclude_unset=True)
    if scale < 1:
        for section in ("train", "game"):
            if isinstance(part := getattr(run, section, None), Strict):
                values[section] = {**values.get(section, {}), **_shortened(part, scale)}
    return build(type(run), merged(values, changes or {}), str(run.run))


def _shortened(section: Strict, scale: float) -> dict[str, int]:
    """Everything that counts images, at least one."""
    counts = {key: value for key, value in section.model_dump().items() if key == "images" or key.endswith("_images")}
    return {key: max(1, round(value * scale)) if value else 0 for key, value in counts.items()}


def cell_name(name: str) -> None:
    """Refuses names of models and segmenters that could not name cells."""
    if not _MODEL.fullmatch(name) or name in _RESERVED:
        raise ValueError(
            f"{name!r} names cells: give letters, digits, _ + and . alone, and none of {', '.join(_RESERVED)}"
        )


def once(key: str, values: Sequence[Any]) -> None:
    """Refuses values that repeat."""
    repeated = [value for n, value in enumerate(values) if value in values[:n]]
    if repeated:
        raise ValueError(f"{key} holds {repeated[0]} twice: list each once")


def refuse(settings: dict[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuses settings that the study decides."""
    found = [key for key in keys if key in settings]
    if found:
        raise ValueError(f"{where}.{found[0]} is decided by the study: remove it")


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` put over them, section by section."""
    made = dict(values)
    for key, value in changes.items():
        inner = made.get(key)
        made[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return made
