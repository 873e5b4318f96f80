"""The utility study: segmenters trained with and without synthetic patients, judged on real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from latentsynth.config.gan import GanRun
from latentsynth.config.mask_generators import MaskRun
from latentsynth.config.mask_set import MaskSetConfig
from latentsynth.config.numbers import NotNegative
from latentsynth.config.segmenter import SegmenterRun
from latentsynth.config.study import PLACED, StudyConfig, cell_name, merged, once, refuse, scaled
from latentsynth.strict import Positive, Strict, build, chosen

Part = Annotated[float, Field(ge=0, le=1)]
Margin = Annotated[float, Field(gt=0)]


class DropConfig(Strict):
    """Which synthetic volumes are dropped before anybody trains on them."""

    copies: bool = Field(
        False, description="those that a calibrated feature space flags as copies of training patients"
    )
    agreement: Part = Field(
        0.0,
        description="those on which the baseline's segmenter of the same subset agrees less with the mask (mean Dice)",
    )

    @property
    def any(self) -> bool:
        """Whether it drops anything."""
        return self.copies or self.agreement > 0


class NewMasksConfig(MaskSetConfig):
    """New masks for an arm, made from those of its own patients alone."""

    model: dict[str, Any] | None = Field(
        None,
        description="settings of a MaskRun or, with a GAN's generator, of a GanRun of masks, trained on the arm's own "
        "patients; run and data are the study's; null makes masks without training",
    )
    into_hosts: bool = Field(
        False, description="put the lesions into the patients' own anatomies, beside the lesions they have"
    )


class MarginsConfig(Strict):
    """Differences that count as none, by what is tested."""

    dice: Margin = 0.01
    surface_dice: Margin = 0.01
    hd95_mm: Margin = Field(1.0, description="95th percentile Hausdorff distance, in mm")
    lesions_found: Margin = Field(0.05, description="share of a patient's lesions")


class ArmConfig(Strict):
    """What a segmenter is trained on."""

    real: Part = Field(1.0, description="share of the subset's training patients; below 1 the others are left out")
    model: str | None = Field(
        None,
        description="which of the study's models makes synthetic volumes; rules paints lesions by rule, as a control",
    )
    masks: str = Field("own", description="what it paints: the patients' own masks, or a name in the study's masks")
    dose: NotNegative = Field(0.0, description="synthetic volumes per training patient of the whole subset")
    drop: DropConfig = DropConfig()
    augment: bool = Field(True, description="classical augmentation, the study's section augment")
    bridge: bool = Field(
        False, description="first half of the steps on synthetic volumes alone, then on real ones alone"
    )
    sizes: tuple[Positive | Literal["all"], ...] | None = Field(None, description="at these sizes only; null is all")

    @model_validator(mode="after")
    def _something(self) -> ArmConfig:
        if bool(self.model) != bool(self.dose):
            raise ValueError(f"model {self.model} and dose {self.dose:g}: an arm with synthetic volumes needs both")
        if not self.real and not self.dose:
            raise ValueError("real and dose are both 0: nothing to train on")
        if self.bridge and not (self.real and self.dose):
            raise ValueError("bridge needs real patients and a dose of synthetic ones")
        if self.drop.any and not self.dose:
            raise ValueError("drop is about synthetic volumes, and this arm has none: leave it out")
        return self


class UtilityStudy(StudyConfig):
    """Arms x segmenters x sizes x seeds. Every arm takes equally many steps; a seed redraws the subset and trains anew."""

    pretrained_autoencoder: Path | None = Field(
        None, description="a finished run that saw no pool or held-out patient; null trains one on the outside patients"
    )
    autoencoder_patients: Literal["outside", "subset"] = Field(
        "outside",
        description="whom autoencoders are fitted on: outside: one, on the patients outside the study; subset: one for each "
        "subset, on its own patients, for cohorts that can spare none",
    )
    arms: Annotated[dict[str, ArmConfig], Field(min_length=2)]
    baseline: str = Field(description="the arm that all others are compared with, declared before anything is seen")
    contrasts: tuple[tuple[str, str], ...] = Field(
        (), description="further pairs [arm, reference] to test, beside every arm against the baseline"
    )
    masks: dict[str, NewMasksConfig] = Field({}, description="ways to make new masks, by name")
    segmenters: Annotated[dict[str, dict[str, Any]], Field(min_length=1)] = Field(
        description="by name, settings of a SegmenterRun; run and data are the study's"
    )
    folds: Positive = Field(
        1,
        description="above 1, pool and held-out patients are cut into so many parts, each held out in turn: for cohorts "
        "with few patients to test on",
    )
    surplus: Annotated[float, Field(ge=1)] = Field(
        1.5, description="volumes painted per volume wanted where arms drop some"
    )
    copy_space: Literal["voxels", "registered", "parts", "ssim"] = Field(
        "voxels", description="what drop.copies compares by"
    )
    copy_level: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05,
        description="share of unseen patients that drop.copies may flag; half of the outside patients calibrate it",
    )
    validation: Annotated[float, Field(gt=0, le=0.5)] = Field(
        0.2, description="share of a subset's own patients that chooses checkpoints"
    )
    margins: MarginsConfig = MarginsConfig()

    @model_validator(mode="after")
    def _arms_can_be_built(self) -> UtilityStudy:
        if self.baseline not in self.arms:
            raise ValueError(f"baseline {self.baseline!r} is none of the arms {', '.join(self.arms)}")
        if "rules" in self.models or "own" in self.masks:
            raise ValueError(
                "rules names lesions by rule, and own the patients' masks: give your models and masks other names"
            )
        for name, arm in self.arms.items():
            if arm.model not in (None, "rules", *self.models):
                raise ValueError(f"arm {name}: model {arm.model!r} is none of {', '.join([*self.models, 'rules'])}")
            if arm.masks not in ("own", *self.masks):
                raise ValueError(f"arm {name}: masks {arm.masks!r} are none of {', '.join(['own', *self.masks])}")
            settings = self.models.get(arm.model or "", {})
            into = arm.model == "rules" or bool(settings.get("conditioner", {}).get("context"))
            if into and arm.masks != "own" and not self.masks[arm.masks].into_hosts:
                raise ValueError(f"arm {name}: lesions are painted into scans here: masks.{arm.masks} needs into_hosts")
            if into and arm.drop.copies:
                raise ValueError(
                    f"arm {name}: around their lesions these volumes are the patients' scans: leave drop.copies out"
                )
            generator = settings.get("generator")
            if arm.masks != "own" and isinstance(generator, dict) and generator.get("form") == "joint":
                raise ValueError(f"arm {name}: model {arm.model} makes its own masks: leave masks out")
            strange = [size for size in arm.sizes or () if size not in self.sizes]
            if strange:
                raise ValueError(f"arm {name}: size {strange[0]} is none of the study's sizes {self.sizes}")
        if self.pretrained_autoencoder is not None and self.autoencoder_patients == "subset":
            raise ValueError("pretrained_autoencoder and autoencoder_patients subset exclude each other: leave one out")
        shared = self.pretrained_autoencoder is None and self.autoencoder_patients == "outside"
        fitted = shared and any(arm.model in self.models for arm in self.arms.values())
        if not self.roles.outside and (fitted or any(arm.drop.copies for arm in self.arms.values())):
            raise ValueError("roles.outside is 0, and the autoencoder or drop.copies needs patients outside the study")
        self._copies_can_be_dropped()
        for size in self.sizes:
            if self.baseline not in self.arms_of(size):
                raise ValueError(
                    f"the baseline {self.baseline!r} is not trained at size {size}: nothing to compare with"
                )
        self._contrasts_can_be_tested()
        baseline = self.arms[self.baseline]
        if any(arm.drop.agreement for arm in self.arms.values()) and (baseline.dose or baseline.real < 1):
            raise ValueError(
                f"drop.agreement asks the baseline's segmenter, and {self.baseline} is not trained on all real patients and "
                "them alone: choose another baseline"
            )
        for name, new in self.masks.items():
            cell_name(name)
            if new.model is not None:
                refuse(new.model, ("run", "seed", "data"), f"masks.{name}.model")
                values = merged(PLACED, self.masks_settings(name))
                scaled(build(self.masks_kind(name), values, f"masks.{name}.model"), self.scale)
        for name in self.segmenters:
            cell_name(name)
            refuse(self.segmenters[name], ("run", "seed", "data"), f"segmenters.{name}")
            placed = {"run": "x", "data": {"train": [{"manifest": "x"}], "validation": {"manifest": "x"}}}
            values = merged(placed, self.segmenter_settings(name, True))
            scaled(build(SegmenterRun, values, f"segmenters.{name}"), self.scale)
        return self

    def _copies_can_be_dropped(self) -> None:
        """The search covers everybody that a volume could copy, the autoencoder's patients included: they must be the arm's own."""
        for name, arm in self.arms.items():
            latent = arm.model in self.models and "autoencoder" in self.model_settings(arm.model)
            if arm.drop.copies and latent and self.autoencoder_patients == "outside":
                raise ValueError(
                    f"arm {name}: drop.copies searches the subset's patients, and the autoencoder under {arm.model} has seen "
                    "others: set autoencoder_patients to subset"
                )

    def _contrasts_can_be_tested(self) -> None:
        once("contrasts", [sorted(pair) for pair in self.contrasts])
        for pair in self.contrasts:
            strange = [name for name in pair if name not in self.arms]
            if strange:
                raise ValueError(f"contrasts: {strange[0]!r} is none of the arms {', '.join(self.arms)}")
            if self.baseline in pair or pair[0] == pair[1]:
                raise ValueError(
                    f"contrasts: {list(pair)} tests an arm with itself, or with the baseline, which is tested anyway"
                )
            if not any(set(pair) <= set(self.arms_of(size)) for size in self.sizes):
                raise ValueError(f"contrasts: {' and '.join(pair)} are never trained at one size: nothing to compare")

    @property
    def autoencoder_folder(self) -> Path:
        """Run of the autoencoder under all latent models."""
        return self.pretrained_autoencoder or super().autoencoder_folder

    def arms_of(self, size: int | str) -> dict[str, ArmConfig]:
        """The arms that are trained at a size."""
        return {name: arm for name, arm in self.arms.items() if arm.sizes is None or size in arm.sizes}

    def masks_kind(self, name: str) -> type[MaskRun] | type[GanRun]:
        """What trains a generator of masks."""
        return GanRun if chosen(GanRun, "generator", self.masks[name].model or {}) else MaskRun

    def masks_settings(self, name: str) -> dict[str, Any]:
        """Values of its run, but for its folder, manifest and seed."""
        grid = {"shape": self.grid.shape, "spacing_mm": self.grid.spacing_mm}
        data = {"grid": grid, "framing": self.framing, "cache": self.cache}
        return merged({"data": data}, self.masks[name].model or {})

    def segmenter_settings(self, name: str, augment: bool) -> dict[str, Any]:
        """Values of a SegmenterRun, but for its folder, what it trains and validates on, and its seed.

        Args:
            name: Of the segmenter.
            augment: With classical augmentation.
        """
        return merged({"data": {**self.data, "augment": self.augment if augment else {}}}, self.segmenters[name])
