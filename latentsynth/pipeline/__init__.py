"""The whole road in one command: a folder of scans goes in; models, new patients and a report come out."""

from latentsynth.pipeline.runner import run
from latentsynth.pipeline.stages import STAGES, Stage

__all__ = ["STAGES", "Stage", "run"]
