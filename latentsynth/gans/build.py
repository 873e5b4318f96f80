"""From a configuration to networks. Each network says at its own place whose settings it is built from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from latentsynth.config import DiscriminatorConfig, GeneratorConfig, Strict
from latentsynth.gans.base import Discriminator, Generator

NetworkT = TypeVar("NetworkT", bound=type[Generator | Discriminator])

_NETWORKS: dict[type[Strict], list[tuple[dict[str, Any], type[Generator | Discriminator]]]] = {}


def builds(section: type[Strict], **only: Any) -> Callable[[NetworkT], NetworkT]:
    """Registers a network as what a section of a configuration describes. Its arguments have the names of the settings.

    Args:
        section: Class of the section.
        only: Settings that the section must have, where it describes several networks.
    """

    def register(network: NetworkT) -> NetworkT:
        _NETWORKS.setdefault(section, []).append((only, network))
        return network

    return register


def build_generator(
    config: GeneratorConfig, shape: Sequence[int], out_channels: int, labels: int, placed: bool
) -> Generator:
    """A new generator with random weights.

    Args:
        config: Its section of a run (not of a CycleGAN, which is two; see :mod:`latentsynth.training.recipes.cyclegan`).
        shape: Grid, two axes or three.
        out_channels: Channels it makes.
        labels: Labels of the mask it paints; 0 for one that paints none.
        placed: Whether it should know where slices lie.
    """
    given = {"shape": shape, "out_channels": out_channels, "labels": labels, "placed": placed}
    return cast(Generator, _built(config, given))


def build_discriminator(
    config: DiscriminatorConfig, shape: Sequence[int], in_channels: int, labels: int, placed: bool
) -> Discriminator:
    """A new discriminator with random weights; arguments as :func:`build_generator`, for what it judges."""
    given = {"shape": shape, "in_channels": in_channels, "labels": labels, "placed": placed}
    return cast(Discriminator, _built(config, given))


def settings_of(network: type[Generator | Discriminator]) -> set[str]:
    """Names of the arguments that a network is built from."""
    return set(inspect.signature(network.__init__).parameters) - {"self"}


def networks_of(section: type[Strict]) -> list[type[Generator | Discriminator]]:
    """All networks that a section can describe."""
    return [network for _, network in _NETWORKS.get(section, [])]


def _built(config: Strict, given: dict[str, Any]) -> Any:
    """The network that a section describes, from what it takes of the section and of what is given."""
    for only, network in _NETWORKS.get(type(config), []):
        if all(getattr(config, name) == value for name, value in only.items()):
            known = {**config.model_dump(), **given}
            return network(**{name: known[name] for name in settings_of(network) if name in known})
    raise ValueError(f"{type(config).__name__} describes no single network: register one with @builds")
