"""From settings and patients to a maker of masks: the one place that knows every method by name."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from latentsynth.config.mask_set import MaskSetConfig
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.masks.base import MaskMaker
from latentsynth.masks.compose import Composed
from latentsynth.masks.deform import Deformed
from latentsynth.masks.label_map import LabelMap
from latentsynth.masks.procedural import Procedural
from latentsynth.provenance import Ledger
from latentsynth.types import Case, Framing, Labels


def annotated(cases: Sequence[Case], labels: Labels) -> list[LabelMap]:
    """The label maps of cases that have one; empty ones are left out.

    Raises:
        DataError: None has, or one is unreadable.
    """
    maps = [LabelMap.read(case, labels) for case in cases if case.marked]
    if not maps:
        raise DataError("none of the cases has a mask: give annotated ones")
    return maps


def build_maker(
    config: MaskSetConfig, cases: Sequence[Case], labels: Labels, lesions: Sequence[int], hosts: Sequence[LabelMap] = ()
) -> MaskMaker:
    """A maker that learns from some patients and needs no training.

    Args:
        config: Method and settings.
        cases: Real annotated cases.
        labels: Their labels.
        lesions: Label values that count as lesion.
        hosts: Whose anatomy lesions are put into; none leaves deformed masks in their own, and procedural ones in the
            anatomies of the cases where an organ is named, else on empty maps.

    Raises:
        DataError: No case has a mask or a lesion, labels are unknown, or a host lacks the organ.
    """
    maps = annotated(cases, labels)
    ledger = Ledger.of(cases)
    if config.method == "procedural":
        return Procedural.fit(maps, labels, lesions, config.procedural, ledger, hosts, config.inside)
    deformed = Deformed(maps, labels, lesions, config.deform, ledger, config.inside)
    return into(deformed, hosts, labels, lesions, config) if hosts else deformed


def into(
    maker: MaskMaker, hosts: Sequence[LabelMap], labels: Labels, lesions: Sequence[int], config: MaskSetConfig
) -> MaskMaker:
    """A maker whose lesions go into the anatomies of given subjects; organs that it makes are left behind."""
    if maker.labels.values == labels.values and set(maker.lesions) - set(lesions):
        maker = copy(maker)
        maker.lesions = tuple(value for value in maker.lesions if value in lesions)
    return Composed(maker, hosts, labels, lesions, config.inside, config.compose)


def lesion_values(manifest: Manifest, given: Sequence[int] | None, inside: Sequence[int]) -> tuple[int, ...]:
    """Which labels count as lesion: those given, else every label but the organ's and ignored ones.

    Raises:
        DataError: A label that the cohort does not have, or none is left.
    """
    known = manifest.labels.lesions(Framing())
    chosen = tuple(given) if given else tuple(value for value in known if value not in inside)
    unknown = sorted({*chosen, *inside} - set(known))
    if unknown or not chosen:
        names = ", ".join(f"{v} = {n}" for v, n in zip(manifest.labels.values, manifest.labels.names, strict=True) if v)
        raise DataError(
            f"labels {unknown or list(inside)}: choose lesions and organ from {names}, one lesion label at least"
        )
    return chosen
