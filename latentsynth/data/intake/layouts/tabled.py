"""A table of paths, and a folder of masks without images."""

from __future__ import annotations

from pathlib import Path

from latentsynth.data.intake import tables
from latentsynth.data.intake.layouts.cohort import EXPECTED, RawCohort, contents, file_stem, listing
from latentsynth.errors import DataError
from latentsynth.types import Case


def table(source: Path) -> RawCohort:
    """A table of paths, or the one that a folder holds.

    Raises:
        DataError: It is no such table.
    """
    path = table_file(source)
    rows = tables.read_rows(path)
    channels = list(dict.fromkeys(name for _, row in rows for name in row["images"]))
    patients = any(row.get("patient") for _, row in rows)
    splits = any(row.get("split") for _, row in rows)
    cases, spacings = [], {}
    for line, row in rows:
        given = {name: path.parent / file for name, file in row["images"].items() if file}
        images = tuple(
            given.get(name, path / f"line {line}: {name}") for name in channels
        )  # a path that does not exist
        case_id = row.get("case") or (file_stem(next(iter(given.values()))) if given else f"line {line}")
        cases.append(
            Case(
                case_id,
                row.get("patient", "") if patients else case_id,
                images,
                path.parent / row["mask"] if row.get("mask") else None,
                tables.as_split(row.get("split"), f"{path} line {line}") if splits else "train",
            )
        )
        if row.get("spacing"):
            spacings[case_id] = tables.as_spacing(row["spacing"], f"{path} line {line}")
    extra = sorted({key for _, row in rows for key in row if key not in tables.KEYS})
    notes = (f"columns that are not used: {', '.join(extra)}",) if extra else ()
    names = ("image",) if channels == ["image_0"] else tuple(channels)
    return RawCohort(path.stem, names, None, tuple(cases), patients, splits, notes, spacings=spacings)


def masks(source: Path) -> RawCohort:
    """A folder of masks without images.

    Raises:
        DataError: It holds none.
    """
    notes = ["these cases are masks without images"]
    files = listing(source, notes)
    if not files:
        raise DataError(f"{source} is no folder of masks: give a folder of NIfTI files, one mask each")
    cases = tuple(Case(name, name, (), file) for name, file in files.items())
    return RawCohort(source.resolve().name, (), None, cases, False, False, tuple(notes))


def table_file(source: Path) -> Path:
    """The table that a source is, or holds.

    Raises:
        DataError: It is none, and holds none or several.
    """
    found = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.is_file())
    named = [path for path in found if path.suffix.lower() in tables.SUFFIXES]
    if len(named) == 1:
        return named[0]
    holds = f"holds {contents(source)}" if source.is_dir() else "is no table"
    raise DataError(f"{source} {holds}, {EXPECTED}: name one of them")
