"""Tables of paths, the layout for scans that lie anywhere: one row per case, as CSV or as JSON lines."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from latentsynth.data.manifest import SPLITS
from latentsynth.errors import DataError
from latentsynth.types import Split

SUFFIXES = (".csv", ".jsonl")
KEYS = (
    "case",
    "patient",
    "images",
    "mask",
    "split",
    "spacing",
)  # what a row may hold; CSV spells images as several columns


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Reads a table, whichever of the two kinds it is.

    Returns:
        Line number and row of every case, at least one. ``row["images"]`` is a dictionary from channel to path,
        ``image_0``, ``image_1``, ... where the channels have no names. ``case`` and ``patient`` are text, "" where
        nothing stands; all else is as the table has it.

    Raises:
        DataError: The file is not text, not such a table, or lists no case; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets like to begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable text ({error}): save it as UTF-8") from error
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text)
    if not rows:
        raise DataError(f"{path} lists no case: add one row per case")
    return rows


def as_split(value: object, place: str) -> Split:
    """Checks the name of a split; ``place`` says where it stands.

    Raises:
        DataError: It is not ``"train"``, ``"val"`` or ``"test"``.
    """
    for split in SPLITS:
        if value == split:
            return split
    raise DataError(f"{place} has split {value or ''!r}, expected {', '.join(SPLITS)}: correct it")


def as_spacing(value: object, place: str) -> tuple[float, float, float]:
    """Reads three edges of a voxel in mm along the file's axes: ``0.5 x 0.5 x 5``, or a list; ``place`` says where it stands.

    Raises:
        DataError: It is not three positive numbers.
    """
    texts = value if isinstance(value, list) else re.split(r"[\sx*;,]+", str(value).strip())
    try:
        i, j, k = (float(text) for text in texts)
        if all(0 < edge < float("inf") for edge in (i, j, k)):
            return i, j, k
    except (TypeError, ValueError):
        pass
    raise DataError(f"{place} has spacing {value!r}, expected three lengths in mm such as 0.5 x 0.5 x 5: correct it")


def _csv_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # half of Europe's spreadsheets write semicolons
    reader = csv.reader(text.split("\n"), delimiter=delimiter)
    header = [_key(cell) for cell in next(reader, [])]
    columns = [column for column in header if _channel(column)]
    places = {_channel(column): column for column in columns}
    plain = sorted(name for name in places if places[name] == "image" or places[name].startswith("image_"))
    wanted = [f"image_{number}" for number in range(len(places))]
    repeated = len(set(header)) < len(header) or len(places) < len(columns)
    if not places or repeated or (plain and plain != wanted):
        raise DataError(
            f"{path} has the columns {header}, expected image, or image_0 to image_7, or image:NAME for every channel, "
            "and if you like case, patient, mask, split: rename them"
        )
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{path} line {reader.line_num} has {len(cells)} cells, expected {len(header)}: correct it")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        images = {name: row.pop(places[name]) for name in plain or places}
        rows.append((reader.line_num, {**row, "images": images}))
    return rows


def _key(cell: str) -> str:
    """Column names in any case; the NAME of ``image:NAME`` as written."""
    cell = cell.strip()
    return cell if cell.startswith("image:") else cell.lower()


def _channel(column: str) -> str:
    """Channel that a CSV column holds, or "" if it holds no image."""
    if column.startswith("image:"):
        return column.removeprefix("image:").strip()
    return "image_0" if column == "image" else column if re.fullmatch(r"image_\d", column) else ""


def _jsonl_rows(path: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} line {line} is not JSON ({error}): correct it") from None
        row = {_key(key): entry for key, entry in row.items()} if isinstance(row, dict) else {}
        # The columns of a CSV are keys here too; besides, "images" or "image" may hold the list or the names at once.
        columns = {_channel(key): key for key in row if _channel(key) and isinstance(row[key], str)}
        listed = [key for key in ("images", "image") if key in row and key not in columns.values()]
        if len(listed) + bool(columns) > 1:
            raise DataError(f"{path} line {line} names images by {[*columns.values(), *listed]}: keep one way")
        images = row.pop(listed[0]) if listed else {name: row.pop(key) for name, key in columns.items()} or None
        if isinstance(images, str | list):
            listed = [images] if isinstance(images, str) else images
            images = {f"image_{number}": image for number, image in enumerate(listed)}
        texts = [*images.values(), row.get("mask") or ""] if isinstance(images, dict) else [None]
        if not all(isinstance(entry, str) for entry in texts):
            raise DataError(
                f'{path} line {line}: expected {{"image": PATH, PATHS or {{NAME: PATH}}, "mask": PATH, ...}}'
            )
        ids = {key: "" if row.get(key) is None else str(row[key]) for key in ("case", "patient")}
        rows.append((line, {**row, **ids, "images": images}))
    return rows


def read_names(path: Path) -> dict[int, str]:
    """What label values mean: the columns ``index`` and ``name`` of a table with tabs, as BIDS has it; other rows are passed over.

    Raises:
        DataError: The file is not text.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").split("\n"), delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable text ({error}): save it as UTF-8") from error
    header = [_key(cell) for cell in rows[0]] if rows else []
    if not {"index", "name"} <= set(header):
        return {}
    value, name = header.index("index"), header.index("name")
    whole = [
        row for row in rows[1:] if len(row) == len(header) and row[value].strip().isdecimal() and row[name].strip()
    ]
    return {int(row[value]): row[name].strip() for row in reversed(whole)}
