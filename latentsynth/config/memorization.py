"""The memorization study: models trained on nested subsets of patients, at equal compute."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.config.extractor import COPY_DETECTOR, ExtractorRun
from latentsynth.config.study import PLACED, Share, StudyConfig, merged, once, refuse
from latentsynth.strict import Positive, build

SPACES = ("voxels", "ssim", "registered", "parts", "contrastive")


class MemorizationStudy(StudyConfig):
    """Models x sizes x seeds, each at several times of its training, against controls."""

    sizes: Annotated[tuple[Positive | Literal["all"], ...], Field(min_length=1)] = (10, 20)
    minutes: Annotated[float, Field(gt=0)] = Field(
        20.0, description="CPU minutes of training per model, size and seed: enough for one of them to memorize"
    )
    stages: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = Field(
        (0.125, 0.25, 0.5, 1.0), description="shares of the training at which volumes are sampled"
    )
    models: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = Field(
        description="by name, settings of an LdmRun or, with a generator, of a GanRun; run and data are the study's"
    )
    claims: tuple[tuple[str, str], ...] = Field(
        (), description="pairs of models of which the first is said to copy more"
    )
    detector: dict[str, Any] = Field(
        {}, description="settings of the ExtractorRun that finds copies; run and data are the study's"
    )
    spaces: tuple[str, ...] = Field(
        ("voxels", "registered", "parts"), description="feature spaces that are searched, then all of them jointly"
    )
    level: Share = Field(0.05, description="share of unseen patients that a feature space may flag")

    @model_validator(mode="after")
    def _buildable(self) -> MemorizationStudy:
        once("spaces", self.spaces)
        strange = [space for space in self.spaces if space not in SPACES]
        if strange or not self.spaces:
            raise ValueError(f"feature spaces {list(self.spaces)}: choose one or more of {', '.join(SPACES)}")
        refuse(self.detector, ("run", "seed", "data"), "detector")
        if any(a >= b for a, b in zip(self.stages, self.stages[1:], strict=False)):
            raise ValueError(f"stages {self.stages} must ascend")
        once("claims", [sorted(pair) for pair in self.claims])
        for pair in self.claims:
            if len({*pair} & {*self.models}) < 2:
                raise ValueError(f"claims: {list(pair)} are not two of the models {', '.join(self.models)}")
        if not self.roles.outside:
            raise ValueError("roles.outside is 0, and the autoencoder and every validation need patients")
        for name, settings in self.models.items():
            if settings.get("generator", {}).get("form") == "joint":
                raise ValueError(
                    f"models.{name}: form joint makes masks of its own; this study has the masks of held-out patients painted"
                )
        build(
            ExtractorRun,
            {**PLACED, "data": {**self.detector_data, "manifest": "x"}, **self.detector_settings},
            "detector",
        )
        return self

    @property
    def detector_settings(self) -> dict[str, Any]:
        """What the detector's training depends on, besides the data."""
        return merged(COPY_DETECTOR, self.detector)

    @property
    def detector_data(self) -> dict[str, Any]:
        """Its section ``data`` without the manifest; it has views of its own in the place of augmentation."""
        return {**self.data, "augment": {}}
