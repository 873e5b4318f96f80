"""Which case goes to train, val or test: at random by patient, or as a file or the source says."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from latentsynth.data.intake.layouts import RawCohort, few
from latentsynth.data.intake.tables import as_split
from latentsynth.errors import ConfigError, DataError
from latentsynth.files import read_json
from latentsynth.types import Case, Split

FRACTIONS = (0.7, 0.15, 0.15)  # train, val, test


def split_patients(
    patients: Sequence[str], fractions: tuple[float, float, float] = FRACTIONS, seed: int = 0
) -> dict[str, Split]:
    """Splits patients at random, but always the same way for the same patients and seed.

    Args:
        patients: Patient ids in any order; repeats count once.
        fractions: Shares for train, val and test, adding up to 1. From three patients on, no split with a share is
            left empty.
        seed: Which random split.

    Raises:
        ConfigError: ``fractions`` are not three shares that add up to 1.
    """
    require_fractions(fractions)
    order = shuffled(patients, seed)
    total = len(order)
    _, val, test = (int(share * total + 0.5) for share in fractions)
    if total >= 3:
        val, test = max(val, int(fractions[1] > 0)), max(test, int(fractions[2] > 0))
    room = total - int(fractions[0] > 0)  # train keeps at least one
    while val + test > room:
        val, test = (val, test - 1) if test >= val else (val - 1, test)
    counts: dict[Split, int] = {"val": val, "test": test, "train": total - val - test}
    return dict(zip(order, (split for split, count in counts.items() for _ in range(count)), strict=True))


def split_cohort(
    cases: Sequence[Case],
    person: Mapping[str, str],
    lesioned: Collection[str],
    fractions: tuple[float, float, float] = FRACTIONS,
    seed: int = 0,
) -> dict[str, Split]:
    """Splits the people of a cohort at random: those with a lesion and those without apart, so that every split gets both.

    People with a filled channel go to train: nothing can be measured on it.

    Args:
        cases: The cohort.
        person: Who each patient is: patients of one person share a split.
        lesioned: Ids of the cases whose mask holds a lesion.
        fractions: See :func:`split_patients`.
        seed: Which random split.

    Returns:
        The split of each case.
    """
    who = {case.case_id: person[case.patient_id] for case in cases}
    filled = {who[case.case_id] for case in cases if case.filled}
    marked = {who[case.case_id] for case in cases if case.case_id in lesioned} - filled
    others = set(who.values()) - filled - marked
    split: dict[str, Split] = dict.fromkeys(filled, "train")
    for people in filter(None, (marked, others)):
        split |= split_patients(sorted(people), fractions, seed)
    return {case: split[one] for case, one in who.items()}


def shuffled(patients: Sequence[str], seed: int) -> list[str]:
    """Patients in a random order, always the same for the same patients and seed; the first n are nested in any more.

    Sorting by a hash needs no random generator: the order of listing, the platform and the version do not matter.
    """
    return sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())


def require_fractions(fractions: Sequence[float]) -> None:
    """Raises :class:`ConfigError` unless ``fractions`` are three shares that add up to 1."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions {tuple(fractions)} must be three shares (train, val, test) that add up to 1")


def read_split_file(path: Path | str) -> dict[str, Split]:
    """Reads which case is in which split.

    The file is JSON ``{"train": [case ids], "val": [...], "test": [...]}`` or a CSV with columns case and split.

    Raises:
        DataError: It is neither, or puts one case into two splits.
    """
    path = Path(path)
    cure = 'expected {"train": [case ids], "val": [...], "test": [...]} or a CSV with columns case and split'
    pairs: list[tuple[str, Split]] = []
    if path.suffix.lower() == ".csv":
        try:
            rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read split file {path} ({error}): check the path") from None
        if not rows or not {"case", "split"} <= set(rows[0]):
            raise DataError(f"split file {path} has columns {list(rows[0]) if rows else []}: {cure}")
        for row in rows:
            pairs.append(((row["case"] or "").strip(), as_split((row["split"] or "").strip(), f"{path} {row['case']}")))
    else:
        value = read_json(path)
        if not isinstance(value, dict) or not all(isinstance(ids, list) for ids in value.values()):
            raise DataError(f"split file {path} is no JSON object of lists (of several folds, choose one): {cure}")
        for name, ids in value.items():
            pairs += [(str(case_id), as_split(name, str(path))) for case_id in ids]
    homes: dict[str, set[Split]] = defaultdict(set)
    for case_id, split in pairs:
        homes[case_id].add(split)
    torn = sorted(case_id for case_id, splits in homes.items() if len(splits) > 1)
    if torn:
        raise DataError(f"split file {path} puts {few(torn)} into two splits: list every case once")
    return dict(pairs)


def declared_splits(cohort: RawCohort, split_file: Path | None, notes: list[str]) -> dict[str, Split] | None:
    """Splits by case id, from a file or else from the source; None if neither has any.

    Args:
        cohort: The cohort.
        split_file: See :func:`read_split_file`; it must name exactly the cases of the cohort.
        notes: What the user should hear is added here.

    Raises:
        DataError: As :func:`read_split_file`, the file and the cohort differ, or a patient is in two splits.
    """
    if split_file:
        if cohort.splits_declared:
            notes.append("splits come from the split file; those of the source are not used")
        splits = read_split_file(split_file)
        known = {case.case_id for case in cohort.cases}
        unknown, missing = sorted(set(splits) - known), sorted(known - set(splits))
        if unknown:
            raise DataError(f"split file {split_file} names unknown cases {few(unknown)}: remove or correct them")
        if missing:
            raise DataError(f"split file {split_file} misses cases {few(missing)}: add every case of the source")
    elif cohort.splits_declared:
        splits = {case.case_id: case.split for case in cohort.cases}
    else:
        return None
    homes: dict[str, set[Split]] = defaultdict(set)
    for case in cohort.cases:
        if case.patient_id:  # a case without a patient is a problem of its own
            homes[case.patient_id].add(splits[case.case_id])
    torn = sorted(patient for patient, found in homes.items() if len(found) > 1)
    if torn:
        raise DataError(f"patients {few(torn)} are in two splits: move all cases of one patient together")
    return splits
