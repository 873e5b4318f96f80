"""What a measurement leaves behind: tables, pictures, plain words and the command, on the terminal and as JSON.

Every ``evaluate`` command writes one :class:`Result` into its folder; ``latentsynth report`` collects them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from latentsynth import outputs
from latentsynth.documents import cell as csv_cell
from latentsynth.documents import parse_json, read_fields, read_json
from latentsynth.errors import DataError
from latentsynth.files import atomic_path, make_folder, write_json
from latentsynth.invocation import this_command
from latentsynth.provenance import fingerprint

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = "latentsynth-result/3"


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: Mapping[str, float | None]) -> Estimate:
        """What JSON made of it; null is not a number."""
        nan = float("nan")
        return cls(*(nan if (end := value[key]) is None else end for key in ("value", "low", "high")))


Answer = Literal["yes", "no", "undecided"]


class Question(StrEnum):
    """What people want to know of a set of synthetic volumes."""

    LOOK = "Do they look right?"
    HELP = "Does training on them help?"
    FREE = "Are they free of copies?"


@dataclass(frozen=True)
class Conclusion:
    """What a measurement says to one of the questions.

    Attributes:
        question: Which.
        about: The set of volumes.
        answer: "undecided" where an interval holds both answers, or nothing could be measured.
        reason: The number that says so.
    """

    question: Question
    about: str
    answer: Answer
    reason: str

    @classmethod
    def at_least(cls, question: Question, about: str, found: Estimate, bound: float, reason: str) -> Conclusion:
        """Whether a number lies at or above a bound, by its interval; exchange signs for at most."""
        answer: Answer = "yes" if found.low >= bound else "no" if found.high < bound else "undecided"
        return cls(question, about, answer, reason)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Conclusion:
        """What JSON made of it."""
        if value["answer"] not in get_args(Answer):
            raise ValueError(f"answer {value['answer']!r} is none of yes, no, undecided")
        return cls(Question(value["question"]), _text(value["about"]), value["answer"], _text(value["reason"]))


TableCell = str | int | float | None | Estimate


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns; what the numbers are stands in ``note``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    note: str = ""

    def show(self, console: Console) -> None:
        """Prints the table."""
        from rich.table import Column
        from rich.table import Table as Printed
        from rich.text import Text  # so that brackets in names are not taken for markup

        title, note = Text(self.title, style="bold"), Text(self.note, style="dim")
        printed = Printed(
            *(Column(Text(name)) for name in self.columns), title=title, caption=note or None, title_justify="left"
        )
        for row in self.rows:
            printed.add_row(*(Text(text(cell)) for cell in row))
        console.print(printed)


@dataclass(frozen=True)
class Note:
    """A sentence of a result.

    Attributes:
        text: The sentence.
        about: The set of volumes that it is about, or "" where it is about the whole measurement.
    """

    text: str
    about: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG in the result's folder."""

    file: str
    caption: str


@dataclass(frozen=True)
class Result:
    """One measurement.

    Attributes:
        kind: Name of its JSON file, for example ``"obedience"``.
        title: What was measured.
        facts: What the numbers depend on (fingerprints, counts, preprocessing); anything JSON can hold.
        tables: The numbers.
        pictures: Files that already stand in the folder.
        notes: Plain sentences: what is wrong, what cannot be concluded.
        command: What made it.
        splits: Splits of the real cases that were measured: choices are made on ``val``, results told on ``test``, once.
        conclusions: Answers to the questions that people ask of a set.
    """

    kind: str
    title: str
    facts: dict[str, Any]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = field(default_factory=this_command)
    splits: tuple[str, ...] = ()
    conclusions: tuple[Conclusion, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its JSON file and pictures, and of the table that may stand beside them."""
        return (f"{self.kind}.json", f"{self.kind}.csv", *(picture.file for picture in self.pictures))

    def save(self, folder: Path) -> Path:
        """Writes ``<kind>.json``; numbers that are not finite become null."""
        path = make_folder(folder) / f"{self.kind}.json"
        value = {"format": FORMAT, **_finite(asdict(self))}
        write_json(path, {**value, "checksum": checksum(value)})
        return path

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads what :meth:`save` wrote.

        Args:
            path: The file.

        Raises:
            DataError: The file is not a result, or was edited since it was written.
        """
        value = read_json(path)
        if not is_result(value):
            raise DataError(f"{path} is not a result ({FORMAT}): make it again with `latentsynth evaluate`")
        read_fields(
            path,
            kind=str,
            title=str,
            facts=dict,
            tables=list,
            pictures=list,
            notes=list,
            command=str,
            splits=list,
            conclusions=list,
        )
        try:
            tables = tuple(
                Table(
                    _text(t["title"]), tuple(map(_text, t["columns"])), tuple(tuple(map(_cell, row)) for row in t["rows"]),
                    _text(t["note"]),
                )
                for t in value["tables"]
            )  # fmt: skip
            pictures = tuple(Picture(**{key: _text(text) for key, text in one.items()}) for one in value["pictures"])
            notes, splits = tuple(map(_text, value["notes"])), tuple(map(_text, value["splits"]))
            conclusions = tuple(map(Conclusion.of, value["conclusions"]))
            result = cls(
                value["kind"],
                value["title"],
                value["facts"],
                tables,
                pictures,
                notes,
                value["command"],
                splits,
                conclusions,
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is a damaged result ({error!r}): make it again") from error
        if value.get("checksum") != checksum(value):
            raise DataError(f"{path} was edited since it was written: restore it, or make it again")
        return result

    def show(self, console: Console) -> None:
        """Prints the split that was measured, tables and notes."""
        from rich.text import Text  # so that brackets in names are not taken for markup

        if self.splits:
            console.print(Text(f"split: {', '.join(self.splits)}", style="bold"))
        for table in self.tables:
            table.show(console)
        for note_ in self.notes:
            console.print(Text(f"- {note_}"))


def open_results(out: Path) -> None:
    """Opens a folder for results, before the work begins; results of several kinds may share it.

    Raises:
        DataError: It holds something else, or results that were changed since.
    """
    outputs.claim(out, "results", alone=False)


def close_results(out: Path, result: Result) -> None:
    """Says that a result stands whole in an opened folder."""
    outputs.finish(out, result.files)


def checksum(value: Mapping[str, Any]) -> str:
    """Of a result as it stands in its file. It has no key: it finds damage and slips, not a forger."""
    text = json.dumps({key: one for key, one in value.items() if key != "checksum"})
    return fingerprint(parse_json(text))


def is_result(value: Any) -> bool:
    """Whether a JSON value is a result of this version."""
    return isinstance(value, dict) and value.get("format") == FORMAT


def text(cell: TableCell) -> str:
    """A cell as people read it: three decimals for small numbers, none for large ones, a dash for what is undefined."""
    if isinstance(cell, Estimate):
        return f"{text(cell.value)} [{text(cell.low)}, {text(cell.high)}]"
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "-"
    if isinstance(cell, float):
        digits = 3 if abs(cell) < 10 else 1 if abs(cell) < 1000 else 0
        return f"{cell:.{digits}f}" if cell == 0 or abs(cell) >= 0.001 else f"{cell:.1e}"
    return str(cell)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table of plain values; floats with six significant digits, what is not a number as an empty field."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for row in rows:
            writer.writerow([csv_cell(_plain(value)) for value in row])


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""


def _finite(value: Any) -> Any:
    """The same value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item"):  # numpy's numbers
        return _finite(value.item())
    return str(value) if isinstance(value, Path) else value


def _cell(value: Any) -> TableCell:
    if isinstance(value, dict):
        return Estimate(*(float(end) for end in astuple(Estimate.of(value))))
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{value!r} is no cell")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def markdown(table: Table) -> list[str]:
    """Lines of a table for a card, and what its numbers are."""
    head = f"| {' | '.join(table.columns)} |"
    return [
        head,
        "|---" * len(table.columns) + "|",
        *(f"| {' | '.join(text(c) for c in row)} |" for row in table.rows),
        "",
        table.note,
    ]
