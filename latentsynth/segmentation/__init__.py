"""Downstream segmenters: networks, and sliding-window inference from scan to label map."""

from latentsynth.segmentation.networks import DynUNet, SegmentationNetwork, SwinUNETR, UNet, build_network
from latentsynth.segmentation.segmenter import Segmenter

__all__ = ["DynUNet", "SegmentationNetwork", "Segmenter", "SwinUNETR", "UNet", "build_network"]
