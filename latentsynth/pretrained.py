"""Folders that hold one trained part: ``config.json`` and safetensors, saved atomically and loaded strictly.

diffusers' ``ModelMixin`` and ``ConfigMixin`` give the format and the hub verbs (``save_pretrained``, ``push_to_hub``).
Their loader accepts an unknown key or a missing tensor with a line in the log, and takes a missing folder for the name
of a hub repository; ours raises.
"""

from __future__ import annotations

import copy
import inspect
import stat
from pathlib import Path
from types import MethodType
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch.utils.checkpoint import checkpoint

from latentsynth.errors import CheckpointError, DataError
from latentsynth.files import atomic_folder, read_json
from latentsynth.models import names
from latentsynth.provenance import file_fingerprint
from latentsynth.tensors import check_finite, check_tensors, read_tensors

__all__ = ["CONFIG", "Pretrained", "part_fingerprint", "pickles", "read_config", "recompute", "register_to_config"]

CONFIG = "config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
# What constructors raise for settings that no network can have; some are torch's own.
_IMPOSSIBLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Pretrained(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """A network whose constructor arguments are its ``config.json``."""

    config_name = CONFIG

    def save(self, folder: Path | str, half: bool = False) -> None:
        """Writes the part atomically into a new folder, or over an older part.

        Args:
            folder: Where.
            half: Weights in half precision: half the bytes; :meth:`from_pretrained` widens them again.

        Raises:
            DataError: Something else stands there.
        """

        def older(found: Path) -> bool:
            return (found / CONFIG).is_file() and any(found.glob("*.safetensors"))

        with atomic_folder(folder, older) as temporary:
            part = copy.deepcopy(self).half() if half else self
            part.save_pretrained(temporary, safe_serialization=True)
            for weights in temporary.glob("*.safetensors"):  # private, as safetensors makes them
                weights.chmod(stat.S_IMODE((temporary / CONFIG).stat().st_mode))

    @classmethod
    def from_pretrained(cls, folder: Path | str, **unsupported: Any) -> Self:
        """Loads a part from a folder on this machine, in evaluation mode.

        Args:
            folder: What :meth:`save` wrote; a part of a subclass may be loaded through its base.

        Raises:
            CheckpointError: No such folder; the class is foreign; a key is unknown or missing; the weights are a
                pickle; a tensor is missing, unexpected, not finite, or has another shape.
        """
        if unsupported:
            raise CheckpointError(f"from_pretrained takes a folder alone, got also {sorted(unsupported)}")
        folder = Path(folder)
        config = read_config(folder)
        kind = cls._class_named(config.pop("_class_name", None), folder)
        arguments = {key: value for key, value in config.items() if not key.startswith("_")}
        accepted = {name for name in inspect.signature(kind.__init__).parameters if name != "self"}
        wrong = set(arguments) ^ accepted
        if wrong:
            raise CheckpointError(
                f"{folder / CONFIG}: keys {sorted(wrong)} are {'unknown' if wrong - accepted else 'missing'} for "
                f"{kind.__name__}: the checkpoint was altered, or made by another version of latentsynth"
            )
        try:
            model = kind(**arguments)
        except _IMPOSSIBLE as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"{folder / CONFIG}: no {kind.__name__} can be made of it ({reason}): restore the checkpoint"
            ) from error
        _load_weights(model, folder)
        return model.eval()

    @classmethod
    def _class_named(cls, name: object, folder: Path) -> type[Self]:
        family: dict[str, type[Self]] = {}
        todo = [cls]
        while todo:
            kind = todo.pop()
            family[kind.__name__] = kind
            todo += kind.__subclasses__()
        if not isinstance(name, str) or name not in family or inspect.isabstract(family[name]):
            raise CheckpointError(
                f"{folder / CONFIG} names class {name!r}, expected one of "
                f"{', '.join(sorted(n for n, k in family.items() if not inspect.isabstract(k)))}: not a part of this kind"
            )
        return family[name]


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: The folder or the file is missing, or the file is not a JSON object.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint folder {folder} does not exist: check the path, or give a model of the package "
            f"({', '.join(names())}); nothing is fetched from a hub"
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} holds no {CONFIG}, so it is not a checkpoint: give the folder that training wrote"
        )
    try:
        config = read_json(folder / CONFIG)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} is not a JSON object: restore the checkpoint")
    return config


def part_fingerprint(folder: Path) -> str:
    """Changes with any weight or setting of a saved part."""
    return file_fingerprint(*sorted([*folder.glob("*.safetensors"), *folder.glob(CONFIG)]))


def pickles(folder: Path) -> list[Path]:
    """The files of a folder that are pickles by their name, which can run code when they are read."""
    return sorted(path for pattern in _PICKLES for path in folder.glob(pattern))


def _load_weights(model: torch.nn.Module, folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    expected = model.state_dict()
    if not files and expected:  # a part may have settings and no weights
        found = pickles(folder)
        reason = f"only {found[0].name}, a pickle, which can run code" if found else "no weights"
        raise CheckpointError(f"{folder} holds {reason}: expected safetensors; save the part again with latentsynth")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= read_tensors(file)
    check_tensors(state, expected, folder)
    check_finite(state, folder)
    model.load_state_dict(state, strict=True)


def recompute(block: torch.nn.Module) -> None:
    """Makes one block recompute its activations in the backward pass (gradient checkpointing). Weights keep their names.

    A bound method, not a closure: a deep copy of the network (the weight average) must call its own block.
    """
    block.forward = MethodType(_checkpointed, block)  # type: ignore[method-assign]


def _checkpointed(block: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *args, **kwargs)
    return checkpoint(forward, block, *args, use_reentrant=False, **kwargs)
