"""All that can be trained, and which of it a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from latentsynth.config.autoencoder import AutoencoderRun
from latentsynth.config.extractor import ExtractorRun
from latentsynth.config.gan import GanRun
from latentsynth.config.ldm import LdmRun
from latentsynth.config.mask_generators import MaskRun
from latentsynth.config.segmenter import SegmenterRun
from latentsynth.config.training import Run
from latentsynth.errors import ConfigError
from latentsynth.strict import chosen

RUNS: tuple[type[Run], ...] = (AutoencoderRun, LdmRun, GanRun, MaskRun, SegmenterRun, ExtractorRun)


def run_of(values: Mapping[str, Any]) -> type[Run]:
    """Which run the keys and values of a configuration belong to; what is wrong with them, its loader says.

    A section that says its kind decides: each kind belongs to one run. Without any, it is the run that has the fewest
    objections.
    """
    for run in RUNS:
        if any(chosen(run, section, values) for section in run.model_fields):
            return run
    return min(RUNS, key=lambda run: _objections(run, values))


def _objections(run: type[Run], values: Mapping[str, Any]) -> int:
    try:
        run.model_validate(values)
    except ValidationError as error:
        return error.error_count()
    except ConfigError:
        return 1
    return 0
