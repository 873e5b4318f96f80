"""What a slice model has learnt of its cases, and the classes of them that new masks are made from or led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from latentsynth.errors import DataError, UnknownNameError
from latentsynth.masks.latent_space import Array
from latentsynth.pretrained import Pretrained

STRATA = ("small", "medium", "large")


class Population(Pretrained):
    """The training cases as a slice model describes them, so that sampling needs no data. It knows no case by name.

    Args:
        cases: ``N``.
        slices: ``S`` that every case was interpolated to.
        latent: ``z``.
        classes: Names of the classes that can be sampled.
    """

    @register_to_config
    def __init__(self, cases: int, slices: int, latent: int, classes: Sequence[str]):
        super().__init__()
        self.classes = tuple(classes)
        self.register_buffer("latents", torch.zeros(cases, slices, latent))
        self.register_buffer("extents", torch.zeros(cases, 2))  # first slice, number of slices
        self.register_buffer("member", torch.zeros(len(self.classes), cases))  # float: averages of weights skip no kind
        self.latents: Tensor
        self.extents: Tensor
        self.member: Tensor

    def members(self, name: str = "") -> tuple[Array, Array]:
        """Latents ``(n, S, z)`` and extents ``(n, 2)`` of a class; of everybody where the name is empty.

        Raises:
            UnknownNameError: There is no such class.
        """
        chosen = torch.ones(len(self.latents), dtype=torch.bool)
        if name:
            if name not in self.classes:
                raise UnknownNameError("class of masks", name, self.classes)
            chosen = self.member[self.classes.index(name)] > 0
        return self.latents[chosen].double().numpy(), self.extents[chosen].double().numpy()


def check_classes(ids: Sequence[str], classes: Mapping[str, Sequence[str]]) -> None:
    """Makes sure that classes are of training cases.

    Raises:
        DataError: A class holds an unknown case, or fewer than two.
    """
    for name, members in classes.items():
        unknown = sorted(set(members) - set(ids))
        if unknown:
            raise DataError(f"class {name} names {unknown[0]}, which is no training case: correct generator.classes")
        if len(members) < 2:
            raise DataError(f"class {name} has {len(members)} case, at least two are needed: add cases or leave it out")


def population_of(
    latents: Array,
    extents: Array,
    ids: Sequence[str],
    volumes_ml: Sequence[float],
    classes: Mapping[str, Sequence[str]],
) -> Population:
    """The population of some cases.

    Args:
        latents: ``(N, S, z)``.
        extents: First slice and number of slices, ``(N, 2)``.
        ids: Case ids, used to sort the cases into classes and then forgotten.
        volumes_ml: Lesion volume of each.
        classes: Case ids of each class; empty makes thirds by volume.

    Raises:
        DataError: A class holds an unknown case, or fewer than two.
    """
    if not classes:
        order = [ids[n] for n in np.argsort(volumes_ml, kind="stable")]
        classes = dict(zip(STRATA, (list(part) for part in np.array_split(np.asarray(order, object), 3)), strict=True))
        classes = {name: members for name, members in classes.items() if len(members) > 1}
    check_classes(ids, classes)
    count, slices, latent = latents.shape
    found = Population(count, slices, latent, list(classes))
    found.latents.copy_(torch.from_numpy(np.asarray(latents)))
    found.extents.copy_(torch.from_numpy(np.asarray(extents, dtype=np.float64)))
    for row, members in enumerate(classes.values()):
        found.member[row] = torch.tensor([float(one in set(members)) for one in ids])
    return found
