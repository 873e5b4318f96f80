"""Synthetic annotated 3D scans from a few dozen real ones: mask-conditioned latent diffusion, measured.

Importing this package loads nothing heavy; the names below load what they need when they are first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("latentsynth")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0+unknown"

# onnxruntime reports to its makers as soon as anything imports it, and writes an id of the session into TMPDIR.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Autoencoder": "latentsynth.autoencoders",
    "Case": "latentsynth.types",
    "Condition": "latentsynth.types",
    "Generated": "latentsynth.types",
    "Grid": "latentsynth.types",
    "LatentDiffusion": "latentsynth.synthesizers",
    "Manifest": "latentsynth.data.manifest",
    "Segmenter": "latentsynth.segmentation",
    "load_synthesizer": "latentsynth.synthesizers",
    "synthesize": "latentsynth.synthesis",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentsynth' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
