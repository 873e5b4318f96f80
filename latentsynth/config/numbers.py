"""Types of numbers that several sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Axes = tuple[int, int, int]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]  # what every generator of numbers takes
NotNegative = Annotated[float, Field(ge=0)]
