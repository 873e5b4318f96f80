"""One recipe per thing trained: what it learns from, its loss, and what it leaves behind."""

from __future__ import annotations

from importlib import import_module

from latentsynth.config import AutoencoderRun, ExtractorRun, GanRun, LdmRun, MaskRun, Run, SegmenterRun
from latentsynth.errors import ConfigError

_RECIPES = {
    AutoencoderRun: "autoencoder.train_autoencoder",
    LdmRun: "ldm.train_ldm",
    GanRun: "gan.train_gan",
    MaskRun: "masks.train_masks",
    SegmenterRun: "segmenter.train_segmenter",
    ExtractorRun: "extractor.train_extractor",
}


def train(config: Run) -> dict[str, float]:
    """Trains whatever a configuration is of; the same call again resumes it.

    Args:
        config: ``AutoencoderRun(...)``, ``LdmRun(...)``, ``GanRun(...)``, ``MaskRun(...)``, ``SegmenterRun(...)`` or
            ``ExtractorRun(...)``; sections may be plain dictionaries, as in a YAML file.

    Returns:
        Scores on validation patients.

    Raises:
        ConfigError: It is none of these.
        LatentsynthError: As the recipe.
    """
    if type(config) not in _RECIPES:
        kinds = ", ".join(kind.__name__ for kind in _RECIPES)
        raise ConfigError(f"{type(config).__name__} is no configuration of a training: give one of {kinds}")
    module, name = _RECIPES[type(config)].split(".")
    scores: dict[str, float] = getattr(import_module(f"{__name__}.{module}"), name)(config)
    return scores
