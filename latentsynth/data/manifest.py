"""The manifest: one JSON file that says which files belong to which case, patient and split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from latentsynth.data.identity import unfit_id
from latentsynth.errors import DataError
from latentsynth.files import read_json, write_json
from latentsynth.provenance import fingerprint
from latentsynth.types import Case, Labels, Origin, Split

FORMAT = "latentsynth-manifest/3"
KIND, KIND_MADE_HERE = "manifest", "manifest of volumes or masks made here"
_KEYS = {"format", "kind", "name", "channels", "labels", "fingerprint", "cases"}
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """A cohort, split by patient.

    Attributes:
        name: Name of the cohort.
        channels: Channel names, in the order of every case's ``images``.
        labels: Label values and names.
        cases: All cases.
    """

    name: str
    channels: tuple[str, ...]
    labels: Labels
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(c.case_id for c in self.cases).items() if count > 1]
        if repeated:
            raise DataError(f"case ids {repeated[:3]} appear more than once: give every case its own id")
        if len(set(self.channels)) < len(self.channels):  # what a channel's window is, is kept by its name
            raise DataError(
                f"channels {', '.join(self.channels)}: two of one name; give every channel its own (channel_names in dataset.json)"
            )
        home: dict[str, str] = {}
        for case in self.cases:
            if len(case.images) != len(self.channels):
                raise DataError(
                    f"case {case.case_id} has {len(case.images)} images, expected {len(self.channels)} "
                    f"({', '.join(self.channels)}): complete or remove it"
                )
            if case.filled and (case.split != "train" or not set(case.filled) <= set(range(1, len(self.channels)))):
                raise DataError(
                    f"case {case.case_id} (split {case.split}) has channels {case.filled} filled, expected a case of split train "
                    "whose first channel was scanned: move its patient to train, or leave the case out"
                )
            if home.setdefault(case.patient_id, case.split) != case.split:
                raise DataError(
                    f"patient {case.patient_id} is in both {home[case.patient_id]} and {case.split}: "
                    "splits are by patient, so move all cases of one patient together"
                )

    @property
    def fingerprint(self) -> str:
        """Changes with any case id, patient, split, label, or voxel of an image or mask; not with where files lie."""
        facts = [
            [
                c.case_id,
                c.patient_id,
                c.split,
                c.source,
                c.parents,
                c.voxels,
                c.image_hashes,
                c.mask_hash,
                *([c.limits] if c.limits else []),
                *(["filled", c.filled] if c.filled else []),
                *(["healthy"] if c.healthy else []),
                *([c.origin] if any(c.origin) else []),
            ]
            for c in self.cases
        ]
        return fingerprint([self.channels, asdict(self.labels), sorted(facts)])

    @property
    def kind(self) -> str:
        """Whether the cases came in (:data:`KIND`) or were made by a model of ours (:data:`KIND_MADE_HERE`)."""
        return KIND_MADE_HERE if any(":" in case.source for case in self.cases) else KIND

    def select(self, *splits: Split) -> tuple[Case, ...]:
        """Cases of some splits, in manifest order.

        Raises:
            DataError: No case is in them.
        """
        chosen = tuple(case for case in self.cases if case.split in splits)
        if not chosen:
            raise DataError(f"manifest {self.name} has no case in split {' or '.join(splits)}: prepare it again")
        return chosen

    def save(self, path: Path | str) -> None:
        """Writes the manifest atomically, with paths relative to its own folder.

        Files that are symbolic links keep their names: git-annex and DVC change what a link points to.
        """
        path = Path(path)
        cases = [
            {
                **asdict(case),
                "images": [_relative(image, path.parent) for image in case.images],
                "mask": _relative(case.mask, path.parent) if case.mask else None,
                "parents": list(case.parents),
                "voxels": list(case.voxels),
                "origin": case.origin._asdict(),
                "image_hashes": list(case.image_hashes),
                "filled": list(case.filled),
            }
            for case in self.cases
        ]
        write_json(
            path,
            {
                "format": FORMAT,
                "kind": self.kind,
                "name": self.name,
                "channels": list(self.channels),
                "labels": {name: v for v, name in zip(self.labels.values, self.labels.names, strict=True)},
                "fingerprint": self.fingerprint,
                "cases": cases,
            },
        )

    @classmethod
    def load(cls, path: Path | str) -> Manifest:
        """Reads a manifest.

        Raises:
            DataError: It is missing, is not a manifest, or was edited after it was made.
        """
        path = Path(path)
        if path.is_dir():
            raise DataError(f"{path} is a folder, expected a manifest file: make one with `latentsynth prepare {path}`")
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise DataError(f"{path} is not a manifest ({FORMAT}): make one with `latentsynth prepare`")
        if set(value) != _KEYS:
            raise DataError(
                f"{path}: keys {', '.join(sorted(set(value) ^ _KEYS))} are unknown or missing: make it again with "
                "`latentsynth prepare`"
            )
        try:
            manifest = cls._parse(value, path.parent.resolve())
            _check_cases(path, manifest.cases)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path} is a damaged manifest ({error!r}): make it again with `latentsynth prepare`"
            ) from None
        if manifest.fingerprint != value["fingerprint"]:
            raise DataError(
                f"{path} was edited after it was made (fingerprint {value['fingerprint']}, contents "
                f"{manifest.fingerprint}): make it again with `latentsynth prepare`"
            )
        return manifest

    @classmethod
    def _parse(cls, value: dict[str, Any], home: Path) -> Manifest:
        cases = tuple(
            Case(
                **{
                    **case,
                    "images": tuple(home / image for image in case["images"]),
                    "mask": home / case["mask"] if case["mask"] else None,
                    "parents": tuple(case["parents"]),
                    "voxels": tuple(case["voxels"]),
                    "origin": Origin(**case["origin"]),
                    "image_hashes": tuple(case["image_hashes"]),
                    "limits": tuple((float(low), float(high)) for low, high in case.get("limits", ())),
                    "filled": tuple(case.get("filled", ())),
                }
            )
            for case in value["cases"]
        )
        pairs = sorted((v, name) for name, v in value["labels"].items())
        labels = Labels(tuple(v for v, _ in pairs), tuple(name for _, name in pairs))
        return cls(value["name"], tuple(value["channels"]), labels, cases)

    def masks_alone(self) -> Manifest:
        """The annotated cases that are not healthy, without their images, for models of masks."""
        cases = tuple(
            replace(case, images=(), image_hashes=(), limits=(), filled=()) for case in self.cases if case.marked
        )
        if not cases:
            raise DataError(f"no case of manifest {self.name} has a mask that marks something: give annotated cases")
        return replace(self, channels=(), cases=cases)

    def with_splits(self, split_of: dict[str, Split]) -> Manifest:
        """The same cohort with another split per case id."""
        return replace(self, cases=tuple(replace(c, split=split_of[c.case_id]) for c in self.cases))


def _check_cases(path: Path, cases: Sequence[Case]) -> None:
    """Refuses what :func:`latentsynth.data.intake.prepare.prepare` would not have written.

    Raises:
        DataError: An id that cannot name files, an unknown split, no patient, or a value of a wrong kind.
    """
    for case in cases:
        texts = (case.case_id, case.patient_id, case.split, case.source, case.mask_hash)
        if not all(
            isinstance(text, str) for text in (*texts, *case.parents, *case.voxels, *case.image_hashes, *case.origin)
        ):
            raise DataError(
                f"{path}: case {case.case_id!r} holds a value that is no text: run `latentsynth prepare` again"
            )
        wrong = unfit_id(case.case_id)
        if not wrong and case.split not in SPLITS:
            wrong = f"split {case.split!r}, expected {', '.join(SPLITS)}"
        if not wrong and not case.patient_id:
            wrong = "no patient"
        if not wrong and case.image_hashes and len(case.image_hashes) != len(case.images):
            wrong = f"{len(case.image_hashes)} hashes for {len(case.images)} images"
        if not wrong and case.voxels and case.images and len(case.voxels) != len(case.images):
            wrong = f"{len(case.voxels)} voxel hashes for {len(case.images)} images"
        if wrong:
            raise DataError(f"{path}: case {case.case_id!r} has {wrong}: run `latentsynth prepare` again")


def _relative(file: Path, home: Path) -> str:
    """Path to ``file`` from the folder ``home``, by their names and not by what symbolic links point to."""
    name, real = os.path.relpath(os.path.abspath(file), os.path.abspath(home)), os.path.realpath(home)
    # ".." out of a linked folder leads elsewhere than its name says; the system, which reads the path, follows links.
    if os.path.realpath(os.path.join(real, name)) != os.path.realpath(file):
        name = os.path.relpath(os.path.join(os.path.realpath(file.parent), file.name), real)
    return Path(name).as_posix()


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest, of whatever version; other programs call files so too."""
    try:
        value = read_json(path)
    except DataError:
        return False
    return isinstance(value, dict) and str(value.get("format")).startswith(FORMAT.partition("/")[0])
