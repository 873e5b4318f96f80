"""Trained models that come with the package, each a checkpoint folder with its card and the licence of its weights.

``LatentDiffusion.from_pretrained("hippocampus")`` loads one. How each was trained stands in ``configs/pretrained``.
"""

from __future__ import annotations

from pathlib import Path

_HOME = Path(__file__).parent


def names() -> list[str]:
    """What can be loaded by name."""
    return sorted(card.parent.name for card in _HOME.glob("*/config.json"))


def packaged(name: str) -> Path | None:
    """The folder of the model of that name, or None where there is none."""
    return _HOME / name if name in names() else None
