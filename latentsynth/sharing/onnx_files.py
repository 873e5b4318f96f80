"""A latent diffusion model as ONNX files, for programs without torch: conditioner, denoiser, decoder and encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentsynth.errors import CheckpointError, DataError
from latentsynth.files import atomic_folder, write_json
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.types import Condition, Conditioning

ABOUT = "model.json"
_OPSET = 17
_APART = 1e-4  # of what torch gives, in units of the window of intensities or of whitened latents
_BATCHES = (1, 3)


@dataclass(frozen=True)
class _Part:
    """One file.

    Attributes:
        module: What is written.
        inputs: Example of each input, by name; the first axis is the batch.
        output: Name of the output.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    output: str


class _Call(nn.Module):
    """A part of the model, called in one way, as what is written must be a module."""

    def __init__(self, part: nn.Module, call: Callable[..., Tensor]):
        super().__init__()
        self.part, self.call = part, call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


def write_onnx(model: LatentDiffusion, out: Path) -> Path:
    """Writes ``encoder.onnx``, ``decoder.onnx``, ``conditioner.onnx`` and ``denoiser.onnx``, and what they take in ``model.json``.

    Every file is run by onnxruntime and compared with torch, for batches of one and of three, before the folder stands.

    Args:
        model: On the CPU; one that paints whole volumes.
        out: New folder, or one that was written before.

    Returns:
        The folder.

    Raises:
        DataError: The model takes a scan or works in patches, onnxruntime is missing, or something else stands at ``out``.
        CheckpointError: A file gives something else than torch does.
    """
    if model.takes_context or model.conditioner.patch:
        raise DataError(
            "a model that paints into scans, or in patches, is not written as ONNX: give one of whole volumes"
        )
    with atomic_folder(out, lambda folder: (folder / ABOUT).is_file()) as temporary:
        temporary.mkdir()
        apart = {name: _write(temporary / f"{name}.onnx", part) for name, part in _parts(model).items()}
        write_json(temporary / ABOUT, _about(model, apart))
    return out


def _parts(model: LatentDiffusion) -> dict[str, _Part]:
    """The four files, with random examples of their inputs."""
    rng = torch.Generator().manual_seed(0)
    domain = model.domain
    latent = model.autoencoder.latent_shape(domain.grid.shape)
    batch = _BATCHES[-1]
    index = torch.randint(len(domain.labels), (batch, *domain.grid.shape), generator=rng)
    mask = nn.functional.one_hot(index, len(domain.labels)).movedim(-1, 1).float()
    latents = torch.randn(batch, *latent, generator=rng)
    image = torch.rand(batch, domain.grid.channels, *domain.grid.shape, generator=rng) * 2 - 1
    time = torch.rand(batch, generator=rng) * 0.8 + 0.1
    autoencoder, conditioner, denoiser = model.autoencoder, model.conditioner, model.denoiser

    def maps_of(mask: Tensor) -> Tensor:
        return conditioner(Condition(mask)).spatial  # type: ignore[no-any-return]

    def clean(noisy: Tensor, time: Tensor, maps: Tensor) -> Tensor:
        return denoiser(noisy, time, Conditioning(maps))  # type: ignore[no-any-return]

    noisy = {"noisy": latents, "time": time, "maps": maps_of(mask)}
    return {
        "encoder": _Part(_Call(autoencoder, autoencoder.encode), {"image": image}, "latents"),
        "decoder": _Part(_Call(autoencoder, autoencoder.decode), {"latents": latents}, "image"),
        "conditioner": _Part(_Call(conditioner, maps_of), {"mask": mask}, "maps"),
        "denoiser": _Part(_Call(denoiser, clean), noisy, "clean"),
    }


def _write(path: Path, part: _Part) -> float:
    """Writes a file; returns how far it is from torch at most."""
    names = [*part.inputs, part.output]
    with warnings.catch_warnings(), torch.enable_grad():  # with gradients a network runs whole, never in parts
        warnings.simplefilter("ignore")  # the tracer's, of checks that hold for every input
        torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            str(path),
            input_names=[*part.inputs],
            output_names=[part.output],
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=_OPSET,
            dynamo=False,  # the other exporter needs onnxscript, and writes weights beside the file
        )
    apart = max(_distance(path, part, batch) for batch in _BATCHES)
    if not apart <= _APART:
        raise CheckpointError(
            f"{path.name} gives {apart:.1e} other values than torch, expected {_APART:g} at most: another version of torch or "
            "onnxruntime may write it rightly"
        )
    return apart


@torch.no_grad()
def _distance(path: Path, part: _Part, batch: int) -> float:
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError("onnxruntime is not installed: pip install 'latentsynth[onnx]'") from error
    given = {name: tensor[:batch] for name, tensor in part.inputs.items()}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run([part.output], {name: tensor.numpy() for name, tensor in given.items()})
    return float(np.abs(found - part.module(*given.values()).numpy()).max())


def _about(model: LatentDiffusion, apart: Mapping[str, float]) -> dict[str, Any]:
    """What a program must know to run the files."""
    domain = model.domain
    return {
        "grid": asdict(domain.grid),
        "channels": list(domain.channels),
        "labels": dict(zip(map(str, domain.labels.values), domain.labels.names, strict=True)),
        "limits": [list(ends) for ends in domain.limits],
        "latents": list(model.autoencoder.latent_shape(domain.grid.shape)),
        "schedule": model.denoiser.config["schedule"],
        "sampling": model.settings(),
        "files": {
            "encoder.onnx": "image (B, C, I, J, K) in [-1, 1] -> latents (B, c, i, j, k), whitened",
            "conditioner.onnx": "mask (B, L, I, J, K), one-hot -> maps (B, S, i, j, k)",
            "denoiser.onnx": "noisy (B, c, i, j, k), time (B,) in [0, 1], maps -> clean, the mean of the latents given the noisy ones",
            "decoder.onnx": "latents -> image; limits are the scanner units of -1 and 1",
        },
        "largest_difference_from_torch": dict(apart),
    }
