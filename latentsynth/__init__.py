"""Synthetic annotated 3D scans from a few dozen real ones: mask-conditioned latent diffusion, measured.

Importing this package loads nothing heavy; the names below load what they need when they are first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

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
    "SampledPatients": "latentsynth.datasets",
    "Segmenter": "latentsynth.segmentation",
    "StoredPatients": "latentsynth.datasets",
    "load_synthesizer": "latentsynth.synthesizers",
    "run": "latentsynth.pipeline",
    "synthesize": "latentsynth.synthesis",
    "train": "latentsynth.training.recipes",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'latentsynth' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # a third of the time until a command can be stopped

    try:
        return version("latentsynth")
    except PackageNotFoundError:  # running from a source tree that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return __all__
