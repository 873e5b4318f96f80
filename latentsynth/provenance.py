"""Who and what an artefact was made from: fingerprints, the patient ledger, the sidecar of a synthetic volume."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentsynth.errors import CheckpointError, DataError
from latentsynth.files import atomic_path, read_json, write_json
from latentsynth.outputs import claim_file
from latentsynth.types import Case, Origin

KEY_VARIABLE = "LATENTSYNTH_KEY"
LEDGER = "ledger.json"
_KEY_FILE = Path(".latentsynth") / "ledger.key"
_KEY_BYTES = 32
_LISTS = ("patients", "voxels", "sources")  # of a ledger file


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that change when ``value`` (anything JSON can hold) changes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(*paths: Path) -> str:
    """Sixteen hexadecimal digits of the contents of some files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()[:16]


def voxel_hash(voxels: np.ndarray) -> str:
    """Hash of a volume that was reoriented to RAS+: the same scan saved twice has the same hash.

    Args:
        voxels: Shape ``(I, J, K)`` in RAS+ order (the caller reorients), any number type; compared as float32.
    """
    array = np.asarray(voxels, dtype=np.float32) + np.float32(0)  # so that -0.0, the same value, has the same bytes
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()[:32]


def project_key(create: bool = False) -> bytes | None:
    """The secret that turns patient ids into ledger entries. It stays with the project, never in a checkpoint.

    Looked for in the file named by ``LATENTSYNTH_KEY``, then in ``.latentsynth/ledger.key`` of the current folder
    and its parents.

    Args:
        create: Make a key in the current folder (or the named file) if there is none.
    """
    named = os.environ.get(KEY_VARIABLE)
    here = Path.cwd()
    places = [Path(named)] if named else [folder / _KEY_FILE for folder in (here, *here.parents)]
    for place in places:
        if place.is_file():
            return _read_key(place)
    if named and places[0].exists():
        raise DataError(f"{KEY_VARIABLE} names {named}, which is not a file: name the key's file, also one to be made")
    if not create:
        return None
    claim_file(places[0], "ledger key")
    with atomic_path(places[0]) as temporary:
        temporary.write_text(secrets.token_hex(_KEY_BYTES))
        temporary.chmod(0o600)
    return _read_key(places[0])


def _read_key(file: Path) -> bytes:
    try:
        key = bytes.fromhex(file.read_text().strip())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a ledger key: restore it, or move it away to start a new ledger") from error
    if len(key) < _KEY_BYTES:  # patients' hashes under an empty or short key can be guessed
        raise DataError(
            f"{file} holds a ledger key of {len(key)} bytes, expected {_KEY_BYTES}: restore it, or move it away to start a new "
            "ledger"
        )
    return key


def _hashed(patients: Iterable[str], key: bytes | None) -> frozenset[str]:
    key = key or project_key(create=True)
    assert key is not None
    return frozenset(hmac.new(key, patient.encode(), hashlib.sha256).hexdigest() for patient in patients)


@dataclass(frozen=True)
class Ledger:
    """The patients an artefact has seen, directly or through what it was made from.

    Attributes:
        patients: Keyed hashes (HMAC-SHA256 under the project key) of the ids of patients that were trained on.
        voxels: Voxel hashes of every channel of their scans; these need no key.
        sources: Keyed hashes of the ids of patients whose mask or scan something was made from.
        origins: Where their scans and masks are from, with the licence; empty in ledgers of before, of which nobody knows.
    """

    patients: frozenset[str] = frozenset()
    voxels: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    origins: frozenset[Origin] = frozenset()

    @classmethod
    def of(cls, cases: Iterable[Case], key: bytes | None = None) -> Ledger:
        """Ledger of some cases, and of the patients that they were made from. Makes the project key if there is none."""
        cases = list(cases)
        return cls(
            _hashed((case.patient_id for case in cases), key),
            frozenset(scan for case in cases for scan in case.scans),
            _hashed((parent for case in cases for parent in case.parents), key),
            origins_of(cases),
        )

    @classmethod
    def used(cls, patients: Iterable[str], key: bytes | None = None) -> Ledger:
        """Ledger of patients whose masks or scans something was made from. Makes the project key if there is none."""
        return cls(sources=_hashed(patients, key))

    @property
    def everybody(self) -> frozenset[str]:
        """Keyed hashes of all patients, in whatever way they came in."""
        return self.patients | self.sources

    def __or__(self, other: Ledger) -> Ledger:
        return Ledger(
            self.patients | other.patients,
            self.voxels | other.voxels,
            self.sources | other.sources,
            self.origins | other.origins,
        )

    def seen(self, cases: Iterable[Case], key: bytes | None = None) -> tuple[list[Case], bool]:
        """Which of ``cases`` the artefact has seen, and whether patient ids could be compared.

        Returns:
            The cases found by voxel hash or by patient, and False where the project key is missing ("cannot
            verify" patients, only voxels).
        """
        key = key or project_key()
        found = []
        for case in cases:
            by_patient = key is not None and bool(Ledger.of([case], key).everybody & self.everybody)
            if by_patient or case.scans & self.voxels:
                found.append(case)
        return found, key is not None

    def save(self, path: Path) -> None:
        """Writes the ledger as JSON."""
        lists = {name: sorted(getattr(self, name)) for name in _LISTS}
        write_json(path, {**lists, "origins": [origin._asdict() for origin in sorted(self.origins)]})

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Reads a ledger.

        Raises:
            CheckpointError: The file is not a ledger.
        """
        value = read_json(path)
        lists = [value.get(key) for key in _LISTS] if isinstance(value, dict) else []
        origins = value.get("origins", []) if isinstance(value, dict) else None
        if (
            not lists
            or set(value) - {"origins"} != set(_LISTS)
            or not all(isinstance(one, list) and all(isinstance(e, str) for e in one) for one in lists)
            or not (isinstance(origins, list) and all(_is_origin(one) for one in origins))
        ):
            raise CheckpointError(f"{path} is not a patient ledger: restore the checkpoint it belongs to")
        return cls(**{name: frozenset(value[name]) for name in _LISTS}, origins=frozenset(Origin(**o) for o in origins))

    @classmethod
    def beside(cls, manifest: Path | str) -> Ledger:
        """The ledger that stands beside a manifest of synthetic cases, or in their folder; empty where there is none."""
        place = Path(manifest)
        file = (place if place.is_dir() else place.parent) / LEDGER
        return cls.load(file) if file.is_file() else cls()


def origins_of(cases: Iterable[Case]) -> frozenset[Origin]:
    """Where some cases are from; what a model of ours made says so in the ledger beside it."""
    return frozenset(case.origin for case in cases if ":" not in case.source or any(case.origin))


def _is_origin(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(Origin._fields)
        and all(isinstance(text, str) for text in value.values())
    )


def sidecar(**facts: Any) -> dict[str, Any]:
    """The JSON that stands beside every synthetic volume, marked so that nobody takes it for a patient."""
    return {"SYNTHETIC": True, "notice": "Synthetic volume made by latentsynth. Not a patient.", **facts}
