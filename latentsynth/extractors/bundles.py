"""Networks from files on this machine, TorchScript and MONAI bundles, loaded without running foreign code."""

from __future__ import annotations

import ast
import inspect
import pydoc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentsynth.documents import read_json, read_yaml
from latentsynth.errors import CheckpointError, DataError

_CONFIGS = ("inference.json", "inference.yaml", "train.json", "train.yaml")
_HOMES = ("monai.networks.", "torch.nn.")
_CURE = "export the network to TorchScript (models/model.ts) instead"


def existing(path: Path | str) -> Path:
    """``path`` itself.

    Raises:
        CheckpointError: It does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: check the path (nothing is fetched)")
    return path


def load_script(path: Path) -> nn.Module:
    """A TorchScript network in evaluation mode, on the CPU.

    Raises:
        CheckpointError: The file is not TorchScript.
    """
    try:
        network: nn.Module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not TorchScript: save the network with torch.jit.save") from error
    return network.eval()


def config_file(folder: Path) -> Path:
    """The config that defines the network: ``inference`` before ``train``, JSON before YAML.

    Raises:
        CheckpointError: There is none.
    """
    for name in _CONFIGS:
        if (folder / "configs" / name).is_file():
            return folder / "configs" / name
    raise CheckpointError(f"bundle {folder} has none of {', '.join(_CONFIGS)} in configs: give a whole MONAI bundle")


def build_network(folder: Path) -> nn.Module:
    """Builds ``network_def`` of a bundle and loads ``models/model.pt`` strictly, in evaluation mode.

    Nothing else of the config is instantiated. A reference ``@name`` is followed; an expression ``$...`` is read if it
    is a literal and refused otherwise; only modules of ``monai.networks`` and ``torch.nn`` are built, never with
    pretrained weights of their own, which would be fetched. The global random state is left as it was.

    Args:
        folder: The bundle, with ``configs`` and ``models``.

    Raises:
        CheckpointError: The config or the weights are missing, damaged, do not fit each other, or would run code.
    """
    from monai.bundle import ConfigParser

    file = config_file(folder)
    config = _read(file)
    if "network_def" not in config:
        raise CheckpointError(f"{file} has no network_def, which is what MONAI calls the network: name it so")
    definition = _plain(config["network_def"], config, file)
    with torch.random.fork_rng(devices=[]):
        try:
            network = ConfigParser({"network_def": definition}).get_parsed_content("network_def")
        except (RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: network_def cannot be built ({_line(error)}): {_CURE}") from error
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{file}: network_def is {type(network).__name__}, expected a network: {_CURE}")
    _load(network, folder / "models" / "model.pt")
    return network.eval()


def _read(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file) if file.suffix == ".json" else read_yaml(file)
    except DataError as error:
        raise CheckpointError(f"{file} is not readable ({_line(error)}): restore the bundle") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds {type(config).__name__}, expected keys and values: restore the bundle")
    return config


def _plain(value: Any, config: dict[str, Any], file: Path, seen: tuple[str, ...] = ()) -> Any:
    """``value`` with its references replaced, and nothing left in it that could run code."""
    from monai.bundle import ConfigParser

    if isinstance(value, list):
        return [_plain(item, config, file, seen) for item in value]
    if isinstance(value, dict):
        plain = {key: _plain(item, config, file, seen) for key, item in value.items()}
        return _checked(plain, file) if "_target_" in plain else plain
    if not isinstance(value, str) or value[:1] not in ("@", "$", "%"):
        return value
    parser = ConfigParser(config)
    if value.startswith("@") and value not in seen and value[1:] in parser:
        return _plain(parser[value[1:]], config, file, (*seen, value))
    if value.startswith("$"):
        try:
            return ast.literal_eval(value[1:])
        except (ValueError, SyntaxError):
            raise CheckpointError(
                f"{file}: network_def needs the expression {value!r}, which would run code: write its value, or {_CURE}"
            ) from None
    raise CheckpointError(f"{file}: network_def refers to {value!r}, which is not there: write its value, or {_CURE}")


def _checked(component: dict[str, Any], file: Path) -> dict[str, Any]:
    from monai.bundle import ConfigComponent

    name = component["_target_"]
    path = ConfigComponent(component).resolve_module_name() if isinstance(name, str) else ""
    # The name is judged before it is located: locating imports, and importing runs code.
    kind = pydoc.locate(path) if path.startswith(_HOMES) else None
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise CheckpointError(
            f"{file}: network_def builds {name!r}, expected a module of {' or '.join(_HOMES)} as nothing else is run: "
            f"{_CURE}"
        )
    fetches = "pretrained" in inspect.signature(kind).parameters or "pretrained" in component
    return {**component, "_target_": path, **({"pretrained": False} if fetches else {})}


def _load(network: nn.Module, file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist: give a bundle with its weights (nothing is fetched)")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles fail in every way there is
        raise CheckpointError(
            f"{file} does not hold weights alone ({_line(error)}), and a pickle of anything else could run code: "
            "save the state_dict"
        ) from error
    if isinstance(state, Mapping):  # some trainers put the weights beside the state of their optimiser
        state = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), Mapping)), state)
    try:
        network.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{file} does not fit network_def ({_line(error)}): restore the bundle") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def last_tensor(output: Any) -> Tensor | None:
    """The last tensor among whatever a network returns, or None."""
    if isinstance(output, Tensor):
        return output
    values = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(values, list | tuple):
        return None
    return next((t for value in reversed(values) if (t := last_tensor(value)) is not None), None)
