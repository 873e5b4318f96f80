"""How a set of new masks is made without training: by which method, and into whose anatomy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentsynth.config.mask_shapes import ComposeConfig, DeformConfig, ProceduralConfig
from latentsynth.strict import Strict


class MaskSetConfig(Strict):
    """Settings of ``latentsynth masks``, ``latentsynth balance`` and of the masks of a utility study's arms."""

    method: Literal["deform", "procedural"] = Field("deform", description="change real masks, or draw rough ellipsoids")
    inside: tuple[int, ...] = Field(
        (), description="labels of the organ that lesions stay in; none: the field of view, as far as it is background"
    )
    deform: DeformConfig = DeformConfig()
    procedural: ProceduralConfig = ProceduralConfig()
    compose: ComposeConfig = ComposeConfig()
