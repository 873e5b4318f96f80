"""Where new lesions come from: deformed, procedural and learnt masks, put into anatomy."""

from latentsynth.masks.base import MaskMaker, Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.write import make_masks

__all__ = ["LabelMap", "MaskMaker", "Rejected", "Wanted", "make_masks"]
