"""Where a patient went: which checkpoints, synthetic sets and exports hold one, and through what."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsynth.checkpoint import CONFIG
from latentsynth.data import nifti
from latentsynth.data.exchange.samples import ORIGINS
from latentsynth.data.identity import scan_hashes
from latentsynth.data.manifest import Manifest
from latentsynth.documents import read_json
from latentsynth.errors import DataError, LatentsynthError
from latentsynth.provenance import LEDGER, Ledger, project_key
from latentsynth.results import Table
from latentsynth.types import Case

_DATASET = "dataset.json"
TRAINED, USED, SCAN, OWN, EXPORTED = (
    "trained on it",
    "made from its mask or scan",
    "has seen this scan",
    "its own scans or masks",
    "written from a manifest or set that holds it",
)


@dataclass(frozen=True)
class Trace:
    """Something that holds a patient.

    Attributes:
        place: A file or folder.
        kind: What it is: manifest, checkpoint, synthetic set or export.
        through: Ways in which the patient came in.
        cases: How many cases of a manifest are the patient's, or were made from it.
    """

    place: Path
    kind: str
    through: tuple[str, ...]
    cases: int = 0


@dataclass(frozen=True)
class Traces:
    """All that was found under a folder.

    Attributes:
        found: In order of their places.
        looked_at: How many manifests, ledgers and exports were read.
        unread: Files that look like one of them and cannot be read.
        by_patient: Whether patient ids could be compared: without the project's key scans alone can.
    """

    found: tuple[Trace, ...]
    looked_at: int
    unread: tuple[Path, ...]
    by_patient: bool

    @property
    def table(self) -> Table:
        """For people."""
        rows = tuple((str(one.place), one.kind, "; ".join(one.through), one.cases or None) for one in self.found)
        note = f"{self.looked_at} manifests, ledgers and exports were read"
        return Table("where this patient is", ("place", "kind", "how", "cases"), rows, note)


def trace(who: str, folder: Path, key: bytes | None = None) -> Traces:
    """Looks for a patient in everything under a folder.

    Ledgers name patients by keyed hashes, so ids are compared with the project's key. Scans are compared by the hash of their
    voxels, which needs none; those of the patient that manifests under the folder list are looked for too. Caches and pictures
    are not looked into: they can be deleted and made again.

    Args:
        who: A patient's id, or the path of a scan.
        folder: Where to look, links not followed.
        key: The project's key; found as for every ledger where it is not given.

    Raises:
        DataError: There is no such folder, or the scan cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give one that holds runs and synthetic sets")
    key = key or project_key()
    manifests, unread = _manifests(folder)
    patients, voxels = _known(who, manifests.values())
    own = {
        path: [case for case in manifest.cases if _is_of(case, patients, voxels)]
        for path, manifest in manifests.items()
    }
    names = Ledger.used(patients, key).sources if key else frozenset()
    found = [Trace(path, "manifest", (OWN,), len(cases)) for path, cases in own.items() if cases]
    tainted = {manifests[path].fingerprint for path, cases in own.items() if cases}
    made_of = {path: sum(bool(patients & set(case.parents)) for case in one.cases) for path, one in manifests.items()}
    ledgers = list(_named(folder, LEDGER))
    for path, made in made_of.items():
        if made and path.with_name(LEDGER) not in ledgers:
            found.append(Trace(path.parent, "synthetic set", (USED,), made))
            tainted.add(manifests[path].fingerprint)
    for file in ledgers:
        try:
            through = _through(Ledger.load(file), names, voxels)
        except LatentsynthError:
            unread.append(file)
            continue
        beside = [path for path in manifests if path.parent == file.parent]
        if through:
            found.append(Trace(file.parent, _kind(file), through, sum(made_of[path] for path in beside)))
            tainted |= {manifests[path].fingerprint for path in beside}
    exports = list(_named(folder, _DATASET))
    for file in exports:
        try:
            origins = _origins(read_json(file))
        except LatentsynthError:
            unread.append(file)
            continue
        if origins & tainted:
            found.append(Trace(file.parent, "export", (EXPORTED,)))
    looked_at = len(manifests) + len(ledgers) + len(exports)
    return Traces(tuple(sorted(found, key=lambda one: one.place)), looked_at, tuple(unread), key is not None)


def _through(ledger: Ledger, names: frozenset[str], voxels: set[str]) -> tuple[str, ...]:
    ways = {TRAINED: names & ledger.patients, USED: names & ledger.sources, SCAN: voxels & ledger.voxels}
    return tuple(word for word, hits in ways.items() if hits)


def _known(who: str, manifests: Collection[Manifest]) -> tuple[set[str], set[str]]:
    """Every id and scan of the patient: a scan in another manifest may have another id there, and that id other scans."""
    voxels = set(scan_hashes([nifti.read(who)])) - {""} if Path(who).is_file() else set()
    patients, count = {who}, 0
    while count < len(patients) + len(voxels):
        count = len(patients) + len(voxels)
        cases = [case for manifest in manifests for case in manifest.cases if _is_of(case, patients, voxels)]
        patients |= {case.patient_id for case in cases}
        voxels |= {scan for case in cases for scan in case.scans}
    return patients, voxels


def _is_of(case: Case, patients: set[str], voxels: set[str]) -> bool:
    """Whether a real case is the patient's."""
    return case.source == "real" and (case.patient_id in patients or bool(case.scans & voxels))


def _kind(ledger: Path) -> str:
    """Of whatever a ledger stands beside."""
    return "checkpoint" if (ledger.parent / CONFIG).is_file() else "synthetic set"


def _origins(dataset: Any) -> set[str]:
    """Fingerprints of the manifests that a dataset was written from."""
    value = dataset.get(ORIGINS) if isinstance(dataset, dict) else None
    return {one for one in value if isinstance(one, str)} if isinstance(value, list) else set()


def _manifests(folder: Path) -> tuple[dict[Path, Manifest], list[Path]]:
    """The manifests under a folder, and those that cannot be read."""
    found, unread = {}, []
    for path in _named(folder, ".json"):
        if path.name in (LEDGER, CONFIG, _DATASET):
            continue
        try:
            value = read_json(path)
            if isinstance(value, dict) and {"cases", "fingerprint", "labels"} <= value.keys():
                found[path] = Manifest.load(path)
        except LatentsynthError:
            unread.append(path)
    return found, unread


def _named(folder: Path, ending: str) -> Iterator[Path]:
    """Files of a name or ending, those of caches left out."""
    for home, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "cache" and not name.startswith("."))
        yield from (Path(home, name) for name in sorted(files) if name.endswith(ending) and not name.startswith("."))
