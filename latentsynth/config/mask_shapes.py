"""Masks without training: how far real ones are bent, what drawn ones look like, how lesions are put into anatomy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentsynth.config.numbers import Fraction, NotNegative
from latentsynth.strict import Positive, Strict

WorldAxis = Literal["left-right", "back-front", "feet-head"]
Millimetres = Annotated[float, Field(gt=0)]

# Above this share of the control spacing a cubic B-spline deformation can fold in 3D (Choi and Lee 2000, theorem 3).
FOLDS = 0.4


USUAL_MM = 18.0  # diameter of a lesion that the lengths below are made for
_LENGTHS = (
    "elastic_mm", "control_mm", "shift_mm", "grow_mm", "shrink_mm", "smooth_mm", "gap_mm", "bridge_mm",
)  # fmt: skip


class DeformConfig(Strict):
    """How real masks are changed; with every amount 0 they stay as they are.

    Lengths hold for lesions of up to 18 mm in diameter, the ball of their volume, and grow in proportion for larger ones: a
    tumour of 100 mm that is bent by 4 mm is still the patient's own.
    """

    draw: Literal["random", "turn"] = Field("random", description="which mask a seed takes: any, or one after another")
    elastic_mm: NotNegative = Field(4.0, description="largest elastic displacement along each axis, mm")
    control_mm: Millimetres = Field(16.0, description="distance between control points of the elastic deformation, mm")
    rotate_deg: NotNegative = Field(10.0, description="largest rotation about each axis, degrees")
    scale: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.1, description="largest relative change of size")
    shift_mm: NotNegative = Field(4.0, description="largest shift along each axis, mm")
    mirror: tuple[WorldAxis, ...] = Field((), description="axes mirrored with probability 1/2, about the scan's middle")
    grow_mm: NotNegative = Field(1.0, description="how far lesions grow at most, mm")
    shrink_mm: NotNegative = Field(1.0, description="how far lesions shrink at most, mm")
    smooth_mm: NotNegative = Field(1.0, description="largest deviation of the Gaussian that smooths lesions, mm")
    split: Fraction = Field(0.1, description="probability that the largest lesion is cut in two")
    merge: Fraction = Field(0.1, description="probability that two lesions are joined by a bridge")
    gap_mm: NotNegative = Field(3.0, description="width of a cut, mm")
    bridge_mm: NotNegative = Field(2.0, description="radius of a bridge, mm")
    max_factor: Annotated[float, Field(ge=1)] = Field(
        8.0, description="most that a wanted volume may differ from the mask's own, as a factor"
    )

    reject_copies: bool = Field(
        True,
        description="leave out masks that overlap theirs more than nine in ten patients overlap anybody else; what is too alike "
        "is bent more strongly first",
    )

    @model_validator(mode="after")
    def _folds(self) -> DeformConfig:
        if self.elastic_mm > FOLDS * self.control_mm:
            raise ValueError(
                f"elastic_mm {self.elastic_mm:g} folds space with control points {self.control_mm:g} mm apart: at most "
                f"{FOLDS:g} of control_mm, {FOLDS * self.control_mm:g}"
            )
        return self

    def sized(self, diameter_mm: float, strength: float = 1.0) -> DeformConfig:
        """The same change of a lesion of this diameter, or one that is stronger."""
        factor = strength * max(1.0, diameter_mm / USUAL_MM)
        return self.model_copy(update={name: factor * getattr(self, name) for name in _LENGTHS})

    @property
    def changes(self) -> bool:
        """Whether any amount is above 0."""
        amounts = (self.elastic_mm, self.rotate_deg, self.scale, self.shift_mm, self.grow_mm, self.shrink_mm)
        return any((*amounts, self.smooth_mm, self.split, self.merge, len(self.mirror)))


class ProceduralConfig(Strict):
    """Rough ellipsoids instead of real lesions."""

    elongation: Annotated[float, Field(ge=0, le=1.5)] = Field(
        0.35, description="largest |log| of a half axis over the radius"
    )
    roughness: tuple[NotNegative, ...] = Field(
        (0.22, 0.16, 0.1), description="deviation of the surface per octave (lobes, bumps, fringe), in radii"
    )
    gap_mm: NotNegative = Field(3.0, description="least distance between lesions, mm")
    place: Literal["learnt", "uniform"] = Field(
        "learnt", description="where lesions start: where training lesions are, or anywhere in the organ"
    )
    place_smooth_mm: NotNegative = Field(6.0, description="deviation of the Gaussian that smooths learnt places, mm")
    reach: NotNegative = Field(
        0.25, description="without an organ label, lesions stay where so many training lesions lie (0: anywhere)"
    )
    min_piece_ml: NotNegative = Field(0.05, description="training lesions below are specks that nothing is learnt from")
    attempts: Positive = Field(20, description="places tried per lesion")


class ComposeConfig(Strict):
    """How lesions are put into the anatomy of another subject."""

    place: Literal["random", "same"] = Field(
        "random", description="each lesion anywhere in the organ, or all where they were in world coordinates"
    )
    replace_lesions: bool = Field(True, description="take the subject's own lesions out first")
    max_cut: Fraction = Field(0.2, description="largest share of a lesion that the organ's border may cut off")
    gap_mm: NotNegative = Field(3.0, description="least distance between lesions, mm")
    attempts: Positive = Field(100, description="places tried per lesion")
