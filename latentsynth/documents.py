"""JSON, JSON lines, YAML and CSV that a person may have edited: read in one place, by one set of rules.

A key that stands twice, text that is not UTF-8, NaN where numbers must be finite, a file that is none, or one of a size
that no such file has, is an error that says so. Nothing else in the package parses these formats.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from latentsynth.errors import DataError

_MIB = 1 << 20
_LIMITS = {"JSON": 256 * _MIB, "YAML": _MIB, "CSV": 256 * _MIB}
_YAML_NODES = 100_000  # with every alias written out; a few lines of aliases can stand for more than any memory holds
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins so
_KINDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "keys and values",
}
_UNWRITABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F][0-9a-fA-F]{2})")  # NUL, and halves of UTF-16 pairs


def read_json(path: Path | str, finite: bool = True) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        finite: Refuse NaN and Infinity, which Python writes and JSON does not know.

    Raises:
        DataError: The file is missing, unreadable or not JSON; a key stands twice; a number is not finite.
    """
    text = _text(path, "JSON")
    try:
        return _parse_json(text, finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({_line(error)}): restore the file or make it again") from None


def read_fields(path: Path | str, **fields: type) -> dict[str, Any]:
    """An object of JSON with certain fields; it may have more.

    Args:
        path: The file.
        fields: Name to type of those that must be there; ``float`` takes whole numbers too.

    Raises:
        DataError: As :func:`read_json`; it is no object, or a field is missing or of another type.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}, expected keys and values: restore it or make it again")
    for name, kind in fields.items():
        found, wanted = value.get(name), (int, float) if kind is float else (kind,)
        if name not in value or not isinstance(found, wanted) or (isinstance(found, bool) and kind is not bool):
            shown = repr(found) if name in value else "nothing"
            raise DataError(
                f"{path}: {name} is {shown}, expected {_KINDS.get(kind, kind.__name__)}: restore it or make it again"
            )
    return value


def read_json_lines(path: Path | str) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object per line.

    A process that was killed leaves a torn line. Such lines are left out, and a line on the terminal says so.

    Raises:
        DataError: The file is missing or unreadable.
    """
    found, torn = [], []
    for number, line in enumerate(_text(path, "JSON").splitlines(), 1):
        try:
            value = _parse_json(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif line.strip():
            torn.append(number)
    if torn:
        which = ", ".join(map(str, torn[:3])) + (f" and {len(torn) - 3} more" if len(torn) > 3 else "")
        warnings.warn(f"{path}: line {which} is damaged and left out", stacklevel=2)
    return found


def parse_json(text: str) -> Any:
    """JSON of a text, by the rules of :func:`read_json`.

    Raises:
        ValueError: It is not JSON, a key stands twice, or a number is not finite.
    """
    try:
        return _parse_json(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: Path | str) -> Any:
    """Reads YAML; dates stay text.

    Raises:
        DataError: The file is missing, unreadable or not YAML; a key stands twice; its aliases stand for too much.
    """
    text = _text(path, "YAML")
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise DataError(f"{path} is not readable YAML ({error}): correct the file") from None


def parse_yaml(text: str) -> Any:
    """YAML of a text, by the rules of :func:`read_yaml`.

    Raises:
        ValueError: It is not YAML, a key stands twice, or aliases stand for too much.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(_line(error)) from None
    finally:
        if loader is not None:
            loader.dispose()


def read_csv(path: Path | str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table with a header, as texts by column; see :func:`cell` for cells that begin like a formula.

    Args:
        path: The file.
        columns: Those that must be there; others may be.

    Raises:
        DataError: The file is missing or unreadable, lacks a column, or a row has too few or too many cells.
    """
    text = _text(path, "CSV")
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path} is not readable CSV ({error}): restore the file or make it again") from None
    missing = [name for name in columns if header.count(name) != 1]
    if missing:
        raise DataError(
            f"{path} has columns {', '.join(header) or 'none'}, expected {', '.join(columns)}, each once: correct the file"
        )
    ragged = next((n for n, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if ragged:
        raise DataError(f"{path}: row {ragged} has not {len(header)} cells as its header has: correct the file")
    return [{name: _unquoted(value) for name, value in zip(header, row, strict=True)} for row in rows]


def finite_number(row: Mapping[str, str], column: str, path: Path | str) -> float:
    """A finite number of a row that :func:`read_csv` read.

    Raises:
        DataError: The cell is something else.
    """
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {column} {row[column]!r} is not a finite number: correct the file")
    return value


def cell(value: Any) -> Any:
    """A cell of a CSV file: a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and _runs(value.lstrip("'")) else value


def _unquoted(value: str) -> str:
    return value[1:] if value.startswith("'") and _runs(value.lstrip("'")) else value


def _runs(text: str) -> bool:
    """Whether a spreadsheet would run a text: numbers below 0, which begin alike, are shown as they are."""
    return text.startswith(_FORMULA) and not _NUMBER.fullmatch(text)


def _text(path: Path | str, kind: str) -> str:
    """The text of a file; a byte order mark, which editors on Windows write, is no part of it."""
    path, limit = Path(path), _LIMITS[kind]
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is not readable {kind} (it is not a file): check the path")
        if found.st_size > limit:
            raise DataError(f"{path} is not readable {kind} (it has more than {limit // _MIB} MiB): check the path")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not readable {kind} (byte {error.start} is not UTF-8): save it as UTF-8") from None
    except OSError as error:
        raise DataError(
            f"{path} is not readable {kind} ({error.strerror}): check the path and its permissions"
        ) from None


def _parse_json(text: str, finite: bool = True) -> Any:
    value = json.loads(
        text,
        object_pairs_hook=_once,
        parse_constant=_refuse_constant if finite else float,
        parse_float=_finite if finite else float,
    )
    if _UNWRITABLE.search(text):
        plain = json.dumps(value, ensure_ascii=False)
        plain.encode()  # refuses halves of pairs
        if "\\u0000" in plain:
            raise ValueError("a text holds the character NUL")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys each stand once: of two, the last would silently win."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is not a finite number")
    return value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader in which a date stays text, as no setting is a date."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own form)
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes of a document with every alias written out; refuses too many, and keys that stand twice."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias holds itself")
        return known[id(node)]
    known[id(node)] = 0  # is being counted
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(n for n, key in enumerate(keys) if key in keys[:n])
            mark = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)][twice].start_mark
            raise ValueError(f"key {keys[twice][1]!r} stands twice, again in line {mark.line + 1}")
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    if known[id(node)] > _YAML_NODES:
        raise ValueError(f"it stands for more than {_YAML_NODES} values")
    return known[id(node)]


def _line(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
