"""An nnU-Net dataset of real and synthetic patients, in which no synthetic one is validated on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from latentsynth.data.exchange.samples import ORIGINS, describe
from latentsynth.data.manifest import Manifest
from latentsynth.errors import DataError
from latentsynth.evaluation.inputs import synthetic_set
from latentsynth.files import atomic_path, write_json
from latentsynth.outputs import check_free
from latentsynth.progress import bar
from latentsynth.provenance import Ledger, origins_of
from latentsynth.sharing.licences import check_licences
from latentsynth.sharing.raw import renumbered, write_case
from latentsynth.types import Case

SPLITS = "splits_final.json"


def write_dataset(real: Path, samples: Sequence[Path], out: Path, accepted: Collection[str] = ()) -> Path:
    """Writes ``imagesTr``, ``labelsTr``, ``imagesTs``, ``labelsTs``, ``dataset.json`` and ``splits_final.json``.

    There is one fold: the manifest's training patients and all synthetic ones train, its validation patients validate. nnU-Net's
    own folds would validate on synthetic patients, and on real ones whom the generator has seen.

    Args:
        real: Manifest of the patients; its test split becomes ``imagesTs`` and ``labelsTs``.
        samples: Manifests or folders of synthetic sets with masks.
        out: Folder to write, ``nnUNet_raw/DatasetNNN_NAME``; new or empty.
        accepted: Licences of the scans that forbid it and are overruled.

    Returns:
        The file of the split, which belongs into nnU-Net's folder of preprocessed data.

    Raises:
        DataError: Cases without masks, other channels or labels; a generator that saw validation or test patients; no
            validation patients; scans whose licence forbids it; a folder that exists.
    """
    check_free(out)
    patients = Manifest.load(real)
    sets = [(path, synthetic_set(path)) for path in samples]
    held = patients.select("val", "test")
    _check(patients, real, sets, held)
    scans = [patients.cases, *(manifest.cases for _, manifest in sets)]
    check_licences(
        frozenset().union(*map(origins_of, scans), *(Ledger.beside(path).origins for path, _ in sets)), accepted
    )
    made = [
        (f"synthetic_{number}_{n:05d}", case)
        for number, (_, manifest) in enumerate(sets)
        for n, case in enumerate(manifest.cases)
    ]
    train = [(case.case_id, case) for case in patients.select("train")]
    validation = [(case.case_id, case) for case in patients.select("val")]
    test = [(case.case_id, case) for case in patients.select("test")]
    with atomic_path(out) as temporary, bar("writing", len(train + made + validation + test), "cases") as shown:
        for part, cases in (("Tr", [*train, *validation, *made]), ("Ts", test)):
            for name, case in cases:
                write_case(case, name, temporary, part, patients.labels)
                shown.advance()
        everyone = replace(
            patients,
            labels=renumbered(patients.labels)[0],
            cases=tuple(replace(case, case_id=name) for name, case in [*train, *validation, *made]),
        )
        # Marked as synthetic as a whole: `prepare` must never take any of them for patients.
        origins = [patients.fingerprint, *(manifest.fingerprint for _, manifest in sets)]
        describe(temporary, out.name, everyone, synthetic_cases=[name for name, _ in made], **{ORIGINS: origins})
        fold = {"train": [name for name, _ in [*train, *made]], "val": [name for name, _ in validation]}
        write_json(temporary / SPLITS, [fold])
    return out / SPLITS


def _check(patients: Manifest, real: Path, sets: Sequence[tuple[Path, Manifest]], held: Sequence[Case]) -> None:
    if not any(case.split == "val" for case in held):
        raise DataError(f"{real} has no validation patients: split it with `latentsynth prepare --fractions`")
    for path, manifest in ((real, patients), *sets):
        bare = [case.case_id for case in manifest.cases if case.mask is None]
        if bare:
            raise DataError(f"{len(bare)} cases of {path} have no mask ({bare[0]}): nnU-Net trains on annotated cases")
    for path, manifest in sets:
        for what, found, expected in (
            ("channels", manifest.channels, patients.channels),
            ("labels", manifest.labels, patients.labels),
        ):
            if found != expected:
                raise DataError(f"{path} has {what} {found}, the patients have {expected}: give sets of their kind")
        seen, _ = Ledger.beside(path).seen(held)
        if seen:
            raise DataError(
                f"the generator of {path}, or the masks it painted, come from {len(seen)} validation or test patients "
                f"({seen[0].case_id}): make a set from training patients alone"
            )
