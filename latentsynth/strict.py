"""Strict models from YAML: an unknown key or an impossible value is an error that names the key and the choices."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from latentsynth.errors import ConfigError


class Strict(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen, paths stay as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def with_changes(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values with some changed, to be validated again."""
        return {**self.model_dump(), **changes}


def default_kind(values: Any, section: str, kind: str) -> Any:
    """The same values, in which a section that does not say its kind is of the default one."""
    found = values.get(section) if isinstance(values, dict) else None
    return {**values, section: {"kind": kind, **found}} if isinstance(found, dict) else values


def _not_a_switch(value: Any) -> Any:
    """YAML's true and false would pass for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


Positive = Annotated[int, BeforeValidator(_not_a_switch), Field(ge=1)]

# pydantic puts the tag of a union into the path of an error
_TAGS = (
    *("vq", "kl", "unet", "dynunet", "swin_unetr"),
    *("pix2pix", "cyclegan", "spade", "latent_gan", "progressive_gan", "stylegan1", "stylegan2", "stylegan3"),
    *("patch", "residual", "grown"),
    *("slice_vae", "label_vae", "mask_diffusion"),
)

ConfigT = TypeVar("ConfigT", bound=Strict)


def load(kind: type[ConfigT], path: Path | str, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a YAML file and applies overrides.

    Args:
        kind: The model to read it as.
        path: The YAML file.
        overrides: ``key.sub=value`` strings; values are read as YAML.

    Raises:
        ConfigError: The file is missing or is not YAML; a key is unknown; a value is impossible.
    """
    return changed(kind, read_yaml(path), overrides, str(path))


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The keys and values of a YAML file, not yet validated.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds something else.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config {path} does not exist: check the path, or start from a file in configs/") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config {path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} holds {type(values).__name__}, expected keys and values")
    return values


def build(kind: type[ConfigT], values: dict[str, Any], origin: str = "config") -> ConfigT:
    """Validates plain values as a configuration.

    Raises:
        ConfigError: One line per wrong key, each with its name, what was found and what is possible.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


def changed(kind: type[ConfigT], values: dict[str, Any], overrides: Sequence[str], origin: str = "settings") -> ConfigT:
    """:func:`build` with overrides as :func:`load` takes them."""
    for override in overrides:
        _override(values, override)
    return build(kind, values, origin)


def dump(config: Strict) -> str:
    """The resolved configuration as YAML, which :func:`load` reads back unchanged."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not key=value, for example train.images=1000")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None


def _explain(kind: type[BaseModel], problem: Any) -> str:
    """One validation problem in words; for an unknown key, the keys that exist there."""
    where = [str(part) for part in problem["loc"] if part not in _TAGS]
    key = ".".join(where) or "config"
    if problem["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        found = problem.get("input")
        shown = "" if problem["type"] == "missing" or isinstance(found, dict) else f" (found {found!r})"
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}"
    choices = _keys_at(kind, problem["loc"][:-1])
    near = difflib.get_close_matches(where[-1], choices, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    return f"unknown key {key}{hint} (choices: {', '.join(choices)})"


def _keys_at(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Names of the fields of the section at ``path`` below the model ``kind``."""
    for part in path:
        options = [t for t in getattr(kind, "__args__", ()) if t is not type(None)]
        chosen = [t for t in options if _tag(t) == part]
        if chosen:  # the path names the tag of a union
            kind = chosen[0]
            continue
        kind = _field(options[0] if options else kind, part)
    options = [t for t in getattr(kind, "__args__", ()) if hasattr(t, "model_fields")]
    kind = options[0] if options else kind
    fields = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return [name for name in fields if not name.startswith("_")]


def _tag(kind: Any) -> Any:
    field = getattr(kind, "model_fields", {}).get("kind")
    return field.default if field else None


def _field(kind: Any, name: str | int) -> Any:
    """Type of a field of a model or dataclass; a position in a tuple is its item's type, which the caller holds."""
    if isinstance(name, int):
        return kind
    fields = getattr(kind, "model_fields", None)
    if fields and name in fields:
        return fields[name].annotation
    return get_type_hints(kind)[name] if name in getattr(kind, "__dataclass_fields__", {}) else kind
