"""Strict models from YAML: an unknown key or an impossible value is an error that names the key and the choices."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentsynth import documents
from latentsynth.errors import ConfigError, DataError


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


Positive = Annotated[int, Field(ge=1)]

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
    return build(kind, read_yaml(path, overrides), str(path))


def read_yaml(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a YAML file, with overrides as :func:`load` takes them, not yet validated.

    Raises:
        ConfigError: The file is missing, is not YAML (:func:`latentsynth.documents.read_yaml`), or holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(
            f"config {path} does not exist: check the path, or start from a file that `latentsynth configs` writes"
        )
    try:
        values = documents.read_yaml(path)
    except DataError as error:
        raise ConfigError(f"config {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"config {path} holds {type(values).__name__}, expected keys and values")
    for override in overrides:
        _override(values, override)
    return values


def build(kind: type[ConfigT], values: dict[str, Any], origin: str = "config") -> ConfigT:
    """Validates plain values as a configuration.

    Raises:
        ConfigError: One line per wrong key, each with its name, what was found and what is possible.
    """
    try:
        made = kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None
    lines = [f"{key}: {problem}" for key, problem in _mistaken(values, made.model_dump())]
    if lines:
        raise ConfigError(f"{origin}: " + "; ".join(lines))
    return made


def _mistaken(given: Any, made: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """What validation lets pass: true for a number, which Python takes for 1, and numbers that are none."""
    if isinstance(made, dict):
        for name, value in made.items():
            inner = given.get(name) if isinstance(given, Mapping) else None
            yield from _mistaken(inner, value, f"{key}.{name}" if key else str(name))
    elif isinstance(made, list | tuple):
        for n, value in enumerate(made):
            inner = given[n] if isinstance(given, list | tuple) and len(given) == len(made) else None
            yield from _mistaken(inner, value, f"{key}.{n}")
    elif isinstance(given, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        yield key, f"expected a number, not true or false (found {given})"
    elif isinstance(made, float) and not math.isfinite(made):
        yield key, f"expected a finite number (found {made})"


def changed(kind: type[ConfigT], values: dict[str, Any], overrides: Sequence[str], origin: str = "settings") -> ConfigT:
    """:func:`build` with overrides as :func:`load` takes them."""
    for override in overrides:
        _override(values, override)
    return build(kind, values, origin)


def members(kind: type[BaseModel], section: str) -> dict[str, type[Any]]:
    """The models that a section can be, by the tags that tell them apart; none for a section of one model."""
    field = kind.model_fields[section]
    return _tagged(field.annotation, field.discriminator)


def chosen(kind: type[BaseModel], section: str, values: Any) -> type[Any] | None:
    """The model that plain values choose for a section by its tag; None where they choose none."""
    found = values.get(section) if isinstance(values, Mapping) else None
    tag = found.get(kind.model_fields[section].discriminator) if isinstance(found, Mapping) else None
    return members(kind, section).get(tag) if isinstance(tag, str) else None


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
        values[last] = documents.parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value ({error})") from None


def _explain(kind: type[BaseModel], problem: Any) -> str:
    """One validation problem in words; for an unknown key, the keys that exist there."""
    where, _ = _follow(kind, problem["loc"])
    key = ".".join(where) or "config"
    if problem["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        found = problem.get("input")
        shown = "" if problem["type"] == "missing" or isinstance(found, dict) else f" (found {found!r})"
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}"
    choices = _keys(_follow(kind, problem["loc"][:-1])[1])
    near = difflib.get_close_matches(where[-1], choices, n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    return f"unknown key {key}{hint} (choices: {', '.join(choices)})"


def _follow(kind: Any, path: Sequence[str | int]) -> tuple[list[str], Any]:
    """Along the path of an error below a model: the keys that it names, and the type of what is there.

    pydantic puts the tag of the chosen member of a union into the path, which is no key.
    """
    keys: list[str] = []
    options: dict[str, type[Any]] = {}  # members of a union, of which the next part of the path names one
    for part in path:
        if part in options:
            kind, options = options[str(part)], {}
            continue
        keys.append(str(part))
        kind, options = _inside(kind, part)
    return keys, kind


def _inside(kind: Any, part: str | int) -> tuple[Any, dict[str, type[Any]]]:
    """Type of one part of a model, a dataclass or a collection; where it is a union with tags, also its members."""
    kind = _plain(kind)
    discriminator: Any = None
    if part in getattr(kind, "model_fields", {}):
        field = kind.model_fields[part]
        found, discriminator = field.annotation, field.discriminator
    elif part in getattr(kind, "__dataclass_fields__", {}):
        found = get_type_hints(kind, include_extras=True)[str(part)]
    else:  # an item of a collection; what a mapping holds is its last argument
        found = next((t for t in reversed(get_args(kind)) if t is not Ellipsis), kind)
    if get_origin(found) is Annotated:
        found, *about = get_args(found)
        discriminator = next((d for d in (getattr(a, "discriminator", None) for a in about) if d), discriminator)
    return found, _tagged(found, discriminator)


def _tagged(union: Any, discriminator: Any) -> dict[str, type[Any]]:
    """The members of a union by the values that its discriminator can have in them."""
    if not isinstance(discriminator, str):
        return {}
    return {
        tag: member for member in get_args(union) for tag in get_args(member.model_fields[discriminator].annotation)
    }


def _plain(kind: Any) -> Any:
    """The first type of a union that is not None."""
    if get_origin(kind) in (Union, UnionType):
        return next(t for t in get_args(kind) if t is not type(None))
    return kind


def _keys(kind: Any) -> list[str]:
    """Names of the fields of a model or dataclass."""
    kind = _plain(kind)
    fields = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    return [name for name in fields if not name.startswith("_")]
