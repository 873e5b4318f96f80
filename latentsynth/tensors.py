"""safetensors files: as readable as any other output, read whole or refused, compared with what a network needs."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentsynth.errors import CheckpointError


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a file with the mode that the umask asks for, where safetensors would make it private.

    Tensors are moved to the CPU; those that share memory are written apart. Arrays of numpy come back as tensors.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(_apart(tensors), path, metadata)
    path.chmod(mode)


def summed(maps: Tensor, channels: Iterable[int]) -> Tensor:
    """Some channels of ``(B, C, ...)`` added up, ``(B, 1, ...)``; an index by a list would wait for the device."""
    return torch.stack([maps[:, n] for n in channels]).sum(0).unsqueeze(1)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a file whole, onto the CPU.

    Raises:
        CheckpointError: It is missing, cannot be read, or is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({' '.join(str(error).split())}): copy it again") from error


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: Path | str) -> None:
    """Refuses tensors that are not, by name and shape, those that are needed.

    Args:
        found: What was read.
        expected: What is needed; the values do not matter.
        name: Of the file or folder, for the error.

    Raises:
        CheckpointError: A tensor is missing, unexpected, or has another shape.
    """
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        words = [f"{kind} tensor {names[0]} (and {len(names) - 1} more)" for kind, names in
                 (("missing", missing), ("unexpected", extra)) if names]  # fmt: skip
        raise CheckpointError(f"{name}: {'; '.join(words)}: it is incomplete or was altered")
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape:
            raise CheckpointError(
                f"{name}: tensor {key} has shape {tuple(found[key].shape)}, its configuration asks for "
                f"{tuple(tensor.shape)}: weights and configuration belong to different models"
            )


def check_finite(found: Mapping[str, Tensor], name: Path | str) -> None:
    """Refuses weights that are not numbers, which a network can turn into plausible volumes.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
    """
    for key, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{name}: tensor {key} holds NaN or infinity: restore the checkpoint, or train it again"
            )


def _apart(tensors: Mapping[str, Tensor | np.ndarray]) -> dict[str, Tensor]:
    """The same, each in memory of its own, as safetensors asks for."""
    apart, taken = {}, set()
    for name, tensor in tensors.items():
        own = torch.as_tensor(tensor).detach().to("cpu").contiguous()
        memory = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if memory in taken else own
        taken.add(memory)
    return apart
