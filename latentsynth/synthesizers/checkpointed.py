"""Models that are one checkpoint folder: what they are made of says how they are saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

from pydantic import create_model

from latentsynth import checkpoint
from latentsynth.errors import CheckpointError
from latentsynth.pretrained import Pretrained
from latentsynth.provenance import Ledger, fingerprint
from latentsynth.strict import Strict, build
from latentsynth.types import Domain


class Checkpointed(ABC):
    """A model that is one checkpoint folder.

    A family names its parts, the section of its sampling settings, and further facts; each is an attribute of that
    name, and saving and loading follow from them.

    Attributes:
        kind: Names the family in the header.
        part_kinds: Class of each part.
        sampling_kind: Section of the sampling settings.
        facts: Further settings and what they can be, as they stand in the header.
        shared: Those that all families of a sort have, beside ``facts``.
        domain: The volumes or label maps it makes.
        sampling: How it samples unless told otherwise.
        fingerprint: Of the checkpoint and changed settings, or "unsaved".
        ledger: The patients it has learnt from.
    """

    kind: ClassVar[str]
    part_kinds: ClassVar[Mapping[str, type[Pretrained]]]
    sampling_kind: ClassVar[type[Strict]]
    facts: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    shared: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    domain: Domain
    sampling: Any
    fingerprint: str
    ledger: Ledger

    def save(self, folder: Path, ledger: Ledger, metrics: Mapping[str, float], half: bool = False) -> checkpoint.Header:
        """Writes the checkpoint folder that :meth:`from_pretrained` reads, its weights in half precision if so told."""
        parts = {name: getattr(self, name) for name in self.part_kinds}
        return checkpoint.write(folder, self.kind, self.domain, self._header(), parts, ledger, metrics, half)

    @classmethod
    def from_pretrained(cls, path: Path | str, **changes: Any) -> Self:
        """Loads a checkpoint folder, or the one inside a run folder.

        Args:
            path: Which.
            changes: Sampling settings other than those it was saved with.

        Raises:
            CheckpointError: It is of another kind, incomplete, or its parts do not fit each other.
            ConfigError: An unknown setting or an impossible value.
        """
        folder = checkpoint.locate(path)
        header = checkpoint.read_header(folder, cls.kind)
        checkpoint.check_keys(folder, header, set(cls.part_kinds), {"sampling", *cls.shared, *cls.facts})
        kinds: dict[str, Any] = {name: (kind, ...) for name, kind in {**cls.shared, **cls.facts}.items()}
        found = {name: header.settings[name] for name in kinds}
        facts = checkpoint.read_settings(create_model("Facts", __base__=Strict, **kinds), found, folder)
        saved = checkpoint.read_settings(cls.sampling_kind, header.settings["sampling"], folder)
        sampling = build(cls.sampling_kind, saved.with_changes(changes), "sampling settings")
        named = header.fingerprint
        if sampling != saved:
            named = fingerprint([named, sampling.model_dump(mode="json")])
        parts = {name: kind.from_pretrained(folder / name) for name, kind in cls.part_kinds.items()}
        model = cls(
            domain=header.domain,
            sampling=sampling,
            fingerprint=named,
            ledger=checkpoint.read_ledger(folder),
            **parts,
            **cls._arguments({name: getattr(facts, name) for name in kinds}, header.domain),
        )  # type: ignore[call-arg]  # a dataclass of these
        checkpoint.check_facts(folder, model.fit())
        return model

    @abstractmethod
    def fit(self) -> Mapping[str, tuple[Any, Any]]:
        """What must agree between its parts and its domain: name to (found, expected)."""

    def _header(self) -> dict[str, Any]:
        """Its settings, as they stand in the header."""
        return {"sampling": self.sampling.model_dump(mode="json"), **{name: getattr(self, name) for name in self.facts}}

    @classmethod
    def _arguments(cls, facts: dict[str, Any], domain: Domain) -> dict[str, Any]:
        """Arguments of its constructor from the facts of a header, which are what they can be."""
        return facts


CheckpointedT = TypeVar("CheckpointedT", bound=Checkpointed)


def load(families: Sequence[type[CheckpointedT]], path: Path | str, wanted: str, **changes: Any) -> CheckpointedT:
    """Loads a checkpoint of whichever of some families.

    Args:
        families: Which may be.
        path: Checkpoint or run folder.
        wanted: What a checkpoint of another kind does not do, and what to give instead, for the error.
        changes: Sampling settings other than those it was saved with.

    Raises:
        CheckpointError: It is not a checkpoint, or of none of the families.
        ConfigError: An unknown setting or an impossible value.
    """
    folder = checkpoint.locate(path)
    found = checkpoint.read_header(folder).kind
    for family in families:
        if family.kind == found:
            return family.from_pretrained(folder, **changes)
    raise CheckpointError(f"{folder} holds a checkpoint of kind {found}, which {wanted}")
