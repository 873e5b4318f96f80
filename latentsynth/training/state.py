"""The state that a run goes on from: JSON and safetensors, verified before any of it is used. Nothing in it is run.

A state is a folder. ``state.json`` holds what are no tensors and says where each tensor lies: in one safetensors file per
section. It also holds the hashes of those files and, as its ``checksum``, its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from latentsynth.errors import CheckpointError, ConfigError, DataError
from latentsynth.files import atomic_path, read_json, write_json
from latentsynth.pretrained import pickles
from latentsynth.provenance import file_fingerprint, fingerprint
from latentsynth.strict import Strict, build
from latentsynth.tensors import read_tensors, write_tensors

FORMAT = "latentsynth-state/1"
HEADER = "state.json"
_TENSOR = "$tensor"  # key of what stands in the header for a tensor


class _Header(Strict):
    format: Literal["latentsynth-state/1"]
    sections: dict[str, Any]
    files: dict[str, str]
    checksum: str


def write(folder: Path, sections: Mapping[str, Any]) -> None:
    """Writes a state atomically.

    Args:
        folder: Where nothing stands yet.
        sections: Each a tree of mappings with text keys, lists, tensors, numbers, text and None.

    Raises:
        TypeError: Something else in them.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        values, files = {}, {}
        for section, value in sections.items():
            found: dict[str, Tensor] = {}
            values[section] = _split(value, section, found)
            if found:
                file = temporary / f"{section}.safetensors"
                write_tensors(file, found)
                files[file.name] = file_fingerprint(file)
        header = {"format": FORMAT, "sections": values, "files": files}
        write_json(temporary / HEADER, {**header, "checksum": fingerprint(header)})


def read(folder: Path) -> dict[str, Any]:
    """The sections of a state, tensors on the CPU.

    Raises:
        CheckpointError: It is damaged: a file is missing, foreign, torn or changed.
    """
    try:
        header = build(_Header, _object(read_json(folder / HEADER), folder), str(folder / HEADER))
        if fingerprint(header.model_dump(exclude={"checksum"})) != header.checksum:
            raise CheckpointError(f"{folder / HEADER} was changed since it was written")
        found: dict[str, Tensor] = {}
        present = {path.name for path in folder.iterdir()} - {HEADER}
        for name in sorted(present ^ set(header.files)):
            raise CheckpointError(f"{folder / name} is {'no part of the state' if name in present else 'missing'}")
        for name, saved in header.files.items():
            if file_fingerprint(folder / name) != saved:
                raise CheckpointError(f"{folder / name} does not hold what was written")
            found |= read_tensors(folder / name)
    except (ConfigError, DataError, OSError) as error:
        raise CheckpointError(str(error)) from error
    return {section: _join(value, found, folder) for section, value in header.sections.items()}


def find_pickle(folder: Path) -> Path | None:
    """A file in a state that could run code if somebody read it; ours holds none."""
    return next(iter(pickles(folder)), None)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of every global generator that a library may draw from: Python's, numpy's, torch's on the CPU and on the device."""
    version, internal, gauss = random.getstate()
    words = np.random.get_state(legacy=False)
    assert isinstance(words, dict)
    twister = {"key": torch.from_numpy(words["state"]["key"].astype(np.int64)), "pos": int(words["state"]["pos"])}
    on_device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {**twister, "has_gauss": int(words["has_gauss"]), "gauss": float(words["gauss"])},
        "torch": torch.get_rng_state(),
        "device": {"type": device.type, "state": on_device},
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Inverse of :func:`random_state`; what another type of device has drawn does not matter to this one."""
    python, words, on_device = state["python"], state["numpy"], state["device"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    key = words["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, words["pos"], words["has_gauss"], words["gauss"]))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and on_device["type"] == device.type:
        torch.get_device_module(device).set_rng_state(on_device["state"])


def _object(value: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / HEADER} is not a JSON object")
    return value


def _split(value: Any, path: str, found: dict[str, Tensor]) -> Any:
    """The same tree with a name in the place of each tensor, which ``found`` gets."""
    if isinstance(value, Tensor):
        found[path] = value
        return {_TENSOR: path}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _split(inner, f"{path}/{key}", found) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_split(inner, f"{path}/{n}", found) for n, inner in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path} is a {type(value).__name__}, which a state cannot hold")


def _join(value: Any, found: Mapping[str, Tensor], folder: Path) -> Any:
    """Inverse of :func:`_split`."""
    if isinstance(value, list):
        return [_join(inner, found, folder) for inner in value]
    if not isinstance(value, dict):
        return value
    if set(value) != {_TENSOR}:
        return {key: _join(inner, found, folder) for key, inner in value.items()}
    if value[_TENSOR] not in found:
        raise CheckpointError(f"{folder}: tensor {value[_TENSOR]!r} is missing")
    return found[value[_TENSOR]]
