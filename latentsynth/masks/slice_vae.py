"""Masks from a VAE of slices: a case is the path of its slices through latent space (Amirrajab et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from latentsynth.config import SliceSamplingConfig
from latentsynth.errors import DataError
from latentsynth.masks.base import Rejected, Wanted
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.label_vae import LabelVAE
from latentsynth.masks.latent_space import Array, Copula, TruncatedNormals, between, equalise, truncated_normal
from latentsynth.masks.pathology import Population
from latentsynth.masks.trained import TrainedMaker
from latentsynth.randomness import Stream, generator


@torch.no_grad()
def describe(vae: LabelVAE, index: np.ndarray, axis: int, slices: int) -> tuple[Array, Array]:
    """A case as a slice model sees it.

    Args:
        vae: Of slices.
        index: Label indices ``(I, J, K)``.
        axis: Slices are cut along it, from the first that holds a label to the last.
        slices: ``S`` that it is interpolated to.

    Returns:
        Mean latents ``(S, z)``; first slice and number of slices, ``(2,)``.

    Raises:
        DataError: Nothing is labelled.
    """
    stack = np.moveaxis(index, axis, 0)
    filled = np.flatnonzero(stack.any(axis=(1, 2)))
    if not len(filled):
        raise DataError("a mask without any label has no slices to describe: give annotated cases")
    first, count = int(filled[0]), int(filled[-1] - filled[0] + 1)
    device = next(vae.parameters()).device
    maps = torch.nn.functional.one_hot(torch.from_numpy(stack[first : first + count]).long(), vae.labels)
    mean, _ = vae.encode(maps.movedim(-1, 1).float().to(device))
    return equalise(mean.cpu().double().numpy(), slices), np.array([first, count], dtype=np.float64)


@dataclass(kw_only=True)
class SliceVAEMaker(TrainedMaker):
    """Draws paths of slices from a population of training cases, and decodes them.

    Attributes:
        vae: The averaged weights.
        population: The training cases as it describes them.
        slice_axis: Slices are stacked along it.
    """

    kind = "slice_vae"
    part_kinds = MappingProxyType({"vae": LabelVAE, "population": Population})
    sampling_kind = SliceSamplingConfig
    facts = MappingProxyType({"slice_axis": Literal[0, 1, 2]})

    vae: LabelVAE
    population: Population
    slice_axis: int

    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        plane = tuple(n for at, n in enumerate(self.domain.grid.shape) if at != self.slice_axis)
        return {
            "grid of slices": (self.vae.shape, plane),
            "labels": (self.vae.labels, len(self.labels)),
            "latent coordinates of the population": (self.population.config["latent"], self.vae.latent),
        }

    def make(self, seeds: Sequence[int], wanted: Wanted) -> list[LabelMap | Rejected]:
        return [self.placed(seed, self.decode(*self._draw(generator(seed, Stream.MASK_SAMPLE)))) for seed in seeds]

    def decode(self, latents: Array, extent: Array) -> np.ndarray:
        """A path ``(S, z)``, brought to the slices of ``extent`` (first, number), as label indices ``(I, J, K)``."""
        depth = self.domain.grid.shape[self.slice_axis]
        count = int(np.clip(round(float(extent[1])), 1, depth))
        first = int(np.clip(round(float(extent[0])), 0, depth - count))
        z = torch.from_numpy(equalise(latents, count)).float().to(next(self.vae.parameters()).device)
        index = np.zeros((depth, *self.vae.shape), dtype=np.int16)
        index[first : first + count] = self.vae.decode_index(z).cpu().numpy()
        return np.moveaxis(index, 0, self.slice_axis)

    def between(self, start: LabelMap, end: LabelMap, steps: int = 20) -> list[LabelMap]:
        """Masks on the way from one case to another, ends included (ibid., inter-subject interpolation).

        Raises:
            DataError: A mask is empty or does not fit the grid.
        """
        (a, a_extent, affine), (b, b_extent, _) = self._describe(start), self._describe(end)
        parents = tuple(dict.fromkeys((*start.parents, *end.parents)))
        return self._path(f"{start.name}-{end.name}", a, a_extent, b, b_extent, steps, affine, parents)

    def towards(self, recipient: LabelMap, population: str, seed: int, steps: int = 20) -> list[LabelMap]:
        """Leads a case towards a class: masks on the way to a member drawn from it (ibid., pathology synthesis).

        Drawn as published, slices go together as those of the recipient do.

        Args:
            recipient: Where to start.
            population: Name of the class.
            seed: Of the member.
            steps: TruncatedNormals: 20.

        Raises:
            UnknownNameError: There is no such class.
            DataError: The recipient is empty or does not fit the grid.
        """
        latents, extent, affine = self._describe(recipient)
        members, extents = self.population.members(population)
        rng = generator(seed, Stream.MASK_SAMPLE)
        if self.sampling.method == "copula":
            drawn, drawn_extent = _from_copula(_copula(members, extents), members.shape[1:], rng, True)
        else:
            drawn, drawn_extent = TruncatedNormals.of(members, latents).draw(rng), truncated_normal(extents, rng)
        name = f"{recipient.name}-{population}"
        return self._path(name, latents, extent, drawn, drawn_extent, steps, affine, recipient.parents)

    def _path(
        self,
        name: str,
        start: Array,
        start_extent: Array,
        end: Array,
        end_extent: Array,
        steps: int,
        affine: np.ndarray,
        parents: tuple[str, ...],
    ) -> list[LabelMap]:
        cases = zip(between(start, end, steps), between(start_extent, end_extent, steps), strict=True)
        return [self.placed(f"{name}-{n:02d}", self.decode(*case), affine, parents) for n, case in enumerate(cases)]

    def _describe(self, given: LabelMap) -> tuple[Array, Array, np.ndarray]:
        index, affine = self.laid(given)
        return *describe(self.vae, index, self.slice_axis, self.population.latents.shape[1]), affine

    @cached_property
    def _drawing(self) -> tuple[Array, Array, Copula | TruncatedNormals]:
        latents, extents = self.population.members(self.sampling.population)
        copula = self.sampling.method == "copula"
        return latents, extents, _copula(latents, extents) if copula else TruncatedNormals.of(latents)

    def _draw(self, rng: np.random.Generator) -> tuple[Array, Array]:
        latents, extents, drawing = self._drawing
        correlated = self.sampling.correlated
        if isinstance(drawing, Copula):
            return _from_copula(drawing, latents.shape[1:], rng, correlated)
        return drawing.draw(rng, correlated), truncated_normal(extents, rng)


def _copula(latents: Array, extents: Array) -> Copula:
    """Of slices and extents together: a long lesion is also a wide one."""
    return Copula.of(np.concatenate([latents.reshape(len(latents), -1), extents], axis=1))


def _from_copula(
    copula: Copula, shape: Sequence[int], rng: np.random.Generator, correlated: bool
) -> tuple[Array, Array]:
    member = copula.draw(rng, correlated)
    return member[:-2].reshape(shape), member[-2:]
