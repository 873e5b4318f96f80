"""Types of numbers that several sections share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Axes = tuple[int, int, int]
Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
